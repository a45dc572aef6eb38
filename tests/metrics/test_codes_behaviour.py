import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.metrics.codes_behaviour import (
    adjacent_pairs,
    history_overlap,
    pair_prefix_rate,
    predictability,
    random_prefix_rate,
)
from genrec.testing import code_oracles as slow

quick = settings(max_examples=40, deadline=None)


@st.composite
def cases(draw):
    n = draw(st.integers(2, 8))
    rows = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=n, max_size=n))
    pairs = st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=8)
    return np.array([row + [-1] * (3 - len(row)) for row in rows]), draw(pairs), draw(pairs.filter(len))


@given(st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=5))
@quick
def test_adjacent_pairs_equal_a_loop(histories):
    offsets = np.cumsum([0, *map(len, histories)])
    items = np.array([i for h in histories for i in h], dtype=np.int32)
    found = adjacent_pairs(offsets, items)
    expected = [(u, a, b) for u, h in enumerate(histories) for a, b in pairwise(h) if a != b]
    assert [(u, *pair) for u, pair in zip(found.row_P.tolist(), found.pairs_P2.tolist(), strict=True)] == expected
    assert len(found) == len(expected)


@given(cases())
@quick
def test_prefix_rates_equal_loops(case):
    codes, _, pairs = case
    n = len(codes)
    every = [(a, b) for a in range(n) for b in range(n) if a != b]
    pair, random = pair_prefix_rate(codes, np.array(pairs)), random_prefix_rate(codes)
    for level in range(3):
        assert pair[level] == pytest.approx(slow.pair_rate(codes.tolist(), pairs, level + 1))
        assert random[level] == pytest.approx(slow.pair_rate(codes.tolist(), every, level + 1))


@given(cases(), st.data())
@quick
def test_history_overlap_equals_a_loop(case, data):
    codes = case[0]
    histories = data.draw(st.lists(st.lists(st.integers(0, len(codes) - 1), max_size=7), max_size=5))
    items = np.array([i for h in histories for i in h], dtype=np.int32)
    found = history_overlap(codes, np.cumsum([0, *map(len, histories)]), items)
    expected = [slow.history_overlap(codes.tolist(), histories, level) for level in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_history_overlap_sees_codes_that_mean_the_same_below_every_prefix():
    """Users keep to one meaning of the second code; renumbered below each parent, the same tree hides it."""
    generator = np.random.default_rng(0)
    codes = np.stack([np.arange(320) // 40, np.arange(320) % 8], axis=1)
    items = np.concatenate([generator.integers(40, size=20) * 8 + generator.integers(8) for _ in range(200)])
    offsets = np.arange(201) * 20
    turned = np.stack([codes[:, 0], (codes[:, 1] + codes[:, 0]) % 8], axis=1)
    assert history_overlap(codes, offsets, items)[1] == 1
    assert history_overlap(turned, offsets, items)[1] < 0.2
    assert history_overlap(codes, offsets, items)[0] == history_overlap(turned, offsets, items)[0]


@given(cases(), st.sampled_from([0.1, 1.0, 4.0]))
@quick
def test_predictability_equals_loops(case, smoothing):
    codes, counted, asked = case
    found = predictability(codes, np.array(counted, dtype=int).reshape(-1, 2), np.array(asked), smoothing=smoothing)
    bits, saved = slow.predictability(codes.tolist(), counted, asked, smoothing)
    np.testing.assert_allclose(np.log2(found.perplexity), bits, atol=1e-9)
    np.testing.assert_allclose(found.information, saved, atol=1e-9)
    rows = codes.tolist()
    shared = np.mean([math.log2(rows.count(rows[b])) for _, b in asked])
    assert found.identifier_bits == pytest.approx(sum(bits))
    assert found.item_bits == pytest.approx(sum(bits) + shared)


def test_nothing_counted_costs_log2_of_the_items():
    codes = np.array([[a, b] for a in range(4) for b in range(8)])
    found = predictability(codes, np.zeros((0, 2), int), np.array([[0, 1], [5, 30]]))
    assert found.perplexity.tolist() == pytest.approx([4, 8])
    assert found.item_bits == pytest.approx(math.log2(32))
    assert np.isnan(predictability(codes, np.zeros((0, 2), int), np.zeros((0, 2), int)).item_bits)
    assert np.isnan(pair_prefix_rate(codes, np.zeros((0, 2), int))).all()
    assert np.isnan(random_prefix_rate(codes[:1])).all()


def test_aligned_codes_are_predictable_and_shuffled_ones_are_not():
    generator = np.random.default_rng(0)
    codes = np.stack([np.arange(240) // 40, np.arange(240) % 40], axis=1)
    a = generator.integers(240, size=6000)
    b = (a // 40 + 1) % 6 * 40 + generator.integers(40, size=6000)  # the next item's first code is determined
    pairs = np.stack([a, b], axis=1)
    found = predictability(codes, pairs[:5000], pairs[5000:])
    dealt = codes[generator.permutation(240)]
    shuffled = predictability(dealt, pairs[:5000], pairs[5000:])
    assert found.perplexity[0] < 1.2 and shuffled.perplexity[0] > 5
    assert found.item_bits < shuffled.item_bits - 1.5 and found.information[0] > 2 > 0.1 > shuffled.information[0]
    within = np.stack([a, a // 40 * 40 + generator.integers(40, size=6000)], axis=1)
    assert pair_prefix_rate(codes, within)[0] / random_prefix_rate(codes)[0] > 5
    assert pair_prefix_rate(dealt, within)[0] / random_prefix_rate(dealt)[0] == pytest.approx(1, abs=0.25)
