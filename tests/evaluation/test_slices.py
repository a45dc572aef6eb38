import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.evaluation.slices import popularity_class


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_classes_follow_the_definition(counts):
    counts = np.array(counts)
    total = counts.sum()
    for count, found in zip(counts, popularity_class(counts), strict=True):
        share = counts[counts > count].sum() / max(1, total)
        assert found == (3 if count == 0 else 0 if share < 1 / 3 else 1 if share < 2 / 3 else 2)


def test_equal_counts_are_in_one_class():
    assert popularity_class(np.full(9, 4)).tolist() == [0] * 9
    assert popularity_class(np.zeros(3, int)).tolist() == [3] * 3
