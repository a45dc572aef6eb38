"""One list from the lists of several views of the same user (numpy only, no torch).

Axes: V views, U users, P places of a list, k length of the fused list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError


@dataclass(frozen=True, eq=False)
class FusedLists:
    """Items int32 ``[U, k]``, best first, -1 = padding, and their scores float64 ``[U, k]``, 0 for padding.

    Stability: experimental.
    """

    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float64]


def fuse_views(items_VUP: npt.ArrayLike, top_k: int) -> FusedLists:
    """Sum over views of ``1 / log2(rank + 2)``, rank from 0: the ensemble of ActionPiece (Hou et al. 2025, 2502.13581).

    ::

        score(u, i) = sum over views in which u's list has i:  1 / log2(2 + place of i among the items of the list)

    Equal scores: the item with the better best rank first, then that of the earlier view. items_VUP: item numbers,
    -1 = nothing there (skipped, as are repetitions of an item: neither takes a rank; the published code adds up
    repetitions). Views that are all alike give the list of one. Raises DataError for another number of axes, and for
    top_k < 1. Stability: experimental.
    """
    items = np.asarray(items_VUP)
    if items.ndim != 3 or (items.size and items.dtype.kind not in "iu"):
        raise DataError(f"items: expected integers [views, users, places], got {items.dtype} {items.shape}")
    if top_k < 1:
        raise DataError(f"top_k: expected 1 or more, got {top_k}")
    n_views, n_users, n_places = items.shape
    out = np.full((n_users, top_k), -1, dtype=np.int32)
    scores = np.zeros((n_users, top_k))
    view, user, place = (axis.ravel() for axis in np.indices(items.shape))
    table = np.column_stack([user, view, items.ravel(), place])[items.ravel() >= 0]
    table = table[np.unique(table[:, :3], axis=0, return_index=True)[1]]  # the first place of each, place grows inside
    table = table[np.lexsort((table[:, 3], table[:, 1], table[:, 0]))]
    rank = _within(table[:, 0] * max(n_views, 1) + table[:, 1])
    pair, of_pair = np.unique(table[:, [0, 2]], axis=0, return_inverse=True)
    of_pair = of_pair.ravel()
    by_rank = np.argsort(rank, kind="stable")  # one order of additions, so that equal scores are equal to the last bit
    total = np.bincount(of_pair[by_rank], weights=1 / np.log2(rank[by_rank] + 2), minlength=len(pair))
    best = np.full(len(pair), n_places * max(n_views, 1))
    np.minimum.at(best, of_pair, rank * n_views + table[:, 1])
    order = np.lexsort((best, -total, pair[:, 0]))
    at = _within(pair[order, 0])
    kept = order[at < top_k]
    out[pair[kept, 0], at[at < top_k]] = pair[kept, 1]
    scores[pair[kept, 0], at[at < top_k]] = total[kept]
    return FusedLists(out, scores)


def _within(groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, … inside each run of equal values of an ascending array."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)
