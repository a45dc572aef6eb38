"""Building the index: sorted code rows to one CSR per level (numpy only, no torch). Internal.

Rows are read in blocks, once, so they may lie in a file that is larger than memory.

Axes: N items, L levels, M rows of a block, S nodes of a level, C leaves with several items, R item ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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


def edge_rows(rows_ML: Ints, lengths_M: Ints | None, level_sizes: tuple[int, ...]) -> Ints:
    """Edge codes ``[M, depth]`` of identifiers: the codes, then (where lengths are given) the end edge, pass edges."""
    if lengths_M is None:
        return rows_ML
    wide = np.pad(rows_ML.astype(np.int32), ((0, 0), (0, 1)))
    level, length = np.arange(wide.shape[1]), lengths_M[:, None]
    return np.where(level < length, wide, np.array([*level_sizes, 0], dtype=np.int32) + (level > length))


def edge_rows_of(codes: ItemCodes, items: Ints) -> Ints:
    """Edge codes ``[M, depth]`` of some items."""
    lengths = None if codes.lengths is None else codes.lengths[items]
    return edge_rows(codes.codes[items], lengths, codes.level_sizes)


def sorted_items(codes: ItemCodes, chosen: Ints) -> npt.NDArray[np.int32]:
    """The chosen items in lexicographic order of their edge codes; equal rows in no particular order.

    Several levels are packed into one 64-bit word: fewer sorts.
    """
    widths = [max(int(size - 1).bit_length(), 1) for size in n_edge_codes(codes.level_sizes, codes.ragged)]
    words: list[npt.NDArray[np.uint64]] = []
    word_of, used = [], 64
    for width in widths:
        if used + width > 64:
            words.append(np.zeros(len(chosen), dtype=np.uint64))
            used = 0
        used += width
        word_of.append(words[-1])
    for part in parts(len(chosen)):
        for whole, width, column in zip(word_of, widths, edge_rows_of(codes, chosen[part]).T, strict=True):
            word = whole[part]
            word <<= np.uint64(width)
            word |= column.astype(np.uint64)
    order = np.argsort(words[0]) if len(words) == 1 else np.lexsort(words[::-1])
    return np.asarray(chosen[order], dtype=np.int32)


def merged_items(codes: ItemCodes, ranked: Ints, new: Ints) -> npt.NDArray[np.int32]:
    """Two lists of items, each in lexicographic order of the edge codes, as one: a bisection for every new item."""
    wanted = edge_rows_of(codes, new)
    low, high = np.zeros(len(new), dtype=np.int64), np.full(len(new), len(ranked))
    for _ in range(len(ranked).bit_length()):
        middle = np.minimum((low + high) >> 1, len(ranked) - 1)
        found = edge_rows_of(codes, ranked[middle])
        level = (found != wanted).argmax(axis=1)[:, None]  # the first that differs, 0 where none does
        before = np.take_along_axis(found, level, 1) <= np.take_along_axis(wanted, level, 1)
        right = before[:, 0] & (low < high)
        low, high = np.where(right, middle + 1, low), np.where(right | (low >= high), high, middle)
    return np.insert(ranked, low, new)


def row_blocks(codes: ItemCodes, items: Ints) -> Iterator[Ints]:
    """Edge codes of items in their order, block by block."""
    return (edge_rows_of(codes, items[part]) for part in parts(len(items)))


def sorted_blocks(rows_RL: Ints, lengths_R: Ints | None, level_sizes: tuple[int, ...]) -> Iterator[Ints]:
    """Edge codes of rows that are sorted already, block by block.

    Raises DataError, naming the row, for a length that is not 1..L, and for rows of unequal length with codes out of
    range or other than 0 behind the length. Of rows of equal length :func:`csr` checks the codes.
    """
    for part in parts(len(rows_RL)):
        rows = np.asarray(rows_RL[part])
        lengths = None if lengths_R is None else np.asarray(lengths_R[part])
        if lengths is not None:
            _check_ragged(rows, lengths, level_sizes, part.start)
        yield edge_rows(rows, lengths, level_sizes)


def _check_ragged(rows_ML: Ints, lengths_M: Ints, level_sizes: tuple[int, ...], first: int) -> None:
    depth = len(level_sizes)
    wrong = (lengths_M < 1) | (lengths_M > depth)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"row {first + row}: expected a length of 1..{depth}, got {lengths_M[row]}")
    wrong_ML = rows_ML >= np.where(np.arange(depth) < lengths_M[:, None], np.array(level_sizes), 1)
    if wrong_ML.any():
        row, level = (int(x) for x in np.argwhere(wrong_ML)[0])
        if level < lengths_M[row]:
            raise DataError(f"row {first + row}: a code of level {level} is not in 0..{level_sizes[level] - 1}")
        raise DataError(f"row {first + row}: expected 0 behind its {lengths_M[row]} codes, got {rows_ML[row, level]}")


def csr(blocks: Iterable[Ints], sizes: list[int], n_rows: int) -> Csr:
    """The arrays of the index of lexicographically sorted rows, given as consecutive blocks ``[M, depth]``.

    ::

        row r opens a node of depth l + 1   where its first l + 1 codes differ from those of the row before
        tokens[l]    the code l of the rows that open a node of depth l + 1
        pointers[l]  the numbers of those of them that open a node of depth l too: its first children
        rows that open nothing              share the leaf of the row before

    sizes: number of edge codes of every step. n_rows: of all blocks together. Raises DataError, naming the row, for
    rows out of order and codes out of range.
    """
    found = _Partial(sizes, n_rows)
    for block in blocks:
        if len(block):
            found.add(np.ascontiguousarray(block.T))
    return found.finish()


class _Partial:
    """What the rows read so far say.

    The arrays have room for all rows and are cut at the end, in place: what is not written takes no memory, and no
    level is ever there twice.
    """

    def __init__(self, sizes: list[int], n_rows: int) -> None:
        self.sizes = sizes
        self.number = np.int32 if n_rows < 2**31 else np.int64
        self.tokens = [np.empty(n_rows, dtype=narrowest(size)) for size in sizes]
        self.pointers = [np.empty(n_rows + 1, dtype=self.number) for _ in sizes]
        self.n_nodes = [0] * (len(sizes) + 1)  # at each depth
        self.n_rows = 0
        self.last: Ints | None = None
        self.repeats: list[Ints] = []

    def add(self, columns_LM: Ints) -> None:
        """Read the next rows."""
        above = np.zeros(columns_LM.shape[1], dtype=np.bool_)  # where a node of the depth above opens
        above[0] = self.last is None
        before = self.n_nodes.copy()
        self.n_nodes[0] += int(above[0])
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
                    hint="sort the rows lexicographically, a short one behind those that begin with it, or use "
                    "CatalogIndex.build",
                )
            self._open(level, column, opens, above, before[level])
            above = opens
        repeats = np.flatnonzero(~above)
        self.repeats.append(repeats + self.n_rows)
        self.n_rows += columns_LM.shape[1]
        self.last = columns_LM[:, -1].copy()

    def _open(self, level: int, column: Ints, opens: Ints, above: Ints, parent: int) -> None:
        """Write the nodes that open below a level. parent: the number of the first node that opens above it."""
        codes = column[opens]
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < self.sizes[level]:
            row = self.n_rows + int(((column < 0) | (column >= self.sizes[level])).argmax())
            raise DataError(f"row {row}: a code of level {level} is not in 0..{self.sizes[level] - 1}")
        node = self.n_nodes[level + 1]
        self.tokens[level][node : node + len(codes)] = codes
        first = np.flatnonzero(above[opens])
        self.pointers[level][parent : parent + len(first)] = first + node
        self.n_nodes[level + 1] += len(codes)

    def finish(self) -> Csr:
        """The arrays, cut to what was written."""
        for tokens, pointers, above, below in zip(
            self.tokens, self.pointers, self.n_nodes, self.n_nodes[1:], strict=False
        ):
            pointers[above] = below
            tokens.resize(below, refcheck=False)
            pointers.resize(above + 1, refcheck=False)
        repeats = np.concatenate(self.repeats)
        # the j-th row (from 0) that opens nothing has j + 1 such rows up to it, and the leaf before itself
        leaf, times = np.unique(repeats - np.arange(1, len(repeats) + 1), return_counts=True)
        extra = np.concatenate([[0], np.cumsum(times)])
        return Csr(tuple(self.tokens), tuple(self.pointers), leaf.astype(self.number), extra.astype(self.number))


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
