"""Lists from models that score every item (numpy only): counting baselines, SASRec, exact scoring.

Axes: U users, B users at a time, N items, K places of a list.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.decoding.diversity import Interests, MaxPer, caps_of, check_diversity, only, within_caps
from genrec.decoding.filters import by_row
from genrec.decoding.interface import DenseRecommender, Recommendations, SearchOptions
from genrec.errors import ConfigError
from genrec.metrics.ranking import tied_ranks
from genrec.seeding import rng

CELLS_AT_ONCE = 2**26
"""Scores of so many (user, item) pairs are held together: about 1 GiB with what ranking them takes."""


def rows_at_once(n_items: int, batch_size: int) -> int:
    """How many users are scored together: ``batch_size``, or fewer where the catalog is large (internal)."""
    return max(1, min(batch_size, CELLS_AT_ONCE // max(n_items, 1)))


def mask_seen(scores_BN: npt.NDArray[np.float32], histories: Histories) -> None:
    """Set the score of every item of each row's history to -inf, in place."""
    scores_BN[histories.rows(), histories.items] = -np.inf


def neutral_order(n_items: int) -> npt.NDArray[np.int64]:
    """A fixed shuffled order of the items, int64 ``[N]``, for listing ties.

    Item numbers often follow time or popularity, so listing ties by number would leak it into lists.
    """
    return rng(0, "ties", n_items).permutation(n_items)


def top_k_dense(
    scores_BN: npt.NDArray[np.float32], top_k: int | None, order_N: npt.NDArray[np.int64] | None = None
) -> Recommendations:
    """The ``top_k`` best items of each row with their expected ranks over all N; None = all of them.

    Items scored -inf are never listed. Ties are listed in the order of ``order_N`` (item numbers, first
    listed first; None = :func:`neutral_order`); their rank is the mean rank of the whole block, also where
    the list ends inside it.
    """
    n_rows, n_items = scores_BN.shape
    k = n_items if top_k is None else min(top_k, n_items)
    order_N = neutral_order(n_items) if order_N is None else order_N
    if n_items == 0 or n_rows == 0:
        empty = np.empty((n_rows, k))
        return Recommendations(empty.astype(np.int32), empty.astype(np.float32), empty.astype(np.float32))
    shuffled = np.take(scores_BN, order_N, axis=1)
    columns = _best_columns(shuffled, k)
    scores = np.take_along_axis(shuffled, columns, axis=1)
    place = np.argsort(-scores, axis=1, kind="stable")  # stable: equal scores stay in order_N's order
    columns, scores = np.take_along_axis(columns, place, axis=1), np.take_along_axis(scores, place, axis=1)
    ranks = tied_ranks(scores)
    if k < n_items:  # the last block may go on beyond the list
        last = scores[:, -1:]
        greater, equal = (scores > last).sum(axis=1), (shuffled == last).sum(axis=1)
        cut = (scores == last) & (last > -np.inf)
        ranks = np.where(cut, (1 + greater + (equal - 1) / 2)[:, None], ranks)
    items = np.where(scores > -np.inf, order_N[columns], -1)
    return Recommendations(items.astype(np.int32), scores, ranks.astype(np.float32))


def _best_columns(scores_BN: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Columns of the k highest scores of each row, left to right; of ties at the cut the leftmost."""
    n_rows, n_items = scores_BN.shape
    if k == n_items:
        return np.broadcast_to(np.arange(n_items), scores_BN.shape)
    # negated: with the many equal low scores of sparse models, selecting from the top end is 18 times faster
    cut = -np.partition(-scores_BN, k - 1, axis=1)[:, [k - 1]]
    above = scores_BN > cut
    at_cut = scores_BN == cut
    room = k - above.sum(axis=1, keepdims=True)
    taken = above | (at_cut & (np.cumsum(at_cut, axis=1, dtype=np.int32) <= room))
    return np.nonzero(taken)[1].reshape(n_rows, k)


def recommend_dense(
    model: DenseRecommender,
    histories: Histories,
    options: SearchOptions,
    users: npt.NDArray[np.int32] | None = None,
    *,
    batch_size: int = 256,
) -> Recommendations:
    """Lists from ``model.score_all``, at most ``batch_size`` users at a time. Same answer for any batch size.

    Caps per group of items hold; ConfigError for caps per prefix and interests, since there are no identifiers.
    """
    batch_size = rows_at_once(model.n_items, batch_size)
    caps = _caps(options, model.n_items)
    order_N = neutral_order(model.n_items)
    filters = by_row(options.filter, len(histories))
    parts = []
    for start in range(0, len(histories), batch_size):
        rows = np.arange(start, min(start + batch_size, len(histories)))
        part = histories.take(rows)
        scores = np.array(model.score_all(part, None if users is None else users[rows]), dtype=np.float32)
        if options.exclude_seen:
            mask_seen(scores, part)
        for row, allowed in enumerate(filters[start : start + batch_size]):
            if allowed is not None:
                allowed.check(model.n_items, "")
                scores[row, ~allowed.mask] = -np.inf
        if caps:
            every = top_k_dense(scores, None, order_N)
            parts.append(only(every, within_caps(every, caps), min(options.top_k or model.n_items, model.n_items)))
        else:
            parts.append(top_k_dense(scores, options.top_k, order_N))
    if not parts:
        return top_k_dense(np.empty((0, model.n_items), np.float32), options.top_k)
    return Recommendations(
        np.concatenate([p.items for p in parts]),
        np.concatenate([p.scores for p in parts]),
        np.concatenate([p.ranks for p in parts]),
    )


def _caps(options: SearchOptions, n_items: int) -> list[MaxPer]:
    """The caps of a request; none of them per prefix."""
    caps = caps_of(options.diversity)
    if isinstance(options.diversity, Interests) or any(cap.groups is None for cap in caps):
        raise ConfigError("diversity: a model that scores items knows no prefixes", hint="cap by MaxPer(groups=...)")
    check_diversity(options.diversity, n_items=n_items, depth=0)
    return caps
