import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

from genrec.metrics.codes_structure import (
    adjusted_information,
    adjusted_rand,
    cold_coverage,
    direction_coherence,
    level_information,
    normalized_information,
    purity,
    purity_lift,
    stability,
)
from genrec.testing import code_oracles as slow

quick = settings(max_examples=40, deadline=None)
partitions = st.integers(2, 25).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(0, 5), min_size=n, max_size=n) for _ in range(2)))
)


@given(partitions)
@quick
def test_partition_scores_equal_scikit_learn(pair):
    a, b = pair
    assert adjusted_rand(a, b) == pytest.approx(adjusted_rand_score(a, b), abs=1e-9)
    assert normalized_information(a, b) == pytest.approx(normalized_mutual_info_score(a, b), abs=1e-9)
    assert adjusted_information(a, b) == pytest.approx(adjusted_mutual_info_score(a, b), abs=1e-7)


@pytest.mark.parametrize(("n_groups", "n_labels"), [(3, 200), (1500, 40), (1900, 1900)])
def test_adjusted_information_equals_scikit_learn_on_large_tables(n_groups, n_labels):
    generator = np.random.default_rng(0)
    groups = generator.integers(n_groups, size=2000)
    labels = (groups + generator.integers(n_labels, size=2000) // 2) % n_labels
    assert adjusted_information(groups, labels) == pytest.approx(adjusted_mutual_info_score(groups, labels), abs=1e-9)


@given(partitions)
@quick
def test_purity_equals_a_loop(pair):
    groups, labels = (np.array(x) for x in pair)
    best = sum(np.bincount(labels[groups == g]).max() for g in set(groups.tolist()))
    assert purity(groups, labels) == pytest.approx(best / len(groups))


def test_purity_of_lone_items_means_nothing_and_its_lift_says_so():
    generator = np.random.default_rng(0)
    labels = generator.integers(5, size=200)
    alone = purity_lift(np.arange(200), labels, generator)
    assert (alone.value, alone.lift) == (1.0, 0.0)
    same = purity_lift(labels, labels, generator)
    assert same.value == 1.0 and same.lift > 0.5


def test_shuffling_items_leaves_no_information_about_categories():
    generator = np.random.default_rng(0)
    labels = generator.integers(12, size=3000)
    groups = labels * 10 + generator.integers(10, size=3000)
    assert adjusted_information(groups, labels) > 0.5
    assert abs(adjusted_information(generator.permutation(groups), labels)) < 0.02


def test_level_information_is_one_for_copies_and_none_for_independent_levels():
    generator = np.random.default_rng(0)
    first = generator.integers(4, size=4000)
    found = level_information(np.stack([first, 3 - first, generator.integers(4, size=4000)], axis=1))
    assert found[0, 1] == pytest.approx(1) and found[0, 2] < 0.01
    np.testing.assert_array_equal(found, found.T)


@given(st.integers(2, 12).flatmap(lambda n: st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=n, max_size=n)))
@quick
def test_stability_equals_loops(rows):
    before, after = np.array(rows)[:, :2], np.array(rows)[:, 2:]
    found = stability(before, after)
    for depth in (1, 2):
        a, b = (slow.prefixes(x.tolist(), depth) for x in (before, after))
        numbers = [[sorted(set(x)).index(p) for p in x] for x in (a, b)]
        assert found.adjusted_rand[depth - 1] == pytest.approx(adjusted_rand_score(*numbers), abs=1e-9)
        together = [(i, j) for i in range(len(a)) for j in range(i) if a[i] == a[j]]
        if together:
            assert found.kept[depth - 1] == pytest.approx(np.mean([b[i] == b[j] for i, j in together]))
        else:
            assert np.isnan(found.kept[depth - 1])


def test_stability_sees_groups_not_numbers():
    before = np.array([[0, 0], [0, 1], [1, 0], [1, 0]])
    found = stability(before, np.array([[7, 5], [7, 3], [2, 9], [2, 9]]))
    assert found.adjusted_rand.tolist() == [1, 1] and found.kept.tolist() == [1, 1]


def test_cold_coverage_of_a_small_case():
    warm = np.array([[0, 0], [0, 1], [1, 0]])
    cold = np.array([[0, 1], [0, 2], [0, 2], [2, 0]])
    found = cold_coverage(warm, cold)
    assert found.occupied.tolist() == [3 / 4, 1 / 4]
    assert (found.new_identifier, found.warm_collision, found.cold_collision) == (3 / 4, 1 / 4, 2 / 4)
    assert np.isnan(cold_coverage(warm, cold[:0]).occupied).all()


@given(st.integers(0, 10_000), st.booleans(), st.booleans())
@quick
def test_coherence_equals_a_loop_over_pairs(seed, across, ragged):
    generator = np.random.default_rng(seed)
    codes = generator.integers(3, size=(14, 3))
    if ragged:
        codes[generator.random(14) < 0.3, 1:] = -1
    vectors = generator.normal(size=(14, 4))
    for level in (1, 2):
        found = direction_coherence(codes, vectors, level, across_parents=across)
        expected = slow.coherence(codes.tolist(), vectors, level, across_parents=across)
        assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_coherence_finds_codes_that_mean_a_direction():
    generator = np.random.default_rng(0)
    codes = np.stack([np.repeat(np.arange(6), 60), np.tile(np.arange(3), 120)], axis=1)
    directions = np.eye(8)[:3]
    vectors = (
        9 * generator.normal(size=(6, 8))[codes[:, 0]] + directions[codes[:, 1]] + 0.1 * generator.normal(size=(360, 8))
    )
    assert direction_coherence(codes, vectors, 1, across_parents=True) > 0.8
    unaligned = codes.copy()
    unaligned[:, 1] = (codes[:, 1] + codes[:, 0]) % 3  # renumbered below each parent: the same partition
    assert direction_coherence(unaligned, vectors, 1, across_parents=True) < 0.4
    assert np.isnan(direction_coherence(codes[:1], vectors[:1], 1, across_parents=False))
