import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.metrics.identifiers import exposed_share, group_sizes, identifier_lists, identifier_scores
from genrec.metrics.ranking import expected_ranks

INF = float("inf")


def test_exposure():
    identifier = np.array([7, 3, 7, 7, 1])
    assert group_sizes(identifier).tolist() == [3, 1, 3, 3, 1]
    assert exposed_share(identifier, np.array([0, 1, 2, 4])) == 2 / 4
    assert np.isnan(exposed_share(identifier, np.array([], dtype=int)))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_lists_and_dense_scores_give_the_same_identifier_ranks(data):
    n = 8
    identifier = np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))
    by_identifier = np.array(data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0, -INF]), min_size=5, max_size=5)))
    scores = by_identifier[identifier][None]  # items of one identifier score the same, as in a beam search
    dense = identifier_scores(scores, identifier)
    numbers = np.unique(identifier)
    assert dense[0].tolist() == [max(scores[0][identifier == g]) for g in numbers]

    order = np.argsort(-scores[0], kind="stable")
    own = expected_ranks(scores, np.zeros(n, int), order)
    items = np.where(np.isfinite(own), order, -1)[None]
    ids, ranks = identifier_lists(items, own[None], identifier)
    listed = ids[0][ids[0] >= 0]
    assert len(set(listed.tolist())) == len(listed)
    places = np.searchsorted(numbers, listed)
    assert ranks[0][: len(listed)].tolist() == expected_ranks(dense, np.zeros(len(listed), int), places).tolist()
    assert sorted(listed.tolist()) == [g for g, s in zip(numbers.tolist(), dense[0], strict=True) if s > -INF]


def test_identifier_keeps_the_place_of_its_best_item():
    items = np.array([[5, 1, 0, 2, -1], [2, 9, 3, -1, -1]])
    ranks = np.array([[1, 2, 3, 4, INF], [1, 2, 3, INF, INF]])
    ids, id_ranks = identifier_lists(items, ranks, np.array([6, 4, 4, 6, 0, 6]))
    assert ids.tolist() == [[6, 4, -1, -1, -1], [4, 6, -1, -1, -1]]  # item 9 does not exist
    assert id_ranks.tolist() == [[1, 2, INF, INF, INF], [1, 2, INF, INF, INF]]
