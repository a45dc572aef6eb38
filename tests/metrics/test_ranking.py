from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.metrics import ranking
from genrec.metrics.ranking import (
    RankedTargets,
    expected_ranks,
    hit_rate,
    listed_ranks,
    mrr,
    ndcg,
    ranking_metrics,
    recall,
    tied_ranks,
)

INF = float("inf")


def ranked(ranks, rows=None, n_queries=None):
    ranks = np.asarray(ranks, dtype=np.float64)
    rows = np.arange(len(ranks)) if rows is None else np.asarray(rows, dtype=np.int64)
    return RankedTargets(ranks, rows, n_queries if n_queries is not None else int(rows.max(initial=-1)) + 1)


def slow_rank(scores, target):
    """The definition, item by item."""
    if scores[target] == -INF:
        return INF
    others = [s for j, s in enumerate(scores) if j != target]
    return 1 + sum(s > scores[target] for s in others) + sum(s == scores[target] for s in others) / 2


score_lists = st.lists(
    st.lists(st.sampled_from([-INF, -1.0, 0.0, 0.5, 0.5000001, 2.0]), min_size=7, max_size=7),
    min_size=1,
    max_size=5,
)


@given(score_lists, st.data())
@settings(max_examples=60, deadline=None)
def test_expected_ranks_equal_the_definition(scores, data):
    scores = np.array(scores)
    pairs = data.draw(st.lists(st.tuples(st.integers(0, len(scores) - 1), st.integers(0, 6)), min_size=1, max_size=9))
    rows, targets = np.array(pairs).T
    assert expected_ranks(scores, rows, targets).tolist() == [slow_rank(scores[r], t) for r, t in pairs]


def test_expected_ranks_in_small_pieces_are_the_same(monkeypatch):
    random = np.random.default_rng(0)
    scores = random.integers(0, 5, size=(6, 11)).astype(np.float32)
    rows, targets = np.repeat(np.arange(6), 3), random.integers(0, 11, 18)
    whole = expected_ranks(scores, rows, targets)
    monkeypatch.setattr(ranking, "_CHUNK_ELEMENTS", 25)
    assert np.array_equal(expected_ranks(scores, rows, targets), whole)
    items = np.argsort(-scores, axis=1)
    ranks = tied_ranks(np.take_along_axis(scores, items, axis=1))
    assert np.array_equal(listed_ranks(items, ranks, rows, targets), whole)


def test_mean_over_all_orders_of_ties_is_the_expected_rank():
    # ties in all 3! orders: the target stands at ranks 2, 3, 4 equally often
    assert expected_ranks(np.array([[9.0, 1.0, 1.0, 1.0]]), np.array([0]), np.array([2])) == [(2 + 3 + 4) / 3]


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="nan"):
        expected_ranks(np.array([[1.0, np.nan]]), np.array([0]), np.array([0]))


def test_huge_and_close_scores_are_told_apart():
    big = np.float32(2.0**24)
    scores = np.array([[big, np.nextafter(big, np.float32(np.inf)), np.inf]], dtype=np.float32)
    assert expected_ranks(scores, np.array([0, 0, 0]), np.array([0, 1, 2])).tolist() == [3, 2, 1]


def test_listed_ranks_of_short_empty_and_repeating_lists():
    items = np.array([[4, 2, 4], [-1, -1, -1]])
    ranks = np.array([[1.0, 2.0, 3.0], [INF, INF, INF]])
    found = listed_ranks(items, ranks, np.array([0, 0, 0, 1]), np.array([4, 2, 7, 4]))
    assert found.tolist() == [1, 2, INF, INF]
    assert listed_ranks(np.zeros((2, 0), int), np.zeros((2, 0)), np.array([1]), np.array([3])).tolist() == [INF]


def test_tied_ranks_do_not_join_rows():
    keys = np.array([[3.0, 1.0, 1.0], [1.0, 1.0, -INF], [-INF, -INF, -INF]])
    assert tied_ranks(keys).tolist() == [[1, 2.5, 2.5], [1.5, 1.5, INF], [INF, INF, INF]]
    assert tied_ranks(np.zeros((2, 0))).shape == (2, 0)


def test_metrics_of_one_target_per_query():
    r = ranked([1, 3, 5, 5.5, INF])
    assert recall(r, 5).tolist() == [1, 1, 1, 0, 0]
    assert np.allclose(ndcg(r, 5), [1, 1 / log2(4), 1 / log2(6), 0, 0])
    assert np.allclose(mrr(r, 5), [1, 1 / 3, 1 / 5, 0, 0])
    assert np.array_equal(hit_rate(r, 5), recall(r, 5))


def test_metrics_of_several_targets():
    r = ranked([1, 4, 9, 2], rows=[0, 0, 0, 1])
    assert np.allclose(recall(r, 5), [2 / 3, 1])
    ideal = 1 + 1 / log2(3) + 1 / log2(4)
    assert np.allclose(ndcg(r, 5), [(1 + 1 / log2(5)) / ideal, (1 / log2(3)) / 1])
    assert np.allclose(ndcg(r, 2), [1 / (1 + 1 / log2(3)), (1 / log2(3)) / 1])  # ideal list is cut at k too
    assert np.allclose(mrr(r, 5), [1, 1 / 2])
    assert hit_rate(r, 1).tolist() == [1, 0]


def test_order_of_targets_does_not_matter():
    a = ranked([1, 4, 9, 2], rows=[0, 0, 0, 1])
    b = ranked([2, 9, 1, 4], rows=[1, 0, 0, 0])
    for key, values in ranking_metrics(a).items():
        assert np.allclose(values, ranking_metrics(b)[key]), key


def test_query_without_target_has_no_value():
    r = ranked([1.0], rows=[1], n_queries=3)
    for key, values in ranking_metrics(r, (1, 5)).items():
        assert np.isnan(values).tolist() == [True, False, True], key
    nobody = RankedTargets(np.zeros(0), np.zeros(0, np.int64), 2)
    assert np.isnan(recall(nobody, 5)).all() and np.isnan(mrr(nobody, 5)).all()


def test_ndcg_never_exceeds_one_when_targets_tie_across_the_cut():
    assert ndcg(ranked([2, 2, 2], rows=[0, 0, 0]), 2).tolist() == [1]


def test_oracle_is_perfect_and_the_reversed_oracle_finds_nothing():
    scores = np.eye(30)
    rows = targets = np.arange(30)
    best = ranking_metrics(ranked(expected_ranks(scores, rows, targets)))
    worst = ranking_metrics(ranked(expected_ranks(-scores, rows, targets)), (1, 5, 10))
    assert all((v == 1).all() for v in best.values()) and all((v == 0).all() for v in worst.values())


def test_where_keeps_ranks_and_queries():
    r = ranked([1, 4, 2], rows=[0, 0, 1]).where(np.array([False, True, False]))
    assert r.ranks.tolist() == [4] and np.array_equal(recall(r, 5), [1, np.nan], equal_nan=True)


@pytest.mark.parametrize("seed", range(4))
def test_agreement_with_pytrec_eval(seed):
    import pytrec_eval

    random = np.random.default_rng(seed)
    n_queries, n_items, ks = 25, 40, (1, 5, 10, 20)
    scores = np.stack([random.permutation(n_items) for _ in range(n_queries)]).astype(np.float64)
    scores[random.random(scores.shape) < 0.3] = -INF  # short lists
    sizes = random.integers(1, 6, n_queries)
    pairs = [(q, t) for q in range(n_queries) for t in random.choice(n_items, sizes[q], replace=False)]
    rows, targets = np.array(pairs).T
    ours = ranking_metrics(ranked(expected_ranks(scores, rows, targets), rows, n_queries), ks)
    qrel = {str(q): {str(t): 1 for r, t in pairs if r == q} for q in range(n_queries)}
    run = {str(q): {str(i): float(s) for i, s in enumerate(scores[q]) if s > -INF} for q in range(n_queries)}
    cut = ",".join(map(str, ks))
    measures = {f"recall.{cut}", f"ndcg_cut.{cut}", f"success.{cut}", "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(qrel, measures).evaluate(run)
    for q in range(n_queries):
        for k in ks:
            found = theirs[str(q)]
            assert ours[f"recall@{k}"][q] == pytest.approx(found[f"recall_{k}"])
            assert ours[f"ndcg@{k}"][q] == pytest.approx(found[f"ndcg_cut_{k}"])
            assert ours[f"hit_rate@{k}"][q] == pytest.approx(found[f"success_{k}"])
            reciprocal = found["recip_rank"]
            assert ours[f"mrr@{k}"][q] == pytest.approx(reciprocal if reciprocal >= 1 / k else 0)
