import dataclasses

import numpy as np
import pytest
import torch

from genrec.baselines.sasrec import SasRec, SasRecSettings, _validate
from genrec.baselines.sasrec_encoder import SasRecEncoder, batch_loss
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
    from genrec.baselines import sasrec

    train = Histories.from_lists([[0, 1, 2, 3], [4], [5, 6, 7]])
    tied = np.array([False, True, True, False, False, False, False, True])
    seen = []

    def watch(encoder, windows, rows, eps):
        seen.append(windows.take(rows).to_lists())
        return batch_loss(encoder, windows, rows, eps)

    monkeypatch.setattr(sasrec, "batch_loss", watch)
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
    assert _validate(model, valid)["ndcg@10"] == max(curve)
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
    got = _validate(model, queries(histories, targets))
    assert got == {"recall@10": pytest.approx(recall / 9), "ndcg@10": pytest.approx(ndcg / 9)}


def test_time_limit_stops_after_the_first_epoch():
    model = SasRec.fit(some_histories(), 30, SasRecSettings(**{**vars(TINY), "max_seconds": 0.0}))
    assert [entry["epoch"] for entry in model.log] == [1]


@pytest.mark.parametrize(
    "change", [{"dim": 0}, {"dim": 15}, {"dropout": 1.0}, {"learning_rate": 0.0}, {"batch_size": 0}]
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        SasRecSettings(**change)


def test_data_errors_name_what_was_found():
    with pytest.raises(DataError, match=r"0\.\.2.*got 0\.\.7"):
        SasRec.fit(Histories.from_lists([[0, 7]]), 3, TINY)
    with pytest.raises(DataError, match="two items"):
        SasRec.fit(Histories.from_lists([[0], []]), 3, TINY)
