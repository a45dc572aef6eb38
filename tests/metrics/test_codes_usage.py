import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.metrics.codes_usage import (
    collisions,
    entropy_bits,
    first_code_popularity_gini,
    gini,
    identifier_gini,
    level_load,
    prefix_entropy,
    prefix_numbers,
    size_popularity_correlation,
    trie_shape,
)
from genrec.testing import code_oracles as slow


@st.composite
def tables(draw, min_items=2):
    """Codes of up to 3 levels of 3 codes; some identifiers end early."""
    n_levels = draw(st.integers(1, 3))
    rows = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=n_levels), min_size=min_items, max_size=9))
    return np.array([row + [-1] * (n_levels - len(row)) for row in rows])


UNIFORM = np.array([[a, b] for a in range(4) for b in range(4)])
ONE_BUCKET = np.zeros((10, 2), dtype=int)
quick = settings(max_examples=40, deadline=None)


@given(tables())
@quick
def test_prefix_numbers_are_equal_where_prefixes_are(codes):
    numbers = prefix_numbers(codes)
    for level in range(codes.shape[1]):
        prefixes = slow.prefixes(codes.tolist(), level + 1)
        ranks = {prefix: rank for rank, prefix in enumerate(sorted(set(prefixes)))}
        assert numbers[:, level].tolist() == [ranks[prefix] for prefix in prefixes]


@given(tables())
@quick
def test_collisions_equal_loops(codes):
    found = collisions(codes)
    assert [found.rate, found.share, found.pair_rate] == pytest.approx(
        [float(x) for x in slow.collision_rates(codes.tolist())]
    )
    groups = Counter(map(tuple, codes.tolist()))
    assert found.largest == max(groups.values())
    assert found.sizes == dict(Counter(groups.values()))


def test_the_three_collision_rates_differ():
    found = collisions(np.array([[0], [0], [0], [1]]))
    assert (found.rate, found.share, found.pair_rate) == (1 - 2 / 4, 3 / 4, 3 * 2 / (4 * 3))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
@quick
def test_gini_is_half_the_relative_mean_difference(values):
    assert gini(values) == pytest.approx(slow.gini(values), abs=1e-12)


@given(tables())
@quick
def test_level_load_equals_loops(codes):
    sizes = (4,) * codes.shape[1]
    found = level_load(codes, sizes)
    for level in range(len(sizes)):
        counts = [int((codes[:, level] == k).sum()) for k in range(4)]
        if sum(counts) == 0:
            assert np.isnan(found.entropy[level]) and found.usage[level] == 0 and found.dead[level] == 4
            continue
        assert found.usage[level] == sum(c > 0 for c in counts) / 4
        assert found.dead[level] == counts.count(0)
        assert found.entropy[level] == pytest.approx(slow.entropy(counts), abs=1e-12)
        assert found.perplexity[level] == pytest.approx(2 ** slow.entropy(counts))
        assert found.gini[level] == pytest.approx(slow.gini(counts))
        assert found.load_cv[level] == pytest.approx(np.std(counts) / np.mean(counts))


@given(tables())
@quick
def test_forge_gini_is_over_occupied_identifiers(codes):
    assert identifier_gini(codes) == pytest.approx(slow.gini(list(Counter(map(tuple, codes.tolist())).values())))


@given(tables(), st.data())
@quick
def test_prefix_entropy_equals_its_definition(codes, data):
    drawn = st.lists(st.integers(0, 5), min_size=len(codes), max_size=len(codes)).filter(any)
    weights = data.draw(st.none() | drawn)
    found = prefix_entropy(codes, weights)
    w = weights or [1] * len(codes)
    rows = codes.tolist()
    for level in range(codes.shape[1]):
        kept = [(row, x) for row, x in zip(rows, w, strict=True) if x]
        nodes = [len({tuple(row[:depth]) for row, _ in kept}) for depth in (level, level + 1)]
        expected = slow.conditional_entropy(rows, level, w)
        assert found.conditional[level] == pytest.approx(expected, abs=1e-12)
        correction = (nodes[1] - nodes[0]) / (2 * sum(w) * math.log(2))
        assert found.miller_madow[level] == pytest.approx(expected + correction, abs=1e-12)
    # chain rule
    assert found.conditional.sum() == pytest.approx(found.identifier, abs=1e-12)
    assert found.identifier == pytest.approx(slow.prefix_entropy(rows, codes.shape[1], w), abs=1e-12)
    if weights is None:
        full = found.identifier == pytest.approx(math.log2(len(codes)), abs=1e-9)
        assert full == (collisions(codes).rate == 0)


@given(tables(min_items=1))
@quick
def test_trie_shape_equals_a_set_of_prefixes(codes):
    rows = [tuple(c for c in row if c >= 0) for row in codes.tolist()]
    nodes = {row[:depth] for row in rows for depth in range(len(row) + 1)}
    found = trie_shape(codes)
    assert found.nodes == len(nodes) - 1
    children = Counter(node[:-1] for node in nodes if node)
    for depth in range(codes.shape[1]):
        counts = [count for node, count in children.items() if len(node) == depth]
        if counts:
            assert found.branching[depth] == pytest.approx(np.mean(counts))
        else:
            assert np.isnan(found.branching[depth])
    assert found.mean_branching == pytest.approx(np.mean(list(children.values())))
    assert found.first_bits == pytest.approx(slow.entropy(Counter(row[0] for row in rows).values()), abs=1e-12)
    assert (found.mean_length, found.max_length) == (np.mean([len(r) for r in rows]), max(len(r) for r in rows))


def test_uniform_codes_are_perfectly_even():
    load = level_load(UNIFORM, (4, 4))
    assert load.gini.tolist() == [0, 0] and load.load_cv.tolist() == [0, 0]
    assert load.perplexity.tolist() == [4, 4] and load.dead.tolist() == [0, 0]
    assert identifier_gini(UNIFORM) == 0
    assert trie_shape(UNIFORM).branching.tolist() == [4, 4]


def test_one_bucket_is_as_uneven_as_can_be():
    load = level_load(ONE_BUCKET, (8, 8))
    assert load.gini.tolist() == [1 - 1 / 8] * 2
    assert load.perplexity.tolist() == [1, 1]
    assert identifier_gini(ONE_BUCKET) == 0  # blind to dead codes
    assert collisions(ONE_BUCKET).rate == 1 - 1 / 10


@given(tables(), st.permutations(range(3)), st.permutations(range(3)))
@quick
def test_relabelling_and_reordering_change_nothing(codes, names, other):
    maps = np.array([[*names, -1], [*other, -1], [*names, -1]])[: codes.shape[1]]
    renamed = np.stack([maps[level][codes[:, level]] for level in range(codes.shape[1])], axis=1)[::-1]
    assert collisions(renamed) == collisions(codes)
    sizes = (3,) * codes.shape[1]
    for function in (lambda c: level_load(c, sizes), trie_shape, prefix_entropy):
        for name, value in vars(function(codes)).items():
            np.testing.assert_allclose(vars(function(renamed))[name], value, atol=1e-12)


def test_popularity_gini_counts_all_first_codes():
    codes = np.array([[0, 0], [1, 0], [1, 1]])
    assert first_code_popularity_gini(codes, 4, [6, 1, 1]) == pytest.approx(slow.gini([6, 2, 0, 0]))
    assert first_code_popularity_gini(codes, 2, [2, 1, 1]) == 0


def test_size_popularity_correlation_equals_scipy():
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    codes, popular = generator.integers(4, size=(40, 2)), generator.integers(6, size=40)
    groups = Counter(map(tuple, codes.tolist()))
    sizes = [groups[tuple(row)] for row in codes.tolist()]
    assert size_popularity_correlation(codes, popular) == pytest.approx(spearmanr(sizes, popular).statistic)
    assert np.isnan(size_popularity_correlation(UNIFORM, np.arange(16)))


def test_nothing_to_measure_is_nan_not_an_error():
    none = np.zeros((0, 2), dtype=int)
    assert np.isnan([collisions(none).rate, identifier_gini(none), trie_shape(none).mean_branching]).all()
    assert np.isnan(level_load(none, (4, 4)).entropy).all() and np.isnan(prefix_entropy(none).identifier)
    assert np.isnan(entropy_bits([])) and np.isnan(gini([])) and np.isnan(size_popularity_correlation(none, []))
    assert np.isnan(collisions(UNIFORM[:1]).pair_rate)
