import itertools
from math import sqrt

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.baselines import ContentKnn, CopyLast, ItemKnn, LargerIdProbe, Markov1, Popularity, id_order
from genrec.baselines.counting import Counting, ages, keep_largest, query_matrix
from genrec.data.histories import Histories
from genrec.decoding.interface import DenseRecommender, Recommender, SearchOptions
from genrec.errors import ConfigError, DataError, NotFitted

INF = float("inf")
N = 6
VECTORS = np.random.default_rng(0).normal(size=(N, 4))

ALL = {
    "popularity": Popularity,
    "copy-last": CopyLast,
    "markov": Markov1,
    "item-knn": ItemKnn,
    "item-knn, 2 neighbours": lambda: ItemKnn(neighbours=2),
    "content": lambda: ContentKnn(VECTORS),
    "content, unseen": lambda: ContentKnn(VECTORS, candidates="unseen"),
    "probe": lambda: LargerIdProbe(ItemKnn(), np.arange(N)[::-1]),
}

rows = st.lists(st.lists(st.integers(0, N - 1), max_size=6), max_size=6)


# --- slow, obvious versions ---


def slow_knn(train, history, shrink, decay):
    users = [set(row) for row in train]
    count = [sum(i in u for u in users) for i in range(N)]
    scores = [0.0] * N
    for age, i in enumerate(reversed(history)):
        for j in range(N):
            common = sum(i in u and j in u for u in users)
            if i != j and common:
                scores[j] += decay**age * common / (sqrt(count[i]) * sqrt(count[j]) + shrink)
    return scores


def slow_markov(train, history):
    count = [sum(row.count(j) for row in train) for j in range(N)]
    scores = [1e-6 * c for c in count]
    for row in train if history else []:
        for a, b in itertools.pairwise(row):
            scores[b] += a == history[-1]
    return scores


def order_of(scores):
    """Items in groups of equal score, best first: what ranking sees."""
    return [sorted(j for j in range(N) if scores[j] == s) for s in sorted(set(scores), reverse=True)]


@given(rows, rows, st.sampled_from([(0.0, 1.0), (10.0, 0.7), (0.0, 0.0)]))
@settings(max_examples=60, deadline=None)
def test_item_knn_equals_the_definition(train, queries, setting):
    shrink, decay = setting
    model = ItemKnn(shrink, decay).fit(Histories.from_lists(train), N)
    found = model.score_all(Histories.from_lists(queries))
    expected = np.array([slow_knn(train, h, shrink, decay) for h in queries]).reshape(len(queries), N)
    assert np.allclose(found, expected, atol=1e-6)


@given(rows, rows)
@settings(max_examples=60, deadline=None)
def test_markov_orders_items_as_the_published_rule(train, queries):
    found = Markov1().fit(Histories.from_lists(train), N).score_all(Histories.from_lists(queries))
    for scores, history in zip(found, queries, strict=True):
        assert order_of(scores.tolist()) == order_of(slow_markov(train, history))


def test_popularity_counts_training_events():
    model = Popularity().fit(Histories.from_lists([[0, 1], [1, 1], []]), N)
    assert model.score_all(Histories.from_lists([[5], []])).tolist() == [[1, 3, 0, 0, 0, 0]] * 2


def test_copy_last_repeats_the_history_newest_first_then_the_popular():
    model = CopyLast().fit(Histories.from_lists([[4, 4, 5], [5, 4]]), N)
    lists = model.recommend(Histories.from_lists([[2, 0, 2, 1]]), SearchOptions(top_k=5, exclude_seen=False))
    assert lists.items[0].tolist() == [1, 2, 0, 4, 5]
    unseen = model.recommend(Histories.from_lists([[2, 0, 2, 1]]), SearchOptions(top_k=None))
    assert unseen.items[0][:3].tolist() == [4, 5, 3]


def test_markov_is_directed_and_stays_within_a_user():
    model = Markov1().fit(Histories.from_lists([[0, 1], [2, 0], [3]]), N)
    assert np.floor(model.score_all(Histories.from_lists([[5, 0], [1], [2]]))).tolist() == [
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
    ]


def test_tie_break_by_popularity_never_outweighs_a_count():
    train = Histories.from_lists([[0, 1]] + [[2]] * 3000 + [[3]] * 2999)
    scores = Markov1().fit(train, N).score_all(Histories.from_lists([[0]]))[0]
    assert np.argsort(-scores)[:3].tolist() == [1, 2, 3]  # 3000 and 2999 are still told apart


def test_repeated_purchases_of_one_user_count_once_in_item_knn():
    once = ItemKnn().fit(Histories.from_lists([[0, 1], [1, 2]]), N)
    often = ItemKnn().fit(Histories.from_lists([[0, 0, 1, 0], [1, 2, 2]]), N)
    assert np.array_equal(once.similarity.toarray(), often.similarity.toarray())


def test_neighbours_keeps_the_most_similar_of_each_item():
    train = Histories.from_lists([[0, 1], [0, 1], [0, 2], [1, 2], [0, 3], [3, 4]])
    everything = ItemKnn(shrink=0).fit(train, N).similarity.toarray()
    kept = ItemKnn(shrink=0, neighbours=2).fit(train, N).similarity.toarray()
    for i in range(N):
        assert sorted(kept[i][kept[i] > 0]) == sorted(np.sort(everything[i][everything[i] > 0])[-2:])
        assert ((kept[i] == 0) | (kept[i] == everything[i])).all()
    assert keep_largest(ItemKnn(shrink=0).fit(train, N).similarity, 99).nnz == (everything > 0).sum()


def test_of_equally_similar_neighbours_the_order_of_the_catalog_chooses_none():
    matrix = sp.csr_matrix(np.ones((1, 60)))
    kept = keep_largest(matrix, 20).indices
    assert len(kept) == 20 and np.array_equal(np.sort(kept), np.sort(keep_largest(matrix, 20).indices))
    assert 15 < kept.mean() < 44  # 9.5 for the first 20, 49.5 for the last


def test_content_knn_finds_the_nearest_and_only_unseen_candidates():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [5, 0], [0, 0]])
    train = Histories.from_lists([[0, 1, 2]])
    query = Histories.from_lists([[2, 0], [2], []])
    free = ContentKnn(vectors, decay=0.0).fit(train, N).score_all(query)
    assert np.allclose(free[0], [1, 0.9 / sqrt(0.82), 0, 0.1 / sqrt(0.82), 1, 0], atol=1e-6)
    assert np.allclose(free[2], 0)
    cold = ContentKnn(vectors, decay=0.5, candidates="unseen").fit(train, N)
    scores = cold.score_all(query)
    assert np.isneginf(scores[:, :3]).all() and np.isfinite(scores[:, 3:]).all()
    assert scores[0, 4] == pytest.approx((1 * 1 + 0.5 * 0) / 1.5)
    assert set(cold.recommend(query, SearchOptions(top_k=None)).items[0].tolist()) == {4, 3, 5, -1}


def test_probe_multiplies_only_larger_ids():
    base = ItemKnn(shrink=0, decay=0.0)
    train = Histories.from_lists([[0, 1], [0, 2], [0, 3]])
    order = id_order(["m", "a", "z", "n", "b", "c"])  # larger than item 0: items 2 and 3
    probe = LargerIdProbe(base, order, factor=4.0).fit(train, N)
    histories = Histories.from_lists([[5, 0], []])
    expected = base.score_all(histories) * np.array([[1, 1, 4, 4, 1, 1], [1] * 6], np.float32)
    assert np.allclose(probe.score_all(histories), expected) and expected[0, 2] == 4 * expected[0, 1] > 0
    popular = LargerIdProbe(Popularity(), order, factor=2.0).fit(train, N)
    assert popular.score_all(histories)[0].tolist() == [
        3,
        1,
        2,
        2,
        0,
        0,
    ]  # the last item itself is not larger
    with pytest.raises(DataError, match="negative"):
        LargerIdProbe(ContentKnn(VECTORS), order).fit(train, N).score_all(histories)


# --- what holds for all of them ---


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
@given(train=rows, queries=rows)
@settings(max_examples=15, deadline=None)
def test_contract(make, train, queries):
    train_h, query_h = Histories.from_lists(train), Histories.from_lists(queries)
    if any(isinstance(make(), c) for c in (ContentKnn,)):
        equal = lambda a, b: np.allclose(a, b, atol=1e-6)  # noqa: E731 - BLAS rounds by batch size
    else:
        equal = np.array_equal
    before = train_h.items.copy(), query_h.items.copy()
    model = make().fit(train_h, N)
    scores = model.score_all(query_h)
    assert scores.shape == (len(queries), N) and scores.dtype == np.float32
    assert not np.isnan(scores).any() and not np.isposinf(scores).any()
    for row, history in zip(scores, queries, strict=True):
        assert equal(model.score_all(Histories.from_lists([history]))[0], row)
    reversed_h = Histories.from_lists(queries[::-1])
    assert equal(model.score_all(reversed_h), scores[::-1])
    assert np.array_equal(train_h.items, before[0]) and np.array_equal(query_h.items, before[1])
    assert equal(make().fit(train_h, N).score_all(query_h), scores)
    lists = model.recommend(query_h, SearchOptions(top_k=N))
    for items, history in zip(lists.items.tolist(), queries, strict=True):
        assert not set(items) & set(history)
    assert isinstance(model, DenseRecommender) and isinstance(model, Recommender) and isinstance(model, Counting)


@pytest.mark.parametrize("make", [m for k, m in ALL.items() if k != "probe"])
def test_unfitted_models_say_so(make):
    with pytest.raises(NotFitted, match="no training data"):
        make().score_all(Histories.from_lists([[0]]))


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_items_outside_the_catalog_are_refused(make):
    with pytest.raises(DataError):
        make().fit(Histories.from_lists([[0, N]]), N)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ItemKnn(shrink=-1), "shrink"),
        (lambda: ItemKnn(decay=1.5), "decay"),
        (lambda: ItemKnn(neighbours=0), "neighbours"),
        (lambda: ContentKnn(VECTORS, candidates="new"), "candidates"),
        (lambda: ContentKnn(VECTORS, decay=-1), "decay"),
    ],
)
def test_settings_out_of_range_are_refused(make, name):
    with pytest.raises(ConfigError, match=name):
        make()


def test_vectors_must_be_finite_and_one_per_item():
    with pytest.raises(DataError, match="finite"):
        ContentKnn(np.full((N, 2), np.nan))
    with pytest.raises(DataError, match="one row for each"):
        ContentKnn(VECTORS[:3]).fit(Histories.from_lists([[0]]), N)


def test_ages_and_weights():
    histories = Histories.from_lists([[4, 1, 4], [], [2]])
    assert ages(histories).tolist() == [2, 1, 0, 0]
    weights = query_matrix(histories, N, 0.5).toarray()
    assert weights[0].tolist() == [0, 0.5, 0, 0, 1.25, 0] and weights[2].tolist() == [0, 0, 1, 0, 0, 0]
    assert not weights[1].any()
