"""One batch of requests, from prompts to identifiers: scored or searched, and searched wider until proven.

Axes: B rows of a batch, P identifiers of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.decoding.beam import Found, beam_search
from genrec.decoding.filters import RankFilter, RowFilters
from genrec.decoding.interface import Normalize, Recommendations, SearchOptions
from genrec.decoding.listing import CERTIFICATE_MARGIN, list_items, widened
from genrec.decoding.scorer import Prompts, Scorer
from genrec.decoding.select import DeviceIndex
from genrec.decoding.small import is_small, score_allowed

WIDER = 4
"""How many times more beams a search that did not fill the list is repeated with."""
ROWS_TIMES_BEAMS = 16_384
"""Rows that are proven together have at most so many beams in all, or are one row."""

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Batch:
    """Rows to be answered: prompts, what they must not get (None = nothing) and the only items they may get.

    Internal.
    """

    prompts: Prompts
    deny: Histories | None
    filters: Sequence[RankFilter | None]

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Rows) -> Batch:
        """Some of the rows."""
        if len(rows) == len(self) and (rows == np.arange(len(self))).all():
            return self
        return Batch(
            Prompts(self.prompts.tokens_BT[rows], self.prompts.mask_BT[rows]),
            None if self.deny is None else self.deny.take(rows),
            [self.filters[row] for row in rows.tolist()],
        )


@dataclass(frozen=True)
class Search:
    """How a batch is answered: rows with few allowed items are scored, all others are searched.

    With ``wanted.exact`` rows without a proof are searched again until the list is proven or ``wanted.max_beams`` are
    used. margin: see :func:`genrec.decoding.listing.list_items`. Internal.
    """

    scorer: Scorer
    index: DeviceIndex
    wanted: SearchOptions
    n_beams: int
    normalize: Normalize
    margin: float = CERTIFICATE_MARGIN

    def __call__(self, batch: Batch) -> Recommendations:
        """The lists of a batch."""
        small = is_small(self.index.host, batch.filters)
        found = _nothing(len(batch))
        if (few := np.flatnonzero(small)).size:
            found = _replaced(found, few, self._scored(batch.take(few)))
        if (others := np.flatnonzero(~small)).size:
            rows = batch.take(others)
            beams = self._beams(rows, self.n_beams)
            found = _replaced(found, others, self._proven(rows, beams) if self.wanted.exact else beams)
        return self._listed(batch, found)

    def _scored(self, batch: Batch) -> Found:
        filters = [each for each in batch.filters if each is not None]
        return score_allowed(self.scorer, self.index, batch.prompts, filters, normalize=self.normalize)

    def _beams(self, batch: Batch, n_beams: int, above: Float32 | None = None) -> Found:
        return beam_search(
            self.scorer,
            self.index,
            batch.prompts,
            n_beams=n_beams,
            normalize=self.normalize,
            deny=batch.deny,
            filters=RowFilters.of(batch.filters),
            above=above,
        )

    def _listed(self, batch: Batch, found: Found) -> Recommendations:
        return list_items(
            self.index.host,
            found.leaves,
            found.scores,
            top_k=self.wanted.top_k,
            normalize=self.normalize,
            deny=batch.deny,
            filters=RowFilters.of(batch.filters),
            pruned=found.pruned,
            margin=self.margin,
        )

    def _proven(self, batch: Batch, found: Found) -> Found:
        """What was found, with rows that have no proof searched again.

        Rows without a full list: with four times the beams, and again. Rows with one: every prefix that scores more
        than its last item is followed, and no other. A best-first search that knew this item would expand the same,
        and it proves the list unless a step needs more than ``max_beams``.
        """
        limit, n_beams = min(self.wanted.max_beams, self.index.host.n_identifiers), self.n_beams
        at_once = max(1, ROWS_TIMES_BEAMS // max(min(limit, _widest(self.index)), n_beams))
        while n_beams < limit:
            last, proven = self._last(batch, found)
            short = np.flatnonzero(~proven & np.isneginf(last))
            if not len(short):
                break
            n_beams = min(WIDER * n_beams, limit)
            for some in parts_of(short, at_once):
                found = _joined(found, some, self._beams(batch.take(some), n_beams))
        if self.n_beams >= limit:
            return found
        last, proven = self._last(batch, found)
        unproven = np.flatnonzero(~proven & (last > -np.inf))
        # a step is as wide as its neediest row: those of like need go together
        unproven = unproven[np.argsort(last[unproven] - found.pruned[unproven], kind="stable")]
        for some in parts_of(unproven, at_once):
            # within the margin, a prefix could not be told from one that scores more
            above = last[some] - np.float32(2 * self.margin)
            found = _joined(found, some, self._beams(batch.take(some), limit, above))
        return found

    def _last(self, batch: Batch, found: Found) -> tuple[Float32, npt.NDArray[np.bool_]]:
        """The last score of each list, -inf where it is not full or has no end, and whether the list is proven."""
        lists = self._listed(batch, found)
        assert lists.certified is not None
        endless = np.full(len(batch), -np.inf, dtype=np.float32)
        return (endless if self.wanted.top_k is None else lists.scores[:, -1]), lists.certified


def parts_of(rows: Rows, size: int) -> list[Rows]:
    """The rows in pieces of ``size`` (internal)."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _widest(index: DeviceIndex) -> int:
    """Prefixes that a search can be asked to continue at one level."""
    return max(index.host.n_nodes(depth) for depth in range(index.host.depth))


def _nothing(n_rows: int) -> Found:
    none = np.zeros((n_rows, 0))
    return Found(none.astype(np.int64), none.astype(np.float32), np.full(n_rows, -np.inf, dtype=np.float32))


def _joined(found: Found, rows: Rows, again: Found) -> Found:
    """``found`` with the rows of a further search, and what these rows had before that it lost.

    More beams do not always find all that fewer found. The bound of the further search holds for all the others.
    """
    old_leaves, old_scores = found.leaves[rows], found.scores[rows]
    lost = (old_leaves >= 0) & ~(old_leaves[:, :, None] == again.leaves[:, None, :]).any(axis=2)
    leaves = np.concatenate([again.leaves, np.where(lost, old_leaves, -1)], axis=1)
    scores = np.concatenate([again.scores, np.where(lost, old_scores, np.float32(-np.inf))], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    best = np.take_along_axis(leaves, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return _replaced(found, rows, Found(*best, again.pruned))


def _replaced(found: Found, rows: Rows, again: Found) -> Found:
    """``found`` with other rows at ``rows``."""
    if len(rows) == len(found.pruned) and (rows == np.arange(len(rows))).all():
        return again
    width = max(found.leaves.shape[1], again.leaves.shape[1])
    leaves, scores, pruned = (
        widened(found.leaves, width, -1),
        widened(found.scores, width, -np.inf),
        found.pruned.copy(),
    )
    leaves[rows] = widened(again.leaves, width, -1)
    scores[rows] = widened(again.scores, width, -np.inf)
    pruned[rows] = again.pruned
    return Found(leaves, scores, pruned)
