from __future__ import annotations

from collections import defaultdict
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decoding.views import fuse_views
from genrec.errors import DataError


def fused_by_hand(lists, top_k):
    """The definition for one user: lists of one user, one per view."""
    score, best = defaultdict(float), {}
    for view, found in enumerate(lists):
        ranked = list(dict.fromkeys(item for item in found if item >= 0))
        for rank, item in enumerate(ranked):
            score[item] += 1 / log2(rank + 2)
            best[item] = min(best.get(item, (rank, view)), (rank, view))
    order = sorted(score, key=lambda item: (-round(score[item], 9), best[item]))[:top_k]
    return order + [-1] * (top_k - len(order))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**32))
def test_it_equals_the_definition(n_views, n_users, n_places, top_k, seed):
    lists = np.random.default_rng(seed).integers(-1, 6, size=(n_views, n_users, n_places))
    found = fuse_views(lists, top_k)
    assert found.items.tolist() == [fused_by_hand(lists[:, user].tolist(), top_k) for user in range(n_users)]
    assert (np.diff(found.scores, axis=1) <= 1e-12).all()
    assert ((found.scores > 0) == (found.items >= 0)).all()


def test_views_that_are_alike_give_the_list_of_one():
    one = np.array([[7, 3, 9, 4], [5, -1, 2, 5]])
    found = fuse_views(np.stack([one] * 5), 4)
    assert found.items.tolist() == [[7, 3, 9, 4], [5, 2, -1, -1]]
    assert found.scores[1].tolist() == pytest.approx([5.0, 5 / log2(3), 0, 0])


def test_a_repetition_counts_once():
    assert fuse_views([[[1, 2, 2, 2, 2]]], 2).scores.tolist() == [[1.0, pytest.approx(1 / log2(3))]]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(DataError, match="views, users, places"):
        fuse_views([[1, 2]], 2)
    with pytest.raises(DataError, match="top_k"):
        fuse_views([[[1, 2]]], 0)


def test_equal_sums_are_ties_whatever_the_order_of_the_views():
    """The same three ranks in another order: the item with the earlier best rank first, not the one rounded up."""
    found = []
    for order in ((7, 0, 6), (6, 7, 0)):
        items = np.full((3, 1, 9), -1)
        for view, rank in enumerate(order):
            items[view, 0, :rank] = 100 + np.arange(rank)  # fillers
            items[view, 0, rank] = 1
        found.append(fuse_views(items, 50))
    scores = [float(each.scores[0][each.items[0] == 1][0]) for each in found]
    assert scores[0] == scores[1]
