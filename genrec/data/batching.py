"""Batches of rows: which rows go together is a pure function of (seed, epoch), and how they share longer rows."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

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


def random_batches(n_rows: int, batch_size: int, *, seed: int, epoch: int) -> list[Rows]:
    """Cut all rows, in random order, into batches of ``batch_size`` rows; the last one may be smaller (internal)."""
    order = rng(seed, "batches", epoch).permutation(n_rows)
    return [order[start : start + batch_size] for start in range(0, n_rows, batch_size)]


@dataclass(frozen=True, eq=False)
class Packing:
    """Where each document of a batch stands in rows that several share (internal).

    row, first: int64 ``[B]``, the row of a document and the column of its first token. n_rows: rows.
    width: tokens of the fullest row.
    """

    row: Rows
    first: Rows
    n_rows: int
    width: int


def pack(lengths: npt.NDArray[np.integer]) -> Packing:
    """Lay documents into rows as long as the longest of them: best fit, longest first (internal).

    ::

        for each document, longest first (equal lengths in their order):
            into the row with the least room that is enough for it, of equal rooms the row opened last, else a new row

    Longer rows would save little padding and cost attention, which grows with the square of the row. lengths: int
    ``[B]``, at least 1 each.
    """
    width = int(lengths.max(initial=0))
    row, first = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    rooms: list[tuple[int, int]] = []  # (room, - row), sorted
    n_rows = 0
    for document in np.argsort(-lengths, kind="stable").tolist():
        needed = int(lengths[document])
        at = bisect_left(rooms, (needed, -n_rows))
        room, place = rooms.pop(at) if at < len(rooms) else (width, -n_rows)
        n_rows = max(n_rows, 1 - place)
        row[document], first[document] = -place, width - room
        insort(rooms, (room - needed, place))
    return Packing(row, first, n_rows, width)


def packed_padding_share(lengths: npt.NDArray[np.integer], batches: Sequence[Rows]) -> float:
    """:func:`padding_share` of batches that are laid into shared rows by :func:`pack` (internal)."""
    packings = [pack(lengths[rows]) for rows in batches]
    cells = sum(packing.n_rows * packing.width for packing in packings)
    return 1.0 - float(sum(int(lengths[rows].sum()) for rows in batches)) / cells if cells else 0.0


def padding_share(lengths: npt.NDArray[np.integer], batches: Sequence[Rows]) -> float:
    """Share of the cells of all padded batches that hold no data, in ``[0, 1)``; 0 for no batches (internal).

    ``1 - sum(lengths) / sum over batches of (rows in the batch x longest row of the batch)``
    """
    cells = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    filled = sum(int(lengths[rows].sum()) for rows in batches)
    return 1.0 - filled / cells if cells else 0.0
