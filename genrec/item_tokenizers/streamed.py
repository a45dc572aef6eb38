"""Item tokenizers over vectors that are not in memory: which table to read, and what their codes say about it.

Axes: N items, M rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from genrec.embeddings.stream import VectorTable
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.collisions import Quantized
from genrec.item_tokenizers.quantizers.kmeans import checked_rows

Floats = npt.NDArray[np.float32]
Reals = npt.NDArray[np.float64]


class PricesCodes(Protocol):
    """An item tokenizer whose codes approximate vectors (internal)."""

    def quantized(self, source: TokenizerSource) -> Quantized:
        """The items in the space that the codes approximate."""


def checked_table(source: TokenizerSource) -> VectorTable:
    """The item vectors of ``source``: an array, checked, or a table that checks what it reads (internal)."""
    found = source.vector_table()
    return checked_rows(found) if isinstance(found, np.ndarray) else found


@dataclass(frozen=True, eq=False)
class TableQuantized(Quantized):
    """:class:`Quantized` for items whose vectors are read when they are asked for (internal).

    tokenizer: turns the vectors of the rows at hand into the space of the codes. Where single rows are slow to read
    (parquet), the rows of the items whose errors were asked for last are kept: these are the items that a collision
    policy goes on to move.
    """

    tokenizer: PricesCodes = field(kw_only=True)
    _kept: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, table: VectorTable, tokenizer: PricesCodes) -> TableQuantized:
        """For the rows of ``table`` and a fitted item tokenizer."""
        none = np.zeros((1, table.shape[1]), dtype=np.float32)
        books = tokenizer.quantized(TokenizerSource.of_vectors(none)).codebooks
        return cls(vectors_ND=table, codebooks=books, tokenizer=tokenizer)  # type: ignore[arg-type]

    def residuals(self, codes_ML: npt.NDArray[Any], items: npt.NDArray[Any] | None = None) -> Floats:
        """What the given codes leave over of the items (None = all, in their order), float32 ``[M, D]``."""
        rows = self.vectors_ND[:] if items is None else self._rows(np.asarray(items))
        return self.tokenizer.quantized(TokenizerSource.of_vectors(rows)).residuals(codes_ML)

    def squared_error(self, codes_NL: npt.NDArray[Any], items: npt.NDArray[Any] | None = None) -> Reals:
        """Squared distance of each item (None = all) from what its codes say, float64 ``[M]``."""
        if items is not None and getattr(self.vectors_ND, "scattered_is_slow", False):
            numbers = np.unique(items)
            self._kept.update(numbers=numbers, rows=self.vectors_ND[numbers])
        return super().squared_error(codes_NL, items)

    def _rows(self, items: npt.NDArray[Any]) -> Floats:
        numbers = self._kept.get("numbers", np.empty(0, dtype=np.int64))
        if len(numbers) and len(items):
            at = np.minimum(np.searchsorted(numbers, items), len(numbers) - 1)
            if (numbers[at] == items).all():
                kept: Floats = self._kept["rows"][at]
                return kept
        read: Floats = self.vectors_ND[items]
        return read
