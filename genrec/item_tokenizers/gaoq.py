"""Globally aligned orthogonal quantization: nested clusters whose codes mean the same below every parent.

Axes: N items, L levels, K codes of a level, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np

from genrec.errors import ConfigError, DataError, NotFitted
from genrec.item_tokenizers.base import (
    Scaling,
    TokenizerSource,
    check_at_least,
)
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.collisions import suffix
from genrec.item_tokenizers.gaoq_tree import Branches, Growth, Tree, grow
from genrec.item_tokenizers.quantizers.kmeans import checked_rows
from genrec.item_tokenizers.scaled import Arrays, ScaledVectors

TooMany = Literal["refuse", "suffix", "shared"]
TOO_MANY: tuple[TooMany, ...] = ("refuse", "suffix", "shared")
_ITEMS_PER_PREFIX = 15


@dataclass(frozen=True)
class GaoqSettings:
    """Settings of :class:`Gaoq`; ConfigError for values out of range (stable).

    n_levels: L. level_size: children of a node, one number per level (None = :func:`proposed_sizes` for the catalog).
    n_anchors: codes of each level but the first, at least as many as children (None = as many). aligned: number the
    children by the anchors; False is the control: numbers without meaning. collisions: what to do with more items
    than identifiers: refuse | suffix (one more level) | shared; with enough of them none is needed. suffix_limit:
    largest group the suffix level may hold. max_iterations: of the balanced k-means of every node.
    """

    kind: Literal["gaoq"] = "gaoq"
    n_levels: int = 3
    level_size: tuple[int, ...] | None = None
    n_anchors: tuple[int, ...] | None = None
    aligned: bool = True
    collisions: TooMany = "refuse"
    suffix_limit: int = 256
    max_iterations: int = 20

    def __post_init__(self) -> None:
        check_at_least(self, dict.fromkeys(("n_levels", "suffix_limit", "max_iterations"), 1))
        for name, length in (("level_size", self.n_levels), ("n_anchors", self.n_levels - 1)):
            found = getattr(self, name)
            if found is not None and (len(found) != length or min(found, default=2) < 2):
                raise ConfigError(f"{name}: expected {length} numbers of 2 or more, got {found}")
        if self.collisions not in TOO_MANY:
            raise ConfigError(f"collisions: expected one of {', '.join(TOO_MANY)}, got {self.collisions!r}")
        if self.level_size is not None:
            self.growth(0)

    def growth(self, n_items: int) -> Growth:
        """Sizes and anchors for a catalog of ``n_items``; ConfigError where a level has fewer anchors than children."""
        sizes = self.level_size or proposed_sizes(n_items, self.n_levels)
        anchors = self.n_anchors if self.n_anchors is not None else sizes[1:]
        short = [at for at, (size, n) in enumerate(zip(sizes[1:], anchors, strict=True)) if n < size]
        if short:
            raise ConfigError(
                f"n_anchors: expected at least {sizes[short[0] + 1]} at position {short[0]}, got {anchors[short[0]]}",
                hint="every child of a node needs an anchor of its own: level_size is the least",
            )
        return Growth(tuple(sizes), tuple(anchors), self.max_iterations, self.aligned)


def proposed_sizes(n_items: int, n_levels: int = 3) -> tuple[int, ...]:
    """Children per level for a catalog: L numbers of 2 or more that give every item its own identifier (stable).

    ::

        b_1 = ... = b_{L-1} = (N / 15) ** (1 / (L - 1)), rounded;  b_L = ceil(N / (b_1 ... b_{L-1}))

    ReSID (2026, 2602.02338) tunes b_1 and b_2 and finds b_1 b_2 best at N / 20 to N / 10; its table has
    b_3 = ceil(N / (b_1 b_2)) for 8 of 10 catalogs.

    >>> proposed_sizes(12_101)
    (28, 28, 16)
    """
    if n_levels == 1:
        return (max(2, n_items),)
    first = max(2, round((n_items / _ITEMS_PER_PREFIX) ** (1 / (n_levels - 1))))
    return (first,) * (n_levels - 1) + (max(2, -(-n_items // first ** (n_levels - 1))),)


class Gaoq(ScaledVectors):
    """GAOQ, the quantizer of ReSID; recipe: ``tokenizers/gaoq.yaml`` (stable).

    ::

        first level:      balanced k-means of all items; code = number of the cluster
        below, in every node with centroid m:
            balanced k-means of its items, children with centroids c_j
            code of child j = the anchor that c_j - m points to       (one assignment for all children of the node)

    The anchors are nearly orthogonal directions, drawn once per level and shared by all nodes, so a code means about
    the same below every prefix and the next code is easier to predict. Alignment names children and moves no item:
    clusters, collisions and errors are those of ``aligned: false``.

    ReSID (2026, 2602.02338), section on GAOQ; ``tokenizers/gaoq-resid.yaml`` has sizes in the paper's manner. Open
    in the paper, ours: the anchors (:func:`genrec.item_tokenizers.quantizers.anchors.orthogonal_anchors`), the sizes
    where none are given, and new items: ``encode`` goes to the nearest centroid level by level and tells the codes
    on its way. Vectors that the paper would feed come from :mod:`genrec.embeddings.famae`; any others work.

    Identifiers are unique by construction when the sizes multiply to N or more: with siblings of equal size a node
    before the last level has at most ceil(N / (b_1 ... b_{L-1})) items, which is at most b_L. ``encode`` shares the
    identifier of a similar item instead, for a collision policy or an append to resolve; and for a known item that
    balance keeps from its nearest centroid it may tell another code than ``fit`` (their share is in the report).

    The codebooks of its codes are not the anchors, which are all equally far apart, but what a code stands for: the
    mean step from parent to child over its items, so that their sum over levels approximates the item.

    It keeps the centroids of all nodes, and the last level has a node for about every item: the memory of one more
    table of item vectors.
    """

    Settings: ClassVar[type[Any]] = GaoqSettings
    settings: GaoqSettings

    def __init__(self, settings: GaoqSettings | None = None) -> None:
        super().__init__(settings)
        self._tree: Tree | None = None

    @property
    def anchors(self) -> tuple[np.ndarray[Any, np.dtype[np.float32]], ...]:
        """The directions of the codes of each level but the first, float32 ``[K, D]``; none before ``fit``."""
        return () if self._tree is None else self._tree.anchors

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """Grow the tree and name its nodes; every item's identifier.

        Raises DataError for more items than identifiers unless ``collisions`` allows them.
        """
        given = checked_rows(source.vectors())
        growth = self.settings.growth(len(given))
        self._check_room(len(given), growth.sizes)
        self._catalog, self._scaling = source.catalog, Scaling.fit(given, standardize=False)
        x_ND = self._scaling.apply(given)
        grown = grow(x_ND, growth, keys=source.item_keys, seed=seed)
        self._tree = grown.tree
        codes_NL = grown.tree.codes(grown.nodes_NL)
        books = grown.tree.mean_steps(growth.level_sizes, grown.nodes_NL)
        codes = ItemCodes(codes_NL, growth.level_sizes, source.catalog, codebooks=books)
        near_NL = grown.tree.nearest(x_ND)
        before = float(np.einsum("nd,nd->", x_ND, x_ND, dtype=np.float64)) / len(x_ND)
        self.report = {
            "children": list(growth.sizes),
            "mean_square_left": [before, *grown.tree.squared_left(x_ND, grown.nodes_NL)],
            "moved_by_balance": float((grown.tree.codes(near_NL) != codes_NL).any(axis=1).mean()),
            "bytes_kept": sum(array.nbytes for array in self._arrays().values()),
            "raw": codes.report(),
        }
        if self.settings.collisions == "suffix" and prod(growth.sizes) < len(given):
            resolution = suffix(codes, source.item_keys, limit=self.settings.suffix_limit)
            self.report["collisions"] = resolution.report
            return replace(resolution.codes, codebooks=books)
        return codes

    def encode(self, source: TokenizerSource) -> ItemCodes:
        """Raw codes ``[N, L]`` of any items by their vectors: those of the nearest centroid, level by level."""
        if self._tree is None or self._scaling is None:
            raise NotFitted("this item tokenizer has not been fitted", hint="call fit, or load a saved one")
        x_ND = self._scaling.apply(checked_rows(source.vectors()))
        codes_NL = self._tree.codes(self._tree.nearest(x_ND))
        return ItemCodes(codes_NL, tuple(self.report["raw"]["level_sizes"]), source.catalog)

    def _arrays(self) -> Arrays:
        assert self._tree is not None
        arrays: Arrays = {}
        for at, level in enumerate(self._tree.levels):
            arrays[f"starts.{at}"] = level.starts_P
            arrays[f"centroids.{at}"], arrays[f"codes.{at}"] = level.centroids_MD, level.codes_M
        return arrays | {f"anchors.{at}": found for at, found in enumerate(self._tree.anchors, start=1)}

    def _restore(self, arrays: Arrays) -> None:
        at = range(self.settings.n_levels)
        levels = tuple(Branches(arrays[f"starts.{n}"], arrays[f"centroids.{n}"], arrays[f"codes.{n}"]) for n in at)
        self._tree = Tree(levels, tuple(arrays[f"anchors.{n}"] for n in at if f"anchors.{n}" in arrays))

    def _check_room(self, n_items: int, sizes: tuple[int, ...]) -> None:
        if self.settings.collisions == "refuse" and prod(sizes) < n_items:
            enough = -(-n_items // prod(sizes[:-1]))
            raise DataError(
                f"{n_items} items do not fit into {prod(sizes)} identifiers (level_size {list(sizes)})",
                hint=f"make the last level_size {enough} or more, or set collisions to suffix or shared",
            )
