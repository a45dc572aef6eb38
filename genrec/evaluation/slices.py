"""Groups of targets that are reported apart: by popularity, by whether training saw them, by repetition.

A slice is a bool mask over targets. Metrics on a slice keep every rank as it is (nothing is taken out of the
ranking) and ask only for the targets in the slice; queries without one are left out.

Axes: T targets, N items.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories

Mask = npt.NDArray[np.bool_]

DEFINITIONS = {
    "warm": "targets with at least one training event",
    "cold": "targets without any training event",
    "head": "targets among the most popular items, which together have a third of the training events",
    "mid": "targets among the items with the next third of the training events",
    "tail": "targets among the other items with at least one training event",
    "repeat": "targets that are in the history (missed by definition when seen items are excluded)",
    "new": "targets that are not in the history",
}
"""Each slice in one sentence, as printed in reports."""


def popularity_class(counts_N: npt.NDArray[np.integer]) -> npt.NDArray[np.int8]:
    """Class of each item by training count, int8 ``[N]``: 0 head, 1 mid, 2 tail, 3 cold (no event) (internal).

    An item is head if the items with a higher count have less than a third of all events together, mid if
    they have less than two thirds. Items with equal counts are always in the same class.

    >>> popularity_class(np.array([6, 3, 2, 1, 0]))
    array([0, 1, 2, 2, 3], dtype=int8)
    """
    levels, level, sizes = np.unique(-counts_N, return_inverse=True, return_counts=True)
    events = -levels * sizes
    before = np.cumsum(events) - events  # events of all items with a higher count
    total = max(1, int(events.sum()))
    classes = np.where(3 * before < total, 0, np.where(3 * before < 2 * total, 1, 2))
    classes[levels == 0] = 3
    return classes[level].astype(np.int8)


def target_slices(
    histories: Histories,
    rows: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int32],
    counts_N: npt.NDArray[np.integer] | None,
    n_items: int,
) -> dict[str, Mask]:
    """Bool ``[T]`` for every slice that has a target; those by training count need ``counts_N`` (internal)."""
    seen = np.isin(rows * n_items + targets, histories.rows() * n_items + histories.items)
    slices = {"repeat": seen, "new": ~seen}
    if counts_N is not None:
        classes = popularity_class(counts_N)[targets]
        slices = {
            "warm": classes < 3,
            "cold": classes == 3,
            "head": classes == 0,
            "mid": classes == 1,
            "tail": classes == 2,
            **slices,
        }
    return {name: mask for name, mask in slices.items() if mask.any()}
