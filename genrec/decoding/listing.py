"""From identifiers found to lists of items (numpy only, no torch).

Axes: U users (rows), P identifiers of a row, R item ranks, k list length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.decoding.deny import denied_ranks
from genrec.decoding.filters import RowFilters
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import Recommendations
from genrec.seeding import number_hash

# a proof by comparing float32 sums needs more than their rounding error
CERTIFICATE_MARGIN = 1e-4
# of models in half precision, whose log-probabilities move by some hundredths with the shape of a batch
HALF_MARGIN = 0.25


def list_items(
    index: CatalogIndex,
    leaves: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    *,
    top_k: int | None,
    normalize: str,
    deny: Histories | None = None,
    filters: RowFilters | None = None,
    pruned: npt.NDArray[np.float32] | None = None,
    margin: float = CERTIFICATE_MARGIN,
) -> Recommendations:
    """The items of the identifiers found, best first.

    Items that share an identifier share its score, and any items of equal score are listed in the order of
    the seeded hash of their numbers; ``ranks`` gives all of them the mean rank of their block, counted over everything
    found, listed or not. Denied items, and those that the row's filter does not allow, are left out of lists and ranks.

    leaves: int64 ``[U, P]``, -1 = padding. scores: float32 ``[U, P]``. top_k: None = all items found.
    pruned: ``[U]``, see :class:`genrec.decoding.beam.Found`; with it, ``certified`` says which lists are
    proven exact: the last score is above it by ``margin`` or more. Internal.
    """
    rows, ranks, score = _expanded(index, leaves, scores)
    if filters is not None:
        allowed = filters.allows(rows, ranks)
        rows, ranks, score = rows[allowed], ranks[allowed], score[allowed]
    if deny is not None and len(deny.items):
        denied_rows, denied = denied_ranks(index, deny)
        size = len(index.items)
        allowed = ~np.isin(rows * size + ranks, denied_rows * size + denied, assume_unique=True)
        rows, ranks, score = rows[allowed], ranks[allowed], score[allowed]
    found = index.items[ranks]
    order = np.lexsort((number_hash(found), -score, rows))
    rows, found, score = rows[order], found[order], score[order]
    counts = np.bincount(rows, minlength=len(leaves))
    place = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    width = int(counts.max(initial=0)) if top_k is None else top_k
    kept = place < width
    shape = (len(leaves), width)
    items = np.full(shape, -1, dtype=np.int32)
    out_scores = np.full(shape, -np.inf, dtype=np.float32)
    out_ranks = np.full(shape, np.inf, dtype=np.float32)
    at = (rows[kept], place[kept])
    items[at] = found[kept]
    out_scores[at] = score[kept]
    out_ranks[at] = _expected_ranks(rows, score, place)[kept]
    return Recommendations(
        items=items,
        scores=out_scores,
        ranks=out_ranks,
        normalize=normalize,
        n_identifiers=(leaves >= 0).sum(axis=1).astype(np.int32),
        certified=None if pruned is None else _certified(out_scores, pruned, top_k, margin),
    )


def joined_lists(
    found: Sequence[Recommendations], order: Sequence[npt.NDArray[np.int64]], *, width: int, normalize: str | None
) -> Recommendations:
    """The lists of batches in the order of the request; ``order``: the row numbers of each batch (internal).

    width: of the lists where there is no batch; lists of batches are padded to the widest.
    """
    back = np.argsort(np.concatenate(order)) if order else np.zeros(0, dtype=np.int64)
    width = max([each.items.shape[1] for each in found], default=width)

    def whole(name: str, padding: float, dtype: type[np.generic]) -> npt.NDArray[Any]:
        parts = [widened(getattr(each, name), width, padding) for each in found]
        return np.concatenate([np.zeros((0, width), dtype), *parts]).astype(dtype)[back]

    def flat(name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype), *(getattr(each, name) for each in found)]).astype(dtype)[back]

    return Recommendations(
        items=whole("items", -1, np.int32),
        scores=whole("scores", -np.inf, np.float32),
        ranks=whole("ranks", np.inf, np.float32),
        normalize=normalize,
        n_identifiers=None if any(each.n_identifiers is None for each in found) else flat("n_identifiers", np.int32),
        certified=None if any(each.certified is None for each in found) else flat("certified", np.bool_),
    )


def widened(values: npt.NDArray[Any], width: int, padding: float) -> npt.NDArray[Any]:
    """``[B, P]`` with ``padding`` behind, up to ``[B, width]``; always a copy (internal)."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=padding)


def _expanded(
    index: CatalogIndex, leaves: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Row, rank and score of every item of every leaf."""
    row, column = np.nonzero(leaves >= 0)
    leaf = leaves[row, column]
    first = index.first_rank(leaf)
    size = index.first_rank(leaf + 1) - first
    ends = np.cumsum(size)
    ranks = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - size), size)
    return np.repeat(row, size), ranks, np.repeat(scores[row, column], size)


def _expected_ranks(
    rows: npt.NDArray[np.int64], score: npt.NDArray[np.float32], place: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """1 + (number of strictly greater) + (number of equal others) / 2, for sorted rows."""
    if not len(rows):
        return np.zeros(0)
    fresh = np.ones(len(rows), dtype=bool)
    fresh[1:] = (rows[1:] != rows[:-1]) | (score[1:] != score[:-1])
    group = np.cumsum(fresh) - 1
    size = np.bincount(group)
    return np.asarray((1 + place[fresh] + (size - 1) / 2)[group])


def _certified(
    scores: npt.NDArray[np.float32], pruned: npt.NDArray[np.float32], top_k: int | None, margin: float
) -> npt.NDArray[np.bool_]:
    """Whether no identifier dropped on the way could still enter the list."""
    last = scores[:, -1] if top_k is not None else np.full(len(scores), -np.inf, dtype=np.float32)
    return np.asarray(np.isneginf(pruned) | (last > pruned + margin))
