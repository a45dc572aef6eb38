"""Scores of items as sums over the codes of their identifiers: scans of the catalog, and what a scan may leave out.

Axes: U users, L levels, K codes of a level, N items, P parts, G codes of a part, S sampled items, M pairs of a user and
an item. numpy only, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.decoding.parallel_best import Best

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

PART_SIZE = 1 << 16
"""Neighbouring levels are joined to a part while it has at most so many codes."""
SCAN_ITEMS = 4096  # items at a time: with 32 users a block of scores stays in the second-level cache
PAIRS = 1 << 17  # pairs of a user and an item at a time
SAMPLE = 4096
SEED_DEPTH = 8
WORTH_PRUNING = 1 / 16


def parts_of(level_sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The levels of each part: neighbours are joined while the product of their sizes stays within PART_SIZE.

    The parts depend on nothing but the sizes, and so do the scores: sums within parts, then the sum of the parts.
    """
    parts: list[list[int]] = []
    product = PART_SIZE + 1
    for level, size in enumerate(level_sizes):
        product *= size
        if product > PART_SIZE:
            parts.append([])
            product = size
        parts[-1].append(level)
    return tuple(map(tuple, parts))


def scan(
    codes_LN: Sequence[npt.NDArray[Any]],
    parts: tuple[tuple[int, ...], ...],
    tables: Sequence[Floats],
    best: Best,
    rows: Int64,
    items: Int64 | None,
) -> None:
    """Offer to ``rows`` every item (or those in ``items``) with its score.

        for each part in order:  part_score = t[l1][code] + t[l2][code] + ...;   score = part_score + part_score + ...

    tables: float32 ``[U, K]`` for each level. All users of a block are handled at once: a code picks a row of U scores.
    """
    by_code = [np.ascontiguousarray(table[rows].T) for table in tables]
    n_items = codes_LN[0].shape[0] if items is None else len(items)
    shape = (SCAN_ITEMS, len(rows))
    total, part_total, one = (np.empty(shape, np.float32) for _ in range(3))
    for start in range(0, n_items, SCAN_ITEMS):
        size = min(SCAN_ITEMS, n_items - start)
        at = slice(start, start + size) if items is None else items[start : start + size]
        for number, part in enumerate(parts):
            to = (part_total if number else total)[:size]
            for level in part:
                found = to if level == part[0] else one[:size]
                np.take(by_code[level], codes_LN[level][at], axis=0, out=found, mode="clip")
                if level != part[0]:
                    to += found
            if number:
                total[:size] += to
        hit = np.flatnonzero(total[:size] >= best.floor[rows])
        item, column = np.divmod(hit, len(rows))
        best.offer(rows[column], item + start if items is None else items[item + start], total[:size].ravel()[hit])


@dataclass(frozen=True, eq=False)
class PartLists:
    """The items of every code of a part, and a sample of the codes (internal).

    items: int32 ``[N]`` in the order of their codes. starts: int64 ``[G + 1]``, the first of each code.
    sample: int64 ``[S]``, the codes of items at equal distances in that order.
    """

    items: npt.NDArray[np.int32]
    starts: Int64
    sample: Int64

    @classmethod
    def of(cls, codes_LN: Sequence[npt.NDArray[Any]], part: tuple[int, ...], level_sizes: Sequence[int]) -> PartLists:
        """The lists of one part."""
        codes = np.zeros(codes_LN[0].shape, dtype=np.int64)
        size = 1
        for level in part:
            codes *= level_sizes[level]
            codes += codes_LN[level]
            size *= level_sizes[level]
        if size <= PART_SIZE:
            codes = codes.astype(np.uint16)  # numpy sorts 16 bits by radix
        items = np.argsort(codes, kind="stable").astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=size))])
        places = (np.arange(min(SAMPLE, len(items))) * len(items)) // min(SAMPLE, len(items))
        return cls(items, starts, codes[items[places]].astype(np.int64))


def pruned_scan(
    codes_LN: Sequence[npt.NDArray[Any]],
    parts: tuple[tuple[int, ...], ...],
    lists: Sequence[PartLists],
    tables: Sequence[Floats],
    best: Best,
) -> Int64:
    """Offer to each row every item that can be listed, and few others; returns the rows that need a :func:`scan`.

    The threshold algorithm (Fagin, Lotem and Naor 2001) with two rounds. An item none of whose parts scores more than
    the cut of that part has a score of at most

        cut[0] + cut[1] + ...

    as rounding never reverses an order. Where that is below the k-th best score of any items, it is enough to look at
    the items with a part above its cut. The first round looks at the best codes of each part, to learn a k-th best
    score; the second takes the highest cuts that it justifies, at an equal depth in each part. Where they would let
    pass a good share of the catalog, the row is left to a scan. Compare Petrov, Macdonald and Tonellotto 2025
    (2505.00560), who prune the codes of RecJPQ one at a time.
    """
    values = [_part_table(tables, part) for part in parts]
    heads = [-np.sort(-value[:, each.sample], axis=1) for value, each in zip(values, lists, strict=True)]
    bound_US = heads[0]
    for head in heads[1:]:
        bound_US = bound_US + head
    n_rows, n_sampled = bound_US.shape
    rows = np.arange(n_rows)
    depth = min(SEED_DEPTH, n_sampled - 1)
    _offer_above(codes_LN, parts, lists, tables, values, [head[:, depth] for head in heads], best)
    best.settle()
    best.clear()
    need = (bound_US >= best.floor[:, None]).sum(axis=1)
    pays = need * len(parts) <= WORTH_PRUNING * n_sampled
    cuts = [np.where(pays, head[rows, np.where(pays, need, 0)], np.inf).astype(np.float32) for head in heads]
    _offer_above(codes_LN, parts, lists, tables, values, cuts, best)
    return np.flatnonzero(~pays)


def _part_table(tables: Sequence[Floats], part: tuple[int, ...]) -> Floats:
    """The score of every code of a part, float32 ``[U, G]``, summed in the order of :func:`scan`."""
    out = tables[part[0]]
    for level in part[1:]:
        out = (out[:, :, None] + tables[level][:, None, :]).reshape(len(out), -1)
    return out


def _offer_above(
    codes_LN: Sequence[npt.NDArray[Any]],
    parts: tuple[tuple[int, ...], ...],
    lists: Sequence[PartLists],
    tables: Sequence[Floats],
    values: Sequence[Floats],
    cuts: Sequence[Floats],
    best: Best,
) -> None:
    """Offer every item with a part that scores more than its cut; cuts: float32 ``[U]`` for each part."""
    for number, (each, value) in enumerate(zip(lists, values, strict=True)):
        above = np.flatnonzero(value > cuts[number][:, None])
        row, code = np.divmod(above, value.shape[1])
        own_score = value.ravel()[above]
        for group, items in _members(each, code):
            rows = row[group]
            total: Floats | None = None
            fresh = np.ones(len(rows), dtype=np.bool_)
            for other, part in enumerate(parts):
                score = own_score[group] if other == number else _gathered(codes_LN, tables, part, rows, items)
                if other < number:  # then it was offered as a member of that part
                    fresh &= score <= cuts[other][rows]
                total = score if total is None else total + score
            assert total is not None
            best.offer(rows[fresh], items[fresh], total[fresh])


def _members(lists: PartLists, codes_G: Int64) -> Iterator[tuple[Int64, Int64]]:
    """The items of some codes, PAIRS at a time, and for each item the place of its code among those given."""
    first = lists.starts[codes_G]
    size = lists.starts[codes_G + 1] - first
    ends = np.cumsum(size)
    for low in range(0, int(ends[-1]) if len(ends) else 0, PAIRS):
        high = min(low + PAIRS, int(ends[-1]))
        begin, end = np.searchsorted(ends, [low, high - 1], side="right")
        part = np.arange(begin, end + 1)
        count = np.minimum(ends[part], high) - np.maximum(ends[part] - size[part], low)
        group = np.repeat(part, count)
        yield group, lists.items[np.arange(low, high) + (first - ends + size)[group]].astype(np.int64)


def _gathered(
    codes_LN: Sequence[npt.NDArray[Any]], tables: Sequence[Floats], part: tuple[int, ...], rows: Int64, items: Int64
) -> Floats:
    """The score of one part for each pair, float32 ``[M]``."""
    out: Floats | None = None
    for level in part:
        found = tables[level].ravel().take(rows * tables[level].shape[1] + codes_LN[level].take(items))
        out = found if out is None else out + found
    assert out is not None
    return out
