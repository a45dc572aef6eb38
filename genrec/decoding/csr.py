"""Building the index: sorted code rows to one CSR per level (numpy only, no torch). Internal.

Rows are read in blocks, once, so they may lie in a file that is larger than memory.

Axes: N items, L levels, M rows of a block, S nodes of a level, C leaves with several items, R item ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError
from genrec.item_tokenizers.codes import ItemCodes, narrowest
from genrec.seeding import number_hash

Ints = npt.NDArray[Any]
BLOCK = 1 << 18
"""Rows read at a time: small enough for the caches."""


@dataclass(frozen=True, eq=False)
class Csr:
    """The arrays of :class:`genrec.decoding.index.CatalogIndex` that follow from the sorted rows."""

    tokens: tuple[Ints, ...]
    pointers: tuple[Ints, ...]
    shared: Ints
    extra: Ints


def n_edge_codes(level_sizes: tuple[int, ...], ragged: bool) -> list[int]:
    """Number of edge codes of every step: the codes of the level, and the end and pass edges when ragged."""
    return [size + 2 for size in (*level_sizes, 0)] if ragged else list(level_sizes)


def edge_rows(codes: ItemCodes, items: Ints) -> Ints:
    """Edge codes ``[M, depth]`` of some items: the codes, then the end edge, then pass edges."""
    rows = codes.codes[items]
    if codes.lengths is None:
        return rows
    ends = np.array([*codes.level_sizes, 0])
    wide = np.pad(rows.astype(np.int32), ((0, 0), (0, 1)))
    level, lengths = np.arange(wide.shape[1]), codes.lengths[items, None]
    return np.where(level < lengths, wide, np.where(level == lengths, ends, ends + 1)).astype(np.int32)


def sorted_items(codes: ItemCodes, chosen: Ints) -> npt.NDArray[np.int32]:
    """The chosen items in lexicographic order of their edge codes; equal rows in no particular order.

    Several levels are packed into one 64-bit word: fewer sorts.
    """
    sizes = n_edge_codes(codes.level_sizes, codes.ragged)
    words: list[npt.NDArray[np.uint64]] = []
    used = 64
    for level, width in enumerate(max(int(size - 1).bit_length(), 1) for size in sizes):
        if used + width > 64:
            words.append(np.zeros(len(chosen), dtype=np.uint64))
            used = 0
        word = words[-1]
        word <<= np.uint64(width)
        for part in parts(len(chosen)):
            word[part] |= edge_rows(codes, chosen[part])[:, level].astype(np.uint64)
        used += width
    order = np.argsort(words[0]) if len(words) == 1 else np.lexsort(words[::-1])
    return np.asarray(chosen[order], dtype=np.int32)


def row_blocks(codes: ItemCodes, items: Ints) -> Iterator[Ints]:
    """Edge codes of items in their order, block by block."""
    return (edge_rows(codes, items[part]) for part in parts(len(items)))


def sorted_blocks(rows_RL: Ints) -> Iterator[Ints]:
    """Rows that are sorted already, block by block."""
    return (np.asarray(rows_RL[part]) for part in parts(len(rows_RL)))


def csr(blocks: Iterable[Ints], sizes: list[int]) -> Csr:
    """The arrays of the index of lexicographically sorted rows, given as consecutive blocks ``[M, depth]``.

    ::

        row r opens a node of depth l + 1   where its first l + 1 codes differ from those of the row before
        tokens[l]    the code l of the rows that open a node of depth l + 1
        pointers[l]  the numbers of those of them that open a node of depth l too: its first children
        rows that open nothing              share the leaf of the row before

    sizes: number of edge codes of every step. Raises DataError, naming the row, for rows out of order and codes out of
    range.
    """
    found = _Partial(sizes)
    for block in blocks:
        if len(block):
            found.add(np.ascontiguousarray(block.T))
    return found.finish()


@dataclass
class _Partial:
    """What the rows read so far say."""

    sizes: list[int]
    n_rows: int = 0
    last: Ints | None = None
    tokens: list[list[Ints]] = field(default_factory=list)
    firsts: list[list[Ints]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    repeats: list[Ints] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens, self.firsts = [[] for _ in self.sizes], [[] for _ in self.sizes]
        self.counts = [0] * len(self.sizes)

    def add(self, columns_LM: Ints) -> None:
        """Read the next rows."""
        above = np.zeros(columns_LM.shape[1], dtype=np.bool_)  # where a node of the depth above opens
        above[0] = self.last is None
        for level, column in enumerate(columns_LM):
            opens = above.copy()
            opens[1:] |= column[1:] != column[:-1]
            falls = np.flatnonzero((column[1:] < column[:-1]) & ~above[1:])
            if self.last is not None and not above[0]:
                opens[0] = column[0] != self.last[level]
                if column[0] < self.last[level]:
                    falls = np.array([-1])
            if len(falls):
                raise DataError(
                    f"rows {self.n_rows + falls[0]} and {self.n_rows + falls[0] + 1} are out of order at level {level}",
                    hint="sort the rows lexicographically, or use CatalogIndex.build",
                )
            self._open(level, column, opens, above)
            above = opens
        repeats = np.flatnonzero(~above)
        self.repeats.append(repeats + self.n_rows)
        self.n_rows += columns_LM.shape[1]
        self.last = columns_LM[:, -1].copy()

    def _open(self, level: int, column: Ints, opens: Ints, above: Ints) -> None:
        codes = column[opens]
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < self.sizes[level]:
            row = self.n_rows + int(((column < 0) | (column >= self.sizes[level])).argmax())
            raise DataError(f"row {row}: a code of level {level} is not in 0..{self.sizes[level] - 1}")
        self.tokens[level].append(codes.astype(narrowest(self.sizes[level])))
        self.firsts[level].append(_narrow(np.flatnonzero(above[opens]) + self.counts[level], self.n_rows + len(column)))
        self.counts[level] += len(codes)

    def finish(self) -> Csr:
        """The arrays; the parts are freed on the way."""
        tokens, pointers = [], []
        for level, count in enumerate(self.counts):
            tokens.append(np.concatenate(self.tokens[level]))
            self.tokens[level] = []
            end = _narrow(np.array([count]), count)
            pointers.append(np.concatenate([*self.firsts[level], end]))
            self.firsts[level] = []
        repeats = np.concatenate(self.repeats)
        # the j-th row (from 0) that opens nothing has j + 1 such rows up to it, and the leaf before itself
        leaf, times = np.unique(repeats - np.arange(1, len(repeats) + 1), return_counts=True)
        extra = np.concatenate([[0], np.cumsum(times)])
        return Csr(tuple(tokens), tuple(pointers), _narrow(leaf, self.n_rows), _narrow(extra, self.n_rows))


def in_leaf_order(items: npt.NDArray[np.int32], found: Csr) -> npt.NDArray[np.int32]:
    """Items ``[R]`` of the sorted rows, those of one leaf in the order of :func:`genrec.seeding.number_hash`."""
    if not len(found.shared):
        return items
    sizes = np.diff(found.extra).astype(np.int64) + 1
    first = found.shared.astype(np.int64) + found.extra[:-1]
    leaf = np.repeat(np.arange(len(sizes)), sizes)
    ranks = np.arange(len(leaf)) + (first - (np.cumsum(sizes) - sizes))[leaf]
    theirs = items[ranks]
    out = items.copy()
    out[ranks] = theirs[np.lexsort((number_hash(theirs), leaf))]
    return out


def step_range(pointers: Ints) -> tuple[int, int]:
    """Smallest and largest difference of neighbours, without an array of their size."""
    low, high = np.iinfo(np.int64).max, 0
    for part in parts(len(pointers) - 1):
        steps = np.diff(pointers[part.start : part.stop + 1])
        low, high = min(low, int(steps.min())), max(high, int(steps.max()))
    return low, high


def parts(n: int) -> Iterator[slice]:
    """Slices of at most ``BLOCK`` that cover ``range(n)``."""
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


def _narrow(numbers: Ints, largest: int) -> Ints:
    return numbers.astype(np.int32 if largest < 2**31 else np.int64)
