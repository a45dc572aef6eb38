"""Exact lists for set identifiers of vectors: inner products with every item, slot by slot (numpy only, no torch).

Axes: U users, n slots, D width, N items, F = n D, M pairs of a user and an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.decoding.filters import Filters
from genrec.decoding.interface import Recommendations
from genrec.decoding.parallel import checked_weights
from genrec.decoding.parallel_best import Best, kth_best
from genrec.decoding.parallel_request import Batch, Request
from genrec.errors import DataError
from genrec.item_tokenizers.slots import COLLABORATIVE, ItemSlots

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

SCAN_ITEMS = 8192  # items at a time
RESCORED = 1 << 20  # numbers at a time


def setrec_weights(names: Sequence[str], beta: float) -> Floats:
    """The weights of SETRec: ``1 - beta`` for the collaborative slot, ``beta`` for each of the others, float32 ``[n]``.

    The semantic terms are summed, so their share grows with their number. Lin et al. 2025 (2502.10833) report the beta
    that is best on the test set; choose it on validation. Stability: experimental.
    """
    if not 0 <= beta <= 1:
        raise DataError(f"beta: expected a number in 0..1, got {beta}")
    return np.array([1 - beta if name == COLLABORATIVE else beta for name in names], dtype=np.float32)


@dataclass(frozen=True, eq=False)
class SlotIndex:
    """The best items of a catalog for vectors that a model writes into every slot at once (SETRec).

        score(u, i) = sum over slots s of  weight[s] * <queries[u, s], vectors[i, s]>

    Every item is looked at, so each list is the exact top of all allowed items, and ``certified`` says so. Items with
    equal vectors have equal scores. Discrete slots may also be scored by their codes
    (:class:`~genrec.decoding.parallel.ParallelIndex`), with products of queries and codewords for scores.

    vectors: float32 ``[N, F]``, the slots of an item side by side: a view of the slots, no copy. norm: the largest norm
    of an item. names: of the slots, in the order of the queries. Stability: experimental.
    """

    vectors: Floats
    norm: float
    names: tuple[str, ...]
    catalog: str

    @classmethod
    def of(cls, slots: ItemSlots) -> SlotIndex:
        """The index of all items."""
        vectors = slots.vectors.reshape(len(slots), slots.n_slots * slots.dim)
        blocks = range(0, len(vectors), SCAN_ITEMS)
        squares = [_row_dots(part, part).max() for part in (vectors[at : at + SCAN_ITEMS] for at in blocks)]
        return cls(vectors, float(np.sqrt(max(squares, default=0.0))), slots.names, slots.catalog)

    @property
    def n_items(self) -> int:
        """Number of items N."""
        return len(self.vectors)

    def search(
        self,
        queries: npt.NDArray[Any],
        *,
        top_k: int | None = 10,
        weights: npt.ArrayLike | None = None,
        filter: Filters = None,
        deny: Histories | None = None,
    ) -> Recommendations:
        """The ``top_k`` best items of every user (None = all).

        queries: ``[U, n, D]``, slots in the order of ``names``. weights: ``[n]``, at least 0, None = all 1; see
        :func:`setrec_weights`. filter, deny, ties, ranks: as in :meth:`genrec.decoding.parallel.ParallelIndex.search`.

        Products of float32 matrices find the candidates, with a bound on their rounding error for a margin; the
        candidates are then scored in float64, in an order that depends on nothing else, and rounded to float32. So the
        answer for a batch equals the answers one by one, to the last bit, whatever library multiplies the matrices.
        Raises DataError for NaN, infinite or far too large numbers, and for wrong shapes.
        """
        queries_UF = self._weighted(queries, weights)
        request = Request.of(len(queries_UF), self.n_items, self.catalog, top_k=top_k, filter=filter, deny=deny)
        lists = request.lists(None)
        for batch in request.batches():
            best = Best(len(batch.rows), request.width, batch.rules)
            self._scan(queries_UF[batch.rows], best, batch, request.width)
            best.write(batch.rows, lists)
        return request.cut(lists)

    def _weighted(self, queries: npt.NDArray[Any], weights: npt.ArrayLike | None) -> Doubles:
        """The queries times the weights of their slots, float64 ``[U, F]``."""
        given = np.asarray(queries)
        n = len(self.names)
        dim = self.vectors.shape[1] // n
        if given.ndim != 3 or given.shape[1:] != (n, dim):
            raise DataError(f"queries: expected [U, {n}, {dim}], got {given.shape}")
        if not np.isfinite(given).all():
            row, slot, _ = np.argwhere(~np.isfinite(given))[0]
            raise DataError(f"queries: expected finite numbers, got others for user {row}, slot {self.names[slot]!r}")
        found = given.astype(np.float64)
        if weights is not None:
            found *= checked_weights(weights, n)[None, :, None]
        return found.reshape(len(found), n * dim)

    def _scan(self, queries_UF: Doubles, best: Best, batch: Batch, top_k: int) -> None:
        """Offer every item that can be listed, and those whose score differs from that by less than the margin."""
        narrow_UF = queries_UF.astype(np.float32)
        largest = np.sqrt(_row_dots(queries_UF, queries_UF)) * self.norm
        if not (largest < 1e36).all():
            raise DataError(f"queries: products of up to {largest.max():.1e} are too large for float32")
        # a sum of F products in any order (Higham 2002, 3.1), and the roundings of query and result
        roundings = (self.vectors.shape[1] + 4) * 2.0**-24
        error = roundings / (1 - roundings) * largest + 1e-30
        n_items = self.n_items if batch.items is None else len(batch.items)
        for start in range(0, n_items, SCAN_ITEMS):
            stop = min(start + SCAN_ITEMS, n_items)
            numbers = np.arange(start, stop) if batch.items is None else batch.items[start:stop]
            block = self.vectors[start:stop] if batch.items is None else self.vectors[numbers]
            scores_UN = narrow_UF @ block.T
            hit = np.flatnonzero(scores_UN >= _below(best.floor - error)[:, None])
            rows, column = np.divmod(hit, len(numbers))
            items, scores = numbers[column], scores_UN.ravel()[hit]
            kept = batch.rules.keep(rows, items)
            rows, items, scores = rows[kept], items[kept], scores[kept]
            kept = scores >= _below(kth_best(rows, scores, len(queries_UF), top_k) - 2 * error)[rows]
            rows, items = rows[kept], items[kept]
            step = max(RESCORED // self.vectors.shape[1], 1)
            for at in range(0, len(rows), step):
                part = slice(at, at + step)
                exact = _row_dots(queries_UF[rows[part]], self.vectors[items[part]]).astype(np.float32)
                best.offer(rows[part], items[part], exact)
            if np.isneginf(best.floor).any():
                best.settle()


def _row_dots(a_MF: npt.NDArray[Any], b_MF: npt.NDArray[Any]) -> Doubles:
    """The product of each row with its partner, float64 ``[M]``, summed in one order whatever M is."""
    return np.asarray((a_MF.astype(np.float64) * b_MF).sum(axis=1))


def _below(bound_U: Doubles) -> Floats:
    """float32 numbers that are certainly below the bounds (of float32 scores, rounded once)."""
    return np.nextafter(np.nextafter(bound_U.astype(np.float32), np.float32(-np.inf)), np.float32(-np.inf))
