"""Does the order of the data leak the answer? A baseline that knows nothing but item ids tells.

Axes: B users at a time, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from genrec.baselines.counting import Counting, DenseLists, Float32, Users
from genrec.data.histories import Histories
from genrec.decoding.interface import DenseRecommender
from genrec.errors import DataError


@dataclass
class LargerIdProbe(DenseLists):
    """Leak probe: ``base`` with the scores of items whose id sorts after the last item's id times ``factor``.

    Where events of one day are stored in the order of item ids, the next item is the next larger id, and this
    rule gains much for no good reason (Amazon Beauty 2014, item-kNN: recall@10 .0723 becomes .0900 with
    factor 4). With ties in time in a neutral order it gains nothing. If it does gain, the order of the data
    leaks, and every sequential model profits from it.

    base: fitted already, or fitted by ``fit``. id_order: int ``[N]``, position of each item's id among the
    sorted ids (:func:`id_order`). Raises DataError for negative base scores. Stability: stable.
    """

    base: DenseRecommender
    id_order: npt.NDArray[np.integer] = field(repr=False)
    factor: float = 4.0

    def fit(self, train: Histories, n_items: int) -> Self:
        """Fit the base model, if it is one of the counting baselines."""
        if isinstance(self.base, Counting):
            self.base.fit(train, n_items)
        if len(self.id_order) != n_items:
            raise DataError(f"id_order: expected one number for each of {n_items} items, got {len(self.id_order)}")
        return self

    @property
    def n_items(self) -> int:
        """Number of items N."""
        return self.base.n_items

    def score_all(self, histories: Histories, users: Users | None = None) -> Float32:
        """Scores float32 ``[B, N]``. An empty history has no last item: its row stays as it is."""
        scores = np.array(self.base.score_all(histories, users), dtype=np.float32)
        if bool(((scores < 0) & (scores > -np.inf)).any()):
            raise DataError("leak probe: expected base scores of 0 or more, got negative ones")
        last = histories.last(1)
        position_B = np.full(len(histories), np.iinfo(np.int64).max)
        position_B[last.rows()] = self.id_order[last.items]
        scores[self.id_order[None] > position_B[:, None]] *= np.float32(self.factor)
        return scores


def id_order(ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Position of each id among the sorted ids, int64 ``[N]``, for :class:`LargerIdProbe` (stable).

    >>> id_order(["b", "c", "a"])
    array([1, 2, 0])
    """
    order = np.empty(len(ids), dtype=np.int64)
    order[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return order
