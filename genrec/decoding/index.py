"""Which codes may follow a prefix of codes, and which items lie below it (numpy only, no torch).

Axes: N items, L levels, K codes of a level, E edges of a level, S nodes of a level, R item ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.decoding.csr import (
    csr,
    in_leaf_order,
    merged_items,
    n_edge_codes,
    parts,
    row_blocks,
    sorted_blocks,
    sorted_items,
    step_range,
)
from genrec.decoding.index_files import load_fields, save_index
from genrec.decoding.namespaces import Namespace, check_namespaces
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes

Ints = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Children:
    """Allowed continuations of some nodes: node ``i`` owns the entries ``offsets[i]:offsets[i + 1]``.

    offsets: int64 ``[M + 1]``. codes: int64, ascending for each node. nodes: int64, the child nodes.
    """

    offsets: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int64]
    nodes: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CatalogIndex:
    """The prefixes of all identifiers as one CSR per level, built from the sorted code rows.

    Prefixes of ``l`` codes are the *nodes* of depth ``l``, numbered 0.. in lexicographic order (depth 0: the
    root). The edges of level ``l`` go from depth ``l`` to ``l + 1``; edge number = child node, so no child
    pointers exist. Items in lexicographic order of their codes have *ranks*; every node owns a contiguous
    range of ranks. Items that share an identifier share a leaf, in the order of
    :func:`genrec.seeding.number_hash`, which carries no information.

    Identifiers of unequal length (``ragged``) end with a real, scored end edge whose code is the size of its
    level (``end_code``); a full one has it at level L, so the depth is L + 1. Below its end an identifier
    passes through the remaining levels along a single edge each (``pass_code``), which costs nothing.

    tokens: per level the code of every edge, unsigned ``[E]``. pointers: per level ``[S + 1]``, the first
    edge of every node. shared: ``[C]``, the leaves with several items, ascending; extra: ``[C + 1]``, how many items
    beyond the first all leaves before each of them have. items: int32 ``[R]``, the item number of a rank (R < N when
    items were left out). catalog, codes: fingerprints. namespaces: domains, see :mod:`genrec.decoding.namespaces`.
    branching: largest number of children of one node, per level.

    Raises DataError if the arrays are no such index (a node without children, for example).
    Stability: stable.
    """

    tokens: tuple[Ints, ...]
    pointers: tuple[Ints, ...]
    shared: Ints
    extra: Ints
    items: npt.NDArray[np.int32]
    level_sizes: tuple[int, ...]
    ragged: bool
    n_items: int
    catalog: str
    codes: str
    namespaces: tuple[Namespace, ...] = ()
    branching: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        n_nodes, branching = 1, []
        for level, (tokens, pointers) in enumerate(zip(self.tokens, self.pointers, strict=True)):
            branching.append(_check_pointers(f"level {level}", pointers, n_nodes, len(tokens)))
            n_nodes = len(tokens)
        if len(self.shared):
            _check_pointers("shared leaves", self.extra, len(self.shared), len(self.items) - n_nodes)
            apart = len(self.shared) == 1 or step_range(self.shared)[0] > 0
        else:
            apart = len(self.extra) == 1 and n_nodes == len(self.items)
        if not apart or not all(0 <= leaf < n_nodes for leaf in (*self.shared[:1], *self.shared[-1:])):
            raise DataError("index is corrupt (shared leaves): they disagree with the number of items")
        object.__setattr__(self, "branching", tuple(branching))
        check_namespaces(self.namespaces, self.n_symbols(0))

    @classmethod
    def build(
        cls,
        codes: ItemCodes,
        *,
        keep: npt.NDArray[np.bool_] | None = None,
        namespaces: tuple[Namespace, ...] = (),
    ) -> CatalogIndex:
        """Index all items, or those where ``keep`` (bool ``[N]``, e.g. not retired) is true.

        Under the normaliser "children", items left out here give their probability to their siblings; items that a
        request denies do not. Raises DataError for no items or flags of another length.
        """
        return cls._of_order(codes, sorted_items(codes, np.flatnonzero(_checked_keep(codes, keep))), namespaces)

    def grown(self, codes: ItemCodes, *, keep: npt.NDArray[np.bool_] | None = None) -> CatalogIndex:
        """What :meth:`build` makes of ``codes``, from the order of this index: only items that it lacks are sorted.

        codes: those of this index and any behind them. Raises DataError where the order of this index is not theirs.
        """
        missing = _checked_keep(codes, keep).copy()
        if self.n_items > codes.n_items:
            raise DataError(f"index: it has {self.n_items} items, the codes only {codes.n_items}")
        ranked = self.items[missing[self.items]]
        missing[self.items] = False
        new = sorted_items(codes, np.flatnonzero(missing))
        return self._of_order(codes, merged_items(codes, ranked, new), self.namespaces)

    @classmethod
    def _of_order(cls, codes: ItemCodes, ranked: Ints, namespaces: tuple[Namespace, ...]) -> CatalogIndex:
        """The index of items in lexicographic order of their edge codes, which is checked."""
        found = csr(row_blocks(codes, ranked), n_edge_codes(codes.level_sizes, codes.ragged), len(ranked))
        return cls(
            **vars(found),
            items=in_leaf_order(ranked, found),
            level_sizes=codes.level_sizes,
            ragged=codes.ragged,
            n_items=codes.n_items,
            catalog=codes.catalog,
            codes=codes.fingerprint,
            namespaces=namespaces,
        )

    @classmethod
    def from_sorted(
        cls,
        rows: Ints,
        level_sizes: tuple[int, ...],
        *,
        lengths: Ints | None = None,
        items: npt.ArrayLike | None = None,
        n_items: int | None = None,
        catalog: str = "",
        codes: str = "",
    ) -> CatalogIndex:
        """Index rows that are sorted already, for catalogs that are large: nothing is sorted or copied as a whole.

        rows: unsigned ``[R, L]`` codes in lexicographic order, equal rows allowed; best a ``np.memmap``, which is read
        once, in blocks. lengths: int ``[R]``, 1..L, for identifiers of unequal length; codes behind the length are 0,
        and a short identifier stands behind the longer ones that begin with it, as if the size of its level followed.
        items: int ``[R]``, the item number of each row; None = row r is item r. n_items: N of the catalog, None = one
        more than the largest item number. Domains are added with ``dataclasses.replace(index, namespaces=...)``.

        Raises DataError, naming the row, for rows out of order, lengths and codes out of range, and item numbers that
        repeat or do not exist.
        """
        if rows.ndim != 2 or rows.shape[1] != len(level_sizes) or rows.dtype.kind != "u" or not len(rows):
            raise DataError(f"rows: expected unsigned [R, {len(level_sizes)}], got {rows.dtype} {rows.shape}")
        if lengths is not None and (lengths.shape != (len(rows),) or lengths.dtype.kind not in "iu"):
            raise DataError(f"lengths: expected integers [{len(rows)}], got {lengths.dtype} {lengths.shape}")
        sizes = tuple(int(size) for size in level_sizes)
        if lengths is not None and all((lengths[part] == len(sizes)).all() for part in parts(len(rows))):
            lengths = None
        ragged = lengths is not None
        found = csr(sorted_blocks(rows, lengths, sizes), n_edge_codes(sizes, ragged), len(rows))
        of_rank = np.arange(len(rows), dtype=np.int32) if items is None else np.asarray(items)
        n = n_items if n_items is not None else int(of_rank.max()) + 1
        if items is not None or n < len(rows):
            _check_items(of_rank, len(rows), n)
        return cls(
            **vars(found),
            items=in_leaf_order(of_rank.astype(np.int32, copy=False), found),
            level_sizes=sizes,
            ragged=ragged,
            n_items=n,
            catalog=catalog,
            codes=codes,
        )

    @property
    def depth(self) -> int:
        """Number of search steps: L, or L + 1 when ragged."""
        return len(self.tokens)

    def end_code(self, level: int) -> int:
        """Code of the end edge of a level (ragged only): the level's size, 0 at level L."""
        return self.level_sizes[level] if level < len(self.level_sizes) else 0

    def pass_code(self, level: int) -> int:
        """Code of the edge below an identifier that has ended (ragged only)."""
        return self.end_code(level) + 1

    def n_symbols(self, level: int) -> int:
        """Number of scored symbols of a level: its codes, and the end when ragged."""
        return self.end_code(level) + int(self.ragged)

    def n_nodes(self, depth: int) -> int:
        """Number of distinct prefixes at a depth, 1 at depth 0."""
        return 1 if depth == 0 else len(self.tokens[depth - 1])

    @property
    def n_identifiers(self) -> int:
        """Number of distinct identifiers."""
        return self.n_nodes(self.depth)

    def children(self, level: int, nodes: npt.ArrayLike) -> Children:
        """The allowed continuations of nodes at depth ``level``; each node has at least one.

        nodes: int ``[M]``. Raises DataError for a node that does not exist (-1 included): never an empty set.
        """
        at = self._checked(level, nodes)
        pointers = self.pointers[level]
        start = pointers[at].astype(np.int64)
        counts = pointers[at + 1].astype(np.int64) - start
        offsets = np.concatenate([[0], np.cumsum(counts)])
        child = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], counts)
        return Children(offsets, self.tokens[level][child].astype(np.int64), child)

    def step(self, level: int, nodes: npt.ArrayLike, codes: npt.ArrayLike) -> Int64:
        """The node reached from each node at depth ``level`` by a code, -1 if there is none.

        nodes, codes: int ``[M]``; node -1 stays -1. Bisection, all rows at once.
        """
        at = np.asarray(nodes, dtype=np.int64)
        code = np.asarray(codes, dtype=np.int64)
        dead = at < 0
        self._checked(level, at[~dead])
        at = np.where(dead, 0, at)
        tokens, pointers = self.tokens[level], self.pointers[level]
        low = pointers[at].astype(np.int64)
        end = pointers[at + 1].astype(np.int64)
        high = end
        for _ in range(int(self.branching[level]).bit_length()):
            middle = np.minimum((low + high) >> 1, len(tokens) - 1)
            right = (tokens[middle] < code) & (low < high)
            low, high = np.where(right, middle + 1, low), np.where(right | (low >= high), high, middle)
        found = (low < end) & (tokens[np.minimum(low, len(tokens) - 1)] == code) & ~dead
        return np.where(found, low, -1)

    def rank_range(self, depth: int, nodes: npt.ArrayLike) -> tuple[Int64, ...]:
        """First rank and end rank of the items below nodes of a depth, two int64 ``[M]``."""
        at = self._checked(depth, nodes)
        low, high = at, at + 1
        for pointers in self.pointers[depth:]:
            low, high = pointers[low].astype(np.int64), pointers[high].astype(np.int64)
        return self.first_rank(low), self.first_rank(high)

    def first_rank(self, leaves: Int64) -> Int64:
        """The first rank of each leaf (of one behind the last: R), int64 of the shape of ``leaves``."""
        before = np.searchsorted(self.shared, leaves.astype(self.shared.dtype))
        return np.asarray(leaves + self.extra[before], dtype=np.int64)

    @property
    def leaf_ranks(self) -> Ints:
        """The first rank of every leaf, and R behind them, ``[leaves + 1]``; made anew at every call."""
        steps = np.diff(self.shared, prepend=-1, append=self.n_identifiers)
        ranks = np.arange(self.n_identifiers + 1, dtype=self.extra.dtype)
        ranks += np.repeat(self.extra, steps)
        return ranks

    def nodes_of(self, ranks: npt.ArrayLike) -> Int64:
        """The node of each rank at depths 1..depth, int64 ``[..., depth]``: upwards from its leaf, by bisection."""
        rank = np.asarray(ranks, dtype=np.int64)
        begun, leaf_of_begun = self._begun
        at = np.searchsorted(begun, rank.astype(begun.dtype), side="right")
        # a rank less the extra items up to it is its leaf; inside a shared leaf they are not all before it
        node = np.maximum(rank - self.extra[at], leaf_of_begun[at])
        out = np.empty((*rank.shape, self.depth), dtype=np.int64)
        for level in range(self.depth - 1, -1, -1):
            out[..., level] = node
            pointers = self.pointers[level]
            node = np.searchsorted(pointers, node.astype(pointers.dtype), side="right") - 1
        return out

    @cached_property
    def _begun(self) -> tuple[Ints, Ints]:
        """First ranks of the shared leaves, ``[C]``, and these leaves behind a -1, ``[C + 1]``."""
        return self.shared + self.extra[:-1], np.concatenate([[-1], self.shared])

    def namespace_ranks(self, name: str) -> tuple[int, int]:
        """First and end rank of a domain, equal where none of its items is indexed; ConfigError for an unknown name."""
        found = {each.name: each for each in self.namespaces}.get(name)
        if found is None:
            raise ConfigError(f"the index has no namespace {name!r}: {[each.name for each in self.namespaces]}")
        # the node behind the last one stands for the end of all ranks
        nodes = np.searchsorted(self.tokens[0], [found.first_code, found.first_code + found.n_codes])
        for pointers in self.pointers[1:]:
            nodes = pointers[nodes]
        low, high = self.first_rank(nodes.astype(np.int64)).tolist()
        return low, high

    def items_below(self, depth: int, node: int) -> npt.NDArray[np.int32]:
        """Item numbers below one node, int32, in rank order."""
        low, high = self.rank_range(depth, [node])
        return self.items[int(low[0]) : int(high[0])]

    @cached_property
    def rank_of(self) -> npt.NDArray[np.int32]:
        """Rank of every item number, int32 ``[N]``; -1 for items that are not indexed."""
        out = np.full(self.n_items, -1, dtype=np.int32)
        for part in parts(len(self.items)):
            out[self.items[part]] = np.arange(part.start, part.stop, dtype=np.int32)
        return out

    def path_codes(self, items: npt.ArrayLike) -> Int64:
        """Edge codes of items, int64 ``[..., depth]``, end and pass edges included.

        Raises DataError for an item that is not indexed.
        """
        wanted = np.asarray(items, dtype=np.int64)
        known = (wanted >= 0) & (wanted < self.n_items)
        ranks = np.where(known, self.rank_of[np.where(known, wanted, 0)], -1)
        if (ranks < 0).any():
            raise DataError(f"item {int(wanted[ranks < 0][0])} is not in the index")
        path = self.nodes_of(ranks)
        codes = [tokens[path[..., level]].astype(np.int64) for level, tokens in enumerate(self.tokens)]
        return np.stack(codes, axis=-1)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays (what a memory-mapped index reads from)."""
        return sum(a.nbytes for a in self.arrays().values())

    @property
    def bytes_per_item(self) -> float:
        """:attr:`nbytes` per indexed item; the map from ranks to items is 4 of them."""
        return self.nbytes / len(self.items)

    def save(self, path: str | Path, *, parents: dict[str, str] | None = None, overwrite: bool = False) -> None:
        """Write an ``index`` artifact; arrays are uncompressed, so loading maps them from the file."""
        save_index(Path(path), self, parents=parents, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path, *, codes: ItemCodes | None = None) -> CatalogIndex:
        """Read an ``index`` artifact with its arrays memory-mapped.

        codes: what the index must have been built from; FingerprintMismatch is raised when it was not.
        """
        return cls(**load_fields(Path(path), codes))

    def arrays(self) -> dict[str, Ints]:
        """The stored arrays by name (internal)."""
        levels: Iterator[tuple[str, Ints]] = (
            (f"{name}.{level}", array)
            for name, arrays in (("tokens", self.tokens), ("pointers", self.pointers))
            for level, array in enumerate(arrays)
        )
        return {**dict(levels), "shared": self.shared, "extra": self.extra, "items": self.items}

    def _checked(self, depth: int, nodes: npt.ArrayLike) -> Int64:
        at = np.asarray(nodes, dtype=np.int64)
        if at.size and (at.min() < 0 or at.max() >= self.n_nodes(depth)):
            raise DataError(
                f"nodes of depth {depth}: expected 0..{self.n_nodes(depth) - 1}, got {at.min()} .. {at.max()}"
            )
        return at


def _checked_keep(codes: ItemCodes, keep: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    n = codes.n_items
    chosen = np.ones(n, dtype=np.bool_) if keep is None else keep
    if chosen.shape != (n,):
        raise DataError(f"index: expected {n} keep flags, got shape {chosen.shape}")
    if not chosen.any():
        raise DataError("index: there is no item to index", hint="check the catalog and its tombstones")
    return chosen


def _check_pointers(what: str, pointers: Ints, n_nodes: int, n_edges: int) -> int:
    """The largest number of edges of a node; DataError unless every node has one."""
    fits = len(pointers) == n_nodes + 1 and pointers[0] == 0 and pointers[-1] == n_edges
    fewest, most = step_range(pointers) if fits else (0, 0)
    if fewest < 1:
        raise DataError(f"index is corrupt ({what}): some node has no child, or the sizes disagree")
    return most


def _check_items(items: Ints, n_rows: int, n_items: int) -> None:
    if items.shape != (n_rows,) or items.dtype.kind not in "iu":
        raise DataError(f"items: expected one item number for each of {n_rows} rows, got {items.dtype} {items.shape}")
    if not 0 <= int(items.min()) <= int(items.max()) < n_items:
        raise DataError(f"items: expected numbers 0..{n_items - 1}, got {items.min()} .. {items.max()}")
    seen = np.zeros(n_items, dtype=np.bool_)
    seen[items] = True
    if (n_seen := np.count_nonzero(seen)) < n_rows:
        raise DataError(f"items: {n_rows - n_seen} of {n_rows} rows repeat an item number")
