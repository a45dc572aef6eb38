"""Ragged rows of item numbers: one row per user (or per query), oldest first.

Axis letters: U rows, E items in all rows together, T columns of a padded matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Histories:
    """Ragged rows of item numbers; row ``u`` is ``items[offsets[u]:offsets[u + 1]]``, oldest first.

    offsets: int64 ``[U + 1]``, starts at 0, never falls, ends at E. items: int32 ``[E]``.
    Rows may be empty. Raises :class:`DataError` if the two arrays do not fit together.
    Stability: stable.
    """

    offsets: Int64
    items: Int32

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", as_int64(self.offsets, "offsets"))
        object.__setattr__(self, "items", as_int32(self.items, "items"))
        o = self.offsets
        if len(o) == 0 or o[0] != 0 or o[-1] != len(self.items) or bool((o[1:] < o[:-1]).any()):
            raise DataError(
                f"offsets: expected a non-falling array from 0 to {len(self.items)} (the number of items), "
                f"got {len(o)} values{f' from {o[0]} to {o[-1]}' if len(o) else ''}"
            )

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[int] | npt.NDArray[np.integer]]) -> Histories:
        """One row per list.

        >>> Histories.from_lists([[4, 5], [], [6]]).offsets.tolist()
        [0, 2, 2, 3]
        """
        parts = [as_int32(row, "row") for row in rows]
        offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(p) for p in parts], out=offsets[1:])
        return cls(offsets, np.concatenate(parts) if parts else np.zeros(0, np.int32))

    @classmethod
    def from_slices(cls, items: Int32, starts: Int64, ends: Int64) -> Histories:
        """Row ``u`` is ``items[starts[u]:ends[u]]``; slices may overlap, repeat or be empty."""
        lengths = ends - starts
        if bool((lengths < 0).any()):
            raise DataError("slices: expected every end at or after its start")
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        source = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return cls(offsets, items[source])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Int32:
        """Row ``row`` (negative counts from the end), a view."""
        u = row + len(self) if row < 0 else row
        if not 0 <= u < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.items[self.offsets[u] : self.offsets[u + 1]]

    def __iter__(self) -> Iterator[Int32]:
        return (self[u] for u in range(len(self)))

    @property
    def lengths(self) -> Int64:
        """Number of items in each row, int64 ``[U]``."""
        return np.diff(self.offsets)

    def rows(self) -> Int64:
        """The row of each item, int64 ``[E]``: with ``items`` it makes (row, item) pairs."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def to_lists(self) -> list[list[int]]:
        """The rows as lists of Python integers."""
        return [row.tolist() for row in self]

    def take(self, rows: npt.ArrayLike) -> Histories:
        """The rows at these positions (integers, repeats allowed) or where a bool ``[U]`` mask is true."""
        at = np.asarray(rows)
        if at.size == 0 and at.dtype != np.bool_:
            at = at.astype(np.int64)
        return Histories.from_slices(self.items, self.offsets[:-1][at], self.offsets[1:][at])

    def last(self, n: int) -> Histories:
        """Each row cut to its ``n`` newest items; a row with fewer stays as it is."""
        if n < 0:
            raise DataError(f"last: expected n >= 0, got {n}")
        ends = self.offsets[1:]
        return Histories.from_slices(self.items, np.maximum(self.offsets[:-1], ends - n), ends)

    def padded(self, max_len: int | None = None, pad: int = -1, side: Literal["left", "right"] = "left") -> Int32:
        """The rows as one matrix, int32 ``[U, T]``; ``side`` says where the padding goes.

        T is the longest row, or ``max_len`` exactly; of a longer row the newest ``max_len`` items are kept.

        >>> Histories.from_lists([[1, 2, 3], [4]]).padded(max_len=2).tolist()
        [[2, 3], [-1, 4]]
        """
        if side not in ("left", "right"):
            raise DataError(f"padded: expected side 'left' or 'right', got {side!r}")
        kept = self if max_len is None else self.last(max_len)
        lengths = kept.lengths
        width = int(lengths.max(initial=0)) if max_len is None else max_len
        out = np.full((len(kept), width), pad, np.int32)
        rows = kept.rows()
        column = np.arange(len(kept.items)) - kept.offsets[rows]
        if side == "left":
            column += width - lengths[rows]
        out[rows, column] = kept.items
        return out


def concatenate(parts: Sequence[Histories]) -> Histories:
    """The rows of all parts below each other (stable)."""
    offsets = np.zeros(1 + sum(len(p) for p in parts), np.int64)
    if parts:
        np.cumsum(np.concatenate([p.lengths for p in parts]), out=offsets[1:])
    return Histories(offsets, np.concatenate([p.items for p in parts]) if parts else np.zeros(0, np.int32))


def as_int32(values: npt.ArrayLike, name: str) -> Int32:
    """A one-dimensional int32 array; raises :class:`DataError` for what would not survive the conversion (internal)."""
    array = _integers(values, np.dtype(np.int32), name)
    return array.astype(np.int32, copy=False)


def as_int64(values: npt.ArrayLike, name: str) -> Int64:
    """A one-dimensional int64 array; raises :class:`DataError` for what would not survive the conversion (internal)."""
    array = _integers(values, np.dtype(np.int64), name)
    return array.astype(np.int64, copy=False)


def _integers(values: npt.ArrayLike, dtype: np.dtype[Any], name: str) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{name}: expected one dimension, got shape {array.shape}")
    if array.dtype == dtype or array.size == 0:
        return array
    if array.dtype.kind not in "iu":
        raise DataError(f"{name}: expected integers, got {array.dtype}")
    info = np.iinfo(dtype)
    if int(array.min()) < info.min or int(array.max()) > info.max:
        raise DataError(f"{name}: values outside {dtype.name}: {array.min()} .. {array.max()}")
    return array
