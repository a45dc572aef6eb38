from math import log2

import numpy as np

from genrec.metrics.beyond_accuracy import coverage, novelty, shortfall, validity

LISTS = np.array([[0, 3, -1], [3, 1, 2], [-1, -1, -1]])


def test_coverage_counts_each_item_once_and_only_the_first_k():
    assert coverage(LISTS, 8, 1) == 2 / 8
    assert coverage(LISTS, 8, 3) == 4 / 8
    assert coverage(np.array([[7, 99]]), 8, 2) == 1 / 8  # an invalid item covers nothing


def test_shortfall():
    assert np.allclose(shortfall(LISTS, 3), [1 / 3, 0, 1])
    assert np.allclose(shortfall(LISTS, 2), [0, 0, 1])
    assert np.allclose(shortfall(LISTS, 6), [4 / 6, 3 / 6, 1])  # lists that hold fewer than k columns


def test_validity_counts_strangers_and_repetitions_as_invalid():
    assert validity(LISTS, 4) == 1
    assert validity(np.array([[0, 4, -2, 1, 1]]), 4) == 2 / 5
    assert validity(np.array([[0, 4, -1]]), 4, k=1) == 1
    assert np.isnan(validity(np.full((2, 3), -1), 4))


def test_novelty_is_mean_surprise():
    counts = np.array([7, 0, 1, 0])
    total = 8 + 4
    expected = [(-log2(8 / total) - log2(1 / total)) / 2, (-log2(1 / total) * 2 - log2(2 / total)) / 3]
    found = novelty(LISTS, counts, 3)
    assert np.allclose(found[:2], expected) and np.isnan(found[2])
