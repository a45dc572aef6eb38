"""Ask a model for one batch of queries after another and rank its targets.

Axes: B queries at a time, T targets, N items, K places of a list.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.decoding.dense import mask_seen, neutral_order, rows_at_once, top_k_dense
from genrec.decoding.interface import DenseRecommender, Recommendations, Recommender
from genrec.errors import ConfigError, DataError
from genrec.evaluation.settings import EvalSettings
from genrec.metrics import identifiers, ranking

Int = npt.NDArray[np.integer]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


class Ranked(NamedTuple):
    """One batch: ranks of its targets (items, identifiers) and what was returned, best first (internal)."""

    ranks: Float64
    identifier_ranks: Float64 | None
    lists: Int32


def ranked_batches(
    model: Recommender | DenseRecommender,
    evalset: EvalSet,
    rows: Int64,
    targets: Int32,
    settings: EvalSettings,
    identifier_of: Int | None,
    progress: bool,
) -> Iterator[Ranked]:
    """Rank the targets (item ``targets[t]`` of query ``rows[t]``, sorted by query) batch by batch (internal).

    Each batch's arrays are in the order of its targets and queries. Raises ConfigError when the model cannot
    be asked in the way the settings want, DataError for a malformed answer.
    """
    from genrec.progress import ProgressBar

    dense = settings.method == "dense" or (settings.method == "auto" and isinstance(model, DenseRecommender))
    if not isinstance(model, DenseRecommender if dense else Recommender):
        raise ConfigError(f"method: {type(model).__name__} has no {'score_all' if dense else 'recommend'}")
    n, size = len(evalset), rows_at_once(model.n_items, settings.batch_size) if dense else settings.batch_size
    with ProgressBar(total=n, unit="query", show=progress) as bar:
        for start in range(0, n, size):
            stop = min(start + size, n)
            batch = evalset.take(np.arange(start, stop))
            own = slice(*np.searchsorted(rows, [start, stop]))
            asked = (rows[own] - start, targets[own])
            if dense:
                assert isinstance(model, DenseRecommender)  # for the type checker
                yield _rank_dense(model, batch, *asked, settings, identifier_of)
            else:
                assert isinstance(model, Recommender)
                yield _rank_list(model, batch, *asked, settings, identifier_of)
            bar.update(stop - start)


def _shown(histories: Histories, settings: EvalSettings) -> Histories:
    """What the model sees of the histories."""
    return histories if settings.history_cap is None else histories.last(settings.history_cap)


def _rank_dense(
    model: DenseRecommender,
    batch: EvalSet,
    rows: Int64,
    targets: Int32,
    settings: EvalSettings,
    identifier_of: Int | None,
) -> Ranked:
    scores = np.array(model.score_all(_shown(batch.histories, settings), batch.users), dtype=np.float32)
    if scores.shape != (len(batch), model.n_items):
        raise DataError(f"score_all: expected shape {(len(batch), model.n_items)}, got {scores.shape}")
    if np.isnan(scores).any():
        raise DataError(f"score_all: row {int(np.isnan(scores).any(axis=1).argmax())} of a batch contains nan")
    if settings.exclude_seen:
        mask_seen(scores, batch.histories)
    ranks = ranking.expected_ranks(scores, rows, targets)
    by_identifier = None
    if identifier_of is not None:
        _, dense_of = np.unique(identifier_of, return_inverse=True)
        by_identifier = ranking.expected_ranks(
            identifiers.identifier_scores(scores, identifier_of), rows, dense_of[targets]
        )
    lists = top_k_dense(scores, max(settings.ks), neutral_order(model.n_items)).items
    return Ranked(ranks, by_identifier, _fitted(lists, max(settings.ks)))


def _rank_list(
    model: Recommender,
    batch: EvalSet,
    rows: Int64,
    targets: Int32,
    settings: EvalSettings,
    identifier_of: Int | None,
) -> Ranked:
    answer = model.recommend(_shown(batch.histories, settings), settings.search_options(), batch.users)
    _check_lists(answer, len(batch))
    items, list_ranks = answer.items, answer.ranks.astype(np.float64)
    if settings.exclude_seen:
        items, list_ranks = _drop_seen(items, list_ranks, batch.histories)
    ranks = ranking.listed_ranks(items, list_ranks, rows, targets)
    by_identifier = None
    if identifier_of is not None:
        ids, id_ranks = identifiers.identifier_lists(items, list_ranks, identifier_of)
        by_identifier = ranking.listed_ranks(ids, id_ranks, rows, identifier_of[targets])
    return Ranked(ranks, by_identifier, _fitted(items, max(settings.ks)))


def _check_lists(answer: Recommendations, n_rows: int) -> None:
    if len(answer) != n_rows:
        raise DataError(f"recommend: expected {n_rows} lists, got {len(answer)}")
    ranks = np.where(answer.items == -1, np.inf, answer.ranks)
    if np.isnan(ranks).any() or bool((ranks[:, 1:] < ranks[:, :-1]).any()):
        raise DataError("recommend: expected ranks that rise from left to right, padding (-1) last")


def _drop_seen(items: Int32, ranks: Float64, histories: Histories) -> tuple[Int32, Float64]:
    """Take items of the entire history out of complete lists; what stays moves up, ties stay ties.

    A model that was shown a capped history could not exclude the older items itself.
    """
    width = 1 + max(int(items.max(initial=0)), int(histories.items.max(initial=0)))
    pairs = np.arange(len(items))[:, None] * width + items
    seen = (items >= 0) & np.isin(pairs, histories.rows() * width + histories.items)
    if not seen.any():
        return items, ranks
    front = np.argsort(seen | (items == -1), axis=1, kind="stable")
    kept = np.take_along_axis(~seen & (items != -1), front, axis=1)
    keys = np.where(kept, -np.take_along_axis(ranks, front, axis=1), -np.inf)
    moved = np.where(kept, np.take_along_axis(items, front, axis=1), -1).astype(np.int32)
    changed = np.any(seen, axis=1, keepdims=True)
    return np.where(changed, moved, items), np.where(changed, ranking.tied_ranks(keys), ranks)


def _fitted(items: Int32, k: int) -> Int32:
    """Lists cut or padded to exactly ``k`` places."""
    fitted = np.full((len(items), k), -1, np.int32)
    fitted[:, : items.shape[1]] = items[:, :k]
    return fitted
