"""Spectral clustering of sparse graphs, once and recursively (numpy and scipy only).

Axes: n nodes of a graph, K clusters of one split, M nodes of the tree of splits, I items (the graph's nodes).
"""

from __future__ import annotations

import warnings
from collections import deque
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, eigsh, lobpcg

from genrec.data.histories import Histories
from genrec.seeding import derive, rng

Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]
Graph = Any  # scipy.sparse.csr_array, symmetric, weights > 0 (no stored zeros), zero diagonal
_DENSE = 200  # graphs up to this size are solved densely
_TOLERANCE = 1e-6
# where Lanczos meets an invariant subspace it goes on at random: since scipy 1.17 from a generator of ours
_SEEDED_RESTARTS = "rng" in signature(eigsh).parameters


def cooccurrence(
    histories: Histories, n_items: int, *, window: int | None = None, max_history: int | None = None
) -> Graph:
    """How often two items stand in one history: float64 csr ``[N, N]``, symmetric, zero diagonal (internal).

    ::

        A[a, b] = A[b, a] = number of pairs of places (p, q), p < q, of one history that hold a and b in either order

    window: only places with ``q - p <= window`` (None = all pairs). max_history: only the newest ones of a history
    (None = all); the number of pairs grows with the square of the length.
    """
    kept = histories if max_history is None else histories.last(max_history)
    if window is None:
        ones = np.ones(len(kept.items))
        counts = sparse.csr_array((ones, kept.items, kept.offsets), shape=(len(kept), n_items))
        counts.sum_duplicates()
        graph = (counts.T @ counts).tocsr()
    else:
        rows = kept.rows()
        graph = sparse.csr_array((n_items, n_items))
        for step in range(1, min(window, int(kept.lengths.max(initial=0)) - 1) + 1):
            same = rows[step:] == rows[:-step]
            a, b = kept.items[:-step][same], kept.items[step:][same]
            graph = graph + sparse.csr_array((np.ones(len(a)), (a, b)), shape=(n_items, n_items))
        graph = (graph + graph.T).tocsr()
    graph.setdiag(0)
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


def cluster_qr(vectors_nK: Reals) -> Ints:
    """Cluster of each row of K spectral vectors, int64 ``[n]`` in 0..K-1, without a random start (internal).

    Damle, Minden & Ying 2018 (1708.07481): pivoted QR finds K rows that are as unlike as possible; the orthogonal
    matrix nearest to them turns every row to face its cluster. Turning the vectors by any orthogonal matrix changes
    nothing, so signs and bases of equal eigenvalues do not matter.
    """
    pivots = linalg.qr(vectors_nK.T, mode="r", pivoting=True)[1][: vectors_nK.shape[1]]
    left, _, right = linalg.svd(vectors_nK[pivots].T)
    facing: Ints = np.abs(vectors_nK @ (left @ right)).argmax(axis=1)
    return facing


def spectrum(graph: Graph, k: int, seed: int, *, max_restarts: int = 300) -> tuple[Reals, Reals]:
    """The ``k`` largest eigenvalues (falling) of ``D^-1/2 A D^-1/2`` and ``D^-1/2`` times its vectors (internal).

    They are one minus the smallest of the normalised Laplacian. graph: every node has an edge. Small graphs are
    solved densely, others by Lanczos from a seeded start; where that does not converge, by preconditioned
    blocks (LOBPCG), of which whatever they reach is taken.
    """
    n = graph.shape[0]
    scale = 1 / np.sqrt(np.asarray(graph.sum(axis=1)).ravel())
    scaled = graph.multiply(scale[:, None]).multiply(scale[None, :]).tocsr()
    generator = rng(seed, "spectrum")
    if n <= max(_DENSE, 3 * k):
        values, vectors = linalg.eigh(scaled.toarray(), driver="evd")
        values, vectors = values[-k:], vectors[:, -k:]
    else:
        try:
            start = generator.normal(size=n)
            more: dict[str, Any] = {"rng": generator} if _SEEDED_RESTARTS else {}
            values, vectors = eigsh(scaled, k=k, which="LA", v0=start, tol=_TOLERANCE, maxiter=max_restarts, **more)
        except ArpackNoConvergence:
            block = np.column_stack([1 / scale, generator.normal(size=(n, k - 1))])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # it says that it has not converged
                values, vectors = lobpcg(scaled, block, largest=True, tol=_TOLERANCE, maxiter=200)
    order = np.argsort(-values, kind="stable")
    return values[order], vectors[:, order] * scale[:, None]


def spectral_parts(graph: Graph, n_clusters: int, *, max_leaf: int, seed: int) -> Ints:
    """Split a graph into groups of nodes that belong together: int64 ``[n]``, parts numbered from 0 (internal).

    ::

        connected:  cluster_qr of the n_clusters top vectors of spectrum(graph)
        else:       large components share the n_clusters by their eigenvalues (what one spectral clustering
                    of all of them gives); the others together make one further part
        every component fits a leaf, or too many are large:  whole components are dealt out to n_clusters parts
        no structure (all nodes would stay together):  nodes are dealt out one by one

    Large: more than ``max_leaf`` nodes, or (where that does not make too many) a quarter of an even share. So
    there are two parts at least, ``n_clusters + 1`` at most, and an isolated node never gets an eigenvector.
    Parts are numbered by falling size, then by their first node. The order of nodes decides ties only.
    """
    component = connected_components(graph, directed=False)[1].astype(np.int64)
    sizes = np.bincount(component)
    large = sizes > max_leaf
    sizable = large | ((sizes > 1) & (4 * n_clusters * sizes >= len(component)))
    if not large.any() or large.sum() > n_clusters:
        labels = _dealt(sizes, n_clusters)[component]
    else:
        large = sizable if sizable.sum() <= n_clusters else large
        labels = np.full(len(component), n_clusters)  # the small components
        labels[large[component]] = _clustered(graph, component, np.flatnonzero(large), n_clusters, seed)
    if labels.min() == labels.max():
        labels = _dealt(np.ones(len(component), dtype=np.int64), n_clusters)
    return by_size(labels)


def _clustered(graph: Graph, component: Ints, large: Ints, n_clusters: int, seed: int) -> Ints:
    """Labels of the nodes of the large components, in node order."""
    members = [np.flatnonzero(component == c) for c in large]
    found = []
    for j, nodes in enumerate(members):
        k = min(n_clusters - len(large) + 1, len(nodes) - 1)
        part = graph if len(nodes) == graph.shape[0] else graph[nodes][:, nodes]
        found.append(spectrum(part, k, derive(seed, j)))
    # each has the eigenvalue 1; the others compete for the clusters that are left
    others = np.concatenate([values[1:] for values, _ in found])
    owner = np.repeat(np.arange(len(found)), [len(values) - 1 for values, _ in found])
    share = 1 + np.bincount(owner[np.argsort(-others, kind="stable")[: n_clusters - len(large)]], minlength=len(found))
    labels, first = np.zeros(len(component), dtype=np.int64), 0
    for nodes, (_, vectors), k in zip(members, found, share.tolist(), strict=True):
        labels[nodes] = first + cluster_qr(vectors[:, :k])
        first += k
    return labels[np.isin(component, large)]


def _dealt(sizes: Ints, n_parts: int) -> Ints:
    """The part of each thing: the largest first, one to each part, then back and forth, so that parts are alike."""
    turn, place = np.divmod(np.arange(len(sizes)), n_parts)
    part = np.empty(len(sizes), dtype=np.int64)
    part[np.argsort(-sizes, kind="stable")] = np.where(turn % 2, n_parts - 1 - place, place)
    return part


def by_size(labels_n: Ints) -> Ints:
    """The same groups, numbered 0, 1, … by falling size, then by their first member (internal)."""
    _, first, inverse, sizes = np.unique(labels_n, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return np.asarray(rank[inverse])


@dataclass(frozen=True, eq=False)
class Tree:
    """Nested groups of items; the root is not a node (internal).

    parent_M: int64, the parent of each tree node (-1 = the root), level by level, siblings side by side and by
    falling size. leaf_I: int64, the tree node whose group, of at most ``max_leaf`` items, an item ends in (-1 = root).
    """

    parent_M: Ints
    leaf_I: Ints

    def paths(self) -> Ints:
        """Tree nodes from the top down to the leaf of each item, int64 ``[I, depth]``, -1 behind the leaf."""
        steps, at = [], self.leaf_I
        while (at >= 0).any():
            steps.append(at)
            at = np.where(at >= 0, self.parent_M[at], -1)
        if not steps:
            return np.empty((len(self.leaf_I), 0), dtype=np.int64)
        upwards = np.column_stack(steps)
        lengths = (upwards >= 0).sum(axis=1)
        column = lengths[:, None] - 1 - np.arange(upwards.shape[1])
        return np.where(column >= 0, np.take_along_axis(upwards, np.maximum(column, 0), axis=1), -1)


def spectral_tree(graph: Graph, n_clusters: int, *, max_leaf: int, seed: int, max_depth: int = 100) -> Tree:
    """Split a graph with :func:`spectral_parts`, then every part again, until none exceeds ``max_leaf`` (internal).

    Graphs that lose a few nodes at every split end all the same: from ``max_depth`` on nodes are dealt out.
    """
    leaf_I = np.full(graph.shape[0], -1, dtype=np.int64)
    parents: list[int] = []
    waiting = deque([(-1, 0, np.arange(graph.shape[0]), graph)])
    while waiting:
        node, depth, items, inside = waiting.popleft()
        if len(items) <= max_leaf:
            leaf_I[items] = node
            continue
        if depth < max_depth:
            labels = spectral_parts(inside, n_clusters, max_leaf=max_leaf, seed=derive(seed, "split", node + 1))
        else:
            labels = _dealt(np.ones(len(items), dtype=np.int64), n_clusters)
        for label in range(int(labels.max()) + 1):
            part = np.flatnonzero(labels == label)
            smaller = inside[part][:, part] if len(part) > max_leaf else None
            waiting.append((len(parents), depth + 1, items[part], smaller))
            parents.append(node)
    return Tree(np.array(parents, dtype=np.int64), leaf_I)
