from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.data.histories import Histories
from genrec.embeddings.aligned import TERMS, AlignSettings, align, apart, clicks_of, pairs_of
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.collaborative import SvdSettings, svd
from genrec.errors import ConfigError
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings
from genrec.metrics.codes_behaviour import pair_prefix_rate, random_prefix_rate

QUICK = AlignSettings(epochs=6, batch_size=64, learning_rate=5e-3)
OFF = dict.fromkeys(TERMS, 0.0)


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


def slow_terms_gradient(x, rows, settings):
    """The gradient at the identity of the terms with collaborative vectors, written as loops over pairs."""
    n = 1 + max(item for row in rows for item in row)
    c = svd(Histories.from_lists(rows), n, SvdSettings(dim=settings.collaborative_dim), "").vectors.astype(np.float64)
    c /= np.linalg.norm(c, axis=1, keepdims=True)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    taught = sorted({item for row in rows for item in row})
    square = c[taught].T @ c[taught] + 1e-3 * len(taught) / c.shape[1] * np.eye(c.shape[1])
    project = torch.from_numpy(np.linalg.inv(square) @ c[taught].T @ unit[taught])
    turn = torch.eye(x.shape[1], dtype=torch.float64, requires_grad=True)
    loss = 0.0
    for name in ("item_item", "user_item"):
        if name == "item_item":
            pairs = [(i, i, c[i]) for i in taught]
            together = {(i, i) for i in taught}
        else:
            pairs, together = [], {(i, u) for u, row in enumerate(rows) for i in row}
            for user, row in enumerate(rows):
                for item in set(row):
                    others = [c[j] for j in set(row) if j != item]
                    pairs += [(item, user, np.mean(others, axis=0))] if others else []
        pairs *= getattr(settings, name) > 0
        a = [torch.from_numpy(x[i].astype(np.float64)) @ turn for i, _, _ in pairs]
        p = [torch.from_numpy(vector) @ project for _, _, vector in pairs]

        def score(b, e, a=a, p=p):
            return torch.cosine_similarity(a[b], p[e], dim=0) / settings.temperature

        size = len(pairs)
        for b in range(size):
            row = [score(b, e) for e in range(size) if e == b or (pairs[b][0], pairs[e][1]) not in together]
            column = [score(e, b) for e in range(size) if e == b or (pairs[e][0], pairs[b][1]) not in together]
            picked = 2 * score(b, b) - torch.logsumexp(torch.stack(row), 0) - torch.logsumexp(torch.stack(column), 0)
            loss = loss - getattr(settings, name) * picked / (2 * size)
    loss.backward()
    return turn.grad.numpy()


@pytest.mark.parametrize("weights", [{"item_item": 1.0}, {"user_item": 1.0}])
def test_the_first_step_of_the_other_terms_goes_down_their_slow_gradient(weights):
    vectors = ItemEmbeddings(np.random.default_rng(3).normal(size=(7, 3)), "c")
    rows = [[0, 1, 2, 1], [0, 3], [4, 1], [5, 3, 2], [5]]
    settings = AlignSettings(epochs=1, batch_size=32, temperature=0.5, collaborative_dim=4, **{**OFF, **weights})
    gradient = slow_terms_gradient(vectors.vectors, rows, settings)
    assert np.abs(gradient).min() > 1e-4
    made = align(vectors, Histories.from_lists(rows), settings).vectors
    expected = vectors.vectors @ (np.eye(3) - 1e-3 * np.sign(gradient))
    expected *= np.linalg.norm(vectors.vectors[:6]) / np.linalg.norm(expected[:6])  # item 6 is in no history
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_clicks_are_those_of_a_loop():
    rows = [[0, 1, 1, 2], [], [3, 3], [2, 4, 1]]
    known = np.array([True, True, True, True, False])
    expected = {(i, u) for u, row in enumerate(rows) for i in row if i != 4 and len(set(row)) > 1}
    found = [tuple(pair) for pair in clicks_of(Histories.from_lists(rows), known).tolist()]
    assert set(found) == expected and len(found) == len(expected)


@pytest.mark.parametrize(("term", "epochs"), [("co_occurrence", 3), ("item_item", 20), ("user_item", 6)])
def test_each_term_alone_brings_co_clicked_items_under_one_identifier(term, epochs):
    """The check that DAS asks for; held-out pairs, so it is not the pairs that were taught."""
    vectors, rows = planted()
    held, train = np.array([row[-2:] for row in rows]), Histories.from_lists([row[:-1] for row in rows])
    settings = replace(QUICK, **{**OFF, term: 1.0}, collaborative_dim=16, epochs=epochs, learning_rate=2e-2)

    def rates(x):
        tokenizer = RqKMeans(RqKMeansSettings(n_levels=1, level_size=16, collisions="shared"))
        codes = tokenizer.fit(TokenizerSource.of_vectors(x), seed=0).as_int()
        return pair_prefix_rate(codes, held)[0], random_prefix_rate(codes)[0]

    (before, _), (after, chance) = rates(vectors.vectors), rates(align(vectors, train, settings).vectors)
    assert after > 5 * before and after > 5 * chance


def test_known_pairs_and_equal_items_are_no_negatives():
    pairs = np.array([[0, 1], [1, 2], [3, 0], [0, 4]])
    known = {(0, 1), (1, 0), (1, 2), (2, 1), (3, 0), (0, 3), (0, 4), (4, 0)}
    keys = np.array(sorted(a * 5 + b for a, b in known | {(a, a) for a in range(5)}))
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


@pytest.mark.parametrize("weights", [{}, {"item_item": 1.0, "user_item": 0.5}])
def test_deterministic_and_later_rows_change_nothing(weights):
    vectors, rows = planted()
    train, one = Histories.from_lists(rows), replace(QUICK, epochs=1, **weights)
    first = align(vectors, train, one)
    assert (align(vectors, train, one).vectors == first.vectors).all()
    assert (align(vectors, train, replace(one, seed=1)).vectors != first.vectors).any()
    later = np.concatenate([vectors.vectors, vectors.vectors[7:8], np.zeros((1, 16))])
    more = align(ItemEmbeddings(later, "c"), train, one).vectors
    np.testing.assert_allclose(more[:-2], first.vectors, atol=1e-5)
    np.testing.assert_allclose(more[-2], first.vectors[7], atol=1e-5)
    assert not more[-1].any()


WRONG = [{"epochs": -1}, {"batch_size": 1}, {"temperature": 0}, {"window": 0}, {"user_item": -1}]


@pytest.mark.parametrize("wrong", [*WRONG, {"collaborative_dim": 0}, {"co_occurrence": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AlignSettings(**wrong)
