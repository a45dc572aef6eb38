"""Building the index: sorted code rows to one CSR per level (numpy only, no torch). Internal.

Axes: N items, L levels, S nodes of a level.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.item_tokenizers.codes import ItemCodes, narrowest

Ints = npt.NDArray[Any]


def edge_codes(codes: ItemCodes) -> npt.NDArray[np.int32]:
    """Edge codes int32 ``[N, depth]``: the codes, then the end edge, then pass edges."""
    if codes.lengths is None:
        return codes.as_int()
    ends = np.array([*codes.level_sizes, 0], dtype=np.int32)
    wide = np.concatenate([codes.as_int(), np.full((len(codes), 1), -1, dtype=np.int32)], axis=1)
    level = np.arange(wide.shape[1])
    lengths = codes.lengths[:, None]
    return np.where(level < lengths, wide, np.where(level == lengths, ends, ends + 1)).astype(np.int32)


def packed_keys(symbols_NL: npt.NDArray[np.int32], level_sizes: tuple[int, ...]) -> list[npt.NDArray[np.uint64]]:
    """Keys for lexsort (last = most significant), several levels to one 64-bit word: fewer sorts."""
    widths = [int(size + 1).bit_length() for size in (*level_sizes, 1)][: symbols_NL.shape[1]]
    words: list[npt.NDArray[np.uint64]] = []
    used = 64
    for level, width in enumerate(widths):
        column = symbols_NL[:, level].astype(np.uint64)
        if used + width > 64:
            words.append(column)
            used = width
        else:
            words[-1] = (words[-1] << np.uint64(width)) | column
            used += width
    return words[::-1]


def csr(sorted_NL: npt.NDArray[np.int32]) -> tuple[tuple[Ints, ...], tuple[Ints, ...], Ints]:
    """Tokens and pointers per level, and the first rank of every leaf, of lexicographically sorted rows.

    A row opens a new node of depth ``l + 1`` exactly where its first ``l + 1`` codes differ from the row before;
    the first children of the nodes of a depth are found by looking their first rows up in the next depth's.
    """
    n, depth = sorted_NL.shape
    fresh = np.zeros(n, dtype=bool)
    fresh[0] = True
    firsts = [np.zeros(1, dtype=np.int64)]
    tokens: list[Ints] = []
    for level in range(depth):
        column = sorted_NL[:, level]
        fresh[1:] |= column[1:] != column[:-1]
        first = np.flatnonzero(fresh)
        tokens.append(column[first].astype(narrowest(int(column.max()) + 1)))
        firsts.append(first)
    pointers = tuple(
        np.append(np.searchsorted(child, parent), len(child)).astype(_pointer_type(len(child)))
        for parent, child in pairwise(firsts)
    )
    return tuple(tokens), pointers, np.append(firsts[-1], n).astype(_pointer_type(n))


def _pointer_type(largest: int) -> npt.DTypeLike:
    return np.int32 if largest < 2**31 else np.int64
