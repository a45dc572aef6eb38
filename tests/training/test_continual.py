"""New items on a planted shop: what samples are, that new items are learned and old ones stay, and the bits."""

import dataclasses

import numpy as np
import pytest
import torch

from genrec.data.catalog import ItemCatalog, fingerprint
from genrec.data.histories import Histories, concatenate
from genrec.decoding.index import CatalogIndex
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.adapters import LoraSettings, add_lora
from genrec.models.pretrained import extend_rows
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.models.template_prompts import TemplatePrompts
from genrec.prompts.data import Row, TaskData
from genrec.prompts.encode import ExampleEncoder, TokenRows
from genrec.prompts.tasks import load_task
from genrec.seeding import rng
from genrec.testing.text_models import tiny_text_model
from genrec.testing.walks import N_ITEMS, tiny_model, walk_codes, walks
from genrec.training import continual_mix
from genrec.training.alignment import AlignmentCollator, AlignmentLoss
from genrec.training.continual import ContinualSettings, Grown, adapt, drawn_samples
from genrec.training.continual_loss import ContinualCollator, ContinualModule, OldCodes
from genrec.training.continual_mix import KINDS, Events, MixSettings, amounts, item_shares, neighbours, pseudo_histories
from genrec.training.continual_rows import ContinualPlan, MixedRows, SampleRows, item_texts, written_targets
from genrec.training.finetune import finetune
from genrec.training.module import trainable
from genrec.training.progress import snapshot
from genrec.training.settings import TrainSettings
from genrec.vocab.text_vocabulary import extend_vocabulary
from genrec.vocab.token_map import TokenMap
from genrec.vocab.user_index import UserIndex

SHORT = TrainSettings(
    batch_size=32, warmup_steps=2, learning_rate=3e-3, weight_decay=0.0, save_every=2, bf16=False, max_items=5, seed=3
)  # fmt: skip
TWIN_OF = [3, 9, 15, 20]
NEW = np.arange(N_ITEMS, N_ITEMS + 4)


def shop(kind="decoder", **more):
    """The walks with four items more, each with the vector of an old one; the first code of all is one nobody had."""
    data, old = walks(**more), walk_codes().as_int()
    ids = tuple(f"i{n}" for n in range(N_ITEMS + 4))
    catalog = ItemCatalog(ids, {"title": ["red wool scarf", "leather shoes"] * (len(ids) // 2)})
    codes = ItemCodes.from_int(
        np.concatenate([old, [[3, 0, 0], [3, 0, 1], [3, 1, 0], [4, 0, 0]]]), (8, 4, 2), catalog.fingerprint
    )
    angle = 2 * np.pi * np.concatenate([np.arange(N_ITEMS), TWIN_OF]) / N_ITEMS
    grown = Grown(catalog, N_ITEMS, np.stack([np.cos(angle), np.sin(angle)], axis=1))
    return dataclasses.replace(data, codes=codes, valid=None), grown


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model that knows the walks of the old items, by kind."""
    made = {}
    for kind in ("decoder", "t5"):
        data, settings = walks(n_users=60), dataclasses.replace(
            SHORT, max_steps=70, epochs=99, eval_every=0, learning_rate=1e-2, save_every=0
        )  # fmt: skip
        model = finetune(tiny_model(kind, data, dropout=0.0), data, settings, tmp_path_factory.mktemp(kind)).model
        made[kind] = snapshot(dict(model.named_parameters()))
    return made


def loaded(start, kind="decoder"):
    model = tiny_model(kind, walks(), dropout=0.0)
    model.load_state_dict(start[kind], strict=False)
    return model


def scores(model, data, histories, items):
    index = CatalogIndex.build(data.codes)
    asked = GenerativeRecommender(model, data.token_map, data.codes, index, DecodingSettings(loss="level", max_items=5))
    return asked.score(histories, np.asarray(items))


# --- the mix -----------------------------------------------------------------------------------------------------


def test_events_are_those_with_something_before_them_by_item():
    data, _ = shop()
    events = Events.of(data.histories, N_ITEMS + 4)
    for item in range(N_ITEMS + 4):
        expected = [
            start + at
            for start, row in zip(data.histories.offsets[:-1], data.histories.to_lists(), strict=True)
            for at, each in enumerate(row)
            if at and each == item
        ]
        assert events.at[events.first[item] : events.first[item + 1]].tolist() == expected
    some = np.repeat(np.flatnonzero(events.counts_N), 50)
    assert (data.histories.items[events.drawn(some, rng(0))] == some).all()


def test_neighbours_are_the_nearest_that_may_be_borrowed_from(monkeypatch):
    monkeypatch.setattr(continual_mix, "_NEW_AT_ONCE", 4)
    monkeypatch.setattr(continual_mix, "_OLD_AT_ONCE", 3)  # fewer than are wanted
    random = np.random.default_rng(0)
    vectors = random.normal(size=(40, 5))
    vectors[33] = 0
    like = random.random(40) < 0.6
    like[30:] = False
    near, cosine = neighbours(vectors, np.arange(30, 40), like, 4)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    for row, new in enumerate(range(30, 40)):
        found = sorted(((float(unit[new] @ unit[old]), old) for old in np.flatnonzero(like)), reverse=True)[:4]
        if new != 33:
            assert sorted(near[row].tolist()) == sorted(old for _, old in found)
        assert np.sort(cosine[row])[::-1] == pytest.approx([max(c, 0) for c, _ in found], abs=1e-6)


def test_popular_neighbours_count_up_to_a_bound_and_everybody_has_a_part():
    mass = np.array([1.0, 1.0, 10.0, 0.0])
    rule = MixSettings(max_over_mean=1.5, uniform=0.25)  # 1.5 times the mean of three items is a half
    assert item_shares(mass, rule) == pytest.approx([0.75 / 4 + 0.25 / 3] * 2 + [0.75 / 2 + 0.25 / 3, 0.0])
    assert item_shares(np.zeros(3), rule).tolist() == [0, 0, 0]
    random = np.random.default_rng(0)
    for bound in (1.0, 1.3, 3.0, np.inf):
        for n in (1, 2, 7, 300):
            mass = np.concatenate([[0.0], random.pareto(0.4, n) + 1e-3])
            share = item_shares(mass, MixSettings(max_over_mean=bound, uniform=0.0))
            assert share.sum() == pytest.approx(1) and share[0] == 0 and share.max() <= bound / n * (1 + 1e-6)
            free = share[1:] < bound / n * (1 - 1e-6)  # the others stay in proportion
            assert np.ptp(share[1:][free] / mass[1:][free]) < 1e-9 / mass.max() + 1e-9 if free.any() else True


def test_pseudo_histories_are_real_contexts_in_proportion_to_the_cosine():
    data, _ = shop()
    events, random = Events.of(data.histories, N_ITEMS + 4), rng(1)
    near, cosine = np.array([[2, 5, 7], [5, 5, 1]]), np.array([[0.9, 0.3, 0.0], [0.0, 0.0, 0.5]])
    at, row = pseudo_histories(events, near, cosine, MixSettings(uniform=1.0), 30_000, random)
    assert np.bincount(row).tolist() == [15_000, 15_000]
    items = data.histories.items[at]
    assert set(items[row == 1]) == {1} and set(items[row == 0]) == {2, 5}
    n2, n5 = events.counts_N[2], events.counts_N[5]
    assert (items[row == 0] == 2).mean() == pytest.approx(0.9 * n2 / (0.9 * n2 + 0.3 * n5), abs=0.02)
    of_two = np.bincount(at[(row == 0) & (items == 2)], minlength=len(data.histories.items))
    assert of_two[events.at[events.first[2] : events.first[3]]].min() > 0  # each of its contexts


def test_amounts_by_largest_remainder_and_what_is_not_there_goes_to_the_others():
    mix, there = MixSettings(), dict.fromkeys(KINDS, True)
    assert amounts(mix, there, 10) == {"pseudo": 2, "log": 2, "replay": 4, "written": 0, "text": 2}
    assert amounts(mix, {**there, "log": False, "text": False}, 10) == {
        "pseudo": 3, "log": 0, "replay": 7, "written": 0, "text": 0,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="nothing is left"):
        amounts(MixSettings(replay=0), {**dict.fromkeys(KINDS, False), "replay": True}, 10)


@pytest.mark.parametrize(
    "change", [{"replay": -1.0}, {"n_neighbours": 0}, {"max_over_mean": 0.5}, {"uniform": 1.1}, {"replay_by": "user"}]
)
def test_values_out_of_range_are_named(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        MixSettings(**change)


def test_samples_are_what_their_kind_says(start):
    data, grown = shop()
    log = Histories.from_lists([[1, 2, N_ITEMS], [N_ITEMS + 1, 5, N_ITEMS + 2, 6]])
    n_trained, n_events = len(data.histories), len(data.histories.items)
    data = dataclasses.replace(data, histories=concatenate([data.histories, log]), user_ids=None)
    retired = np.zeros(N_ITEMS + 4, np.bool_)
    retired[[7, N_ITEMS + 3]] = True
    grown = dataclasses.replace(
        grown, catalog=dataclasses.replace(grown.catalog, retired=retired), n_histories=n_trained
    )
    settings = ContinualSettings(steps=20, mix=MixSettings(written=1.0))
    model = loaded(start)
    learned = drawn_samples(model, data, grown, settings, SHORT)
    of = {name: learned.kind == n for n, name in enumerate(KINDS)}
    assert {name: int(mask.sum()) for name, mask in of.items()} == amounts(
        settings.mix, {**dict.fromkeys(KINDS, True), "text": False}, 640
    )
    there, items = learned.events, data.histories.items
    assert set(learned.targets[of["pseudo"]]) == set(NEW[:3].tolist())  # the last one is retired
    assert set(items[there[of["pseudo"]]]) <= set(range(N_ITEMS))
    assert set(items[there[of["log"]]]) == {N_ITEMS, N_ITEMS + 2}  # nothing stands before the other new one
    for name in ("pseudo", "replay", "written"):  # of a log new items alone are learned
        assert there[of[name]].max() < n_events
    for name in ("log", "replay"):
        assert (items[there[of[name]]] == learned.targets[of[name]]).all()
    assert set(learned.targets[of["replay"]]) == set(range(N_ITEMS)) - {7}
    contexts = SampleRows(model, data, None, 5).contexts(there[of["written"]]).to_lists()
    for item, context in zip(learned.targets[of["written"]], contexts, strict=True):
        assert item < N_ITEMS and item != 7 and item not in context
    again = drawn_samples(model, data, grown, settings, SHORT)
    assert (again.events == there).all() and (again.targets == learned.targets).all()


def test_equal_contexts_are_answered_by_different_draws():
    """Or what the model writes behind a context is one item, as often as the context comes."""
    data, grown = shop()
    events = np.repeat(Events.of(data.histories, N_ITEMS + 4).at[:1], 30)
    model = tiny_model("decoder", data, dropout=0.0)  # knows nothing: any item may come
    drawn = written_targets(model, data, events, np.zeros(30, np.int64), grown.old_N, SHORT, None)
    assert len(set(drawn.tolist())) > 5


def test_users_with_codes_are_told_as_seldom_as_in_training_and_never_before_a_new_item_in_their_place():
    data, grown = shop()
    ids = data.user_ids
    users = UserIndex(tuple(ids), ItemCodes.from_int(np.arange(len(ids))[:, None] % 3, (3,), fingerprint(ids)))
    token_map = TokenMap.of(data.codes, user_levels=users.level_sizes)
    data = dataclasses.replace(data, token_map=token_map, user_index=users)
    model = tiny_model("decoder", data)
    learned = drawn_samples(model, data, grown, ContinualSettings(steps=20), SHORT)
    pseudo = learned.kind == KINDS.index("pseudo")
    assert not learned.told[pseudo].any() and 0.85 < learned.told[~pseudo].mean() < 0.95
    rows = SampleRows(model, data, None, 5)(learned.events, learned.targets, learned.told)
    of_user = data.users_UM[np.where(learned.told, data.histories.rows()[learned.events], -1)]
    start = rows.offsets[:-1] + int(token_map.bos_id is not None)
    assert (rows.ids[start] == of_user[:, 0]).all() and len(set(of_user[:, 0])) == 4


def test_new_items_without_texts_are_learned_from_the_other_kinds(worded):
    model, data, grown, prompts = worded
    titles = [title if n < N_ITEMS else None for n, title in enumerate(grown.catalog.text("title"))]
    bare = dataclasses.replace(grown, catalog=ItemCatalog(grown.catalog.ids, {"title": titles}))
    for each, there in ((grown, True), (bare, False)):
        learned = drawn_samples(model, data, each, ContinualSettings(steps=2), SHORT, prompts)
        assert (learned.kind == KINDS.index("text")).any() == there and len(learned) == 64


# --- rows and batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_a_sample_costs_what_the_model_says_of_its_item(start, kind):
    """The loss of a row is minus the log-probability that the recommender gives the item after the context."""
    data, _ = shop(kind)
    model = loaded(start, kind)
    events = Events.of(data.histories, N_ITEMS + 4).at[::7]
    targets = np.arange(len(events)) % (N_ITEMS + 4)
    rows = SampleRows(model, data, None, 5)
    collator = AlignmentCollator(data.codes, data.token_map, rows.layout, 0)
    module = ContinualModule(model, AlignmentLoss(data.token_map, "level"))
    found = [
        module(**collator(rows(events[n : n + 1], targets[n : n + 1])), scale=1.0).item() for n in range(len(events))
    ]
    expected = -scores(model, data, rows.contexts(events, 5), targets[:, None])[:, 0]
    assert found == pytest.approx(expected, abs=1e-4)
    whole = module(**collator(rows(events, targets)), scale=1.0).item()
    assert whole == pytest.approx(sum(found), rel=1e-5)


@pytest.fixture(scope="module")
def worded():
    """A language model with adapters that is asked with words."""
    data, grown = shop()
    model, words = tiny_text_model("qwen3")
    vocabulary = extend_vocabulary(words, data.codes)
    extend_rows(model, vocabulary)
    model = add_lora(model, vocabulary.token_map, LoraSettings(r=2, dropout=0.0))
    encoder = ExampleEncoder(vocabulary, data.codes, layout="decoder", max_tokens=256)
    prompts = TemplatePrompts(load_task("sequential").template, encoder)
    return model, dataclasses.replace(data, token_map=vocabulary.token_map), grown, prompts


def test_rows_with_words_are_those_of_the_training_on_tasks(worded):
    model, data, _, prompts = worded
    task, source = load_task("sequential"), TaskData(worded[2].catalog, data.histories, max_items=5)
    events = Events.of(data.histories, N_ITEMS + 4).at[:40]
    rows = SampleRows(model, data, prompts, 5)
    found = rows(events, data.histories.items[events].astype(np.int64))
    contexts = rows.contexts(events, 5).to_lists()
    encoded = []
    for at, context in zip(events, contexts, strict=True):
        row = Row(tuple(context), item=int(data.histories.items[at]), user=0)
        inputs = task.draw(source, row, rng(0))
        encoded.append(prompts.encoder(task.template.render(inputs, 0, max_text=400)))
    expected = TokenRows.of(encoded)
    for name in ("ids", "items", "levels", "offsets", "starts"):
        assert (getattr(found, name) == getattr(expected, name)).all(), name


def test_batches_hold_every_sample_once_and_texts_are_of_new_items(worded):
    model, data, grown, prompts = worded
    settings = ContinualSettings(steps=40)
    train = dataclasses.replace(SHORT, batch_size=8)
    learned = drawn_samples(model, data, grown, settings, train, prompts)
    texts = item_texts(prompts, grown.catalog, grown.new_N, int((learned.kind == KINDS.index("text")).sum()), seed=0)
    rows = SampleRows(model, data, prompts, 5)
    plan, again = (ContinualPlan(learned, rows, texts, train, 40) for _ in range(2))
    batches = [plan.batch(step) for step in range(40)]
    assert [len(each) for each in batches] == [8] * 40 and 0 <= plan.padding_share() < 1
    late = again.batch(37)  # a resumed run begins in the second window
    assert (late.rows.ids == batches[37].rows.ids).all() and (late.old == batches[37].old).all()
    old, new = 0, []
    for each in batches:
        for n, is_old in enumerate(each.old):
            row = each.rows.take([n])
            target = row.items[row.starts[0] :]
            old += bool(is_old)
            assert not is_old or target.max() < N_ITEMS
            if not is_old:
                new.append(target.max() >= N_ITEMS)
    assert old == int(np.isin(learned.kind, [2, 3]).sum()) and all(new) and len(new) == len(learned) - old
    kinds = np.bincount(learned.kind, minlength=5)
    assert kinds[KINDS.index("text")] > 0
    # no kind has more of the loss, which is a mean over target tokens, than its part of the samples
    assert len({int(n) for each in batches for n in each.rows.offsets[1:] - each.rows.starts}) == 1


# --- what is learned -------------------------------------------------------------------------------------------------


def ranks(model, data, pairs):
    """Mean rank of the target among all items, and the share at rank 1 or 2."""
    found = scores(model, data, [context for context, _ in pairs], np.arange(N_ITEMS + 4))
    target = np.array([item for _, item in pairs])
    rank = (found > found[np.arange(len(pairs)), target][:, None]).sum(axis=1)
    return rank.mean(), (rank < 2).mean()


@pytest.mark.parametrize("kind", ["decoder", pytest.param("t5", marks=pytest.mark.slow)])
def test_new_items_are_learned_from_histories_of_their_like_and_old_ones_stay(start, kind, tmp_path):
    """Who walked to an item may want its twin: afterwards both are among the two best. Without replay old ones fall."""
    data, grown = shop(kind, n_users=60)
    walk = [([(n - 3) % N_ITEMS, (n - 2) % N_ITEMS, (n - 1) % N_ITEMS], n) for n in range(N_ITEMS)]
    to_new = [(walk[old][0], new) for old, new in zip(TWIN_OF, NEW, strict=True)]

    def after(name, mix, steps=70 if kind == "decoder" else 150):  # a T5 is slower to learn
        model = loaded(start, kind)
        settings = ContinualSettings(steps=steps, mix=mix)
        adapt(model, data, grown, settings, dataclasses.replace(SHORT, learning_rate=6e-3), tmp_path / name)
        return ranks(model, data, to_new), ranks(model, data, walk)

    before_new, before_old = after("nothing", MixSettings(), steps=0)
    assert before_old[1] > 0.9 and before_new[1] == 0
    both = after("both", MixSettings(n_neighbours=1))
    assert both[0][1] == 1 and both[1][1] > 0.9
    alone = after("alone", MixSettings(n_neighbours=1, replay=0))
    assert alone[0][1] == 1 and alone[1][0] > both[1][0] + 1


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_no_step_and_no_new_item_change_no_bit(start, kind, tmp_path):
    data, grown = shop(kind)
    for n, (settings, each) in enumerate(
        [(ContinualSettings(steps=0), grown), (ContinualSettings(), dataclasses.replace(grown, n_old=N_ITEMS + 4))]
    ):
        model = loaded(start, kind)
        config = model.config.to_dict()
        result = adapt(model, data, each, settings, SHORT, tmp_path / str(n))
        assert model.config.to_dict() == config
        assert result.complete and result.steps == 0 and not (tmp_path / str(n)).exists()
        assert all(torch.equal(weight, start[kind][name]) for name, weight in model.named_parameters())


def test_a_stopped_training_goes_on_with_the_same_bits(start, tmp_path):
    data, grown = shop()
    settings = ContinualSettings(steps=5, mix=MixSettings(written=1.0), distil_weight=0.5)
    train = dataclasses.replace(SHORT, sam_rho=0.05)
    whole = snapshot(trainable(adapt(loaded(start), data, grown, settings, train, tmp_path / "whole").model))
    limited = dataclasses.replace(train, max_seconds=1e-6)
    assert not adapt(loaded(start), data, grown, settings, limited, tmp_path / "parts").complete
    again = adapt(loaded(start), data, grown, settings, train, tmp_path / "parts")
    assert again.complete and all(torch.equal(w, whole[n]) for n, w in trainable(again.model).items())
    with pytest.raises(ConfigError, match="start"):
        other = loaded(start)
        other.load_state_dict(tiny_model("decoder", walks(), seed=1).state_dict())
        adapt(other, data, grown, settings, train, tmp_path / "parts")


def test_adapters_learn_words_and_items_and_the_rest_is_frozen(worded, tmp_path):
    model, data, grown, prompts = worded
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train = dataclasses.replace(SHORT, softmax="vocab", batch_size=8)
    settings = ContinualSettings(steps=3, distil_weight=1.0)
    result = adapt(model, data, grown, settings, train, tmp_path, prompts=prompts)
    changed = {n for n, weight in model.named_parameters() if not torch.equal(weight, before[n])}
    assert changed and changed <= set(trainable(model)) and result.steps == 3
    assert any("trainable_tokens" in name for name in changed) and any("lora" in name for name in changed)


# --- the distance to the model before --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_the_distance_is_that_of_the_codes_of_old_items(start, kind):
    """Against a loop over prefixes: softmax over the next codes that lead to an old item."""
    data, _ = shop(kind)
    model = loaded(start, kind)
    rows = SampleRows(model, data, None, 5)
    events = Events.of(data.histories, N_ITEMS + 4).at[:6]
    targets = data.histories.items[events].astype(np.int64)
    old = data.codes.take(np.arange(N_ITEMS))
    collator = ContinualCollator(AlignmentCollator(data.codes, data.token_map, rows.layout, 0))
    collator.of_old = AlignmentCollator(old, data.token_map, rows.layout, 0)
    module = ContinualModule(model, AlignmentLoss(data.token_map, "level"))
    module.keep(OldCodes(data.token_map, "children", codes=old), 0.7)
    batch = collator(MixedRows(rows(events, targets), np.ones(len(events), np.bool_)))
    plain = {name: value for name, value in batch.items() if name != "distil"}
    assert module(**batch, scale=1.0).item() == pytest.approx(module(**plain, scale=1.0).item(), rel=1e-5)

    def by_hand(table):
        """For each sample and level: log-probabilities of the codes of old items behind the prefix."""
        found = []
        for at, target in zip(events, targets, strict=True):
            context, codes = rows.contexts(np.array([at]), 5), old.as_int()
            for level in range(3):
                below = (codes[:, :level] == codes[target, :level]).all(axis=1)
                options = [int(c) for c in np.unique(codes[below, level])]
                # an item below each option; what stands before the level is the same for all of them
                items = [int(np.flatnonzero(below & (codes[:, level] == c))[0]) for c in options]
                found.append(torch.log_softmax(torch.tensor([table(context, i, level) for i in items]), 0))
        return found

    def logp(context, item, level):
        whole = Histories.from_lists([[*context.items.tolist(), item]])
        alone = SampleRows(model, dataclasses.replace(data, histories=whole, user_ids=None), None, 5)
        made = AlignmentCollator(data.codes, data.token_map, rows.layout, 0)(
            alone(np.array([len(context.items)]), np.array([item]))
        )
        inputs = {n: v for n, v in made.items() if n in ("input_ids", "attention_mask", "decoder_input_ids")}
        with torch.no_grad():
            logits = model(**inputs).logits.flatten(0, 1)[made["positions"][level]]
        return float(torch.log_softmax(logits, 0)[data.token_map.token_ids(data.codes.as_int()[item])[level]])

    before = by_hand(logp)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.3)
    now = by_hand(logp)
    expected = sum(float((b.exp() * (b - n)).sum()) for b, n in zip(before, now, strict=True))
    found = module(**batch, scale=2.0).item() - module(**plain, scale=2.0).item()
    assert expected > 0.1 and found == pytest.approx(2.0 * 0.7 * expected, rel=1e-3)


def test_what_has_no_effect_or_does_not_fit_is_refused(start, tmp_path):
    data, grown = shop()
    for name, value in (("epochs", 3), ("max_steps", 9), ("patience", 2), ("packing", True), ("prefix_drop", 0.1)):
        with pytest.raises(ConfigError, match=f"{name}: no effect"):
            train = dataclasses.replace(SHORT, **{name: value})
            adapt(loaded(start), data, grown, ContinualSettings(), train, tmp_path)
    for change in ({"n_old": 0}, {"vectors": np.zeros((3, 2))}):
        with pytest.raises(DataError, match=next(iter(change))):
            dataclasses.replace(grown, **change)
    for change in ({"steps": -1}, {"distil_weight": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            ContinualSettings(**change)
