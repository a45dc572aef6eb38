"""What lists are like apart from their hits: coverage, shortfall, validity, novelty (numpy only).

Lists are int ``[Q, k]`` item numbers, best first, -1 = no more items.
Axes: Q queries, k list length, N items.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DEFINITIONS = {
    "coverage": "share of the catalog's items that stand in the first k places of at least one list",
    "shortfall": "share of the first k places that a list leaves empty",
    "short_lists": "share of lists with fewer than k items",
    "validity": "share of the items returned that exist in the catalog and stand only once in their list",
    "novelty": "mean over the first k places of -log2 of the item's smoothed share of training events, "
    "(count + 1) / (events + N), in bits",
}
"""Each metric in one sentence, as printed in reports."""


def coverage(items_QK: npt.NDArray[np.integer], n_items: int, k: int) -> float:
    """Share of the ``n_items`` items that stand in the first ``k`` places of at least one list (stable).

    >>> coverage(np.array([[0, 1], [0, 2]]), n_items=4, k=1)
    0.25
    """
    listed = np.zeros(n_items, dtype=bool)
    top = items_QK[:, :k]
    listed[top[(top >= 0) & (top < n_items)]] = True
    return float(listed.mean()) if n_items else float("nan")


def shortfall(items_QK: npt.NDArray[np.integer], k: int) -> npt.NDArray[np.float64]:
    """Share of its first ``k`` places that each list leaves empty, float64 ``[Q]`` (stable).

    >>> shortfall(np.array([[4, 2, -1, -1], [0, 1, 2, 3]]), k=4)
    array([0.5, 0. ])
    """
    return np.asarray(1 - (items_QK[:, :k] >= 0).sum(axis=1) / k, dtype=np.float64)


def validity(items_QK: npt.NDArray[np.integer], n_items: int, k: int | None = None) -> float:
    """Share of returned items that are a catalog item, each counted once per list; nan if none was returned (stable).

    -1 is padding; any other number outside ``0..n_items-1``, and every repetition, is invalid.

    >>> validity(np.array([[3, 3, 9, -1]]), n_items=5)
    0.3333333333333333
    """
    top = np.sort(items_QK[:, :k], axis=1)
    returned = top != -1
    repeated = np.zeros(top.shape, dtype=bool)
    repeated[:, 1:] = top[:, 1:] == top[:, :-1]
    valid = returned & (top >= 0) & (top < n_items) & ~repeated
    return float(valid.sum() / returned.sum()) if returned.any() else float("nan")


def novelty(items_QK: npt.NDArray[np.integer], counts_N: npt.NDArray[np.integer], k: int) -> npt.NDArray[np.float64]:
    """Mean surprise of each list in bits, float64 ``[Q]``: higher = rarer items; nan for an empty list (stable).

    counts_N: training events of each item; one is added to each, so that unseen items are finite.

    >>> novelty(np.array([[0], [1]]), np.array([6, 0]), k=1)
    array([0.19264508, 3.        ])
    """
    surprise_N = -np.log2((counts_N + 1) / (counts_N.sum() + len(counts_N)))
    top = items_QK[:, :k]
    listed = (top >= 0) & (top < len(counts_N))
    total = np.where(listed, surprise_N[np.where(listed, top, 0)], 0.0).sum(axis=1)
    out = np.full(len(top), np.nan)
    np.divide(total, listed.sum(axis=1), out=out, where=listed.any(axis=1))
    return out
