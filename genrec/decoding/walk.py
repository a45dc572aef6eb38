"""Plan of a walk from the root to given leaves in which every prefix is visited once (numpy only, no torch).

Axes: R rows (1 where one plan serves all rows of a batch), P (row, leaf) pairs, M nodes of a row at one depth,
W prefixes of a row that the scorer is fed with. Internal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.decoding.index import CatalogIndex
from genrec.errors import DataError

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Step:
    """What one level adds: the nodes of the next depth, each below one of the prefixes the scorer is fed with.

    fed_parents, fed_codes: int64 ``[R, W]``, what the scorer is told (which prefix of the step before, and by which
    code); fed_nodes: int64 ``[R, W]``, their nodes. Of the nodes below them, ``[R, M]``: ``above``, the place of the
    parent among the nodes of the depth before; ``slot``, its place among the prefixes fed; ``code``, the code from
    there; ``passed``, where the identifier has ended before and nothing is added (None = nowhere). Padding: zeros.
    """

    fed_parents: Int64
    fed_codes: Int64
    fed_nodes: Int64
    above: Int64
    slot: Int64
    code: Int64
    passed: npt.NDArray[np.bool_] | None


@dataclass(frozen=True, eq=False)
class Walk:
    """The steps from the root; ``place`` int64 ``[P]``: where each leaf is among its row's nodes behind the last."""

    steps: list[Step]
    place: Int64


def leaves_of(index: CatalogIndex, items: npt.ArrayLike) -> Int64:
    """The leaf of every item, int64 of the same shape. Raises DataError for an item that is not indexed."""
    wanted = np.asarray(items, dtype=np.int64)
    known = (wanted >= 0) & (wanted < index.n_items)
    ranks = np.where(known, index.rank_of[np.where(known, wanted, 0)], -1)
    if (ranks < 0).any():
        raise DataError(f"item {int(wanted[ranks < 0].flat[0])} is not in the index")
    return leaves_at(index, ranks)


def blocks(index: CatalogIndex, rows: Int64, leaves: Int64, width: int) -> Iterator[Int64]:
    """Places ``[P]`` of the pairs that are walked together: at most ``width`` prefixes of each row are fed per level.

    rows, leaves: int64 ``[P]``, sorted by row, then leaf, without repeats. A prefix on the border of two blocks of
    a row is fed in both.
    """
    if not len(leaves):
        return
    last = _above(index, leaves)[:, -1] if index.depth > 1 else np.zeros(len(leaves), dtype=np.int64)
    first = _first_of_row(rows)
    block = _count(_fresh(rows, last), first) // width
    order = np.argsort(block, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(block[order])) + 1)


def plan(index: CatalogIndex, rows: Int64, leaves: Int64) -> Walk:
    """The walk to the given leaves.

        for each row, for each level:  feed each distinct prefix of the row's leaves once, read the codes below it

    rows, leaves: int64 ``[P]`` as in :func:`blocks`, P >= 1, every row from 0 on present. Identifiers that have ended
    are fed no more; the walk ends with the last one.
    """
    n_rows, first = int(rows[-1]) + 1, _first_of_row(rows)

    def grid(values: Int64, column: Int64, at: npt.NDArray[np.bool_]) -> Int64:
        out = np.zeros((n_rows, int(column[at].max()) + 1), dtype=np.int64)
        out[rows[at], column[at]] = values[at]
        return out

    place = slot = np.zeros(len(rows), dtype=np.int64)
    fed = [np.zeros((n_rows, 1), dtype=np.int64)] * 3
    steps: list[Step] = []
    for level, node in enumerate(np.column_stack([_above(index, leaves), leaves]).T):
        code = index.tokens[level][node].astype(np.int64)
        opens = _fresh(rows, node)
        passed = (code == index.pass_code(level)) & index.ragged
        here = _count(opens, first)
        ended = grid(passed.astype(np.int64), here, opens).astype(np.bool_)
        below = [grid(each, here, opens) for each in (place, slot, np.where(passed, 0, code))]
        passes = ended if ended.any() else None
        steps.append(Step(fed[0], fed[1], fed[2], below[0], below[1], below[2], passes))
        place = here
        goes_on = code < index.level_sizes[level] if level + 1 < index.depth else np.zeros(len(rows), dtype=np.bool_)
        if not goes_on.any():
            break
        entry, before = opens & goes_on, slot
        slot = np.where(goes_on, _count(entry, first), 0)
        fed = [grid(each, slot, entry) for each in (before, code, node)]
    return Walk(steps, place)


def n_prefixes(index: CatalogIndex, ranks: Int64) -> int:
    """Prefixes that the scorer must be fed with, at the widest level, to score the items of ascending ranks."""
    if not len(ranks) or index.depth == 1:
        return min(len(ranks), 1)
    return len(np.unique(_nodes(index, ranks)[:, -2]))


def leaves_at(index: CatalogIndex, ranks: Int64) -> Int64:
    """The leaf of every rank, int64."""
    return _nodes(index, ranks)[..., -1]


def _above(index: CatalogIndex, leaves: Int64) -> Int64:
    """Nodes above leaves at depths 1 .. depth - 1, int64 ``[P, depth - 1]``."""
    return _nodes(index, index.first_rank(leaves))[:, :-1]


def _nodes(index: CatalogIndex, ranks: Int64) -> Int64:
    """Nodes of ranks at depths 1 .. depth, int64 ``[..., depth]``."""
    return index.nodes_of(ranks)


def _first_of_row(rows: Int64) -> Int64:
    """Place of the first entry of each entry's row."""
    return np.asarray(np.searchsorted(rows, rows), dtype=np.int64)


def _fresh(rows: Int64, node: Int64) -> npt.NDArray[np.bool_]:
    out = np.ones(len(rows), dtype=np.bool_)
    out[1:] = (rows[1:] != rows[:-1]) | (node[1:] != node[:-1])
    return out


def _count(entry: npt.NDArray[np.bool_], first: Int64) -> Int64:
    """Entries of the same row before the last one, per place."""
    upto = np.cumsum(entry.astype(np.int64))
    return np.asarray(upto - (upto - entry)[first] - 1, dtype=np.int64)
