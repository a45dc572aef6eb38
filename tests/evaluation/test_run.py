from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.baselines import ItemKnn, Popularity
from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.decoding.interface import Recommendations
from genrec.errors import ConfigError, DataError
from genrec.evaluation import EvalSettings, evaluate

INF = float("inf")
QUICK = EvalSettings(ks=(1, 2, 5), n_bootstrap=20)


def evalset(histories, targets):
    users = np.arange(100, 100 + len(histories), dtype=np.int32)
    return EvalSet(users, Histories.from_lists(histories), Histories.from_lists(targets))


class Dense:
    """Fixed scores for everybody, or scores that depend on what was shown."""

    def __init__(self, scores):
        self.scores = np.asarray(scores, dtype=np.float32)
        self.n_items = self.scores.shape[-1]
        self.shown = []
        self.users = []

    def score_all(self, histories, users=None):
        self.shown += histories.to_lists()
        self.users += users.tolist()
        return np.broadcast_to(self.scores, (len(histories), len(self.scores)))


class Lister:
    """A recommender that only lists: the same scores, best ``limit`` items with equal scores tied."""

    def __init__(self, dense, limit=None, respect_seen=True):
        self.dense, self.limit, self.respect_seen = dense, limit, respect_seen
        self.n_items = dense.n_items
        self.options = []

    def recommend(self, histories, options, users=None):
        from genrec.decoding.dense import recommend_dense
        from genrec.decoding.interface import SearchOptions

        self.options.append(options)
        seen = options.exclude_seen and self.respect_seen
        return recommend_dense(self.dense, histories, SearchOptions(self.limit, exclude_seen=seen), users)


def test_values_are_the_arithmetic():
    model = Dense([5, 4, 3, 2, 1, 0])
    report = evaluate(model, evalset([[0], [0], [5]], [[1], [3, 4], [0]]), settings=QUICK)
    # without the seen item: query 0 ranks 1 first; query 1 ranks 3 third, 4 fourth; query 2 ranks 0 first
    assert report.ranks.tolist() == [1, 3, 4, 1] and report.target_rows.tolist() == [0, 1, 1, 2]
    assert report.values["recall@1"].tolist() == [1, 0, 1]
    assert report.mean("recall@5") == 1
    ideal = 1 + 1 / log2(3)
    assert np.allclose(report.values["ndcg@5"], [1, (1 / log2(4) + 1 / log2(5)) / ideal, 1])
    assert report.values["mrr@5"].tolist() == pytest.approx([1, 1 / 3, 1])
    assert report.lists.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4]]
    assert report.figures["coverage@1"] == 2 / 6 and report.figures["validity@5"] == 1
    assert model.users == [100, 101, 102]


def test_a_target_in_the_history_is_a_miss_when_seen_items_are_excluded():
    queries = evalset([[2, 0, 1]], [[0]])
    model = Dense([9, 1, 2, 3])
    excluded = evaluate(model, queries, settings=QUICK)
    assert excluded.ranks.tolist() == [INF] and excluded.mean("recall@5") == 0
    assert excluded.mean("repeat.recall@5") == 0 and "new.recall@5" not in excluded.values
    kept = evaluate(model, queries, settings=EvalSettings(ks=(1,), exclude_seen=False, n_bootstrap=0))
    assert kept.ranks.tolist() == [1] and kept.mean("recall@1") == 1
    for lister in (Lister(model), Lister(model, respect_seen=False)):
        assert evaluate(lister, queries, settings=QUICK).ranks.tolist() == [INF]


@pytest.mark.parametrize("kind", [lambda m: m, Lister])
def test_a_capped_history_still_excludes_all_of_it(kind):
    model = Dense([9, 8, 7, 6])
    queries = evalset([[0, 1, 2]], [[3]])
    capped = EvalSettings(ks=(1, 2), history_cap=1, n_bootstrap=0)
    report = evaluate(kind(model), queries, settings=capped)
    assert model.shown == [[2]]
    assert report.ranks.tolist() == [1] and report.lists.tolist() == [[3, -1]]
    assert "last 1 events" in report.definitions["history"] and "entire history" in report.definitions["seen"]


@pytest.mark.parametrize(
    ("own", "rule", "effective"), [(None, None, None), (3, None, 3), (None, 2, 2), (3, 2, 2), (2, 3, 2)]
)
def test_the_report_says_how_much_history_the_model_saw(own, rule, effective):
    model = Dense([3, 2, 1])
    if own is not None:
        model.history_cap = own
    report = evaluate(model, evalset([[0]], [[1]]), settings=EvalSettings(ks=(1,), history_cap=rule, n_bootstrap=0))
    assert report.history_cap == effective and report.settings["history_cap"] == rule
    assert ("entire history" if effective is None else f"last {effective} events") in report.definitions["history"]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_dense_and_list_recommenders_agree(data):
    n = 6
    items = st.integers(0, n - 1)
    scores = data.draw(st.lists(st.sampled_from([-INF, 0.0, 1.0, 1.0, 2.0]), min_size=n, max_size=n))
    histories = data.draw(st.lists(st.lists(items, min_size=1, max_size=4), min_size=1, max_size=4))
    targets = [data.draw(st.lists(items, min_size=1, max_size=3)) for _ in histories]
    identifier = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    rule = EvalSettings(
        ks=(1, 3),
        exclude_seen=data.draw(st.booleans()),
        history_cap=data.draw(st.sampled_from([None, 1, 2])),
        batch_size=data.draw(st.integers(1, 4)),
        n_bootstrap=0,
    )
    model, queries = Dense(scores), evalset(histories, targets)
    dense = evaluate(model, queries, settings=rule, identifier_of=identifier)
    listed = evaluate(Lister(model), queries, settings=rule, identifier_of=identifier)
    assert np.array_equal(dense.ranks, listed.ranks) and np.array_equal(dense.lists, listed.lists)
    assert dense.values.keys() == listed.values.keys()
    for key, values in dense.values.items():
        assert np.array_equal(values, listed.values[key], equal_nan=True), key


def test_short_lists_are_misses_and_are_counted():
    report = evaluate(Lister(Dense([5, 4, 3, 2]), limit=2), evalset([[3]], [[2]]), settings=QUICK)
    assert report.ranks.tolist() == [INF]
    assert report.figures["short_lists@2"] == 0 and report.figures["short_lists@5"] == 1
    assert report.mean("shortfall@5") == 3 / 5


def test_searching_models_are_asked_for_everything_under_the_rule():
    lister = Lister(Dense([5, 4, 3, 2]))
    rule = EvalSettings(ks=(1,), n_beams=7, normalize="level", exclude_seen=False, n_bootstrap=0)
    evaluate(lister, evalset([[0]], [[1]]), settings=rule)
    (asked,) = lister.options
    assert (asked.top_k, asked.n_beams, asked.normalize, asked.exclude_seen) == (None, 7, "level", False)


def test_identifier_level_stands_beside_item_exact():
    # items 1 and 2 collide; the model scores them alike, the target is 1
    report = evaluate(
        Dense([9, 5, 5, 1]),
        evalset([[3], [1]], [[1], [2]]),
        settings=EvalSettings(ks=(1, 2), n_bootstrap=0),
        identifier_of=np.array([0, 1, 1, 2]),
    )
    assert report.ranks.tolist() == [2.5, 2]  # the tied pair; then alone, because 1 was seen
    assert report.values["recall@2"].tolist() == [0, 1]
    assert report.values["identifier.recall@2"].tolist() == [1, 1]
    assert report.figures["exposed_targets"] == 1


def test_targets_that_share_an_identifier_are_one_target_there():
    report = evaluate(
        Dense([3, 2, 1]),
        evalset([[2]], [[0, 1]]),
        settings=EvalSettings(ks=(1,), n_bootstrap=0),
        identifier_of=np.array([0, 0, 1]),
    )
    assert report.mean("identifier.ndcg@1") == 1 and report.mean("identifier.recall@1") == 1
    assert report.mean("recall@1") == 1 / 2
    missed = evaluate(
        Dense([3, 2, 1, 0]),
        evalset([[3]], [[0, 1, 2]]),
        settings=EvalSettings(ks=(1,), n_bootstrap=0),
        identifier_of=np.array([0, 0, 1, 2]),
    )
    assert missed.mean("identifier.recall@1") == 1 / 2  # one of two identifiers, not two of three targets


def test_slices_split_targets_and_keep_ranks():
    train = Histories.from_lists([[0, 0, 0, 0, 1, 1, 2]])  # 0 is head, 1 mid, 2 tail, 3 cold
    report = evaluate(
        Dense([4, 3, 2, 1, 9]),
        evalset([[4], [4], [0]], [[0, 3], [1, 2], [0, 3]]),
        settings=EvalSettings(ks=(1, 2, 4), n_bootstrap=0),
        train=train,
    )
    assert np.array_equal(report.values["head.recall@1"], [1, np.nan, 0], equal_nan=True)
    assert np.array_equal(report.values["cold.recall@4"], [1, np.nan, 1], equal_nan=True)
    assert np.array_equal(report.values["mid.recall@2"], [np.nan, 1, np.nan], equal_nan=True)
    assert np.array_equal(report.values["tail.recall@2"], [np.nan, 0, np.nan], equal_nan=True)
    assert report.mean("warm.recall@2") == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert report.figures["cold.share_of_targets"] == 2 / 6
    assert report.figures["repeat.share_of_targets"] == 1 / 6
    assert report.intervals["cold.recall@4"].n == 2


def test_a_target_asked_twice_counts_once():
    report = evaluate(Dense([3, 2, 1]), evalset([[2]], [[0, 0, 1]]), settings=QUICK)
    assert report.targets.tolist() == [0, 1] and report.mean("recall@1") == 1 / 2


def test_batch_size_and_order_of_users_change_nothing():
    random = np.random.default_rng(0)
    train = Histories.from_lists([random.integers(0, 12, 6) for _ in range(40)])
    model = ItemKnn().fit(train, 12)
    queries = evalset(
        [random.integers(0, 12, random.integers(1, 6)) for _ in range(20)],
        [random.integers(0, 12, random.integers(1, 4)) for _ in range(20)],
    )
    whole = evaluate(model, queries, settings=QUICK, train=train)
    small = evaluate(model, queries, settings=EvalSettings(ks=(1, 2, 5), n_bootstrap=20, batch_size=3), train=train)
    back = evaluate(model, queries.take(np.arange(20)[::-1]), settings=QUICK, train=train)
    for key, values in whole.values.items():
        assert np.array_equal(values, small.values[key], equal_nan=True), key
        assert np.array_equal(values, back.values[key][::-1], equal_nan=True), key
    assert repr(whole.intervals) == repr(small.intervals)  # repr: nan is not equal to itself
    assert whole.queries == small.queries != back.queries


def test_perfect_and_random_scores():
    n, q = 50, 3000
    random = np.random.default_rng(1)
    targets = random.integers(0, n, q)

    class Oracle:
        n_items = n

        def score_all(self, histories, users=None):
            return np.eye(n, dtype=np.float32)[targets[users - 100]]

    class Noise(Oracle):
        def score_all(self, histories, users=None):
            return random.random((len(histories), n), dtype=np.float32)

    queries = evalset([[]] * q, [[t] for t in targets])
    oracle = evaluate(Oracle(), queries, settings=EvalSettings(ks=(1, 5), n_bootstrap=0))
    assert oracle.mean("recall@1") == oracle.mean("ndcg@5") == 1
    noise = evaluate(Noise(), queries, settings=EvalSettings(ks=(5,), n_bootstrap=0))
    assert noise.mean("recall@5") == pytest.approx(5 / n, abs=0.02)


def test_default_name_and_intervals():
    train = Histories.from_lists([[0, 1], [1, 2]])
    report = evaluate(Popularity().fit(train, 3), evalset([[0], [2]], [[1], [0]]), settings=QUICK)
    assert report.name == "Popularity"
    found = report.intervals["recall@1"]
    assert found.low <= found.mean <= found.high and found.n == 2


def test_malformed_answers_are_refused():
    queries = evalset([[0]], [[1]])
    with pytest.raises(DataError, match="nan"):
        evaluate(Dense([1, np.nan]), queries, settings=QUICK)
    wrong = Dense([1, 2, 3])
    wrong.n_items = 2
    with pytest.raises(DataError, match="shape"):
        evaluate(wrong, queries, settings=QUICK)
    with pytest.raises(DataError, match="targets"):
        evaluate(Dense([1, 2]), evalset([[0]], [[2]]), settings=QUICK)
    with pytest.raises(DataError, match="identifier_of"):
        evaluate(Dense([1, 2]), queries, settings=QUICK, identifier_of=np.zeros(3, int))
    with pytest.raises(ConfigError, match="no score_all"):
        evaluate(Lister(Dense([1, 2])), queries, settings=EvalSettings(method="dense"))


@pytest.mark.parametrize("ranks", [[[2.0, 1.0]], [[1.0, np.nan]], [[np.inf, 1.0]]])
def test_lists_whose_ranks_fall_are_refused(ranks):
    class Wrong:
        n_items = 3

        def recommend(self, histories, options, users=None):
            return Recommendations(
                np.array([[0, 2]], np.int32), np.zeros((1, 2), np.float32), np.array(ranks, np.float32)
            )

    with pytest.raises(DataError, match="rise"):
        evaluate(Wrong(), evalset([[1]], [[2]]), settings=QUICK)


def test_invalid_items_are_measured_and_take_places():
    class Inventive:
        n_items = 3

        def recommend(self, histories, options, users=None):
            return Recommendations(
                np.array([[7, 2]], np.int32), np.zeros((1, 2), np.float32), np.array([[1, 2]], np.float32)
            )

    report = evaluate(Inventive(), evalset([[1]], [[2]]), settings=QUICK, identifier_of=np.arange(3))
    assert report.figures["validity@2"] == 1 / 2 and report.ranks.tolist() == [2]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"ks": ()}, "ks"),
        ({"ks": (0,)}, "ks"),
        ({"ks": (5, 5)}, "ks"),
        ({"history_cap": 0}, "history_cap"),
        ({"batch_size": 0}, "batch_size"),
        ({"n_bootstrap": -1}, "n_bootstrap"),
        ({"method": "fast"}, "method"),
        ({"n_beams": 0}, "n_beams"),
    ],
)
def test_settings_out_of_range_are_refused(values, name):
    with pytest.raises(ConfigError, match=name):
        EvalSettings(**values)
