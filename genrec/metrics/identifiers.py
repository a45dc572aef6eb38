"""Metrics when several items may share an identifier (numpy only).

``identifier_N`` (int ``[N]``) numbers the identifier of every item; items with equal numbers collide. The
item-exact metrics need nothing from here: a tied block of colliding items has its mean rank. The
identifier-level figures say how much is gained by not having to tell colliding items apart (measured up to
1.3 times the item-exact recall), and must never be reported alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from genrec.metrics.ranking import tied_ranks

DEFINITIONS = {
    "identifier": "the same metrics with identifiers in place of items: an identifier has the best rank of "
    "its items that may be listed, and a hit is any of them",
    "exposed_targets": "share of targets whose identifier is shared with at least one other item",
}
"""Each figure in one sentence, as printed in reports."""


def group_sizes(identifier_N: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Number of items that share each item's identifier, itself included, int64 ``[N]`` (stable).

    >>> group_sizes(np.array([4, 9, 4]))
    array([2, 1, 2])
    """
    _, group, sizes = np.unique(identifier_N, return_inverse=True, return_counts=True)
    return np.asarray(sizes[group], dtype=np.int64)


def exposed_share(identifier_N: npt.NDArray[np.integer], targets: npt.NDArray[np.integer]) -> float:
    """Share of ``targets`` (item numbers, with repetitions) whose identifier belongs to several items (stable).

    >>> exposed_share(np.array([4, 9, 4]), np.array([0, 1, 1, 1]))
    0.25
    """
    return float((group_sizes(identifier_N)[targets] > 1).mean()) if len(targets) else float("nan")


def identifier_scores(
    scores_BN: npt.NDArray[np.floating], identifier_N: npt.NDArray[np.integer]
) -> npt.NDArray[np.floating]:
    """Best score of each identifier's items, ``[B, G]`` with identifiers in ascending order of their number (stable).

    >>> identifier_scores(np.array([[1.0, 5.0, 3.0]]), np.array([4, 9, 4]))
    array([[3., 5.]])
    """
    order = np.argsort(identifier_N, kind="stable")
    ordered = identifier_N[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(order) else order
    return np.asarray(np.maximum.reduceat(scores_BN[:, order], starts, axis=1))


def identifier_lists(
    items_BK: npt.NDArray[np.integer],
    ranks_BK: npt.NDArray[np.floating],
    identifier_N: npt.NDArray[np.integer],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Lists of items as lists of identifiers with their expected ranks; both ``[B, K]``, padding -1 and inf (stable).

    Each identifier keeps the place of its first item. ``items_BK`` must be complete: everything found, with
    ``ranks_BK`` rising from left to right (inf = padding).

    >>> items, ranks = np.array([[5, 2, 7, -1]]), np.array([[1.5, 1.5, 3.0, np.inf]])
    >>> identifier_lists(items, ranks, np.array([0, 1, 8, 3, 4, 8, 6, 7]))
    (array([[ 8,  7, -1, -1]]), array([[ 1.,  2., inf, inf]]))
    """
    listed = (items_BK >= 0) & (items_BK < len(identifier_N))
    ids = np.where(listed, identifier_N[np.where(listed, items_BK, 0)], -1).astype(np.int64)
    rows = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    flat = np.lexsort((ids.ravel(), rows.ravel()))  # stable: within a row and identifier, best first
    new = np.ones(ids.size, dtype=bool)
    new[1:] = (ids.ravel()[flat][1:] != ids.ravel()[flat][:-1]) | (rows.ravel()[flat][1:] != rows.ravel()[flat][:-1])
    first = np.zeros(ids.size, dtype=bool)
    first[flat[new]] = True
    first = first.reshape(ids.shape) & listed
    front = np.argsort(~first, axis=1, kind="stable")  # first items to the left, in their order
    keep = np.take_along_axis(first, front, axis=1)
    keys = np.where(keep, -np.take_along_axis(ranks_BK, front, axis=1), -np.inf)
    return np.where(keep, np.take_along_axis(ids, front, axis=1), -1), tied_ranks(keys)
