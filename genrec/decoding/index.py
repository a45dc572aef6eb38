"""Which codes may follow a prefix of codes, and which items lie below it (numpy only, no torch).

Axes: N items, L levels, K codes of a level, E edges of a level, S nodes of a level, R item ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.decoding.csr import csr, edge_codes, packed_keys
from genrec.decoding.mapped import load_mapped
from genrec.errors import ArtifactError, DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes, check_catalog

KIND = "index"
SCHEMA = 1

Ints = npt.NDArray[Any]


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
    range of ranks. Items that share an identifier share a leaf, in the order of ``item_keys``.

    Identifiers of unequal length (``ragged``) end with a real, scored end edge whose code is the size of its
    level (``end_code``); a full one has it at level L, so the depth is L + 1. Below its end an identifier
    passes through the remaining levels along a single edge each (``pass_code``), which costs nothing.

    tokens: per level the code of every edge, unsigned ``[E]``. pointers: per level ``[S + 1]``, the first
    edge of every node. leaf_ranks: ``[leaves + 1]``, the first rank of every leaf. items: int32 ``[R]``, the
    item number of a rank (R < N when items were left out). order: int32 ``[R]``, the place of a rank's item
    in the order of ``item_keys``, which carries no information. catalog, codes: fingerprints.

    Raises DataError if the arrays are no such index (a node without children, for example).
    Stability: stable.
    """

    tokens: tuple[Ints, ...]
    pointers: tuple[Ints, ...]
    leaf_ranks: Ints
    items: npt.NDArray[np.int32]
    order: npt.NDArray[np.int32]
    level_sizes: tuple[int, ...]
    ragged: bool
    n_items: int
    catalog: str
    codes: str

    def __post_init__(self) -> None:
        n_nodes = 1
        for level, (tokens, pointers) in enumerate(zip(self.tokens, self.pointers, strict=True)):
            _check_pointers(f"level {level}", pointers, n_nodes, len(tokens))
            n_nodes = len(tokens)
        _check_pointers("leaves", self.leaf_ranks, n_nodes, len(self.items))

    @classmethod
    def build(
        cls,
        codes: ItemCodes,
        item_keys: npt.NDArray[np.uint64],
        *,
        keep: npt.NDArray[np.bool_] | None = None,
    ) -> CatalogIndex:
        """Index all items, or those where ``keep`` (bool ``[N]``, e.g. not retired) is true.

        item_keys: uint64 ``[N]``, a seeded hash of the item ids: the order of items that share an identifier.
        Under the normaliser "children", items left out here give their probability to their siblings; items that a
        request denies do not. Raises DataError for no items or arrays of another length.
        """
        n = codes.n_items
        if len(item_keys) != n or (keep is not None and keep.shape != (n,)):
            raise DataError(f"index: expected {n} item keys (and keep flags), got {len(item_keys)}")
        chosen = np.arange(n) if keep is None else np.flatnonzero(keep)
        if not len(chosen):
            raise DataError("index: there is no item to index", hint="check the catalog and its tombstones")
        symbols = edge_codes(codes)
        by_key = chosen[np.argsort(item_keys[chosen], kind="stable")]
        ranked = np.lexsort(packed_keys(symbols[by_key], codes.level_sizes))
        tokens, pointers, leaf_ranks = csr(symbols[by_key[ranked]])
        return cls(
            tokens=tokens,
            pointers=pointers,
            leaf_ranks=leaf_ranks,
            items=by_key[ranked].astype(np.int32),
            order=ranked.astype(np.int32),
            level_sizes=codes.level_sizes,
            ragged=codes.ragged,
            n_items=n,
            catalog=codes.catalog,
            codes=codes.fingerprint,
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

    @cached_property
    def branching(self) -> tuple[int, ...]:
        """Largest number of children of one node, per level."""
        return tuple(int(np.diff(p).max()) for p in self.pointers)

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

    def step(self, level: int, nodes: npt.ArrayLike, codes: npt.ArrayLike) -> npt.NDArray[np.int64]:
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

    def rank_range(self, depth: int, nodes: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], ...]:
        """First rank and end rank of the items below nodes of a depth, two int64 ``[M]``."""
        at = self._checked(depth, nodes)
        low, high = at, at + 1
        for pointers in (*self.pointers[depth:], self.leaf_ranks):
            low, high = pointers[low].astype(np.int64), pointers[high].astype(np.int64)
        return low, high

    def items_below(self, depth: int, node: int) -> npt.NDArray[np.int32]:
        """Item numbers below one node, int32, in rank order."""
        low, high = self.rank_range(depth, [node])
        return self.items[int(low[0]) : int(high[0])]

    @cached_property
    def rank_of(self) -> npt.NDArray[np.int32]:
        """Rank of every item number, int32 ``[N]``; -1 for items that are not indexed."""
        out = np.full(self.n_items, -1, dtype=np.int32)
        out[self.items] = np.arange(len(self.items), dtype=np.int32)
        return out

    @cached_property
    def path(self) -> npt.NDArray[np.int32]:
        """The node of every rank at depths 1..depth, int32 ``[R, depth]``; never falls along R."""
        out = np.empty((len(self.items), self.depth), dtype=np.int32)
        node = np.repeat(np.arange(self.n_identifiers), np.diff(self.leaf_ranks))
        for level in range(self.depth - 1, -1, -1):
            out[:, level] = node
            parent = np.repeat(np.arange(self.n_nodes(level)), np.diff(self.pointers[level]))
            node = parent[node]
        return out

    def path_codes(self, items: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Edge codes of items, int64 ``[..., depth]``, end and pass edges included.

        Raises DataError for an item that is not indexed.
        """
        wanted = np.asarray(items, dtype=np.int64)
        known = (wanted >= 0) & (wanted < self.n_items)
        ranks = np.where(known, self.rank_of[np.where(known, wanted, 0)], -1)
        if (ranks < 0).any():
            raise DataError(f"item {int(wanted[ranks < 0][0])} is not in the index")
        path = self.path[ranks]
        codes = [tokens[path[..., level]].astype(np.int64) for level, tokens in enumerate(self.tokens)]
        return np.stack(codes, axis=-1)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays (what a memory-mapped index reads from)."""
        return sum(a.nbytes for a in self._arrays().values())

    @property
    def bytes_per_item(self) -> float:
        """:attr:`nbytes` per indexed item; the rank → item and order tables are 8 of them."""
        return self.nbytes / len(self.items)

    def save(self, path: str | Path, *, parents: dict[str, str] | None = None, overwrite: bool = False) -> None:
        """Write an ``index`` artifact; arrays are uncompressed, so loading maps them from the file."""
        from genrec import artifacts

        meta = {
            "level_sizes": list(self.level_sizes),
            "ragged": self.ragged,
            "n_items": self.n_items,
            "codes": self.codes,
            "bytes_per_item": round(self.bytes_per_item, 3),
        }
        with artifacts.write(
            Path(path),
            kind=KIND,
            schema=SCHEMA,
            catalog=self.catalog,
            parents=parents,
            meta=meta,
            overwrite=overwrite,
        ) as draft:
            artifacts.save_arrays(draft.dir / "index.safetensors", self._arrays())

    @classmethod
    def load(cls, path: str | Path, *, codes: ItemCodes | None = None) -> CatalogIndex:
        """Read an ``index`` artifact with its arrays memory-mapped.

        codes: what the index must have been built from; FingerprintMismatch is raised when it was not.
        """
        from genrec import artifacts

        manifest = artifacts.read(Path(path), kind=KIND, schema=SCHEMA)
        meta = manifest.meta
        if codes is not None:
            check_catalog("index", manifest.catalog or "", codes.catalog)
            if meta["codes"] != codes.fingerprint:
                raise FingerprintMismatch(
                    f"index was built from codes {meta['codes'][:8]}, got codes {codes.fingerprint[:8]}",
                    hint="build the index again with CatalogIndex.build",
                )
        arrays = load_mapped(manifest.path / "index.safetensors")
        depth = len(meta["level_sizes"]) + int(meta["ragged"])
        try:
            return cls(
                tokens=tuple(arrays[f"tokens.{level}"] for level in range(depth)),
                pointers=tuple(arrays[f"pointers.{level}"] for level in range(depth)),
                leaf_ranks=arrays["leaf_ranks"],
                items=arrays["items"],
                order=arrays["order"],
                level_sizes=tuple(meta["level_sizes"]),
                ragged=bool(meta["ragged"]),
                n_items=int(meta["n_items"]),
                catalog=manifest.catalog or "",
                codes=meta["codes"],
            )
        except KeyError as error:
            raise ArtifactError(f"{path}: the index has no array {error}") from error

    def _arrays(self) -> dict[str, Ints]:
        levels: Iterator[tuple[str, Ints]] = (
            (f"{name}.{level}", array)
            for name, arrays in (("tokens", self.tokens), ("pointers", self.pointers))
            for level, array in enumerate(arrays)
        )
        return {**dict(levels), "leaf_ranks": self.leaf_ranks, "items": self.items, "order": self.order}

    def _checked(self, depth: int, nodes: npt.ArrayLike) -> npt.NDArray[np.int64]:
        at = np.asarray(nodes, dtype=np.int64)
        if at.size and (at.min() < 0 or at.max() >= self.n_nodes(depth)):
            raise DataError(
                f"nodes of depth {depth}: expected 0..{self.n_nodes(depth) - 1}, got {at.min()} .. {at.max()}"
            )
        return at


def _check_pointers(what: str, pointers: Ints, n_nodes: int, n_edges: int) -> None:
    fits = len(pointers) == n_nodes + 1 and pointers[0] == 0 and pointers[-1] == n_edges
    if not fits or not (pointers[1:] > pointers[:-1]).all():
        raise DataError(f"index is corrupt ({what}): some node has no child, or the sizes disagree")
