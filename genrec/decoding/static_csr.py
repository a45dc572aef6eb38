"""The index in the arrays of STATIC (Su et al. 2026, 2602.22647), there and back (numpy only).

Axes: L levels, V tokens of the one vocabulary of all levels, S states, E edges, d levels in dense tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.decoding.index import CatalogIndex
from genrec.errors import ConfigError, DataError

Ints = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class StaticCsr:
    """What STATIC's ``build_static_index`` returns, in its order.

    The state behind a first token ``t`` is ``t + 1``; the states behind 2 … L - 1 tokens follow from ``V + 1`` on, by
    depth, in lexicographic order; the state behind all L is 0.

    packed_csr: int32 ``[E + V, 2]``, token and next state of every edge but those of the root, by state; then V rows
    of padding. indptr: int32 ``[S + 2]``, the first edge of every state, then the end of the padding.
    layer_max_branches: largest number of continuations at each level. start_mask: bool ``[V]``, the first tokens.
    dense_mask: bool ``[V] * d``, whether d tokens begin an identifier; dense_states: int32, the state behind them.

    STATIC keeps no map from identifiers to items, and no scores. Stability: experimental.
    """

    packed_csr: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int32]
    layer_max_branches: tuple[int, ...]
    start_mask: npt.NDArray[np.bool_]
    dense_mask: npt.NDArray[np.bool_]
    dense_states: npt.NDArray[np.int32]


def to_static(index: CatalogIndex, vocab_size: int, *, dense_layers: int = 2) -> StaticCsr:
    """The arrays that STATIC would build from the identifiers of the index; tokens are the codes.

    Raises ConfigError for identifiers of unequal length, a vocabulary smaller than a level, and a number of dense
    levels that is not 1 .. L - 1. Stability: experimental.
    """
    depth = index.depth
    if index.ragged:
        raise ConfigError("STATIC has identifiers of equal length only, the index is ragged")
    if vocab_size < max(index.level_sizes):
        raise ConfigError(f"vocab_size: expected {max(index.level_sizes)} or more, got {vocab_size}")
    if not 1 <= dense_layers < depth:
        raise ConfigError(f"dense_layers: expected 1 .. {depth - 1}, got {dense_layers}")
    states = [np.zeros(1, np.int32), index.tokens[0].astype(np.int32) + 1]
    n_states = vocab_size + 1
    for level in range(2, depth):
        states.append(np.arange(n_states, n_states + index.n_nodes(level), dtype=np.int32))
        n_states += index.n_nodes(level)
    states.append(np.zeros(index.n_nodes(depth), np.int32))
    counts = np.zeros(n_states + 1, dtype=np.int64)
    for level in range(1, depth):
        counts[states[level] + 1] = np.diff(index.pointers[level])
    ends = np.cumsum(counts)
    edges = [np.column_stack([index.tokens[level].astype(np.int32), states[level + 1]]) for level in range(1, depth)]
    padding = np.tile(np.array([[vocab_size, 0]], dtype=np.int32), (vocab_size, 1))
    start = np.zeros(vocab_size, dtype=np.bool_)
    start[index.tokens[0]] = True
    mask = np.zeros((vocab_size,) * dense_layers, dtype=np.bool_)
    dense = np.zeros(mask.shape, dtype=np.int32)
    prefixes = tuple(_prefixes(index, dense_layers))
    mask[prefixes], dense[prefixes] = True, states[dense_layers]
    return StaticCsr(
        packed_csr=np.concatenate([*edges, padding]),
        indptr=np.append(ends, ends[-1] + vocab_size).astype(np.int32),
        layer_max_branches=index.branching,
        start_mask=start,
        dense_mask=mask,
        dense_states=dense,
    )


def from_static(
    found: StaticCsr,
    *,
    level_sizes: tuple[int, ...] | None = None,
    items: npt.ArrayLike | None = None,
    catalog: str = "",
) -> CatalogIndex:
    """The index of the identifiers in STATIC's arrays (of which the dense tables are not read).

    level_sizes: None = V at every level. items: int ``[identifiers]``, the item number of each identifier in
    lexicographic order; None = its place there. Raises DataError for arrays that are no such index.
    Stability: experimental.
    """
    depth, vocab_size = len(found.layer_max_branches), len(found.start_mask)
    tokens: list[Ints] = [np.flatnonzero(found.start_mask)]
    pointers: list[Ints] = [np.array([0, len(tokens[0])])]
    state = tokens[0] + 1
    for level in range(1, depth):
        first, last = found.indptr[state].astype(np.int64), found.indptr[state + 1].astype(np.int64)
        pointers.append(np.concatenate([[0], np.cumsum(last - first)]))
        edge = np.arange(pointers[-1][-1]) + np.repeat(first - pointers[-1][:-1], last - first)
        token, state = found.packed_csr[edge].astype(np.int64).T
        inside = np.ones(len(token), dtype=np.bool_)
        inside[pointers[-1][:-1][last > first]] = False
        if (np.diff(token, prepend=-1) <= 0)[inside].any() or (state == 0).any() != (level == depth - 1):
            raise DataError(
                f"level {level}: expected ascending tokens and {'no' if level < depth - 1 else 'only'} ends"
            )
        tokens.append(token)
    rows = _rows(tokens, pointers)
    sizes = (vocab_size,) * depth if level_sizes is None else level_sizes
    return CatalogIndex.from_sorted(rows.astype(np.uint32), sizes, items=items, catalog=catalog)


def _prefixes(index: CatalogIndex, depth: int) -> list[Ints]:
    """The codes of every node of a depth, one ``[nodes]`` per level."""
    return list(_rows(list(index.tokens[:depth]), list(index.pointers[:depth])).T)


def _rows(tokens: list[Ints], pointers: list[Ints]) -> Ints:
    """The codes of every node of the last depth, int64 ``[nodes, depth]``."""
    out = np.empty((len(tokens[-1]), len(tokens)), dtype=np.int64)
    node = np.arange(len(out))
    for level in range(len(tokens) - 1, -1, -1):
        out[:, level] = tokens[level][node]
        node = np.searchsorted(pointers[level], node.astype(pointers[level].dtype), side="right") - 1
    return out
