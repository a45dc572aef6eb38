"""The best items of each row among those offered piece by piece, and the lists made of them (numpy only, no torch).

Axes: U users (rows), N items, M offered pairs of a row and an item, k list length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.decoding.interface import Recommendations
from genrec.decoding.parallel_request import Rules
from genrec.seeding import number_hash

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Keys = npt.NDArray[np.uint32]

SETTLED_AT = 4096


class Best:
    """The ``top_k`` best items of each row among all that were offered (internal).

    Items of equal score stand in the order of the hash of their numbers, so neither the order in which they are offered
    nor that of the catalog decides. Those that tie with the last one and find no place are counted, for the ranks.

    floor: float32 ``[U]``, the score of the last of ``top_k`` items, -inf until there are so many. What scores less can
    never be listed and need not be offered; what scores as much must be.
    """

    def __init__(self, n_rows: int, top_k: int, rules: Rules) -> None:
        self.floor: Floats = np.full(n_rows, -np.inf, dtype=np.float32)
        self._top_k, self._rules = top_k, rules
        self.clear()

    def clear(self) -> None:
        """Forget the items but not the floor: to offer every item that can be listed, once, from the start."""
        self._held = _Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
        self._waiting: list[_Pairs] = []
        self._left_out = np.zeros(len(self.floor), dtype=np.int64)

    def offer(self, rows: Int64, items: Int64, scores: Floats) -> None:
        """Offer item ``items[m]`` to row ``rows[m]``, each pair once; scores of -inf are never listed."""
        pairs = _Pairs(rows, items, scores)
        pairs = pairs.take(np.flatnonzero((scores >= self.floor[rows]) & (scores > -np.inf)))
        pairs = pairs.take(self._rules.keep(pairs.rows, pairs.items))
        if len(pairs.rows):
            self._waiting.append(pairs)
            # as many as are held: then the work grows with what is offered, not with its square
            if sum(len(each.rows) for each in self._waiting) >= max(len(self._held.rows), SETTLED_AT):
                self.settle()

    def settle(self) -> None:
        """Bring ``floor`` up to date with everything that was offered."""
        pairs = _Pairs.joined([self._held, *self._waiting])
        self._waiting = []
        full = pairs.count(len(self.floor)) >= self._top_k
        if full.any():
            before = self.floor.copy()
            self.floor = np.where(full, kth_best(pairs.rows, pairs.scores, len(full), self._top_k), before)
            self._left_out[self.floor > before] = 0  # they tied with a floor that no longer is
            pairs = self._without_ties(pairs.take(pairs.scores >= self.floor[pairs.rows]))
        self._held = pairs

    def _without_ties(self, pairs: _Pairs) -> _Pairs:
        """Leave out, and count, what ties with the last item of a full row and comes after it by hash."""
        n_rows = len(self.floor)
        over = pairs.count(n_rows) - self._top_k
        if not (over > 0).any():
            return pairs
        tied = np.flatnonzero((pairs.scores == self.floor[pairs.rows]) & (over > 0)[pairs.rows])
        rows = pairs.rows[tied]
        keys = (number_hash(pairs.items[tied]) >> np.uint64(32)).astype(np.uint32)
        room = np.where(over > 0, np.bincount(rows, minlength=n_rows) - over, 0)
        kept = np.ones(len(pairs.rows), dtype=np.bool_)
        kept[tied] = keys <= _kth_smallest(rows, keys, room)[rows]
        self._left_out += np.bincount(pairs.rows[~kept], minlength=n_rows)
        pairs = pairs.take(kept)
        if (pairs.count(n_rows) > self._top_k).any():  # the halves of two hashes are equal
            pairs, place = pairs.ordered(n_rows)
            self._left_out += np.bincount(pairs.rows[place >= self._top_k], minlength=n_rows)
            pairs = pairs.take(place < self._top_k)
        return pairs

    def write(self, at: Int64, lists: Recommendations) -> None:
        """Write the list of each row to row ``at[row]`` of padded lists of at least ``top_k`` columns."""
        self.settle()
        pairs, place = self._held.ordered(len(self.floor))
        to = (at[pairs.rows], place)
        lists.items[to] = pairs.items
        lists.scores[to] = pairs.scores
        lists.ranks[to] = self._expected_ranks(pairs, place)

    def _expected_ranks(self, pairs: _Pairs, place: Int64) -> npt.NDArray[np.float64]:
        """Mean 1-based place of each block of equal scores, with what was left out of the last block."""
        rows, scores = pairs.rows, pairs.scores
        if not len(rows):
            return np.zeros(0)
        fresh = np.ones(len(rows), dtype=np.bool_)
        fresh[1:] = (rows[1:] != rows[:-1]) | (scores[1:] != scores[:-1])
        group = np.cumsum(fresh) - 1
        last = scores[fresh] == self.floor[rows[fresh]]
        size = np.bincount(group) + np.where(last, self._left_out[rows[fresh]], 0)
        return np.asarray((1 + place[fresh] + (size - 1) / 2)[group])


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Items with their scores for rows, each ``[M]``."""

    rows: Int64
    items: Int64
    scores: Floats

    @classmethod
    def joined(cls, parts: Sequence[_Pairs]) -> _Pairs:
        return cls(*(np.concatenate([getattr(each, name) for each in parts]) for name in ("rows", "items", "scores")))

    def take(self, at: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> _Pairs:
        return _Pairs(self.rows[at], self.items[at], self.scores[at])

    def count(self, n_rows: int) -> Int64:
        return np.bincount(self.rows, minlength=n_rows)

    def ordered(self, n_rows: int) -> tuple[_Pairs, Int64]:
        """By row, falling score and hash of the number; with the place of each within its row."""
        found = self.take(np.lexsort((number_hash(self.items), -self.scores, self.rows)))
        count = found.count(n_rows)
        return found, np.arange(len(found.rows)) - (np.cumsum(count) - count)[found.rows]


def kth_best(rows: Int64, scores: Floats, n_rows: int, k: int) -> Floats:
    """The k-th highest score of each row, float32 ``[U]``; -inf where a row has fewer (internal)."""
    # unsigned integers in the opposite order of the scores; adding 0.0 turns -0.0 into 0.0
    bits = (scores + np.float32(0)).view(np.uint32)
    falling = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF))
    enough = np.bincount(rows, minlength=n_rows) >= k
    if not enough.any():
        return np.full(n_rows, -np.inf, dtype=np.float32)
    kth = _kth_smallest(rows, falling, np.where(enough, k, 0))
    back = np.where(kth >> 31, kth, ~kth & np.uint32(0x7FFFFFFF)).view(np.float32)
    return np.where(enough, back, np.float32(-np.inf))


def _kth_smallest(rows: Int64, keys: Keys, k: Int64) -> Keys:
    """The ``k[row]``-th smallest key of every row, uint32 ``[U]``; of a row where k is 0 any.

    Row and key are packed into one integer: sorting these is several times faster than a lexical sort.
    """
    packed = np.sort((rows.astype(np.uint64) << np.uint64(32)) | keys)
    count = np.bincount(rows, minlength=len(k))
    last = np.clip(np.cumsum(count) - count + k - 1, 0, len(packed) - 1)
    return np.asarray((packed[last] & np.uint64(0xFFFFFFFF)).astype(np.uint32))
