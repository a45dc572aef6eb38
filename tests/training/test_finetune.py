import dataclasses
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from genrec import artifacts
from genrec.errors import ConfigError, FingerprintMismatch, MissingExtra
from genrec.testing.walks import tiny_model, walks
from genrec.training import callbacks, checkpoints
from genrec.training.collate import Collator
from genrec.training.dataset import Plan, window_samples
from genrec.training.finetune import _compare_processes, finetune
from genrec.training.module import trainable
from genrec.training.progress import TrainState, snapshot
from genrec.training.settings import TrainSettings
from genrec.training.trainer import TrainingDiverged
from genrec.training.validation import validator

SHORT = TrainSettings(
    epochs=3,
    batch_size=8,
    warmup_steps=3,
    learning_rate=5e-3,
    prefix_drop=0.4,
    ema_decay=0.9,
    eval_every=4,
    eval_unit="steps",
    save_every=0,
    bf16=False,  # models this small are slower in it
)


def constant(_model):
    return {"recall@10": 0.5, "ndcg@10": 0.5}


def run(kind, folder, settings=SHORT, evaluate=constant, tied=False, **more):
    data = walks(tied=tied)
    return finetune(tiny_model(kind, data), data, settings, folder, evaluate=evaluate, **more)


def weights(result):
    return snapshot(trainable(result.model))


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


class StopAfter:
    """An evaluation that raises as if the process died, after some calls."""

    def __init__(self, n_calls):
        self.n_calls = n_calls

    def __call__(self, model):
        self.n_calls -= 1
        if self.n_calls < 0:
            raise InterruptedError
        # a validation that uses the global random streams must not disturb the training
        torch.rand(3)
        weight = next(iter(trainable(model).values()))
        return {"recall@10": float(weight.detach().abs().mean())}


@pytest.mark.parametrize("kind", ["decoder", "t5"])
@pytest.mark.parametrize(("ema", "tied"), [(None, False), (0.9, True)])
def test_resumed_training_has_the_bits_of_an_uninterrupted_one(kind, ema, tied, tmp_path):
    """Stopped in the middle of epochs, with dropout, dropped prefixes, ties, validation and averaging on."""
    settings = dataclasses.replace(SHORT, epochs=9, ema_decay=ema, save_every=5, max_steps=23)
    whole = run(kind, tmp_path / "whole", settings, StopAfter(99), tied)
    for n_calls in (2, 2):  # dies in the validations of step 12 (goes on from 10), then of step 20
        with pytest.raises(InterruptedError):
            run(kind, tmp_path / "parts", settings, StopAfter(n_calls), tied)
    again = run(kind, tmp_path / "parts", settings, StopAfter(99), tied)
    assert_same(weights(whole), weights(again))
    assert (again.steps, again.best, again.best_step) == (whole.steps, whole.best, whole.best_step)
    for one, other in zip(whole.log, again.log, strict=True):
        assert {k: v for k, v in one.items() if "second" not in k} == {
            k: v for k, v in other.items() if "second" not in k
        }


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_a_step_in_parts_is_the_step_and_layers_computed_twice_change_no_bit(kind, tmp_path):
    settings = dataclasses.replace(SHORT, eval_every=1, max_steps=3, ema_decay=None, batch_size=11)
    data, calls = walks(), []

    def losses(**changes):
        model = tiny_model(kind, data, dropout=changes.pop("dropout", 0.0))
        model.get_decoder().register_forward_hook(lambda *_: calls.append(1))
        rule = dataclasses.replace(settings, **changes)
        result = finetune(model, data, rule, tmp_path / str(len(list(tmp_path.iterdir()))), evaluate=constant)
        return [entry["loss"] for entry in result.log], weights(result)

    whole, parts = losses(), losses(accumulation_steps=4)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5) and len(calls) >= 9  # 3, and up to 3 x 4 more
    for name, value in whole[1].items():
        torch.testing.assert_close(parts[1][name], value, rtol=1e-3, atol=1e-4, msg=name)
    kept, again = losses(dropout=0.3), losses(dropout=0.3, gradient_checkpointing=True)
    assert kept[0] == again[0] and kept[0] != whole[0]
    assert_same(kept[1], again[1])


def test_gradient_checkpointing_computes_layers_again_and_only_in_training(tmp_path):
    data, calls = walks(), []
    model = tiny_model("decoder", data)
    hook = model.model.layers[0].self_attn.register_forward_hook(lambda module, *_: calls.append(module.training))
    settings = dataclasses.replace(SHORT, max_steps=3, eval_every=0, gradient_checkpointing=True)
    finetune(model, data, settings, tmp_path)
    hook.remove()
    assert calls == [True] * 6 and not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match="gradient_checkpointing: Qwen3ForCausalLM does not support it"):
        finetune(model, data, settings, tmp_path / "other")


def test_packed_training_in_parts_resumes_with_the_same_bits(tmp_path):
    settings = dataclasses.replace(SHORT, packing=True, accumulation_steps=2, gradient_checkpointing=True, eval_every=0)
    whole = run("decoder", tmp_path / "whole", settings)
    for _ in range(2):
        run("decoder", tmp_path / "parts", dataclasses.replace(settings, max_seconds=1e-6))
    # how memory is saved may change on the way, and no bit with it
    again = run("decoder", tmp_path / "parts", dataclasses.replace(settings, gradient_checkpointing=False))
    assert_same(weights(whole), weights(again))
    with pytest.raises(ConfigError, match="packing=True, now packing=None"):
        run("decoder", tmp_path / "parts", dataclasses.replace(settings, packing=False))


def test_time_limit_stops_and_the_next_call_goes_on(tmp_path):
    whole = run("decoder", tmp_path / "whole")
    limited = dataclasses.replace(SHORT, max_seconds=1e-6)
    result = run("decoder", tmp_path / "parts", limited)
    assert (result.status, result.steps, result.complete) == ("out_of_time", 1, False)
    steps = [run("decoder", tmp_path / "parts", limited).steps for _ in range(3)]
    assert steps == [2, 3, 4]
    again = run("decoder", tmp_path / "parts")
    assert (again.status, again.steps) == ("finished", whole.steps)
    assert_same(weights(whole), weights(again))
    assert again.seconds > result.seconds > 0


def test_a_finished_training_is_not_run_again_unless_asked(tmp_path):
    first = run("decoder", tmp_path)
    calls = []
    second = run("decoder", tmp_path, evaluate=lambda m: calls.append(1) or constant(m))
    assert not calls and second.status == "finished" and second.log == first.log
    assert_same(weights(first), weights(second))
    run("decoder", tmp_path, evaluate=lambda m: calls.append(1) or constant(m), resume=False)
    assert calls


def test_damaged_and_partial_checkpoints_are_skipped(tmp_path, caplog):
    settings = dataclasses.replace(SHORT, epochs=9, save_every=3, max_steps=14)
    whole = run("decoder", tmp_path / "whole", settings)
    with pytest.raises(InterruptedError):
        run("decoder", tmp_path / "parts", settings, StopAfter(2))  # dies at 12, saved 6 and 9
    found = sorted(p.name for p in (tmp_path / "parts").glob("checkpoint-*"))
    assert found == ["checkpoint-00000006", "checkpoint-00000009"]
    newest = tmp_path / "parts" / "checkpoint-00000009" / "weights.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    (tmp_path / "parts" / "checkpoint-00000012").mkdir()
    again = run("decoder", tmp_path / "parts", settings)
    assert "skipped" in caplog.text
    assert again.log[0]["step"] == 4 and again.steps == 14
    # constant() and StopAfter give different metrics, the training itself is the same
    assert [e["loss"] for e in again.log] == [e["loss"] for e in whole.log]


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, []), (3600.0, []), (1e-9, [7, 8])])
def test_a_checkpoint_is_saved_when_the_last_one_is_old(seconds, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "_SAVES_APART", 0)  # however long saving takes
    settings = dataclasses.replace(SHORT, save_seconds=seconds)
    with pytest.raises(InterruptedError):
        run("decoder", tmp_path, settings, StopAfter(2))  # dies in the validation of step 9, the last
    assert [int(p.name[-8:]) for p in sorted(tmp_path.glob("checkpoint-*"))] == expected


@pytest.mark.parametrize(("seconds", "saved"), [(0.5, [3, 6, 9, 12]), (15.0, [3, 8, 12])])
def test_checkpoints_that_take_long_are_saved_less_often(seconds, saved, tmp_path, monkeypatch):
    """Steps of a minute; after a save that takes 15 s, the next one waits 300 s."""
    now, found = [0.0], []
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def a_minute_later(_model):
        now[0] += 60
        return constant(_model)

    def slow(folder, step, write, **_):
        now[0] += seconds
        found.append(step)

    monkeypatch.setattr(checkpoints, "save", slow)
    settings = dataclasses.replace(SHORT, eval_every=1, save_seconds=150.0, max_steps=12, ema_decay=None, epochs=9)
    run("decoder", tmp_path, settings, a_minute_later)
    assert found == saved


def test_the_age_of_a_checkpoint_counts_from_the_last_one_for_whatever_reason(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def a_minute_later(_model):
        now[0] += 60
        return constant(_model)

    saved = []
    monkeypatch.setattr(checkpoints, "save", lambda folder, step, write, **_: saved.append(step))
    settings = dataclasses.replace(
        SHORT, eval_every=1, save_every=5, save_seconds=150.0, max_steps=12, ema_decay=None, epochs=9
    )
    run("decoder", tmp_path, settings, a_minute_later)
    assert saved == [3, 5, 8, 10, 12]  # 180 s after the last one; every fifth step; the end


def test_another_training_in_the_folder_is_refused(tmp_path):
    run("decoder", tmp_path)
    with pytest.raises(ConfigError, match=r"learning_rate=0\.005, now learning_rate=0\.01"):
        run("decoder", tmp_path, dataclasses.replace(SHORT, learning_rate=0.01))
    with pytest.raises(ConfigError, match="model"):
        run("t5", tmp_path)
    data = walks(seed=5)
    with pytest.raises(ConfigError, match="histories"):
        finetune(tiny_model("decoder", data), data, SHORT, tmp_path)
    data = walks(tied=True)
    with pytest.raises(ConfigError, match="tied"):  # it would see the events in other orders
        finetune(tiny_model("decoder", data), data, SHORT, tmp_path)
    data = walks()
    asked = dataclasses.replace(data.valid, targets=data.valid.histories.last(1))
    data = dataclasses.replace(data, valid=asked)
    with pytest.raises(ConfigError, match="valid"):  # its best weights were chosen by other questions
        finetune(tiny_model("decoder", data), data, SHORT, tmp_path)
    # what only says how to run may change
    run("decoder", tmp_path, dataclasses.replace(SHORT, save_every=7, save_seconds=9.0, max_seconds=60.0))


def test_other_users_are_another_training(tmp_path):
    data = walks(n_user_tokens=3)
    short = dataclasses.replace(SHORT, max_steps=2)
    finetune(tiny_model("decoder", data), data, short, tmp_path, evaluate=constant)
    renamed = dataclasses.replace(data, user_ids=[f"{user}!" for user in data.user_ids])
    with pytest.raises(ConfigError, match="users"):
        finetune(tiny_model("decoder", data), renamed, short, tmp_path, evaluate=constant)


def test_early_stopping_returns_the_best_weights(tmp_path):
    seen = []
    curve = [0.1, 0.3, 0.2, 0.25, 0.9]

    def falling(model):
        seen.append(snapshot(trainable(model)))
        return {"recall@10": curve[len(seen) - 1]}

    settings = dataclasses.replace(SHORT, patience=2, eval_every=2)
    result = run("decoder", tmp_path, settings, falling)
    assert (result.status, result.best, result.best_step, result.steps) == ("early_stopped", 0.3, 4, 8)
    assert [entry["recall@10"] for entry in result.log] == curve[:4]
    assert_same(weights(result), seen[1])
    assert_same(weights(run("decoder", tmp_path, settings, falling)), seen[1])


def test_the_average_is_what_its_definition_says(tmp_path):
    state, value, want = TrainState(), torch.zeros(3), None
    for step in range(1, 6):
        value = value + step
        d = min(0.9, (1 + step) / (10 + step))
        want = value.clone() if want is None else d * want + (1 - d) * value
        state.update_average({"w": value}, 0.9, step)
    torch.testing.assert_close(state.average["w"], want)


def test_without_validation_the_last_weights_are_returned(tmp_path):
    data = walks()
    bare = dataclasses.replace(data, valid=None)
    settings = dataclasses.replace(SHORT, ema_decay=None, max_steps=5)
    result = finetune(tiny_model("decoder", data), bare, settings, tmp_path)
    assert result.best is None and result.status == "finished" and result.steps == 5
    assert [e["step"] for e in result.log] == [4, 5] and "recall@10" not in result.log[0]


PLANTED = [("decoder", "level", 40, {}), ("decoder", "children", 40, {}), ("t5", "vocab", 8, {"embedding_std": 1.0})]


@pytest.mark.parametrize(("kind", "softmax", "epochs", "size"), PLANTED)
def test_learns_the_planted_succession(kind, softmax, epochs, size, tmp_path):
    """The next item follows from the last one; constrained search finds it after training, not before."""
    data = walks(n_users=60)
    model = tiny_model(kind, data, dropout=0.0, **size)
    settings = TrainSettings(
        epochs=epochs,
        batch_size=12,
        warmup_steps=10,
        learning_rate=0.01,
        softmax=softmax,
        metric="ndcg@10",
        eval_every=epochs,
        save_every=0,
        bf16=False,
    )
    assert validator(data, settings)(model)["ndcg@10"] < 0.5
    result = finetune(model, data, settings, tmp_path)
    assert result.best > 0.7
    assert result.padding_share <= 0.1 and not result.model.training


@pytest.mark.parametrize(("warmup_steps", "taken"), [(40, 4), (41, 4), (39, 39)])
def test_a_warmup_that_training_would_not_outlive_is_cut(warmup_steps, taken, tmp_path, monkeypatch, caplog):
    """Else a training of few steps ends at a fraction of its learning rate: 40 steps, 3 are enough to see the rates."""
    settings = dataclasses.replace(SHORT, warmup_steps=warmup_steps, epochs=40, max_steps=40, eval_every=3)
    rates = []

    def spy(loop, args, state, control, **more):
        rates.append(loop.trainer.optimizer.param_groups[0]["lr"])
        control.should_training_stop = len(rates) == 3

    monkeypatch.setattr(callbacks.Loop, "on_step_end", spy)
    run("decoder", tmp_path, settings)
    step = settings.learning_rate / taken
    assert rates == pytest.approx([2 * step, 3 * step, 4 * step])  # the rate of the step that follows
    assert [f"warmup_steps {warmup_steps}, but the training has 40 steps" in m for m in caplog.messages] == (
        [True] if taken == 4 else []
    )


def test_not_a_number_stops_with_the_step_and_keeps_the_checkpoint(tmp_path):
    data = walks()
    model = tiny_model("decoder", data)
    settings = dataclasses.replace(SHORT, save_every=2)
    calls = []

    def spoil(module, _inputs, output):
        calls.append(1)
        return output * float("nan") if len(calls) == 4 else output

    hook = model.model.embed_tokens.register_forward_hook(spoil)
    with pytest.raises(TrainingDiverged, match=r"step 4 on (.*): loss nan") as stopped:
        finetune(model, data, settings, tmp_path, evaluate=constant)
    hook.remove()
    users = set(
        Plan(window_samples(data.histories, settings.max_items), np.full(24, 3), settings).batch(3).rows.tolist()
    )
    named = re.findall(r"\d+ samples of users ([\d, ]+) \(rows", str(stopped.value))[0].split(", ")
    assert set(map(int, named)) == users
    found = checkpoints._folders(tmp_path)
    assert [p.name for p in found] == ["checkpoint-00000002"]
    assert all(torch.isfinite(w).all() for w in trainable(model).values())


def test_the_log_and_its_trackers_are_told_how_many_tokens_a_second(tmp_path, monkeypatch):
    told = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            told.append((state.global_step, logs))

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "mine", Tracker)
    settings = dataclasses.replace(SHORT, report_to=("mine",), max_steps=8)
    result = run("decoder", tmp_path, settings)
    assert [(entry["step"], entry) for entry in result.log] == told
    data = walks()
    plan = Plan(window_samples(data.histories, settings.max_items), np.full(24, 3), settings)
    n_tokens = [Collator(data, "decoder").n_targets(plan.batch(n)) for n in range(8)]
    assert [entry["step"] for entry in result.log] == [4, 8]
    spent = [sum(n_tokens[4 * n : 4 * n + 4]) / entry["tokens_per_second"] for n, entry in enumerate(result.log)]
    assert 0 < min(spent) <= max(spent) < sum(spent) <= result.seconds
    # where the log goes may change in the middle of a training
    run("decoder", tmp_path, dataclasses.replace(settings, report_to=()))
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        run("decoder", tmp_path, dataclasses.replace(settings, report_to=("tensorbord",)))


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    def absent():
        raise RuntimeError("TrackerCallback requires tracker to be installed")

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "trackio", absent)
    with pytest.raises(MissingExtra, match="'trackio' is not installed") as missing:
        run("decoder", tmp_path, dataclasses.replace(SHORT, report_to=("trackio",)))
    assert "pip install trackio" in missing.value.hint


def test_another_number_of_processes_is_told(tmp_path, caplog):
    run("decoder", tmp_path, dataclasses.replace(SHORT, max_seconds=1e-6))
    meta = artifacts.read(checkpoints._folders(tmp_path)[0]).meta
    assert meta["processes"] == 1
    run("decoder", tmp_path, dataclasses.replace(SHORT, max_seconds=1e-6))
    assert "other draws of dropout" not in caplog.text
    _compare_processes(meta["processes"], 2)
    assert "written by 1 process, and it is gone on from with 2" in caplog.text


def test_a_bad_gradient_of_a_good_loss_stops_too(tmp_path):
    data = walks()
    model = tiny_model("decoder", data)
    weight = model.model.norm.weight
    hook = weight.register_hook(lambda gradient: gradient * float("inf"))
    before = snapshot(trainable(model))
    with pytest.raises(TrainingDiverged, match=r"step 1 on 7 samples .*: loss 1\.\d+, gradient norm (nan|inf)"):
        finetune(model, data, SHORT, tmp_path, evaluate=constant)
    hook.remove()
    assert_same(before, snapshot(trainable(model)))


def test_bfloat16_autocast_keeps_float32_weights(tmp_path):
    result = run("t5", tmp_path, dataclasses.replace(SHORT, bf16=True, max_steps=3))
    assert np.isfinite(result.log[-1]["loss"])
    assert all(w.dtype == torch.float32 for w in weights(result).values())


def test_global_random_states_are_left_alone(tmp_path):
    def states():
        numpy = np.random.get_state()[1].tolist()  # noqa: NPY002
        return random.getstate(), numpy, torch.get_rng_state().tolist()

    before = states()
    run("decoder", tmp_path, dataclasses.replace(SHORT, max_steps=3))
    assert states() == before


def test_frozen_parameters_stay_and_are_not_saved(tmp_path):
    data = walks()
    model = tiny_model("decoder", data)
    for layer in model.model.layers:
        layer.requires_grad_(False)
    before = snapshot(dict(model.named_parameters()))
    finetune(model, data, dataclasses.replace(SHORT, max_steps=3), tmp_path, evaluate=constant)
    after = dict(model.named_parameters())
    for name, value in before.items():
        assert torch.equal(value, after[name]) != after[name].requires_grad, name


def test_the_model_names_the_identifiers_it_was_trained_on(tmp_path):
    data = walks()
    result = finetune(
        tiny_model("decoder", data), data, dataclasses.replace(SHORT, max_steps=1), tmp_path, evaluate=constant
    )
    assert result.model.config.genrec_codes == data.codes.fingerprint
    config = result.model.config
    assert (config.genrec_n_items, config.genrec_catalog) == (len(data.codes), data.codes.catalog)
    other = tiny_model("decoder", data)
    other.config.genrec_vocabulary = "0" * 32
    with pytest.raises(FingerprintMismatch, match="vocabulary"):
        finetune(other, data, SHORT, tmp_path / "other", evaluate=constant)


def test_a_metric_that_is_not_measured_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"metric: expected one of \['hits'\]"):
        run("decoder", tmp_path, evaluate=lambda _: {"hits": 1.0})
