"""Logs with new items beside the histories of a run: who is who, and what may be learned.

Axes: E events of a log, U users of it, N items. A key is a user and an item: ``user * N + item``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.data.interactions import Interactions
from genrec.data.splits import Split
from genrec.data.ties import Bools

Int64 = npt.NDArray[np.int64]
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LogRows:
    """Histories of the users of a log, oldest first, and their ids (internal)."""

    users: tuple[str, ...]
    histories: Histories


@dataclass(frozen=True, eq=False)
class _Events:
    user: Int64
    item: Int64
    time: Int64
    key: Int64

    def take(self, at: Int64 | Bools) -> _Events:
        return _Events(self.user[at], self.item[at], self.time[at], self.key[at])


def log_rows(
    cut: Split, known: Sequence[str], logged: Interactions | None, asked: Interactions | None, new_N: Bools
) -> tuple[LogRows, LogRows]:
    """The rows to learn from and those to ask by: each user's training history, then the events of the log (internal).

    known: user ids of the split's rows. A user is asked for the last new item in ``asked``; what ``logged`` says of the
    time before stands before it, and nothing stands behind it but old items of ``asked``.
    An item that stands in a user's training history, or twice in a file, is taken once, the first time. Not learned is
    what is asked: validation and test targets of the split, and the last new items of ``asked``.
    """
    ids = tuple(dict.fromkeys([*known, *(i for each in (logged, asked) if each is not None for i in each.user_ids)]))
    number, train = {user: n for n, user in enumerate(ids)}, cut.train()
    of_split = np.repeat(np.arange(cut.n_users), np.diff(cut.offsets)) * len(new_N) + cut.items
    trained, held = of_split[cut.parts() == 0], of_split[cut.parts() > 0]
    learn, ask = (_new_events(each, number, len(new_N), trained) for each in (logged, asked))
    last = np.full(len(ids), -1)
    of_new = np.flatnonzero(new_N[ask.item])
    last[ask.user[of_new]] = of_new  # in order of time, so the last one stays
    questions = last[last >= 0]
    forbidden = np.isin(learn.key, np.concatenate([held, ask.key[questions]]))
    if forbidden.any():
        log.warning("log: %d of %d events are asked for, and not learned", int(forbidden.sum()), len(learn.key))
    learn = learn.take(~forbidden)
    until = np.full(len(ids), np.iinfo(np.int64).min)
    until[ask.user[questions]] = ask.time[questions]
    earlier = learn.take((learn.time < until[learn.user]) & ~np.isin(learn.key, ask.key))
    both = _Events(*(np.concatenate([getattr(earlier, n), getattr(ask, n)]) for n in ("user", "item", "time", "key")))
    both = both.take(np.lexsort((both.time, both.user)))
    return _rows(train, ids, learn), _rows(train, ids, both)


def _new_events(read: Interactions | None, number: dict[str, int], n_items: int, trained: Int64) -> _Events:
    """By user and time; each user and item once, none of those in training."""
    if read is None:
        return _Events(*(np.zeros(0, np.int64) for _ in range(4)))
    user = np.array([number[i] for i in read.user_ids], np.int64)[read.user]
    key = user * n_items + read.item
    first = np.sort(np.unique(key, return_index=True)[1])
    found = _Events(user, read.item.astype(np.int64), read.time, key).take(first)
    return found.take(~np.isin(found.key, trained))


def _rows(train: Histories, ids: tuple[str, ...], events: _Events) -> LogRows:
    """A row for each user with events: what training has of them, then the events as they stand."""
    users, row = np.unique(events.user, return_inverse=True)
    known = users < len(train)
    at = np.where(known, users, 0)
    starts = train.offsets[:-1][at] if len(train) else np.zeros(len(at), np.int64)
    ends = np.where(known, train.offsets[1:][at], starts) if len(train) else starts
    before = Histories.from_slices(train.items, starts, ends)
    rows = np.concatenate([before.rows(), row])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(users)))])
    items = np.concatenate([before.items, events.item])[np.argsort(rows, kind="stable")]
    return LogRows(tuple(ids[u] for u in users), Histories(offsets, items.astype(np.int32)))
