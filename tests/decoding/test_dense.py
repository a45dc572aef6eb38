from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.decoding.dense import mask_seen, neutral_order, recommend_dense, top_k_dense
from genrec.decoding.filters import ItemFilter
from genrec.decoding.interface import DenseRecommender, Recommendations, Recommender, SearchOptions
from genrec.errors import ConfigError, DataError
from genrec.metrics.ranking import expected_ranks

INF = float("inf")


class Scripted:
    """Scores that depend on the last item only."""

    n_items = 6

    def score_all(self, histories, users=None):
        table = np.array([[3, 3, 1, 0, -INF, 3], [0, 1, 2, 3, 4, 5]], dtype=np.float32)
        return table[[int(h[-1]) % 2 for h in histories]]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_top_k_equals_sorting_everything(data):
    n = data.draw(st.integers(1, 9))
    k = data.draw(st.one_of(st.none(), st.integers(1, 11)))
    scores = np.array(
        data.draw(
            st.lists(
                st.lists(st.sampled_from([-INF, 0.0, 1.0, 2.0]), min_size=n, max_size=n),
                min_size=1,
                max_size=4,
            )
        ),
        dtype=np.float32,
    )
    order = np.array(data.draw(st.permutations(range(n))))
    found = top_k_dense(scores, k, order)
    place = {item: p for p, item in enumerate(order.tolist())}
    for row, items, listed, ranks in zip(scores, found.items, found.scores, found.ranks, strict=True):
        best = sorted((j for j in range(n) if row[j] > -INF), key=lambda j: (-row[j], place[j]))[:k]
        assert items[: len(best)].tolist() == best and (items[len(best) :] == -1).all()
        assert listed[: len(best)].tolist() == [row[j] for j in best] and (listed[len(best) :] == -INF).all()
        true = expected_ranks(row[None], np.zeros(len(best), int), np.array(best, dtype=int))
        assert ranks[: len(best)].tolist() == true.tolist() and np.isinf(ranks[len(best) :]).all()


def test_recommend_excludes_seen_and_does_not_depend_on_the_batch():
    histories = Histories.from_lists([[0], [5], [1, 2], [0]])
    options = SearchOptions(top_k=4)
    whole = recommend_dense(Scripted(), histories, options)
    for size in (1, 3):
        part = recommend_dense(Scripted(), histories, options, batch_size=size)
        assert np.array_equal(part.items, whole.items) and np.array_equal(part.ranks, whole.ranks)
    assert whole.items[1].tolist() == [4, 3, 2, 1]  # 5 is seen
    assert set(whole.items[0].tolist()) == {1, 5, 2, 3} and whole.ranks[0].tolist() == [1.5, 1.5, 3, 4]
    kept = recommend_dense(Scripted(), histories, SearchOptions(top_k=1, exclude_seen=False))
    assert kept.items[1].tolist() == [5]
    assert recommend_dense(Scripted(), Histories.from_lists([]), options).items.shape == (0, 4)


def test_masking_is_in_place_and_only_for_the_row():
    scores = np.zeros((2, 3), np.float32)
    mask_seen(scores, Histories.from_lists([[1, 1], []]))
    assert scores.tolist() == [[0, -INF, 0], [0, 0, 0]]


def test_neutral_order_is_a_fixed_permutation():
    order = neutral_order(100)
    assert sorted(order.tolist()) == list(range(100)) and order.tolist() != list(range(100))
    assert np.array_equal(order, neutral_order(100))


def test_protocols_tell_models_apart():
    assert isinstance(Scripted(), DenseRecommender) and not isinstance(Scripted(), Recommender)


@pytest.mark.parametrize(
    ("values", "name"),
    [({"top_k": 0}, "top_k"), ({"n_beams": 0}, "n_beams"), ({"normalize": "words"}, "normalize")],
)
def test_options_out_of_range_are_refused(values, name):
    with pytest.raises(ConfigError, match=name):
        SearchOptions(**values)


def test_lengths_of_lists():
    items = np.array([[3, 1, -1], [-1, -1, -1]], np.int32)
    lists = Recommendations(items, np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32))
    assert lists.lengths.tolist() == [2, 0] and len(lists) == 2


def test_a_filter_leaves_only_its_items():
    """One filter for all, and one for each row, of which some have none."""
    scores = np.random.default_rng(0).random((3, 6)).astype(np.float32)
    model = SimpleNamespace(n_items=6, score_all=lambda histories, users: scores[: len(histories)])
    histories = Histories.from_lists([[0], [], [5]])
    even = ItemFilter.of_mask(np.arange(6) % 2 == 0)
    for filters, allowed in ((even, [{0, 2, 4}] * 3), ([even, None, ~even], [{0, 2, 4}, set(range(6)), {1, 3, 5}])):
        got = recommend_dense(model, histories, SearchOptions(top_k=None, filter=filters))
        for row, seen in enumerate([{0}, set(), {5}]):
            assert set(got.items[row][got.items[row] >= 0].tolist()) == allowed[row] - seen
    with pytest.raises(DataError, match="one of 5"):
        recommend_dense(model, histories, SearchOptions(filter=ItemFilter.of_items([0], 5)))
