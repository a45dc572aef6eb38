"""Batches of rows of like length: which rows go together is a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from genrec.seeding import rng

Rows = npt.NDArray[np.int64]


def length_batches(lengths: npt.NDArray[np.integer], batch_size: int, *, seed: int, epoch: int) -> list[Rows]:
    """Cut all rows into batches of ``batch_size`` rows of like length, in random order (internal).

    Rows are sorted by length, equal lengths in random order; the sorted list is cut; the pieces are shuffled.
    Every row occurs exactly once. Only one batch is smaller than ``batch_size``, the one that was cut last.
    The answer depends on ``lengths``, ``batch_size``, ``seed`` and ``epoch`` only, so a resumed run rebuilds it.

    lengths: int ``[R]``. Returns int64 row numbers, one array per batch.
    """
    random = rng(seed, "batches", epoch)
    order = np.lexsort((random.random(len(lengths)), lengths))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[b] for b in random.permutation(len(batches))]


def padding_share(lengths: npt.NDArray[np.integer], batches: Sequence[Rows]) -> float:
    """Share of the cells of all padded batches that hold no data, in ``[0, 1)``; 0 for no batches (internal).

    ``1 - sum(lengths) / sum over batches of (rows in the batch x longest row of the batch)``
    """
    cells = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    filled = sum(int(lengths[rows].sum()) for rows in batches)
    return 1.0 - filled / cells if cells else 0.0
