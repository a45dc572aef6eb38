"""Where the arrays of an index lie in memory, for compiled code (numpy only, no torch). Internal.

Axes: R item ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.decoding.index import CatalogIndex


@dataclass(frozen=True)
class HostLevel:
    """Addresses of one level's tokens and pointers, their types by name, the largest number of children."""

    tokens: int
    pointers: int
    token_type: str
    pointer_type: str
    width: int


class HostIndex:
    """The arrays of a :class:`CatalogIndex` as they are: narrow, and mapped where they were mapped.

    Only for filters something is added, when the first one comes: the first rank below every prefix, 4 bytes each.
    """

    def __init__(self, index: CatalogIndex) -> None:
        self._index = index
        self._ranks: list[npt.NDArray[Any] | None] = []
        self._rank_addresses: list[tuple[int, str]] | None = None
        self._lock = Lock()
        self._pointers = [np.ascontiguousarray(pointers) for pointers in index.pointers]
        self._tokens = [np.ascontiguousarray(tokens) for tokens in index.tokens]
        self.levels = [
            HostLevel(address(tokens), address(pointers), tokens.dtype.name, pointers.dtype.name, width)
            for tokens, pointers, width in zip(self._tokens, self._pointers, index.branching, strict=True)
        ]

    def ranks(self, level: int) -> tuple[int, str]:
        """Address and type of the first rank below every child of a level, and behind them the number of ranks.

        Address 0: children are their own ranks.
        """
        if self._rank_addresses is None:
            with self._lock:  # cached_property has none from Python 3.12 on: a search would free the arrays of another
                self._rank_addresses = self._rank_addresses or self._find_ranks()
        return self._rank_addresses[level]

    def _find_ranks(self) -> list[tuple[int, str]]:
        self._ranks = [self._index.leaf_ranks if len(self._index.shared) else None]
        for pointers in self._pointers[:0:-1]:
            below = self._ranks[-1]
            self._ranks.append(pointers if below is None else below[pointers])
        return [(0, "int32") if ranks is None else (address(ranks), ranks.dtype.name) for ranks in self._ranks[::-1]]


def address(array: npt.NDArray[Any], kind: npt.DTypeLike | None = None) -> int:
    """Of the first element; the array must be kept for as long as the address is used. kind: what it must hold."""
    assert array.flags.c_contiguous and (kind is None or array.dtype == kind)
    return int(array.__array_interface__["data"][0])
