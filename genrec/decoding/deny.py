"""Items that must not be found: which prefixes have nothing else below them (numpy only, no torch).

Axes: B rows of a batch, N items, R item ranks, D dead nodes of a row and level (padded).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.decoding.filters import RowFilters
from genrec.decoding.index import CatalogIndex

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DeadNodes:
    """Children of one level that a row must not enter, and their parents: int64 ``[B, D]``, -1 = padding."""

    nodes_BD: Int64
    parents_BD: Int64


def denied_ranks(index: CatalogIndex, deny: Histories) -> tuple[Int64, Int64]:
    """The distinct (row, rank) pairs of denied items, ascending; items outside the index are ignored."""
    ranks = index.rank_of[deny.items].astype(np.int64)
    pairs = np.unique((deny.rows() * len(index.items) + ranks)[ranks >= 0])
    return pairs // len(index.items), pairs % len(index.items)


def dead_nodes(index: CatalogIndex, deny: Histories, filters: RowFilters | None = None) -> list[DeadNodes | None]:
    """Per level the nodes whose every allowed item is denied, where their parent is not such a node itself.

        dead[row, node]  =  set(items below node) & filter[row] ⊆ set(deny[row])

    Nodes below which the filter allows nothing at all are not listed.

    Only ancestors of denied items can be dead, and ranks below a node are contiguous, so it is a matter of
    counting equal neighbours. With these nodes killed at their parent, a beam search never holds a beam
    without an allowed item. None = no row has a dead node at this level.

    deny: item numbers per row (repeats allowed). Internal.
    """
    rows, ranks = denied_ranks(index, deny)
    if filters is not None:
        counted = filters.allows(rows, ranks)
        rows, ranks = rows[counted], ranks[counted]
    path = index.nodes_of(ranks)
    parent_dead = np.zeros(len(rows), dtype=bool)
    parent = np.zeros(len(rows), dtype=np.int64)
    found: list[DeadNodes | None] = []
    for level in range(index.depth):
        node = path[:, level]
        fresh = np.ones(len(rows), dtype=bool)
        fresh[1:] = (rows[1:] != rows[:-1]) | (node[1:] != node[:-1])
        group = np.cumsum(fresh) - 1
        low, high = index.rank_range(level + 1, node)
        there = high - low if filters is None else filters.count(rows, low, high)
        dead = np.bincount(group, minlength=1)[group] == there
        # below a dead node everything is dead, and it is never entered
        report = fresh & dead & ~parent_dead
        found.append(_padded(len(deny), rows[report], node[report], parent[report]))
        parent, parent_dead = node, dead
    return found


def _padded(n_rows: int, rows: Int64, nodes: Int64, parents: Int64) -> DeadNodes | None:
    if not len(rows):
        return None
    counts = np.bincount(rows, minlength=n_rows)
    column = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    out = np.full((2, n_rows, int(counts.max())), -1, dtype=np.int64)
    out[0, rows, column] = nodes
    out[1, rows, column] = parents
    return DeadNodes(out[0], out[1])
