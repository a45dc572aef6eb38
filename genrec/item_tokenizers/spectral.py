"""Collaborative indexing: identifiers from nested clusters of items that are used together.

Axes: N items, L levels, M nodes of the tree of clusters, K clusters of a split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import TokenizerSource, check_at_least
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.fitted import Indexing, append_code, nearest_groups, numbers_within
from genrec.item_tokenizers.quantizers.spectral_split import Graph, Tree, cooccurrence, spectral_tree
from genrec.seeding import derive

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Tokens = Literal["shared", "node"]
Cold = Literal["branch", "nearest"]


@dataclass(frozen=True)
class SpectralSettings:
    """Settings of :class:`Spectral`; ConfigError for values out of range (stable).

    n_clusters: clusters of each split. max_leaf: groups up to this size are split no further; also the number of
    codes with ``tokens: shared``. tokens: shared (tree nodes share max_leaf codes) | node (each has its own).
    unique_leaf: the last code belongs to one item of the whole catalog. cold: where items go that share no training
    history with another: branch (their own) | nearest (with the item of most similar content; needs item vectors).
    window: only items at most that many places apart count as used together (None = all of a history).
    max_history: only the newest items of a longer history count (None = all).
    """

    kind: Literal["spectral"] = "spectral"
    n_clusters: int = 20
    max_leaf: int = 500
    tokens: Tokens = "shared"
    unique_leaf: bool = False
    cold: Cold = "branch"
    window: int | None = None
    max_history: int | None = 500

    def __post_init__(self) -> None:
        check_at_least(self, {"n_clusters": 2, "max_leaf": self.n_clusters + 1, "window": 1, "max_history": 2})
        if self.tokens not in ("shared", "node"):
            raise ConfigError(f"tokens: expected shared or node, got {self.tokens!r}")
        if self.cold not in ("branch", "nearest"):
            raise ConfigError(f"cold: expected branch or nearest, got {self.cold!r}")


class Spectral(Indexing):
    """Collaborative indexing of P5 (CID); recipe: ``tokenizers/spectral.yaml`` (stable).

    ::

        A[a, b] = how often a and b stand in one training history
        groups  = spectral clustering of A; again inside every group with more than max_leaf items
        identifier = tree nodes from the top to the item's group, then a code that separates the items of the group

    Hua et al. 2023 ("How to Index Item IDs for Recommendation Foundation Models", 2305.06569). Identifiers are
    ragged: dense parts of the graph take more splits. With ``tokens: shared`` nodes are numbered level by level
    modulo ``max_leaf``, siblings next to each other, so they never clash, and so is each item of a group; the
    numbers mean nothing by themselves, only behind their prefix. With ``tokens: node`` every node has a code
    of its own, and the items of a group are numbered from 0. With ``unique_leaf`` this last code is replaced by the
    item's own (the paper's hybrid CID+IID, there without it where a group has one item; here always with it).

    Departures: both orders of a pair count (the official loop keeps one of them); a split of a graph that is not
    connected follows :func:`genrec.item_tokenizers.quantizers.spectral_split.spectral_parts` instead of spending
    clusters on single items; items without a place in the graph stand in a branch of their own, dealt out in
    hash order, instead of outside the tree. The numbers of the items of a group follow their hashes, and a catalog
    in another order has the same identifiers.
    """

    Settings: ClassVar[type[Any]] = SpectralSettings
    numbers_last: ClassVar[bool] = True

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """Cluster the graph of the training histories; every item's identifier, all different.

        Raises DataError without training histories, and where ``cold: nearest`` finds no room.
        """
        order = np.argsort(source.item_keys, kind="stable")
        graph = self._graph(source)[order][:, order]  # in key order, so the order of the catalog is not seen
        alone = np.diff(graph.indptr) == 0
        tree = self._tree(graph, alone, source, order, derive(seed, "spectral"))
        leaf_N = np.empty_like(tree.leaf_I)
        leaf_N[order] = tree.leaf_I
        codes_NL, size = self._number(Tree(tree.parent_M, leaf_N), source.item_keys)
        codes = ItemCodes.from_int(codes_NL, (size,) * codes_NL.shape[1], source.catalog, shared_vocabulary=True)
        largest = np.bincount(tree.paths()[:, 0]) if len(tree.parent_M) else np.array([len(order)])
        return self._done(
            source,
            codes,
            n_edges=int(graph.nnz) // 2,
            n_cold=int(alone.sum()),
            n_nodes=len(tree.parent_M),
            first_level=np.sort(largest)[::-1].tolist(),
        )

    def _graph(self, source: TokenizerSource) -> Graph:
        settings = self.settings
        return cooccurrence(
            source.histories(), source.n_items, window=settings.window, max_history=settings.max_history
        )

    def _tree(
        self, graph: Graph, alone: npt.NDArray[np.bool_], source: TokenizerSource, order: Ints, seed: int
    ) -> Tree:
        """Items (in key order) in their leaves."""
        n_clusters, max_leaf = self.settings.n_clusters, self.settings.max_leaf
        if self.settings.cold == "branch" or not alone.any():
            return spectral_tree(graph, n_clusters, max_leaf=max_leaf, seed=seed)
        if alone.all():
            raise DataError("no two items share a training history: nothing to cluster", hint="use cold: branch")
        placed = np.flatnonzero(~alone)
        inner = spectral_tree(graph[placed][:, placed], n_clusters, max_leaf=max_leaf, seed=seed)
        group_I = np.full(len(order), -1, dtype=np.int64)
        group_I[placed] = inner.leaf_I + 1  # 0 = the root, where all items fit into one group
        room = max_leaf - np.bincount(group_I[placed], minlength=len(inner.parent_M) + 1)
        group_I = nearest_groups(source.vectors()[order], group_I, room, source.item_keys[order])
        return Tree(inner.parent_M, group_I - 1)

    def _number(self, tree: Tree, keys: Keys) -> tuple[Ints, int]:
        """Codes ``[N, L]``, -1 behind short identifiers, and the number of codes there are."""
        paths, shared = tree.paths(), self.settings.tokens == "shared"
        n_codes = self.settings.max_leaf if shared else len(tree.parent_M)
        nodes = np.where(paths >= 0, paths % max(n_codes, 1), -1)
        if self.settings.unique_leaf:
            last, size = n_codes + numbers_within(np.zeros(len(keys)), keys), n_codes + len(keys)
        elif shared:  # one running number over all groups: the up to max_leaf numbers of one group stay different
            last, size = np.argsort(np.lexsort((keys, tree.leaf_I))) % n_codes, n_codes
        else:
            within = numbers_within(tree.leaf_I, keys)
            last, size = n_codes + within, n_codes + int(within.max()) + 1
        return append_code(nodes, last), size
