"""Preferences end to end on tiny models: lists, what is learnt, alarms, and the bits of a resumed run."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from genrec.data.histories import Histories
from genrec.decoding.filters import ItemFilter
from genrec.errors import ConfigError, DataError
from genrec.models.adapters import LoraSettings, add_lora
from genrec.models.pretrained import extend_rows
from genrec.testing.text_models import tiny_text_model
from genrec.testing.walks import N_ITEMS, tiny_model, walk_codes, walks
from genrec.training.module import trainable
from genrec.training.preference import PreferenceModule, prefer, with_targets
from genrec.training.preference_figures import DegenerateRun, Watch, _asked
from genrec.training.preference_lists import ListMaker, QueryPlan, queries_of, query_samples
from genrec.training.preference_settings import Alarms, DpoSettings, GrpoSettings
from genrec.training.progress import snapshot
from genrec.training.settings import TrainSettings
from genrec.vocab.text_vocabulary import extend_vocabulary

SHORT = TrainSettings(
    epochs=50, max_steps=6, batch_size=16, warmup_steps=1, learning_rate=1e-3, weight_decay=0.0, schedule="constant",
    eval_every=3, eval_unit="steps", eval_users=20, eval_beams=10, save_every=2, bf16=False, ema_decay=None,
)  # fmt: skip
QUIET = Alarms(min_valid=0, min_coverage=0, min_reward=0, max_kl=None)
DPO, GRPO = DpoSettings(n_negatives=3), GrpoSettings(n_rollouts=5)


def run(kind, folder, method, settings=SHORT, alarms=QUIET, **more):
    data = walks()
    return prefer(tiny_model(kind, data), data, method, settings, folder, alarms=alarms, **more)


def all_queries(data, max_items=4, allowed=None):
    samples = query_samples(data.histories, max_items, allowed)
    return queries_of(data.histories, samples, np.arange(len(samples)))


def test_queries_are_the_items_that_a_list_could_hold():
    data = walks()
    allowed = np.arange(N_ITEMS) % 3 > 0
    asked = all_queries(data, allowed=allowed)
    expected = [
        (row[max(0, at - 4) : at], row[at], [item for item in row if item != row[at]], user)
        for user, row in enumerate(data.histories.to_lists())
        for at in range(1, len(row))
        if row[at] not in row[:at] and allowed[row[at]]
    ]
    found = zip(asked.histories.to_lists(), asked.targets, asked.known.to_lists(), asked.rows, strict=True)
    assert sorted(map(str, expected)) == sorted(str((h, int(t), k, int(u))) for h, t, k, u in found)
    with pytest.raises(DataError, match="got none"):
        query_samples(data.histories, 4, np.zeros(N_ITEMS, dtype=bool))


def test_the_reward_is_measured_on_events_that_may_say_whose_they_are():
    data = walks()
    samples = query_samples(data.histories, 4)
    told_E = np.arange(len(data.histories.items)) % 3 == 0
    everything, told, none = (_asked(samples, each) for each in (None, told_E, np.zeros_like(told_E)))
    assert len(everything) == len(none) == len(samples)
    assert told.targets.items.tolist() == [int(data.histories.items[e - 1]) for e in samples.ends if told_E[e - 1]]


def test_a_plan_repeats_its_queries_for_updates_and_is_a_function_of_the_step():
    data = walks()
    samples = query_samples(data.histories, 4)
    plan, again = (QueryPlan(samples, data, SHORT, 2) for _ in range(2))
    for step in (0, 3, 2, plan.steps_per_epoch + 1):
        one, other = plan.batch(step), again.batch(step)
        assert one.fresh == (step % 2 == 0) and (one.targets == other.targets).all()
        assert (one.seeds == other.seeds).all() and (one.targets == plan.batch(step // 2 * 2).targets).all()
    assert not set(plan.batch(0).seeds) & set(plan.batch(2).seeds)


@pytest.mark.parametrize("limited", [False, True])
def test_ties_are_drawn_anew_where_all_queries_can_still_be_asked(limited):
    rows = [[0, 1, 2, 1, 3], [4, 5, 6, 7], [8, 9, 8, 10, 11]]
    histories = Histories.from_lists(rows)
    tied = np.zeros(len(histories.items), np.bool_)
    tied[[3, 4, 7, 8, 12, 13]] = True  # in any order: 2 1 3, 6 7 with the 5, 10 11 with the second 8
    data = dataclasses.replace(walks(), histories=histories, user_ids=None, tied=tied, valid=None)
    allowed = np.arange(N_ITEMS) != 7 if limited else None
    samples = query_samples(histories, 4, allowed)
    plan = QueryPlan(samples, data, dataclasses.replace(SHORT, batch_size=4), 1, allowed)
    orders = set()
    for step in range(20 * plan.steps_per_epoch):
        for history, target, row in zip(*(lambda q: (q.histories, q.targets, q.rows))(plan.batch(step)), strict=True):
            whole = rows[row]
            assert target in whole and target not in history and (not limited or target != 7)
            orders.add((int(row), tuple(history.tolist()), int(target)))
    assert len({order for order in orders if order[0] == 1}) > 2  # more than the one order of the data has


@pytest.mark.parametrize("kind", ["decoder", "t5"])
@pytest.mark.parametrize("how", ["negatives", "beam", "sample"])
@pytest.mark.parametrize("shared", [False, True])
def test_lists_hold_valid_new_and_allowed_items_only(kind, how, shared):
    data = walks()
    if shared:  # four items for every identifier
        data = dataclasses.replace(data, codes=walk_codes().take(np.arange(N_ITEMS) // 4 * 4))
    allowed = np.arange(N_ITEMS) % 5 > 0
    asked = all_queries(data, allowed=allowed)
    lists = ListMaker(tiny_model(kind, data), data, "level", allowed=ItemFilter.of_mask(allowed))
    prompts = lists.prompts(asked)
    if how == "sample":
        found = lists.drawn(asked, prompts, 6, with_target=False)
    else:
        found = lists.best(asked, prompts, 6, with_target=how == "beam")
    assert found.shape == (len(asked), 6) and (found >= 0).any(axis=1).mean() > 0.5
    n_targets = 0
    for row, target, known in zip(found.tolist(), asked.targets.tolist(), asked.known.to_lists(), strict=True):
        kept = [item for item in row if item >= 0]
        assert row == kept + [-1] * (6 - len(kept))
        assert not set(kept) & set(known) and all(allowed[item] for item in kept)
        names = [int(lists.identifiers_N[item]) for item in kept]
        assert len(set(names)) == len(names)
        if how != "beam":
            assert int(lists.identifiers_N[target]) not in names
        n_targets += target in kept
    assert (n_targets > 0) == (how == "beam")


def test_lists_get_their_target_in_the_last_place():
    items = np.array([[4, 5, 6], [4, -1, -1], [7, 8, 9]])
    assert with_targets(items, np.array([9, 9, 9])).tolist() == [[4, 5, 9], [4, 9, -1], [7, 8, 9]]
    assert items[0, 2] == 6


@pytest.mark.parametrize("kind", ["decoder", "t5"])
@pytest.mark.parametrize("method", [DPO, DpoSettings(n_negatives=3, negatives="beam", made_by="policy")])
def test_the_first_loss_of_dpo_is_the_logarithm_of_the_number_of_items(kind, method):
    data = walks(max_length=3)
    module = PreferenceModule(tiny_model(kind, data), data, method, SHORT).train()
    asked = all_queries(data)
    loss = module(queries=asked, scale=1 / len(asked))
    assert loss.item() == pytest.approx(math.log(4), abs=1e-5)
    loss.backward()
    assert module.training and all(weight.grad is not None for weight in trainable(module).values())


def test_the_reference_stays_what_it_was():
    data = walks()
    model = tiny_model("decoder", data)
    module = PreferenceModule(model, data, DPO, SHORT)
    asked = all_queries(data)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        first = module.log_probs(model, module.lists.prompts(asked), asked.targets[:, None])
        for weight in model.parameters():
            weight.add_(0.1)
        changed = {name: weight.clone() for name, weight in model.named_parameters()}
        with module.reference():
            assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
            again = module.log_probs(model, module.lists.prompts(asked), asked.targets[:, None])
    assert torch.equal(first, again)
    assert all(torch.equal(weight, changed[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_bfloat16_tells_policy_and_reference_apart(kind):
    """Autocast keeps converted weights: those of the reference must not answer for the policy."""
    data = walks()
    model = tiny_model(kind, data)
    module = PreferenceModule(model, data, DPO, SHORT)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_({"decoder": 4.0, "t5": 1.3}[kind])
    asked = all_queries(data)
    with torch.no_grad():
        exact = module(queries=asked, scale=1 / len(asked)).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(queries=asked, scale=1 / len(asked))
    loss.backward()
    assert abs(exact - math.log(4)) > 0.05 and loss.item() == pytest.approx(exact, abs=0.02)
    assert all(weight.grad is not None for weight in trainable(module).values())


LEARN = dataclasses.replace(SHORT, max_steps=30, batch_size=64, learning_rate=5e-3, eval_every=15, save_every=0)


@pytest.mark.parametrize(
    "method",
    [
        DpoSettings(n_negatives=4),
        pytest.param(GrpoSettings(n_rollouts=12, kl_weight=0.0), marks=pytest.mark.slow),
        GrpoSettings(n_rollouts=12, rollouts="sample", add_target=True, n_updates=2, sft_weight=0.1),
    ],
    ids=["dpo", "grpo", "grpo-sampled"],
)
def test_the_planted_preference_is_learnt_and_costs_distance(method, tmp_path):
    """The next item of every walk is preferred: a model that knows nothing finds it more and more often."""
    result = run("decoder", tmp_path, method, LEARN)
    first, last = result.training.log[0], result.training.log[-1]
    assert result.start["kl"] == 0.0 and 0 < first["kl"] < last["kl"]
    assert last["ndcg@10"] > result.start["ndcg@10"] + 0.15
    assert last["train_recall@10"] > result.start["train_recall@10"] + 0.15
    assert 0 < last["coverage@10"] <= 1 and 0 < last["valid_mass"] <= 1 + 1e-5


@pytest.mark.slow
def test_a_stronger_pull_stays_nearer_and_no_learning_rate_changes_nothing(tmp_path):
    def distance(name, method, **changes):
        return run("decoder", tmp_path / name, method, dataclasses.replace(SHORT, max_steps=12, **changes))

    loose, tight = (distance(f"kl{w}", dataclasses.replace(GRPO, kl_weight=w)) for w in (0.0, 50.0))
    assert tight.training.log[-1]["kl"] < 0.5 * loose.training.log[-1]["kl"]
    still = distance("still", DPO, learning_rate=1e-30)
    fresh = tiny_model("decoder", walks())
    for name, weight in still.training.model.named_parameters():
        assert torch.equal(weight, dict(fresh.named_parameters())[name])
    last = still.training.log[-1]
    assert last["loss"] == pytest.approx(math.log(4), abs=1e-5)
    assert {name: last[name] for name in still.start} == still.start


AGAIN = {
    "dpo": dataclasses.replace(DPO, made_by="policy", sft_weight=0.1),
    "grpo": GrpoSettings(n_rollouts=4, rollouts="sample", n_updates=3, sft_weight=0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("decoder", "dpo"),
        ("t5", "grpo"),
        pytest.param("t5", "dpo", marks=pytest.mark.slow),
        pytest.param("decoder", "grpo", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(kind, method, tmp_path):
    settings = dataclasses.replace(SHORT, max_steps=5, eval_every=2)
    whole = run(kind, tmp_path / "whole", AGAIN[method], settings)
    limited = dataclasses.replace(settings, max_seconds=1e-6)
    steps = [run(kind, tmp_path / "parts", AGAIN[method], limited).training.steps for _ in range(4)]
    assert steps == [1, 2, 3, 4]  # a new process at every step, also between the updates of one list
    again = run(kind, tmp_path / "parts", AGAIN[method], settings)
    one, two = (snapshot(trainable(each.training.model)) for each in (whole, again))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)

    def told(result):
        return [{k: v for k, v in entry.items() if "second" not in k} for entry in result.training.log]

    assert told(whole) == told(again) and whole.start == again.start


def test_a_run_is_gone_on_from_with_the_same_reference_only(tmp_path):
    run("decoder", tmp_path, DPO, dataclasses.replace(SHORT, max_seconds=1e-6))
    data = walks()
    with pytest.raises(ConfigError, match="reference"):
        prefer(tiny_model("decoder", data, seed=1), data, DPO, SHORT, tmp_path, alarms=QUIET)
    with pytest.raises(ConfigError, match="method"):
        run("decoder", tmp_path, dataclasses.replace(DPO, beta=0.5))


@pytest.mark.parametrize("kind", ["qwen3", "t5"])
def test_adapters_learn_preferences_and_keep_only_their_own_reference(kind, tmp_path):
    data = walks()
    model, words = tiny_text_model(kind)
    vocabulary = extend_vocabulary(words, data.codes)
    data = dataclasses.replace(data, token_map=vocabulary.token_map)
    extend_rows(model, vocabulary)
    model = add_lora(model, vocabulary.token_map, LoraSettings(r=2))
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    settings = dataclasses.replace(SHORT, learning_rate=1e-2)
    result = prefer(model, data, DPO, settings, tmp_path, alarms=QUIET)
    assert all(torch.equal(weight, frozen[n]) for n, weight in model.named_parameters() if n in frozen)
    assert result.training.log[-1]["loss"] < math.log(4) and result.training.log[-1]["kl"] > 0
    module = PreferenceModule(model, data, DPO, settings)
    kept = sum(weight.numel() for weight in module.reference.start.values())
    assert (
        kept
        == sum(weight.numel() for weight in trainable(model).values())
        < 0.5 * sum(weight.numel() for weight in model.parameters())
    )


def test_every_alarm_rings_beyond_its_bound_alone():
    """A model that knows nothing, measured against one that was perfect."""
    data, settings = walks(), dataclasses.replace(SHORT, softmax="vocab")
    model = tiny_model("decoder", data)
    module = PreferenceModule(model, data, DPO, settings)
    samples = query_samples(data.histories, settings.max_items)

    def watch(**bounds):
        found = Watch(module, samples, settings, dataclasses.replace(QUIET, **bounds))
        found.start = {"valid_mass": 1.0, "coverage@10": 1.0, "train_recall@10": 1.0}
        return found

    assert watch()(model)["kl"] == 0.0
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    figures = watch()(model)
    for name, key, what in (
        ("max_kl", "kl", "distance"),
        ("min_valid", "valid_mass", "validity"),
        ("min_coverage", "coverage@10", "diversity"),
        ("min_reward", "train_recall@10", "reward"),
    ):
        value, wrong = figures[key], 0.9 if name == "max_kl" else 1.1
        assert 0 < value < 0.9
        with pytest.raises(DegenerateRun, match=f"{what}: {key} .*expected") as caught:
            watch(**{name: value * wrong})(model)
        assert "learning_rate" in caught.value.hint
        watch(**{name: value / wrong})(model)


def test_an_alarm_ends_the_run(tmp_path):
    with pytest.raises(DegenerateRun, match="distance"):
        run("decoder", tmp_path, DPO, alarms=Alarms(max_kl=1e-9))


def test_rewards_that_no_list_gets_are_refused_at_the_first_validation(tmp_path, monkeypatch):
    from genrec.training import preference_figures

    monkeypatch.setattr(
        preference_figures.Watch,
        "_measured",
        lambda self, model: {"recall@10": 0.1, "ndcg@10": 0.1, "train_recall@10": 0.0},
    )
    with pytest.raises(DegenerateRun, match="teach nothing"):
        run("decoder", tmp_path, GRPO)


def test_settings_without_effect_are_refused(tmp_path, monkeypatch):
    for name, value in (("prefix_drop", 0.1), ("label_smoothing", 0.1), ("packing", True), ("accumulation_steps", 2)):
        method = dataclasses.replace(GRPO, n_updates=2)
        with pytest.raises(ConfigError, match=name):
            run("decoder", tmp_path, method, dataclasses.replace(SHORT, **{name: value}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="n_updates"):
        run("decoder", tmp_path, dataclasses.replace(GRPO, n_updates=2))


def test_a_step_in_parts_is_the_step(tmp_path):
    losses = [
        [entry["loss"] for entry in run("decoder", tmp_path / str(n), GRPO, dataclasses.replace(
            SHORT, max_steps=2, eval_every=1, accumulation_steps=n
        )).training.log]
        for n in (1, 3)
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0][0] != losses[0][1]
