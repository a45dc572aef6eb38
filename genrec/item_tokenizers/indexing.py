"""Trivial indexing: a code of its own, a random number, or the order of first use. The controls of every comparison.

Axes: N items, L levels, K codes of a level, U users. From Hua et al. 2023 ("How to Index Item IDs for Recommendation
Foundation Models", 2305.06569).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import TokenizerSource, check_at_least
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.fitted import Indexing, check_items
from genrec.item_tokenizers.text_pieces import check_number_options, number_codes
from genrec.seeding import rng

Ints = npt.NDArray[np.int64]
Written = Literal["digits", "codes"]
UserOrder = Literal["original", "random", "short_first", "long_first"]
USER_ORDERS: tuple[UserOrder, ...] = ("original", "random", "short_first", "long_first")


@dataclass(frozen=True)
class IndependentSettings:
    """Settings of :class:`Independent`: there are none beside ``kind`` (stable)."""

    kind: Literal["independent"] = "independent"


class Independent(Indexing):
    """One code of its own for every item (IID); recipe: ``tokenizers/independent.yaml`` (stable).

    One level of N codes, numbered in the order of the item keys: nothing is shared between items, so all that a
    model knows about an item it learned from that item's own events. With one token per item a generative
    recommender is a classifier over the catalog.
    """

    Settings: ClassVar[type[Any]] = IndependentSettings

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """The identifier of every item, ``[N, 1]``; DataError for an empty catalog."""
        check_items(source)
        codes = ItemCodes(key_ranks(source.item_keys)[:, None], (source.n_items,), source.catalog)
        return self._done(source, codes)


@dataclass(frozen=True)
class RandomSettings:
    """Settings of :class:`RandomIds`; ConfigError for values out of range (stable).

    written: digits (of a random number) | codes (random ones of each level). For digits: first_number, the least
    number; n_numbers, how many there are to draw from (None = as many as items); base of the digits;
    text_tokenizer, a Hugging Face text tokenizer that writes the numbers instead (None = digit by digit).
    For codes: n_levels, level_size: L levels of K codes each; a list of L sizes gives each level its own.
    """

    kind: Literal["random"] = "random"
    written: Written = "digits"
    first_number: int = 1000
    n_numbers: int | None = None
    base: int = 10
    text_tokenizer: str | None = None
    n_levels: int = 3
    level_size: int | tuple[int, ...] = 256

    def __post_init__(self) -> None:
        check_at_least(self, {"n_numbers": 1, "n_levels": 1})
        check_number_options(self.first_number, self.base, self.text_tokenizer)
        if self.written not in ("digits", "codes"):
            raise ConfigError(f"written: expected digits or codes, got {self.written!r}")
        if len(self.level_sizes) != self.n_levels or min(self.level_sizes) < 1:
            raise ConfigError(
                f"level_size: expected 1 or more, or {self.n_levels} such numbers (one a level), got {self.level_size}"
            )

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Number of codes K of each level."""
        return (self.level_size,) * self.n_levels if isinstance(self.level_size, int) else tuple(self.level_size)


class RandomIds(Indexing):
    """Random identifiers, all different (RID); recipe: ``tokenizers/random.yaml`` (stable).

    The published form is a random number as text: unlike items share digits, which misleads more than it helps. As
    ``written: codes``, with the sizes of another item tokenizer, it is the control that says what that tokenizer's
    *structure* is worth: the same lengths and vocabulary, no meaning (recipe ``tokenizers/random-codes.yaml``).
    """

    Settings: ClassVar[type[Any]] = RandomSettings

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """Draw an identifier for every item; DataError for more items than identifiers, or for none."""
        check_items(source)
        settings, generator, rank_N = self.settings, rng(seed, "random ids"), key_ranks(source.item_keys)
        if settings.written == "codes":
            rows_NL = distinct_rows(settings.level_sizes, source.n_items, generator)[rank_N]
            return self._done(source, ItemCodes(rows_NL, settings.level_sizes, source.catalog))
        n_numbers = source.n_items if settings.n_numbers is None else settings.n_numbers
        drawn_N = distinct_rows((n_numbers,), source.n_items, generator)[rank_N, 0]
        codes = number_codes(settings.first_number + drawn_N, settings.base, settings.text_tokenizer, source.catalog)
        return self._done(source, codes)


@dataclass(frozen=True)
class SequentialSettings:
    """Settings of :class:`Sequential`; ConfigError for values out of range (stable).

    order: of users: original | random | short_first | long_first (histories). first_number: of the first item. base:
    of the digits. text_tokenizer: a Hugging Face text tokenizer that writes the numbers (None = digit by digit).
    """

    kind: Literal["sequential"] = "sequential"
    order: UserOrder = "original"
    first_number: int = 1001
    base: int = 10
    text_tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.order not in USER_ORDERS:
            raise ConfigError(f"order: expected one of {', '.join(USER_ORDERS)}, got {self.order!r}")
        check_number_options(self.first_number, self.base, self.text_tokenizer)


class Sequential(Indexing):
    """Numbers in the order of first use (SID); recipe: ``tokenizers/sequential.yaml`` (stable).

    ::

        for user in the chosen order:  for item of the training history, oldest first:
            if it has no number yet:  give it the next one
        then, in key order, number the items that occur in no training history

    So items that are used together tend to share their leading digits. Only the *training* part is walked: numbering
    whole sequences makes the answer of a test "the next number", and results obtained that way mean nothing.
    ``original`` keeps the order of the histories (the paper's time-sensitive order where they are sorted by time).
    """

    Settings: ClassVar[type[Any]] = SequentialSettings

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """Number the items; DataError without training histories."""
        users = user_order(source.histories(), self.settings.order, seed)
        used = first_uses(source.histories().take(users))
        number_N = np.full(source.n_items, -1, dtype=np.int64)
        number_N[used] = np.arange(len(used))
        unused = np.flatnonzero(number_N < 0)
        number_N[unused] = len(used) + key_ranks(source.item_keys[unused])
        codes = number_codes(
            self.settings.first_number + number_N, self.settings.base, self.settings.text_tokenizer, source.catalog
        )
        return self._done(source, codes, n_cold=len(unused))


def key_ranks(keys: npt.NDArray[np.uint64]) -> Ints:
    """The place of each item in key order, int64 ``[N]`` (internal)."""
    return np.argsort(np.argsort(keys, kind="stable"))


def distinct_rows(sizes: tuple[int, ...], n: int, generator: np.random.Generator) -> Ints:
    """``n`` different random rows with ``row[l] < sizes[l]``, int64 ``[n, L]``, all equally likely (internal)."""
    total = prod(sizes)
    if n > total:
        raise DataError(
            f"{n} items do not fit into {total} identifiers ({'x'.join(map(str, sizes))})",
            hint="raise n_numbers, or n_levels or level_size",
        )
    if total <= 4 * n:
        return np.column_stack(np.unravel_index(generator.permutation(total)[:n], sizes))
    rows = np.empty((0, len(sizes)), dtype=np.int64)
    while len(rows) < n:
        more = generator.integers(0, np.array(sizes), size=(n, len(sizes)))
        rows = np.concatenate([rows, more])
        rows = rows[np.sort(np.unique(rows, axis=0, return_index=True)[1])]
    return rows[:n]


def user_order(histories: Histories, order: UserOrder, seed: int) -> Ints:
    """The rows of ``histories`` in the order to walk them; equal lengths keep theirs (internal)."""
    if order == "random":
        return rng(seed, "user order").permutation(len(histories))
    if order == "original":
        return np.arange(len(histories))
    return np.argsort(histories.lengths if order == "short_first" else -histories.lengths, kind="stable")


def first_uses(histories: Histories) -> Ints:
    """Every item that occurs, by its first place in the rows one after the other (internal)."""
    items, place = np.unique(histories.items, return_index=True)
    return np.asarray(items[np.argsort(place)], dtype=np.int64)
