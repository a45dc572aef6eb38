"""Which items a request may get: sets of items, and the same over the ranks of an index (numpy only, no torch).

Axes: N items, R item ranks of an index, B rows of a batch, F distinct filters of a batch, M nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from genrec.decoding.index import CatalogIndex
from genrec.errors import ConfigError, DataError, FingerprintMismatch

if TYPE_CHECKING:
    from genrec.decoding.filter_set import FilterSet

Words = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]
_BLOCK = 1 << 18


@dataclass(frozen=True, eq=False)
class ItemFilter:
    """A set of allowed items of one catalog: in stock, of a category, below a price, what a tenant sells.

    Filters compose: ``in_stock & shoes & ~adult``. Make one once and pass it to as many requests as you like; what
    an index needs of it is kept beside it. By name: :class:`genrec.decoding.filter_set.FilterSet`.

    words: uint64, one bit per item number, the lowest bit first.
    Stability: experimental.
    """

    words: Words
    n_items: int
    catalog: str = ""

    @classmethod
    def of_mask(cls, allowed: npt.ArrayLike, catalog: str = "") -> ItemFilter:
        """allowed: bool ``[N]``. catalog: fingerprint, checked where the filter is used; "" = not checked."""
        mask = np.asarray(allowed)
        if mask.dtype != np.bool_ or mask.ndim != 1:
            raise DataError(f"filter: expected bool [N], got {mask.dtype} {mask.shape}")
        return cls(_packed(mask), len(mask), catalog)

    @classmethod
    def of_items(cls, items: npt.ArrayLike, n_items: int, catalog: str = "") -> ItemFilter:
        """items: the allowed item numbers; DataError for numbers outside 0..N-1, and for flags."""
        mask = np.zeros(n_items, dtype=np.bool_)
        mask[item_numbers("filter", items, n_items)] = True
        return cls.of_mask(mask, catalog)

    def __and__(self, other: ItemFilter) -> ItemFilter:
        return self._with(self.words & self._same(other).words, other)

    def __or__(self, other: ItemFilter) -> ItemFilter:
        return self._with(self.words | self._same(other).words, other)

    def __invert__(self) -> ItemFilter:
        words = ~self.words
        if rest := self.n_items % 64:
            words[-1] &= np.uint64((1 << rest) - 1)  # bits behind the last item stay 0
        return ItemFilter(words if self.n_items else self.words, self.n_items, self.catalog)

    def __len__(self) -> int:
        """Number of allowed items."""
        return int(np.bitwise_count(self.words).sum())

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """bool ``[N]``, True = allowed."""
        return _unpacked(self.words, self.n_items)

    def has(self, items: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        """Whether each of these item numbers is allowed, bool of their shape; all must exist (internal)."""
        bits = self.words[items >> 6] >> (items & 63).astype(np.uint64)
        return np.asarray(bits & np.uint64(1), dtype=np.bool_)

    def check(self, n_items: int, catalog: str) -> None:
        """Raise unless the filter is of that catalog."""
        if self.catalog and catalog and self.catalog != catalog:
            raise FingerprintMismatch(
                f"the filter is of catalog {self.catalog[:8]}, the request is answered from catalog {catalog[:8]}",
                hint="make the filter again from the newer catalog",
            )
        if self.n_items != n_items:
            raise DataError(f"filter: expected a filter of {n_items} items, got one of {self.n_items}")

    def _same(self, other: ItemFilter) -> ItemFilter:
        other.check(self.n_items, self.catalog)
        return other

    def _with(self, words: Words, other: ItemFilter) -> ItemFilter:
        return ItemFilter(words, self.n_items, self.catalog or other.catalog)


Filters = ItemFilter | str | Sequence[ItemFilter | str | None] | None
"""One filter for everyone, one (or None) for each row, or none. A text is an expression of names, for a recommender
that knows them (:class:`genrec.decoding.snapshot.CatalogSnapshot`)."""


def by_row(filters: Filters, n_rows: int, named: FilterSet | None = None) -> list[ItemFilter | None]:
    """The filter of every row (internal).

    DataError for another number of them, ConfigError for anything but filters and names that are known.
    """
    one = filters is None or isinstance(filters, ItemFilter | str)
    if not one and not isinstance(filters, Sequence):
        raise _no_filter(filters)
    found = cast("list[ItemFilter | str | None]", [filters] * n_rows if one else list(cast("Sequence[str]", filters)))
    for each in found:
        if not isinstance(each, ItemFilter | str | None):
            raise _no_filter(each)
    if len(found) != n_rows:
        raise DataError(
            f"filter: expected {n_rows}, one per history, got {len(found)}",
            hint="one filter for all histories: ItemFilter.of_mask(mask, catalog.fingerprint)",
        )
    if named is None and any(isinstance(each, str) for each in found):
        raise ConfigError(
            "filter: a name, and there are no named filters",
            hint="pass an ItemFilter, such as FilterSet(...)[text], or swap in a snapshot with filters",
        )
    return [
        named[each] if named is not None and isinstance(each, str) else cast("ItemFilter | None", each)
        for each in found
    ]


def _no_filter(given: object) -> ConfigError:
    return ConfigError(
        f"filter: expected an ItemFilter, a text of names, or one of them (or None) for each history, got "
        f"{type(given).__name__}",
        hint="of flags ItemFilter.of_mask(mask, catalog.fingerprint), of item numbers ItemFilter.of_items(...)",
    )


@dataclass(frozen=True, eq=False)
class RankFilter:
    """An :class:`ItemFilter` over the ranks of one index: "how many allowed items below this node?" in O(1).

    words: uint64 ``[ceil(R / 64)]``, a bit per rank. before: int64 ``[words + 1]``, allowed ranks before each word.
    16 bytes per 64 items. Internal.
    """

    words: Words
    before: Int64

    @classmethod
    def of(cls, allowed: ItemFilter, index: CatalogIndex) -> RankFilter:
        """The filter in the order of ``index``; items that are not indexed do not count."""
        allowed.check(index.n_items, index.catalog)
        n = len(index.items)
        of_item, of_rank = _as_bytes(allowed.words), np.zeros(_n_words(n) * 8, dtype=np.uint8)
        for start in range(0, n, _BLOCK):
            items = index.items[start : start + _BLOCK]
            bits = (of_item[items >> 3] >> (items & 7).astype(np.uint8)) & 1
            packed = np.packbits(bits, bitorder="little")
            of_rank[start // 8 : start // 8 + len(packed)] = packed
        return cls._counted(of_rank.view("<u8").astype(np.uint64, copy=False))

    @classmethod
    def without(cls, ranks: npt.NDArray[np.integer], index: CatalogIndex) -> RankFilter:
        """All items of ``index`` but those at the given ranks."""
        mask = np.ones(len(index.items), dtype=np.bool_)
        mask[ranks] = False
        return cls._counted(_packed(mask))

    @classmethod
    def _counted(cls, words: Words) -> RankFilter:
        return cls(words, np.concatenate([[0], np.cumsum(np.bitwise_count(words), dtype=np.int64)]))

    def __and__(self, other: RankFilter) -> RankFilter:
        """What both allow, without another walk through the items."""
        return self._counted(self.words & other.words)

    def __len__(self) -> int:
        """Number of indexed items that are allowed."""
        return int(self.before[-1])

    @property
    def ranks(self) -> Int64:
        """The allowed ranks, ascending."""
        return np.flatnonzero(_unpacked(self.words, 64 * len(self.words))).astype(np.int64)


@dataclass(frozen=True, eq=False)
class RowFilters:
    """The filters of a batch: row ``b`` obeys filter ``of_row[b]``, -1 = none (internal).

    words: uint64 ``[F, words]``; before: int64 ``[F, words + 1]``.
    """

    words: Words
    before: Int64
    of_row: Int64

    @classmethod
    def of(cls, filters: Sequence[RankFilter | None]) -> RowFilters | None:
        """One for each row; None where no row has a filter. Rows with one filter object share its bits."""
        distinct = {id(each): each for each in filters if each is not None}
        if not distinct:
            return None
        place = {key: number for number, key in enumerate(distinct)}
        return cls(
            _stacked([each.words for each in distinct.values()]),
            _stacked([each.before for each in distinct.values()]),
            np.array([-1 if each is None else place[id(each)] for each in filters], dtype=np.int64),
        )

    def count(self, rows: Int64, low: Int64, high: Int64) -> Int64:
        """Allowed ranks in ``low:high`` of each row, int64 ``[M]``."""
        which = self.of_row[rows]
        counted = self._before(np.maximum(which, 0), high) - self._before(np.maximum(which, 0), low)
        return np.where(which < 0, high - low, counted)

    def allows(self, rows: Int64, ranks: Int64) -> npt.NDArray[np.bool_]:
        """Whether each row may get each rank, bool ``[M]``."""
        which = self.of_row[rows]
        word = self.words[np.maximum(which, 0), ranks >> 6]
        bit = (word >> (ranks & 63).astype(np.uint64)) & np.uint64(1)
        return np.asarray((which < 0) | (bit == 1), dtype=np.bool_)

    def _before(self, which: Int64, ranks: Int64) -> Int64:
        word = np.minimum(ranks >> 6, self.words.shape[1] - 1)
        rest = ranks - (word << 6)  # 64 for the end of the last word, where every bit counts
        some = (np.uint64(1) << (rest & 63).astype(np.uint64)) - np.uint64(1)
        masked = self.words[which, word] & np.where(rest == 64, ~np.uint64(0), some)
        return np.asarray(self.before[which, word] + np.bitwise_count(masked), dtype=np.int64)


def in_namespace(index: CatalogIndex, name: str) -> ItemFilter:
    """The indexed items of one domain of a joint index, see :mod:`genrec.decoding.namespaces`.

    They are one range of ranks. Raises ConfigError for an unknown name. Stability: experimental.
    """
    low, high = index.namespace_ranks(name)
    return ItemFilter.of_items(index.items[low:high], index.n_items, index.catalog)


def item_numbers(what: str, items: npt.ArrayLike, n_items: int) -> Int64:
    """Item numbers, int64 ``[M]``. Raises DataError for numbers outside 0..N-1, flags and fractions (internal)."""
    given = np.asarray(items).reshape(-1)
    if len(given) and given.dtype.kind not in "iu":
        raise DataError(f"{what}: expected item numbers, got {given.dtype}", hint="np.flatnonzero(mask) numbers flags")
    if len(given) and not 0 <= int(given.min()) <= int(given.max()) < n_items:
        raise DataError(f"{what}: expected item numbers 0..{n_items - 1}, got {given.min()} .. {given.max()}")
    return given.astype(np.int64)


def _n_words(n: int) -> int:
    return -(-max(n, 1) // 64)


def _as_bytes(words: Words) -> npt.NDArray[np.uint8]:
    """Bit ``n`` is bit ``n & 7`` of byte ``n >> 3``."""
    return words.astype("<u8", copy=False).view(np.uint8)


def _stacked(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """``np.stack``; a single array, millions of bytes for millions of items, is not copied."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _packed(mask: npt.NDArray[np.bool_]) -> Words:
    padded = np.zeros(_n_words(len(mask)) * 64, dtype=np.bool_)
    padded[: len(mask)] = mask
    return np.packbits(padded, bitorder="little").view("<u8").astype(np.uint64)


def _unpacked(words: Words, n: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(_as_bytes(words), bitorder="little")[:n].astype(np.bool_)
