"""Ranking metrics from expected ranks (numpy only).

A *query* is one user with a known history; its *targets* are the distinct items to be found. Everything
starts from one number per target: the expected rank

    rank = 1 + #(items scored higher) + #(other items with the same score) / 2

which is the mean over all orders of the tied items, so no order of the catalog can help or hurt a model. Code
that sorts and takes positions ranks a target first in its tied block at best ("optimistic" ties) and reports
more: popularity on Amazon Beauty 2014 goes from recall@10 .0110 to .0120 by this alone.

Axes: B rows of scores, N items, Q queries, T targets of all queries, k list length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

KS = (1, 5, 10, 20, 50)
"""The list lengths reported unless others are asked for."""

_CHUNK_ELEMENTS = 1 << 22  # scores compared at a time: bounds the memory of a comparison to some 20 MB


@dataclass(frozen=True)
class RankedTargets:
    """The expected rank of every target, and which query it belongs to.

    ranks: float64 ``[T]``, 1-based, inf = not ranked. rows: int64 ``[T]``, the query of each target, in any
    order. n_queries: Q; queries without a target get nan from every metric. Stability: stable.
    """

    ranks: npt.NDArray[np.float64]
    rows: npt.NDArray[np.int64]
    n_queries: int

    def __post_init__(self) -> None:
        assert self.ranks.shape == self.rows.shape and self.ranks.ndim == 1

    @property
    def n_targets(self) -> npt.NDArray[np.int64]:
        """Targets of each query, int64 ``[Q]``."""
        return np.bincount(self.rows, minlength=self.n_queries).astype(np.int64)

    def where(self, mask: npt.NDArray[np.bool_]) -> RankedTargets:
        """Only the targets with ``mask`` (bool ``[T]``); their ranks stay what they were."""
        return RankedTargets(self.ranks[mask], self.rows[mask], self.n_queries)


def expected_ranks(
    scores_BN: npt.NDArray[np.floating],
    rows: npt.NDArray[np.integer],
    targets: npt.NDArray[np.integer],
) -> npt.NDArray[np.float64]:
    """Expected rank of item ``targets[t]`` among the scores of row ``rows[t]``, float64 ``[T]`` (stable).

    An item scored -inf (excluded) takes no place, and as a target it has rank inf::

        rank[t] = 1 + #(j: s[j] > s[target]) + #(j != target: s[j] == s[target]) / 2

    Scores are compared as they are, without arithmetic, so nothing is rounded. Raises ValueError for nan.

    >>> expected_ranks(np.array([[3.0, 1.0, 1.0, -np.inf]]), np.array([0, 0, 0]), np.array([0, 2, 3]))
    array([1. , 2.5, inf])
    """
    if np.isnan(np.max(scores_BN, initial=-np.inf)):
        raise ValueError("scores: expected numbers, got nan")
    ranks = np.full(len(targets), np.inf)
    step = max(1, _CHUNK_ELEMENTS // max(1, scores_BN.shape[1]))
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        own = scores_BN[rows[part], targets[part]]
        scores = scores_BN[rows[part]]
        greater = np.count_nonzero(scores > own[:, None], axis=1)
        equal = np.count_nonzero(scores == own[:, None], axis=1)
        ranks[part] = np.where(own > -np.inf, 1 + greater + (equal - 1) / 2, np.inf)
    return ranks


def listed_ranks(
    items_BK: npt.NDArray[np.integer],
    ranks_BK: npt.NDArray[np.floating],
    rows: npt.NDArray[np.integer],
    targets: npt.NDArray[np.integer],
) -> npt.NDArray[np.float64]:
    """Rank of each target in its row's list, float64 ``[T]``; inf where it is not listed (stable).

    A target listed twice counts where it stands first.

    >>> items, ranks = np.array([[7, 3, -1]]), np.array([[1.0, 2.0, np.inf]])
    >>> listed_ranks(items, ranks, np.array([0, 0]), np.array([3, 5]))
    array([ 2., inf])
    """
    found = np.full(len(targets), np.inf)
    if items_BK.shape[1] == 0:
        return found
    step = max(1, _CHUNK_ELEMENTS // items_BK.shape[1])
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        match = items_BK[rows[part]] == targets[part][:, None]
        found[part] = np.where(match, ranks_BK[rows[part]], np.inf).min(axis=1)
    return found


def tied_ranks(keys_BK: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Expected ranks of complete lists whose keys fall from left to right, float64 ``[B, K]`` (stable).

    Entries with key -inf are padding and get rank inf. Equal neighbours form a block and share its mean rank.

    >>> tied_ranks(np.array([[0.9, 0.5, 0.5, -np.inf]]))
    array([[1. , 2.5, 2.5, inf]])
    """
    n_rows, length = keys_BK.shape
    if keys_BK.size == 0:
        return np.zeros(keys_BK.shape)
    assert not np.any(keys_BK[:, 1:] > keys_BK[:, :-1]), "keys must fall from left to right"
    starts = np.ones(keys_BK.shape, dtype=bool)
    starts[:, 1:] = keys_BK[:, 1:] != keys_BK[:, :-1]
    first = np.flatnonzero(starts)
    sizes = np.diff(first, append=n_rows * length)
    mean = np.asarray((first % length) + 1 + (sizes - 1) / 2, dtype=np.float64)
    ranks_BK: npt.NDArray[np.float64] = np.repeat(mean, sizes).reshape(keys_BK.shape)
    ranks_BK[np.isneginf(keys_BK)] = np.inf
    return ranks_BK


def _per_query(ranked: RankedTargets, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum of ``values`` (float64 ``[T]``) over the targets of each query."""
    sums = np.bincount(ranked.rows, weights=values, minlength=ranked.n_queries)
    return sums.astype(np.float64)  # bincount gives int64 for no rows at all


def _ratio(numerator: npt.NDArray[np.float64], denominator: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``numerator / denominator``, nan where the denominator is 0."""
    out = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def recall(ranked: RankedTargets, k: int) -> npt.NDArray[np.float64]:
    """Share of each query's targets with rank at most ``k``, float64 ``[Q]``. nan for a query without target (stable).

    With one target per query this is the hit rate.

    >>> recall(RankedTargets(np.array([1.0, 7.0, 3.0]), np.array([0, 0, 1]), 2), k=5)
    array([0.5, 1. ])
    """
    return _ratio(_per_query(ranked, (ranked.ranks <= k).astype(np.float64)), ranked.n_targets.astype(float))


def hit_rate(ranked: RankedTargets, k: int) -> npt.NDArray[np.float64]:
    """1 if at least one target of the query has rank at most ``k``, else 0; float64 ``[Q]`` (stable).

    >>> hit_rate(RankedTargets(np.array([1.0, 7.0, 9.0]), np.array([0, 0, 1]), 2), k=5)
    array([1., 0.])
    """
    hits = _per_query(ranked, (ranked.ranks <= k).astype(np.float64))
    return np.where(ranked.n_targets > 0, (hits > 0).astype(np.float64), np.nan)


def ndcg(ranked: RankedTargets, k: int) -> npt.NDArray[np.float64]:
    """Discounted gain of the targets with rank at most ``k`` over that of the ideal list, float64 ``[Q]`` (stable).

    Gain 1/log2(rank + 1) per target; the ideal list has the query's n targets at ranks 1..min(n, k) (Järvelin
    and Kekäläinen 2002, binary relevance). Never above 1: several targets tied across the cut could all have
    an expected rank within it, which no list achieves.

    >>> ndcg(RankedTargets(np.array([2.0, 1.0]), np.array([0, 1]), 2), k=5).round(4)
    array([0.6309, 1.    ])
    """
    gains = np.where(ranked.ranks <= k, 1 / np.log2(ranked.ranks + 1), 0.0)
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    return np.minimum(_ratio(_per_query(ranked, gains), ideal[np.minimum(ranked.n_targets, k)]), 1.0)


def mrr(ranked: RankedTargets, k: int) -> npt.NDArray[np.float64]:
    """1 / (rank of the query's best target) if that is at most ``k``, else 0; float64 ``[Q]`` (stable).

    >>> mrr(RankedTargets(np.array([4.0, 2.0, 9.0]), np.array([0, 0, 1]), 2), k=5)
    array([0.5, 0. ])
    """
    best = np.full(ranked.n_queries, np.inf)
    np.minimum.at(best, ranked.rows, ranked.ranks)
    return np.where(ranked.n_targets > 0, np.where(best <= k, 1 / best, 0.0), np.nan)


RANKING: dict[str, Callable[[RankedTargets, int], npt.NDArray[np.float64]]] = {
    "recall": recall,
    "hit_rate": hit_rate,
    "ndcg": ndcg,
    "mrr": mrr,
}
"""The ranking metrics by name."""

DEFINITIONS = {
    "rank": "1 + items scored higher + half of the other items scored equal; items excluded or scored -inf "
    "take no place; a target which is itself excluded is never ranked",
    "recall": "share of the query's targets with rank <= k",
    "hit_rate": "1 if at least one target has rank <= k, else 0",
    "ndcg": "sum over targets with rank <= k of 1/log2(rank + 1), divided by that of the ideal list with the "
    "min(number of targets, k) first places filled; at most 1",
    "mrr": "1 / rank of the best target if that rank <= k, else 0",
}
"""Each metric in one sentence, as printed in reports."""


def ranking_metrics(ranked: RankedTargets, ks: Sequence[int] = KS) -> dict[str, npt.NDArray[np.float64]]:
    """All ranking metrics at all list lengths: ``{"recall@5": float64 [Q], ...}`` (stable)."""
    return {f"{name}@{k}": metric(ranked, k) for name, metric in RANKING.items() for k in ks}
