"""Nested balanced clusters of items whose children are numbered by shared directions.

Axes: N items, D width, P parents (nodes of a level), M their children, G anchors, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.item_tokenizers.quantizers.anchors import align, orthogonal_anchors
from genrec.item_tokenizers.quantizers.balanced import balanced_kmeans
from genrec.item_tokenizers.quantizers.kmeans import nearest
from genrec.progress import ProgressBar
from genrec.seeding import derive, rng

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Branches:
    """One level of a tree of clusters (internal).

    The children of node p of the level above are rows ``starts_P[p] .. starts_P[p + 1] - 1`` (int64 ``[P + 1]``).
    centroids_MD: float32, means of their items. codes_M: int32, different below one parent.
    """

    starts_P: Ints
    centroids_MD: Floats
    codes_M: Codes


@dataclass(frozen=True, eq=False)
class Tree:
    """The levels of a tree from the top, and the anchors of each but the first (internal).

    anchors: float32 ``[G, D]``; empty for a tree whose children are not aligned.
    """

    levels: tuple[Branches, ...]
    anchors: tuple[Floats, ...]

    def codes(self, nodes_NL: Ints) -> Codes:
        """Codes on the way to each node, int32 ``[N, L]``."""
        return np.column_stack([level.codes_M[nodes_NL[:, at]] for at, level in enumerate(self.levels)])

    def nearest(self, x_ND: Floats) -> Ints:
        """From the top to the nearest child, again and again: nodes int64 ``[N, L]``; of equal children the first."""
        out = np.zeros((len(x_ND), len(self.levels)), dtype=np.int64)
        node_N = np.zeros(len(x_ND), dtype=np.int64)
        for at, level in enumerate(self.levels):
            order = np.argsort(node_N, kind="stable")
            used, first = np.unique(node_N[order], return_index=True)
            for parent, rows in zip(used.tolist(), np.split(order, first[1:]), strict=True):
                start, end = level.starts_P[parent : parent + 2]
                node_N[rows] = start + nearest(x_ND[rows], level.centroids_MD[start:end])
            out[:, at] = node_N
        return out

    def squared_left(self, x_ND: Floats, nodes_NL: Ints) -> list[float]:
        """Mean squared distance of the rows to their node, level by level."""
        totals = np.zeros(len(self.levels))
        for start in range(0, len(x_ND), _CHUNK):
            part = slice(start, start + _CHUNK)
            for at, level in enumerate(self.levels):
                gap = x_ND[part] - level.centroids_MD[nodes_NL[part, at]]
                totals[at] += np.einsum("nd,nd->", gap, gap, dtype=np.float64)
        return [float(total) / len(x_ND) for total in totals]

    def mean_steps(self, sizes: Sequence[int], nodes_NL: Ints) -> tuple[Floats, ...]:
        """What a code adds on average: mean over its items of (node - parent), float32 ``[K, D]`` for each level.

        The parent of the first level is the origin. A code without items adds 0.
        """
        books = []
        for at, (level, size) in enumerate(zip(self.levels, sizes, strict=True)):
            n_items_M = np.bincount(nodes_NL[:, at], minlength=len(level.codes_M)).astype(np.float64)
            sums_KD = np.zeros((size, level.centroids_MD.shape[1]))
            for start in range(0, len(level.codes_M), _CHUNK):
                part = slice(start, start + _CHUNK)
                step_MD = level.centroids_MD[part].astype(np.float64)
                if at:
                    parent_M = np.searchsorted(level.starts_P, np.arange(start, start + len(step_MD)), side="right") - 1
                    step_MD -= self.levels[at - 1].centroids_MD[parent_M]
                np.add.at(sums_KD, level.codes_M[part], step_MD * n_items_M[part, None])
            n_items_K = np.bincount(level.codes_M, weights=n_items_M, minlength=size)
            books.append((sums_KD / np.maximum(n_items_K, 1)[:, None]).astype(np.float32))
        return tuple(books)


@dataclass(frozen=True, eq=False)
class Grown:
    """A tree and the node of every item it was grown for: int64 ``[N, L]`` (internal)."""

    tree: Tree
    nodes_NL: Ints


@dataclass(frozen=True)
class Growth:
    """How a tree grows (internal).

    sizes: children of a node, L numbers. n_anchors: of each level but the first. aligned: False = children keep the
    numbers that k-means gave them.
    """

    sizes: tuple[int, ...]
    n_anchors: tuple[int, ...]
    max_iterations: int = 20
    aligned: bool = True

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Number of codes K of each level."""
        return (*self.sizes[:1], *self.n_anchors)


def grow(x_ND: Floats, growth: Growth, *, keys: Keys, seed: int) -> Grown:
    """Cluster, cluster every cluster, and so on; then name the children (internal).

    ::

        every node with m items gets min(m, size of the level) children: balanced k-means of its items
        codes of the first level: the numbers of the clusters; below: :func:`align` with the anchors of the level

    Sizes of siblings differ by at most 1, so after l levels a node has at most ``ceil(N / (b_1 ... b_l))`` items.
    Nothing depends on the order of rows, which are looked at by ``keys``.
    """
    order = np.argsort(keys, kind="stable")
    node_N = np.zeros(len(x_ND), dtype=np.int64)
    parents_PD = x_ND[:0]  # the children of the root are not aligned
    levels: list[Branches] = []
    nodes, anchors = [], []
    for at, size in enumerate(ProgressBar(growth.sizes, desc="gaoq", unit="level")):
        by_node = order[np.argsort(node_N[order], kind="stable")]
        level, node_N = _split(x_ND, by_node, node_N, size, growth.max_iterations, derive(seed, "gaoq", at))
        if at and growth.aligned:
            anchors_GD = orthogonal_anchors(growth.n_anchors[at - 1], x_ND.shape[1], rng(seed, "gaoq", "anchors", at))
            codes_M = align(level.centroids_MD, parents_PD, level.starts_P, anchors_GD)
            level = Branches(level.starts_P, level.centroids_MD, codes_M)
            anchors.append(anchors_GD)
        levels.append(level)
        nodes.append(node_N)
        parents_PD = level.centroids_MD
    return Grown(Tree(tuple(levels), tuple(anchors)), np.column_stack(nodes))


def _split(
    x_ND: Floats, by_node: Ints, node_N: Ints, size: int, max_iterations: int, seed: int
) -> tuple[Branches, Ints]:
    """Split every node; ``by_node``: rows sorted by node, then by key. Codes are the numbers of the children."""
    n_items_P = np.bincount(node_N)
    ends = np.cumsum(n_items_P)
    n_children_P = np.minimum(n_items_P, size)
    starts = np.concatenate([[0], np.cumsum(n_children_P)])
    centroids = np.empty((int(starts[-1]), x_ND.shape[1]), dtype=np.float32)
    child_N = np.empty(len(x_ND), dtype=np.int64)
    for parent in np.flatnonzero(n_items_P > size).tolist():
        rows = by_node[ends[parent] - n_items_P[parent] : ends[parent]]
        found = balanced_kmeans(x_ND[rows], size, seed=derive(seed, parent), max_iterations=max_iterations)
        child_N[rows] = starts[parent] + found.labels
        centroids[starts[parent] : starts[parent + 1]] = found.centroids_KD
    alone = by_node[np.repeat(n_items_P <= size, n_items_P)]  # a child for every item
    places = np.repeat(n_items_P <= size, n_children_P)
    child_N[alone] = np.flatnonzero(places)
    centroids[places] = x_ND[alone]
    numbers = np.arange(len(centroids)) - np.repeat(starts[:-1], n_children_P)
    return Branches(starts.astype(np.int64), centroids, numbers.astype(np.int32)), child_N
