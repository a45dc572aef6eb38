import dataclasses

import numpy as np
import pytest
import torch

from genrec import artifacts
from genrec.baselines import sasrec_training
from genrec.baselines.sasrec import SasRec, SasRecSettings
from genrec.baselines.sasrec_encoder import SasRecEncoder, batch_loss
from genrec.baselines.sasrec_training import validate
from genrec.baselines.softmax import CHUNK, linear_cross_entropy
from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.errors import ConfigError, DataError

TINY = SasRecSettings(dim=16, epochs=3, batch_size=16, max_items=8, warmup_steps=5)


def some_histories(n_users=40, n_items=30, seed=0):
    random = np.random.default_rng(seed)
    return Histories.from_lists([random.integers(0, n_items, random.integers(0, 12)) for _ in range(n_users)])


def queries(histories, targets):
    return EvalSet(np.arange(len(histories), dtype=np.int32), histories, targets)


@pytest.mark.parametrize("n_rows", [1, 7, CHUNK, CHUNK + 3])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_linear_cross_entropy_equals_torch(n_rows, eps):
    torch.manual_seed(0)
    hidden = torch.randn(n_rows, 5, requires_grad=True)
    weight = torch.randn(11, 5, requires_grad=True)
    target = torch.randint(11, (n_rows,))
    got = linear_cross_entropy(hidden, weight, target, label_smoothing=eps) * 3
    want = torch.nn.functional.cross_entropy(hidden @ weight.T, target, label_smoothing=eps) * 3
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got, (hidden, weight)), torch.autograd.grad(want, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_linear_cross_entropy_survives_huge_logits():
    hidden = torch.tensor([[1e4, 0.0]], requires_grad=True)
    loss = linear_cross_entropy(hidden, torch.eye(2), torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(hidden.grad).all()


def test_a_later_item_changes_no_earlier_state():
    torch.manual_seed(0)
    encoder = SasRecEncoder(30, TINY).eval()
    items = torch.randint(30, (2, 6))
    before = encoder(items)
    for t in range(1, 6):
        changed = items.clone()
        changed[:, t] = (changed[:, t] + 1) % 30
        after = encoder(changed)
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.allclose(before[:, t:], after[:, t:])


def test_loss_at_the_start_is_log_n():
    torch.manual_seed(0)
    encoder = SasRecEncoder(500, TINY).eval()
    windows = Histories.from_lists([np.random.default_rng(1).integers(0, 500, 8) for _ in range(64)])
    loss = batch_loss(encoder, windows, np.arange(64), 0.0).item()
    assert loss == pytest.approx(np.log(500), rel=0.02)


def test_loss_counts_each_existing_position_once():
    """Padded batches give the same loss as rows one by one (weighted by their number of positions)."""
    torch.manual_seed(0)
    encoder = SasRecEncoder(30, TINY).eval()
    windows = Histories.from_lists([[1, 2], [3, 4, 5, 6, 7], [8, 9, 10]])
    whole = batch_loss(encoder, windows, np.arange(3), 0.0)
    parts = [batch_loss(encoder, windows, np.array([u]), 0.0) * (len(windows[u]) - 1) for u in range(3)]
    torch.testing.assert_close(whole, sum(parts) / (1 + 4 + 2))


def test_ties_are_drawn_anew_in_every_epoch(monkeypatch):
    train = Histories.from_lists([[0, 1, 2, 3], [4], [5, 6, 7]])
    tied = np.array([False, True, True, False, False, False, False, True])
    seen = []

    def watch(encoder, windows, rows, eps):
        seen.append(windows.take(rows).to_lists())
        return batch_loss(encoder, windows, rows, eps)

    monkeypatch.setattr(sasrec_training, "batch_loss", watch)
    settings = dataclasses.replace(TINY, epochs=20)
    SasRec.fit(train, 8, settings, tied=tied)
    for rows in seen:
        assert sorted(sorted(row[:3]) + row[3:] for row in rows if len(row) == 4) == [[0, 1, 2, 3]]
        assert sorted(row[0:1] + sorted(row[1:]) for row in rows if len(row) == 3) == [[5, 6, 7]]
    assert len({str(sorted(rows)) for rows in seen}) > 5
    seen.clear()
    SasRec.fit(train, 8, settings)
    assert {str(sorted(rows)) for rows in seen} == {str([[0, 1, 2, 3], [5, 6, 7]])}
    with pytest.raises(DataError, match="expected 8 marks, one per event of train, got 7"):
        SasRec.fit(train, 8, settings, tied=tied[1:])


def test_scores_do_not_depend_on_the_other_rows_and_cut_long_histories():
    model = SasRec.fit(some_histories(), 30, TINY)
    histories = some_histories(seed=3)
    together = model.score_all(histories)
    for u in range(len(histories)):
        np.testing.assert_allclose(together[u], model.score_all(histories.take([u]))[0], atol=1e-5)
    np.testing.assert_allclose(together, model.score_all(histories.last(TINY.max_items)), atol=1e-5)
    empty = model.score_all(Histories.from_lists([[]]))
    assert empty.shape == (1, 30) and (empty == 0).all()


def test_same_seed_same_bits_and_global_random_state_untouched():
    state = torch.random.get_rng_state()
    first, second = (SasRec.fit(some_histories(), 30, TINY) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert np.array_equal(first.item_vectors(), second.item_vectors())
    other = SasRec.fit(some_histories(), 30, SasRecSettings(**{**vars(TINY), "seed": 1}))
    assert not np.array_equal(first.item_vectors(), other.item_vectors())


def test_save_and_load_give_the_same_scores(tmp_path):
    model = SasRec.fit(some_histories(), 30, TINY)
    model.save(tmp_path / "sasrec", catalog="abc")
    back = SasRec.load(tmp_path / "sasrec")
    assert back.settings == TINY and back.log == model.log
    assert (back.wall_seconds, back.cpu_seconds) == (model.wall_seconds, model.cpu_seconds)
    assert model.wall_seconds >= model.log[-1]["seconds"] - 1e-3
    assert np.array_equal(back.score_all(some_histories(seed=5)), model.score_all(some_histories(seed=5)))


def test_learns_100_users_by_heart():
    random = np.random.default_rng(0)
    sequences = random.permutation(400)[:400].reshape(100, 4)
    train = Histories.from_lists(list(sequences))
    settings = SasRecSettings(
        dim=32, epochs=25, batch_size=25, dropout=0.0, learning_rate=1e-2, max_items=8, warmup_steps=10
    )
    model = SasRec.fit(train, 400, settings)
    scores = model.score_all(Histories.from_lists(list(sequences[:, :-1])))
    assert (scores.argmax(axis=1) == sequences[:, -1]).mean() >= 0.99
    assert model.log[-1]["loss"] < 0.5 < model.log[0]["loss"]


def test_keeps_the_best_weights_and_stops_early():
    """Validation is the training succession, then training on contradicting noise cannot improve it for ever."""
    train = some_histories(n_users=60)
    histories = [h[:-1] for h in train if len(h) > 2]
    targets = [h[-1:] for h in train if len(h) > 2]
    valid = queries(Histories.from_lists(histories), Histories.from_lists(targets))
    settings = SasRecSettings(
        dim=16, epochs=60, batch_size=16, dropout=0.5, max_items=12, patience=2, learning_rate=0.02
    )
    model = SasRec.fit(train, 30, settings, valid)
    curve = [entry["ndcg@10"] for entry in model.log]
    assert len(curve) < 60 and max(curve) not in curve[-2:]
    assert validate(model, valid)["ndcg@10"] == max(curve)
    assert model.log[0]["seconds"] <= model.log[-1]["seconds"]


def test_validation_equals_a_slow_loop():
    model = SasRec.fit(some_histories(), 30, TINY)
    histories = some_histories(n_users=9, seed=7)
    targets = Histories.from_lists([[u, (u + 11) % 30][: 1 + u % 2] for u in range(9)])
    recall = ndcg = 0.0
    for u in range(9):
        scores = model.score_all(histories.take([u]))[0]
        seen = set(histories[u].tolist())
        gains, hits = 0.0, 0.0
        for item in targets[u].tolist():
            if item in seen:
                continue
            others = [scores[j] for j in range(30) if j not in seen and j != item]
            rank = 1 + sum(s > scores[item] for s in others) + sum(s == scores[item] for s in others) / 2
            gains += (rank <= 10) / np.log2(rank + 1)
            hits += rank <= 10
        recall += hits / len(targets[u])
        ndcg += gains / sum(1 / np.log2(2 + i) for i in range(len(targets[u])))
    got = validate(model, queries(histories, targets))
    assert got == {"recall@10": pytest.approx(recall / 9), "ndcg@10": pytest.approx(ndcg / 9)}


def test_time_limit_stops_after_the_first_epoch():
    model = SasRec.fit(some_histories(), 30, SasRecSettings(**{**vars(TINY), "max_seconds": 0.0}))
    assert [entry["epoch"] for entry in model.log] == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 0},
        {"dim": 15},
        {"dropout": 1.0},
        {"learning_rate": 0.0},
        {"batch_size": 0},
        {"save_seconds": -1},
        {"device": "gpu"},
    ],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        SasRecSettings(**change)


def test_data_errors_name_what_was_found():
    with pytest.raises(DataError, match=r"0\.\.2.*got 0\.\.7"):
        SasRec.fit(Histories.from_lists([[0, 7]]), 3, TINY)
    with pytest.raises(DataError, match="two items"):
        SasRec.fit(Histories.from_lists([[0], []]), 3, TINY)


class Stopped(Exception):
    pass


def stop_after(n_steps):
    """To be called between steps; raises at the n-th call."""
    calls = []

    def between_steps():
        calls.append(1)
        if len(calls) == n_steps:
            raise Stopped

    return between_steps


STOPPED = dataclasses.replace(TINY, batch_size=12, patience=0)


def shop():
    """What a training with ``STOPPED``, 3 epochs of 3 steps, reads, ties and validation included."""
    train = some_histories()
    tied = np.random.default_rng(4).random(len(train.items)) < 0.3
    usable = [h for h in train if len(h) > 2]
    valid = queries(
        Histories.from_lists([h[:-1] for h in usable]), Histories.from_lists([[h[0], h[-1]] for h in usable])
    )
    return {"train": train, "n_items": 30, "valid": valid, "tied": tied}


def without_seconds(log):
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in log]


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_an_interrupted_training_gives_the_bits_of_a_whole_one(tmp_path, n_steps, monkeypatch):
    """Stopped after every n steps: within epochs, at their ends, before and after a best validation."""
    settings = STOPPED
    value = lambda model, _: {"ndcg@10": 1 / model.encoder.items.weight.norm().item()}  # noqa: E731
    monkeypatch.setattr(sasrec_training, "validate", value)
    whole = SasRec.fit(settings=settings, **shop())
    model, n_calls, seconds = None, 0, []
    while model is None:
        n_calls += 1
        try:
            model = SasRec.fit(
                settings=settings, **shop(), checkpoint=tmp_path / "c", between_steps=stop_after(n_steps)
            )
        except Stopped:
            found = artifacts.read(tmp_path / "c", kind="sasrec_checkpoint").meta
            assert found["step"] == n_calls * n_steps
            seconds.append(found["wall_seconds"])
    assert n_calls == 9 // n_steps + 1
    assert max(model.log, key=lambda line: line["ndcg@10"])["epoch"] == 1  # what is kept is older than most stops
    assert without_seconds(model.log) == without_seconds(whole.log)
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(value, model.encoder.state_dict()[name]), name
    assert seconds == sorted(seconds) and model.wall_seconds > seconds[-1]
    assert [line["seconds"] for line in model.log] == sorted(line["seconds"] for line in model.log)


def test_the_cost_of_all_calls_is_counted_and_max_seconds_limits_their_sum(tmp_path):
    settings = dataclasses.replace(STOPPED, max_seconds=500.0)
    with pytest.raises(Stopped):
        SasRec.fit(settings=settings, **shop(), checkpoint=tmp_path / "c", between_steps=stop_after(1))
    before = artifacts.read(tmp_path / "c")
    arrays = artifacts.load_arrays(tmp_path / "c" / "state.safetensors")
    spent = before.meta | {"wall_seconds": 1000.0, "cpu_seconds": 2000.0}
    with artifacts.write(tmp_path / "c", kind=before.kind, recipe=before.recipe, meta=spent, overwrite=True) as draft:
        artifacts.save_arrays(draft.dir / "state.safetensors", arrays)
    model = SasRec.fit(settings=settings, **shop(), checkpoint=tmp_path / "c")
    assert model.wall_seconds > 1000 and model.cpu_seconds > 2000
    assert [(line["epoch"], line["seconds"] > 1000) for line in model.log] == [(1, True)]


def test_checkpoints_are_written_as_often_as_asked(tmp_path):
    n_saves = []
    for save_seconds in (0, 120, 1e-9):
        path, seen = tmp_path / str(save_seconds), set()

        def look(path=path, seen=seen):
            if artifacts.exists(path):
                seen.add(artifacts.read(path).meta["step"])

        settings = dataclasses.replace(STOPPED, save_seconds=save_seconds)
        SasRec.fit(settings=settings, **shop(), checkpoint=path, between_steps=look)
        n_saves.append(len(seen))
    assert n_saves == [0, 0, 8]  # each is seen after the next of 9 steps


def other_valid(given):
    return {"valid": given["valid"].take(np.arange(3))}


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [
        (lambda given: {}, True),
        (lambda given: {"settings": dataclasses.replace(TINY, save_seconds=7.0)}, True),
        (lambda given: {"settings": dataclasses.replace(TINY, device="cpu")}, not torch.cuda.is_available()),
        (lambda given: {"settings": dataclasses.replace(TINY, epochs=4)}, False),
        (lambda given: {"settings": dataclasses.replace(TINY, seed=1)}, False),
        (lambda given: {"tied": None}, False),
        (lambda given: {"n_items": 31}, False),
        (lambda given: {"train": given["train"].take(np.arange(40)[::-1])}, False),
        (other_valid, False),
    ],
)
def test_only_the_same_training_goes_on_from_a_checkpoint(tmp_path, change, goes_on):
    given = {**shop(), "settings": TINY}
    with pytest.raises(Stopped):
        SasRec.fit(**given, checkpoint=tmp_path / "c", between_steps=stop_after(2))
    with pytest.raises(Stopped):
        SasRec.fit(**{**given, **change(given)}, checkpoint=tmp_path / "c", between_steps=stop_after(1))
    assert artifacts.read(tmp_path / "c").meta["step"] == (3 if goes_on else 1)


def test_another_version_of_the_training_and_a_damaged_checkpoint_begin_again(tmp_path, monkeypatch, caplog):
    def one_step():
        with pytest.raises(Stopped):
            SasRec.fit(settings=TINY, **shop(), checkpoint=tmp_path / "c", between_steps=stop_after(1))
        return artifacts.read(tmp_path / "c").meta["step"]

    assert [one_step(), one_step()] == [1, 2]
    file = tmp_path / "c" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert one_step() == 1 and "sasrec begins again" in caplog.text
    assert one_step() == 2
    monkeypatch.setattr(sasrec_training, "VERSION", sasrec_training.VERSION + 1)
    assert one_step() == 1


def test_artifacts_of_older_versions_load(tmp_path):
    """Their recipe has no device and no save_seconds, their meta no seconds."""
    model = SasRec.fit(some_histories(), 30, TINY)
    model.save(tmp_path / "new")
    new = artifacts.read(tmp_path / "new")
    recipe = {name: value for name, value in new.recipe.items() if name not in ("device", "save_seconds")}
    meta = {"n_items": 30, "log": model.log}
    with artifacts.write(tmp_path / "old", kind="sasrec", recipe=recipe, meta=meta) as draft:
        (draft.dir / "sasrec.safetensors").write_bytes((tmp_path / "new" / "sasrec.safetensors").read_bytes())
    old = SasRec.load(tmp_path / "old")
    assert old.settings == TINY and old.wall_seconds is None
    assert np.array_equal(old.item_vectors(), model.item_vectors())


def test_training_reads_no_value_back_between_steps(monkeypatch):
    """On a GPU that would wait for every step: the losses are read together, when the epoch ends."""
    losses, reads = [], []

    def watch(*given):
        losses.append(batch_loss(*given))
        return losses[-1]

    for name in ("item", "tolist", "__bool__", "__float__", "cpu", "numpy"):
        own = getattr(torch.Tensor, name)

        def read(x, *more, own=own, name=name):
            if x.data_ptr() in {loss.data_ptr() for loss in losses}:
                reads.append(name)
            return own(x, *more)

        monkeypatch.setattr(torch.Tensor, name, read)
    monkeypatch.setattr(sasrec_training, "batch_loss", watch)
    SasRec.fit(some_histories(), 30, TINY)
    assert len(losses) == 6 and reads == []


@pytest.mark.gpu
def test_a_gpu_learns_as_a_cpu_does_and_goes_on_from_its_checkpoint(tmp_path):
    settings = dataclasses.replace(STOPPED, dropout=0.0)
    slow = SasRec.fit(settings=dataclasses.replace(settings, device="cpu"), **shop())
    state = torch.cuda.get_rng_state()
    with pytest.raises(Stopped):
        SasRec.fit(settings=settings, **shop(), checkpoint=tmp_path / "c", between_steps=stop_after(5))
    fast = SasRec.fit(settings=settings, **shop(), checkpoint=tmp_path / "c")
    assert torch.equal(state, torch.cuda.get_rng_state()) and fast.device.type == "cuda"
    np.testing.assert_allclose([line["loss"] for line in fast.log], [line["loss"] for line in slow.log], rtol=1e-3)
    assert fast.item_vectors().dtype == fast.score_all(shop()["train"]).dtype == np.float32
    fast.save(tmp_path / "sasrec")
    back = SasRec.load(tmp_path / "sasrec")
    np.testing.assert_allclose(back.score_all(shop()["train"]), fast.score_all(shop()["train"]), atol=1e-4)
