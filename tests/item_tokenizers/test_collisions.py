from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers import placement
from genrec.item_tokenizers.base import Scaling
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.collisions import Quantized, reassign, resolve, suffix
from genrec.item_tokenizers.placement import choose_in_turn
from genrec.seeding import id_hash
from genrec.testing.crowded import crowded_items


@st.composite
def quantized_items(draw, *, fits=True, different=False):
    """Codes with many collisions, keys, and the vectors and codebooks they came from."""
    sizes = tuple(draw(st.lists(st.integers(2, 5), min_size=1, max_size=3)))
    capacity = int(np.prod(sizes))
    n = draw(st.integers(1, capacity if fits else 3 * capacity))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    books = tuple(generator.normal(size=(k, 3)).astype(np.float32) for k in sizes)
    spread = draw(st.sampled_from([0.05, 1.0, 3.0]))
    vectors = (spread * generator.normal(size=(n, 3))).astype(np.float32)
    if not different and draw(st.booleans()):
        vectors[:] = vectors[0]
    left, rows = vectors.copy(), []
    for book in books:
        code = ((left[:, None] - book) ** 2).sum(axis=2).argmin(axis=1)
        left -= book[code]
        rows.append(code)
    codes = ItemCodes(np.stack(rows, axis=1), sizes, "c")
    return codes, id_hash([f"i{k}" for k in range(n)], 0), Quantized(vectors, books)


@given(quantized_items(fits=False))
@settings(max_examples=60, deadline=None)
def test_suffix_numbers_every_group(case):
    codes, keys, _ = case
    resolved = suffix(codes, keys, limit=10_000).codes
    assert resolved.codes[:, :-1].tolist() == codes.codes.tolist()
    assert resolved.collisions() == []
    assert resolved.level_sizes[-1] == codes.report()["largest_group"]
    for group in codes.collisions():
        by_key = group[np.argsort(keys[group])]
        assert resolved.codes[by_key, -1].tolist() == list(range(len(group)))
    alone = np.setdiff1d(np.arange(len(codes)), np.concatenate([[-1], *codes.collisions()]))
    assert (resolved.codes[alone, -1] == 0).all()


@given(quantized_items())
@settings(max_examples=100, deadline=None)
def test_reassign_frees_every_item_and_moves_no_more_than_needed(case):
    codes, keys, quantized = case
    before = codes.codes.copy()
    resolution = reassign(codes, keys, quantized)
    after = resolution.codes
    assert after.collisions() == []
    assert after.level_sizes == codes.level_sizes
    assert codes.codes.tolist() == before.tolist()
    report = resolution.report
    moved = (after.codes != before).any(axis=1)
    assert report["n_moved"] == moved.sum()
    assert report["distortion_after"] == pytest.approx(quantized.distortion(after.codes.astype(int)))
    prefix_sizes = np.unique(before[:, :-1], axis=0, return_counts=True)[1]
    assert report["n_moved_to_another_prefix"] == np.maximum(prefix_sizes - codes.level_sizes[-1], 0).sum()
    if not report["n_moved_to_another_prefix"]:
        assert after.codes[:, :-1].tolist() == before[:, :-1].tolist()
        assert moved.sum() == len(codes) - len(np.unique(codes.collision_ids()))
        assert report["distortion_after"] >= report["distortion_before"] - 1e-6


@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_reassign_is_optimal_under_one_prefix(seed, n_movers, n_spare):
    """Against all assignments of the items that give way to the free codes."""
    generator = np.random.default_rng(seed)
    size = n_movers + 1 + n_spare
    book = generator.normal(size=(size, 2)).astype(np.float32)
    vectors = (book[0] + 0.1 * generator.normal(size=(n_movers + 1, 2))).astype(np.float32)
    codes = ItemCodes(np.zeros((n_movers + 1, 1), dtype=int), (size,), "c")
    keys = id_hash(map(str, range(n_movers + 1)), seed)
    after = reassign(codes, keys, Quantized(vectors, (book,))).codes.codes[:, 0].astype(int)

    cost = ((vectors[:, None].astype(float) - book) ** 2).sum(axis=2)
    keeper = int(cost[:, 0].argmin())
    assert after[keeper] == 0
    movers = [n for n in range(n_movers + 1) if n != keeper]
    best = min(
        sum(cost[n, code] for n, code in zip(movers, choice, strict=True))
        for choice in permutations(range(1, size), n_movers)
    )
    assert cost[movers, after[movers]].sum() == pytest.approx(best)


def squared(x, book):
    return ((x - book.astype(float)) ** 2).sum(axis=-1)


def reassign_in_loops(codes, keys, quantized):
    """The docstring of ``reassign``, item by item and prefix by prefix; its total cost, and the prefixes."""
    vectors, books, sizes = quantized.vectors_ND.astype(float), quantized.codebooks, codes.level_sizes
    rows = [tuple(row) for row in codes.codes.tolist()]
    leaving: set[int] = set()

    def left(n, depth):
        return vectors[n] - sum(books[level][rows[n][level]].astype(float) for level in range(depth))

    def under(prefix):
        return [n for n in range(len(rows)) if rows[n][: len(prefix)] == prefix and n not in leaving]

    for prefix in {row[:-1] for row in rows}:
        nearest = sorted(under(prefix), key=lambda n: (left(n, len(sizes) - 1) ** 2).sum())
        leaving.update(nearest[sizes[-1] :])
    for n in sorted(leaving, key=lambda n: keys[n]):
        prefix = ()
        for level, size in enumerate(sizes):
            gaps = squared(vectors[n] - sum(books[d][k].astype(float) for d, k in enumerate(prefix)), books[level])
            room = int(np.prod(sizes[level + 1 :]))
            free = [k for k in range(size) if level == len(sizes) - 1 or len(under((*prefix, k))) < room]
            prefix = (*prefix, min(free, key=gaps.__getitem__))
        rows[n] = prefix
        leaving.remove(n)
    total = 0.0
    for prefix in {row[:-1] for row in rows}:
        members = under(prefix)
        cost = np.array([squared(left(n, len(sizes) - 1), books[-1]) for n in members])
        own = cost[np.arange(len(members)), [rows[n][-1] for n in members]]
        keeps = {rows[n][-1]: i for i, n in sorted(enumerate(members), key=lambda pair: -own[pair[0]])}
        movers = [i for i in range(len(members)) if i not in keeps.values()]
        free = [k for k in range(sizes[-1]) if k not in keeps]
        at, to = linear_sum_assignment(cost[np.ix_(movers, free)])
        total += own[list(keeps.values())].sum() + cost[np.ix_(movers, free)][at, to].sum()
    return [row[:-1] for row in rows], total


@pytest.mark.parametrize("cells", [1, 40, 1 << 20])  # a table per prefix; a few prefixes; everything at once
@given(quantized_items(different=True))
@settings(max_examples=25, deadline=None)
def test_reassign_equals_loops(cells, case):
    codes, keys, quantized = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "_CELLS", cells)
        after = reassign(codes, keys, quantized)
    prefixes, total = reassign_in_loops(codes, keys, quantized)
    assert [tuple(row[:-1]) for row in after.codes.codes.tolist()] == prefixes
    assert after.report["distortion_after"] * len(codes) == pytest.approx(total, rel=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_choosing_together_equals_choosing_in_turn(seed, n, n_parents, size):
    generator = np.random.default_rng(seed)
    parent = generator.integers(n_parents, size=n)
    cost = np.round(generator.normal(size=(n, size)), 1)  # with ties: the first code
    room = generator.integers(0, 4, size=(n_parents, size))
    room[:, generator.integers(size)] += n
    expected, left = [], room.copy()
    for p, row in zip(parent, cost, strict=True):
        code = min((k for k in range(size) if left[p, k] > 0), key=row.__getitem__)
        left[p, code] -= 1
        expected.append(code)
    assert choose_in_turn(lambda rows: cost[rows].copy(), parent, room).tolist() == expected


def test_vectors_may_be_scaled_when_they_are_needed():
    crowd = crowded_items(3000, n_levels=2, level_size=64, dim=8)
    x = crowd.quantized.vectors_ND
    scaling = Scaling.fit(x + 3, standardize=True)
    plain = Quantized(scaling.apply(x + 3), crowd.quantized.codebooks)
    lazy = Quantized(x + 3, crowd.quantized.codebooks, scaling)
    results = [reassign(crowd.codes, crowd.keys, quantized) for quantized in (plain, lazy)]
    assert results[0].report == results[1].report
    assert results[0].codes.fingerprint == results[1].codes.fingerprint


def test_crowded_items_collide_and_overflow():
    crowd = crowded_items(3000, n_levels=2, level_size=64, dim=8, seed=1)
    report = crowd.codes.report()
    assert 0.4 < report["collision_share"] < 0.95
    assert report["largest_group"] > 4
    resolution = reassign(crowd.codes, crowd.keys, crowd.quantized)
    assert resolution.report["n_moved_to_another_prefix"] > 10
    assert resolution.codes.report()["distinct_share"] == 1
    assert crowded_items(3000, n_levels=2, level_size=64, dim=8, seed=1).codes.fingerprint == crowd.codes.fingerprint


def test_overflow_goes_to_the_nearest_prefix_with_room():
    books = (np.array([[0.0], [10.0], [30.0]], dtype="f4"), np.array([[-1.0], [1.0]], dtype="f4"))
    vectors = np.array([[0.9], [-0.9], [3.0], [10.0], [9.0]], dtype="f4")
    codes = ItemCodes(np.array([[0, 1], [0, 0], [0, 1], [1, 1], [1, 0]]), (3, 2), "c")
    resolution = reassign(codes, id_hash("abcde"), Quantized(vectors, books))
    # item 2 is the farthest from prefix 0, which is full; prefix 1 is full as well, so it goes to prefix 2
    assert resolution.codes.codes.tolist() == [[0, 1], [0, 0], [2, 0], [1, 1], [1, 0]]
    assert resolution.report["n_moved_to_another_prefix"] == 1


@given(quantized_items())
@settings(max_examples=40, deadline=None)
def test_policies_do_not_look_at_the_order_of_items(case):
    codes, keys, quantized = case
    order = np.random.default_rng(0).permutation(len(codes))
    permuted = ItemCodes(codes.codes[order], codes.level_sizes, "c")
    shuffled = Quantized(quantized.vectors_ND[order], quantized.codebooks)
    for policy in ("suffix", "reassign", "shared"):
        plain = resolve(policy, codes, keys, quantized, limit=10_000).codes
        again = resolve(policy, permuted, keys[order], shuffled, limit=10_000).codes
        assert again.codes.tolist() == plain.codes[order].tolist()


def test_too_large_groups_and_catalogs_are_refused():
    same = ItemCodes(np.zeros((5, 2), dtype=int), (2, 2), "c")
    keys = id_hash("abcde")
    with pytest.raises(DataError, match="5 items share one identifier, but the suffix level holds 4"):
        suffix(same, keys, limit=4)
    books = (np.zeros((2, 1), dtype="f4"),) * 2
    with pytest.raises(DataError, match="5 items do not fit into 4 identifiers"):
        reassign(same, keys, Quantized(np.zeros((5, 1), dtype="f4"), books))


def test_what_a_policy_cannot_use_is_refused():
    codes = ItemCodes(np.zeros((2, 1), dtype=int), (2,), "c")
    ragged = ItemCodes.from_int([[0, -1], [0, 1]], (2, 2), "c")
    with pytest.raises(DataError, match="ragged"):
        suffix(ragged, id_hash("ab"))
    with pytest.raises(DataError, match="keys"):
        suffix(codes, id_hash("abc"))
    with pytest.raises(DataError, match="at least one item"):
        suffix(ItemCodes(np.zeros((0, 1), dtype=int), (2,), "c"), id_hash(""))
    with pytest.raises(ConfigError, match="codebooks"):
        resolve("reassign", codes, id_hash("ab"), None)
    with pytest.raises(ConfigError, match="suffix, reassign, shared"):
        resolve("suffx", codes, id_hash("ab"), None)
