"""What a search over all items is asked: lengths, filters, denied items, in batches of users (numpy only, no torch).

Axes: U users (rows), N items, M pairs of a row and an item.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.decoding.filters import Filters, ItemFilter, RankFilter, RowFilters, by_row
from genrec.decoding.interface import Recommendations
from genrec.errors import ConfigError, DataError

Int64 = npt.NDArray[np.int64]

ROWS = 32
"""Users at a time: bounds the memory of tables and scores."""
NARROW = 16
"""Where a filter allows fewer than one in so many items, only these are scored."""


@dataclass(frozen=True, eq=False)
class Rules:
    """Which items each row of a batch may get (internal).

    filters: bits by item number; None = everything is allowed. denied: int64, ascending keys ``row * N + item``.
    """

    filters: RowFilters | None
    denied: Int64
    n_items: int

    @classmethod
    def of(cls, filters: Sequence[ItemFilter | None], deny: Histories | None, n_items: int) -> Rules:
        """filters, deny: of the rows, in their order; denied items outside 0..N-1 are ignored."""
        distinct = {id(each): _by_number(each) for each in filters if each is not None}
        denied = np.zeros(0, dtype=np.int64)
        if deny is not None:
            real = (deny.items >= 0) & (deny.items < n_items)
            denied = np.unique(deny.rows()[real] * n_items + deny.items[real])
        return cls(RowFilters.of([None if each is None else distinct[id(each)] for each in filters]), denied, n_items)

    def keep(self, rows: Int64, items: Int64) -> npt.NDArray[np.bool_]:
        """Whether each row may get each item, bool ``[M]``."""
        allowed = np.ones(len(rows), dtype=np.bool_) if self.filters is None else self.filters.allows(rows, items)
        if len(self.denied):
            keys = rows * self.n_items + items
            place = np.minimum(np.searchsorted(self.denied, keys), len(self.denied) - 1)
            allowed &= self.denied[place] != keys
        return allowed


def _by_number(allowed: ItemFilter) -> RankFilter:
    """The filter with item numbers for ranks."""
    return RankFilter(allowed.words, np.concatenate([[0], np.cumsum(np.bitwise_count(allowed.words), dtype=np.int64)]))


@dataclass(frozen=True, eq=False)
class Batch:
    """Users to search for at a time: their rows, and the only allowed items where those are few (internal)."""

    rows: Int64
    items: Int64 | None
    rules: Rules


@dataclass(frozen=True, eq=False)
class Request:
    """A checked request of U users (internal)."""

    n_items: int
    top_k: int | None
    filters: list[ItemFilter | None]
    deny: Histories | None

    @classmethod
    def of(
        cls, n_rows: int, n_items: int, catalog: str, *, top_k: int | None, filter: Filters, deny: Histories | None
    ) -> Request:
        """Raises ConfigError for ``top_k``, DataError for filters or denied items of another catalog or number."""
        if top_k is not None and top_k < 1:
            raise ConfigError(f"top_k: expected a positive integer or None, got {top_k}")
        filters = by_row(filter, n_rows)
        for each in {id(each): each for each in filters if each is not None}.values():
            each.check(n_items, catalog)
        if deny is not None and len(deny) != n_rows:
            raise DataError(f"deny: expected {n_rows} rows, one per user, got {len(deny)}")
        return cls(n_items, top_k, filters, deny)

    @property
    def width(self) -> int:
        """Columns of the lists while they are made."""
        return max(self.n_items, 1) if self.top_k is None else self.top_k

    def batches(self) -> Iterator[Batch]:
        """All rows, those with one narrow filter together."""
        narrow = {id(each): each for each in self.filters if each is not None and len(each) * NARROW < self.n_items}
        groups: dict[int, list[int]] = {}
        for row, each in enumerate(self.filters):
            groups.setdefault(id(each) if id(each) in narrow else 0, []).append(row)
        for key, rows in groups.items():
            items = np.flatnonzero(narrow[key].mask) if key in narrow else None
            for at in range(0, len(rows), ROWS):
                some = np.array(rows[at : at + ROWS])
                deny = None if self.deny is None else self.deny.take(some)
                yield Batch(some, items, Rules.of([self.filters[row] for row in some], deny, self.n_items))

    def lists(self, normalize: str | None) -> Recommendations:
        """Lists of padding, to be written to; they will be exact."""
        shape = (len(self.filters), self.width)
        return Recommendations(
            items=np.full(shape, -1, dtype=np.int32),
            scores=np.full(shape, -np.inf, dtype=np.float32),
            ranks=np.full(shape, np.inf, dtype=np.float32),
            normalize=normalize,
            certified=np.ones(len(self.filters), dtype=np.bool_),
        )

    def cut(self, lists: Recommendations) -> Recommendations:
        """The lists; where all items were asked for, without the columns in which no row has one."""
        width = self.width if self.top_k is not None else int(lists.lengths.max(initial=0))
        return Recommendations(
            lists.items[:, :width],
            lists.scores[:, :width],
            lists.ranks[:, :width],
            normalize=lists.normalize,
            certified=lists.certified,
        )
