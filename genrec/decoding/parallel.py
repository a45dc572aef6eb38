"""Exact lists for identifiers whose codes are predicted independently of one another (numpy only, no torch).

Axes: U users, L levels (or slots), K codes of a level, N items.
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
from genrec.decoding.parallel_best import Best
from genrec.decoding.parallel_request import Request
from genrec.decoding.parallel_scan import PartLists, parts_of, pruned_scan, scan
from genrec.errors import DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.slots import ItemSlots

Floats = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

PRUNED_FROM = 1 << 18  # items: from here on a scan takes longer than tables of 65,536 codes for every user
PRUNED_PARTS = 2  # with more, the cuts go so deep that a scan is as fast


@dataclass(frozen=True, eq=False)
class ParallelIndex:
    """The best items of a catalog under scores that are given for every level at once.

        score(u, n) = sum over levels l of  weight[l] * scores[l][u, codes[n, l]]

    For identifiers whose codes do not depend on one another given the history: product codes (RPG; Hou et al. 2025,
    2506.05781), FSQ with independent levels (RecGPT), discrete set identifiers (SETRec; Lin et al. 2025, 2502.10833).
    There is no beam and no prefix: every list is the exact top of all allowed items, and ``certified`` says so. Items
    that share an identifier share its score.

    codes: L arrays ``[N]`` of narrow unsigned integers, one for each level. parts: neighbouring levels whose pairs (or
    longer tuples) of codes are few enough for a table. lists: for each part the items in the order of its codes, which
    :func:`~genrec.decoding.parallel_scan.pruned_scan` needs; empty where scanning all items is cheaper. Memory: 1 byte
    an item and level (2 where K > 256), and 4 bytes an item and part with lists: 12 bytes an item and 1 MB for 4 codes
    of 256. It is made from the codes in a fraction of a second, so it is not stored. Stability: experimental.
    """

    codes: tuple[npt.NDArray[Any], ...]
    parts: tuple[tuple[int, ...], ...]
    lists: tuple[PartLists, ...]
    level_sizes: tuple[int, ...]
    catalog: str

    @classmethod
    def of(cls, identifiers: ItemCodes | ItemSlots, *, prune: bool | None = None) -> ParallelIndex:
        """The index of all items.

        prune: leave out items that cannot be listed, without a change of any list; None = where that is faster.
        Raises DataError for continuous slots (see :class:`~genrec.decoding.parallel_slots.SlotIndex`) and for
        identifiers of unequal length: their sums have unequal numbers of terms.
        """
        if isinstance(identifiers, ItemSlots):
            found, sizes = identifiers.codes, identifiers.slot_sizes
            if found is None:
                raise DataError(
                    "parallel index: expected discrete identifiers, got slots of vectors without codes",
                    hint="use genrec.decoding.parallel_slots.SlotIndex",
                )
        else:
            found, sizes = identifiers.codes, identifiers.level_sizes
            if identifiers.ragged:
                raise DataError("parallel index: expected identifiers of one length, got some shorter than L")
        codes = tuple(
            np.ascontiguousarray(found[:, level], dtype=np.uint8 if size <= 1 << 8 else found.dtype)
            for level, size in enumerate(sizes)
        )
        parts = parts_of(sizes)
        if prune is None:
            prune = len(found) >= PRUNED_FROM and len(parts) <= PRUNED_PARTS
        lists = tuple(PartLists.of(codes, part, sizes) for part in parts) if prune and len(found) else ()
        return cls(codes, parts, lists, sizes, identifiers.catalog)

    @property
    def n_items(self) -> int:
        """Number of items N."""
        return len(self.codes[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        lists = sum(each.items.nbytes + each.starts.nbytes + each.sample.nbytes for each in self.lists)
        return sum(each.nbytes for each in self.codes) + lists

    def search(
        self,
        scores: npt.NDArray[Any] | Sequence[npt.NDArray[Any]],
        *,
        top_k: int | None = 10,
        weights: npt.ArrayLike | None = None,
        filter: Filters = None,
        deny: Histories | None = None,
        normalize: str | None = None,
    ) -> Recommendations:
        """The ``top_k`` best items of every user (None = all whose score is above -inf).

        scores: ``[U, L, K]``, or for each level ``[U, K]`` with at least its size of columns; logits,
        log-probabilities or any others, taken as they are; -inf = no item with that code. weights: ``[L]``, at least 0,
        None = all 1; a level of weight 0 has no influence at all. filter: the only items that may be listed, for
        everyone or one (or None) for each user. deny: items of each user that must not be listed.
        normalize: what the scores are, copied to the result (:data:`~genrec.decoding.interface.Normalize`).

        Sums are of float32, within the parts first. Ties are listed in the order of
        :func:`~genrec.seeding.number_hash`, and ranks count the whole block of a tie, listed or not. The answer for a
        batch equals the answers one by one, to the last bit. Raises DataError for NaN, +inf, sums beyond float32, and
        wrong shapes.
        """
        tables = _checked_scores(scores, self.level_sizes)
        if weights is not None:
            tables = _weighted(tables, checked_weights(weights, len(tables)))
        _check_sums(tables)
        request = Request.of(len(tables[0]), self.n_items, self.catalog, top_k=top_k, filter=filter, deny=deny)
        lists = request.lists(normalize)
        for batch in request.batches():
            best = Best(len(batch.rows), request.width, batch.rules)
            self._search([table[batch.rows] for table in tables], best, batch.items)
            best.write(batch.rows, lists)
        return request.cut(lists)

    def _search(self, tables: Sequence[Floats], best: Best, items: Int64 | None) -> None:
        """Offer what may be listed; items: the only ones that are allowed, None = no such list."""
        rows = np.arange(len(tables[0]))
        with np.errstate(over="ignore"):  # two masks, each the lowest of float32, add to -inf: never listed
            if self.lists and items is None:
                rows = pruned_scan(self.codes, self.parts, self.lists, tables, best)
            if len(rows) and self.n_items:
                scan(self.codes, self.parts, tables, best, rows, items)


def _checked_scores(
    scores: npt.NDArray[Any] | Sequence[npt.NDArray[Any]], level_sizes: Sequence[int]
) -> list[npt.NDArray[np.float32]]:
    """One float32 ``[U, K]`` for each level, of exactly its size."""
    if isinstance(scores, np.ndarray):
        if scores.ndim != 3:
            raise DataError(f"scores: expected [U, L, K], got {scores.shape}")
        scores = [scores[:, level] for level in range(scores.shape[1])]
    given = [np.asarray(each) for each in scores]
    n_rows = len(given[0]) if given and given[0].ndim else 0
    if len(given) != len(level_sizes):
        raise DataError(f"scores: expected {len(level_sizes)} levels, got {len(given)}")
    out = []
    for level, (each, size) in enumerate(zip(given, level_sizes, strict=True)):
        if each.ndim != 2 or len(each) != n_rows or each.shape[1] < size:
            raise DataError(f"scores: level {level}: expected [{n_rows}, {size} or more], got {each.shape}")
        table = np.ascontiguousarray(each[:, :size], dtype=np.float32)
        wrong = ~(table < np.inf)
        if wrong.any():
            row, code = np.argwhere(wrong)[0]
            where = f"user {row}, level {level}, code {code}"
            raise DataError(f"scores: expected numbers below +inf, got {table[row, code]} for {where}")
        out.append(table)
    return out


def checked_weights(weights: npt.ArrayLike, n: int) -> Floats:
    """float32 ``[n]``; DataError unless finite and at least 0 (internal)."""
    found = np.asarray(weights, dtype=np.float32)
    if found.shape != (n,) or not ((found >= 0) & (found < np.inf)).all():
        raise DataError(f"weights: expected {n} finite numbers of at least 0, got {found.tolist()}")
    return found


def _weighted(tables: Sequence[Floats], weights_L: Floats) -> list[Floats]:
    """The scores times the weight of their level; all zeros where that is 0."""
    with np.errstate(over="ignore"):  # a mask of the lowest of float32 becomes -inf; what becomes +inf is refused
        return [
            table * weight if weight > 0 else np.zeros_like(table)
            for table, weight in zip(tables, weights_L, strict=True)
        ]


def _check_sums(tables: Sequence[Floats]) -> None:
    """DataError if the highest scores of the levels do not add up within float32."""
    total_U = sum((table.max(axis=1).astype(np.float64) for table in tables), start=np.zeros(len(tables[0])))
    if not (total_U < 1e38).all():
        raise DataError(f"scores: expected sums below 1e38, got {total_U.max():.1e} for user {total_U.argmax()}")
