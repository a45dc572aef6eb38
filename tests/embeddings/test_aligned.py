from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.data.histories import Histories
from genrec.embeddings.aligned import AlignSettings, align, apart, pairs_of
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings

QUICK = AlignSettings(epochs=6, batch_size=64, learning_rate=5e-3)


def planted(n=240, seed=0):
    """Vectors whose loud half is noise; items of one kind, told by the quiet half, are bought together."""
    draw = np.random.default_rng(seed)
    kind = draw.integers(12, size=n)
    quiet = draw.normal(size=(12, 6))[kind] + 0.1 * draw.normal(size=(n, 6))
    x = np.concatenate([quiet, 3 * draw.normal(size=(n, 10))], axis=1) @ np.linalg.qr(draw.normal(size=(16, 16)))[0]
    rows = [draw.choice(np.flatnonzero(kind == k), 4, replace=False) for k in draw.integers(12, size=400)]
    return ItemEmbeddings(x.astype(np.float32), "c", {"kind": "x"}), rows


def hit_rate(vectors, pairs, top=20):
    """Share of pairs (a, b) with b among the nearest of a by cosine."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = unit @ unit.T
    np.fill_diagonal(near, -2)
    rank = (near[pairs[:, 0]] > near[pairs[:, 0], pairs[:, 1]][:, None]).sum(axis=1)
    return (rank < top).mean()


def test_held_out_pairs_come_together_and_random_ones_do_not():
    vectors, rows = planted()
    held, train = np.array([row[-2:] for row in rows]), Histories.from_lists([row[:-1] for row in rows])
    random = np.random.default_rng(1).integers(240, size=(2000, 2))
    made = align(vectors, train, QUICK).vectors
    assert hit_rate(made, held) > 2 * hit_rate(vectors.vectors, held)
    assert hit_rate(made, random) < 0.15  # 20 of 239 by chance
    codes = RqKMeans(RqKMeansSettings(n_levels=2, level_size=16, collisions="shared"))
    codes.fit(TokenizerSource.of_vectors(made), seed=0)
    assert codes.report["raw"]["level_usage"] == [1.0, 1.0]
    assert codes.report["raw"]["distinct_share"] > 0.4  # a collapse would leave the 12 kinds


def test_no_epoch_gives_the_input():
    vectors, rows = planted()
    assert align(vectors, Histories.from_lists(rows), replace(QUICK, epochs=0)) is vectors


def slow_step(x, pairs, known, settings):
    """The gradient of the loss at the identity, the loss written as loops over pairs."""
    turn = torch.eye(x.shape[1], dtype=torch.float64, requires_grad=True)
    y = torch.from_numpy(x.astype(np.float64)) @ turn
    loss, n = 0.0, len(pairs)

    def score(b, c):
        return torch.cosine_similarity(y[pairs[b][0]], y[pairs[c][1]], dim=0) / settings.temperature

    def out(b, c):
        a, p = pairs[b][0], pairs[c][1]
        return b != c and (a == p or (a, p) in known or (p, a) in known)

    for b in range(n):
        row = torch.stack([score(b, c) for c in range(n) if not out(b, c)])
        column = torch.stack([score(c, b) for c in range(n) if not out(c, b)])
        loss = loss - (score(b, b) - torch.logsumexp(row, 0) + score(b, b) - torch.logsumexp(column, 0)) / (2 * n)
    loss.backward()
    return turn.grad.numpy()


def test_the_first_step_goes_down_the_slow_gradient():
    """Adam's first step is learning_rate * sign of the gradient."""
    vectors = ItemEmbeddings(np.random.default_rng(3).normal(size=(6, 3)), "c")
    train = Histories.from_lists([[0, 1, 2], [0, 3], [4, 1], [5, 3]])
    settings = AlignSettings(epochs=1, batch_size=8, learning_rate=1e-3)
    pairs = pairs_of(train, vectors.known, 1).tolist()
    gradient = slow_step(vectors.vectors, pairs, {tuple(pair) for pair in pairs}, settings)
    turn = np.eye(3) - 1e-3 * np.sign(gradient)
    expected = vectors.vectors @ turn
    expected *= np.linalg.norm(vectors.vectors) / np.linalg.norm(expected)
    assert np.abs(gradient).min() > 1e-4
    np.testing.assert_allclose(align(vectors, train, settings).vectors, expected, atol=1e-5)


def test_known_pairs_and_equal_items_are_no_negatives():
    pairs = np.array([[0, 1], [1, 2], [3, 0], [0, 4]])
    known = {(0, 1), (1, 0), (1, 2), (2, 1), (3, 0), (0, 3), (0, 4), (4, 0)}
    keys = np.array(sorted(a * 5 + b for a, b in known))
    expected = [
        [b != c and (a == p or (a, p) in known) for c, (_, p) in enumerate(pairs.tolist())]
        for b, (a, _) in enumerate(pairs.tolist())
    ]
    assert apart(pairs, keys, 5).tolist() == expected
    assert np.any(expected)


def test_pairs_are_those_of_a_loop():
    rows = [[0, 1, 1, 2], [], [3, 0], [2, 4, 1]]
    known = np.array([True, True, True, True, False])
    for window in (1, 2):
        expected = sorted(
            (row[i], row[j])
            for row in rows
            for i in range(len(row))
            for j in range(i + 1, min(i + window, len(row) - 1) + 1)
            if row[i] != row[j] and 4 not in (row[i], row[j])
        )
        assert sorted(map(tuple, pairs_of(Histories.from_lists(rows), known, window).tolist())) == expected


def test_deterministic_and_later_rows_change_nothing():
    vectors, rows = planted()
    train = Histories.from_lists(rows)
    first = align(vectors, train, replace(QUICK, epochs=1))
    assert (align(vectors, train, replace(QUICK, epochs=1)).vectors == first.vectors).all()
    assert (align(vectors, train, replace(QUICK, epochs=1, seed=1)).vectors != first.vectors).any()
    later = np.concatenate([vectors.vectors, vectors.vectors[7:8], np.zeros((1, 16))])
    more = align(ItemEmbeddings(later, "c"), train, replace(QUICK, epochs=1)).vectors
    np.testing.assert_allclose(more[:-2], first.vectors, atol=1e-5)
    np.testing.assert_allclose(more[-2], first.vectors[7], atol=1e-5)
    assert not more[-1].any()


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"batch_size": 1}, {"temperature": 0}, {"window": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AlignSettings(**wrong)
