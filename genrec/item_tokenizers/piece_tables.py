"""Groups and prefixes of codes as rows of embedding tables, for a ranking model (numpy only, no torch).

Axes: N items, L levels, K codes of a level, M codes of a group, P rows of all items together.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.errors import ConfigError, DataError, FingerprintMismatch
from genrec.item_tokenizers.base import check_at_least
from genrec.item_tokenizers.codes import ItemCodes, row_numbers
from genrec.seeding import derive

MOST_ROWS = 2**31 - 1  # a row number is an int32
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class NgramSettings:
    """Groups of ``n`` consecutive codes, a table for each group; ConfigError for values out of range (experimental).

    n: codes of a group. max_rows: rows of a table at most; a group with more possible values is hashed.
    """

    kind: Literal["ngram"] = "ngram"
    n: int = 2
    max_rows: int = 2**22

    def __post_init__(self) -> None:
        check_at_least(self, {"n": 1, "max_rows": 1})


@dataclass(frozen=True)
class PrefixSettings:
    """Every prefix of an identifier, a table for each length; ConfigError for values out of range (experimental).

    max_rows: rows of a table at most; prefixes of a length that has more possible values are hashed.
    """

    kind: Literal["prefix"] = "prefix"
    max_rows: int = 2**22

    def __post_init__(self) -> None:
        check_at_least(self, {"max_rows": 1})


@dataclass(frozen=True)
class PieceTable:
    """A block of rows: what it says about an identifier (experimental).

    levels ``first .. end - 1`` (from 0) of an identifier choose one of the rows ``offset .. offset + size - 1``.
    hashed: different codes may share a row.
    """

    first: int
    end: int
    offset: int
    size: int
    hashed: bool


@dataclass(frozen=True, eq=False)
class PieceFeatures:
    """Rows of an embedding table for every item: item n has ``rows[offsets[n]:offsets[n + 1]]`` (experimental).

    offsets: int64 ``[N + 1]``. rows: int32 ``[P]``, 0 .. n_rows - 1. n_rows: rows of the whole table. ``rows`` and
    ``offsets[:-1]`` are the two inputs of ``torch.nn.EmbeddingBag``. catalog: fingerprint, "" where it is not known.
    """

    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int32]
    n_rows: int
    catalog: str = ""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Pieces of each item, int64 ``[N]``."""
        return np.diff(self.offsets)

    def padded(self, pad: int = -1) -> npt.NDArray[np.int32]:
        """The rows as one matrix, int32 ``[N, T]``, T the most pieces of an item; ``pad`` fills the right end."""
        return Histories(self.offsets, self.rows).padded(pad=pad, side="right")

    def to_lists(self) -> list[list[int]]:
        """The rows of each item as lists of Python integers."""
        return Histories(self.offsets, self.rows).to_lists()


@dataclass(frozen=True)
class LearnedOn:
    """The codes that pieces were learned on: what they may be applied to (internal)."""

    level_sizes: tuple[int, ...]
    shared_vocabulary: bool
    ragged: bool
    fingerprint: str
    n_items: int
    catalog: str

    @classmethod
    def of(cls, codes: ItemCodes) -> LearnedOn:
        """What is remembered of ``codes``."""
        return cls(
            codes.level_sizes, codes.shared_vocabulary, codes.ragged, codes.fingerprint, len(codes), codes.catalog
        )

    def check(self, codes: ItemCodes) -> None:
        """Raise DataError unless ``codes`` have the same levels."""
        for name, mine, theirs in (
            ("level_sizes", self.level_sizes, codes.level_sizes),
            ("shared_vocabulary", self.shared_vocabulary, codes.shared_vocabulary),
        ):
            if mine != theirs:
                raise DataError(
                    f"{name}: expected {mine}, as the pieces were learned with, got {theirs}",
                    hint="learn pieces anew for these codes; a ranking model then learns its table anew too",
                )

    def check_extends(self, codes: ItemCodes) -> None:
        """Raise FingerprintMismatch unless ``codes`` begin with the codes that the pieces were learned on."""
        if not codes.extends(self.fingerprint, self.n_items, self.catalog):
            raise FingerprintMismatch(
                f"the pieces were learned on other codes ({self.n_items} items, fingerprint {self.fingerprint[:8]}), "
                f"which these ({len(codes)} items) do not begin with: a code may mean something else now",
                hint="learn pieces anew for these codes; a ranking model then learns its table anew too",
            )


class SpanPieces:
    """N-gram or prefix pieces: for every table, the row that the codes of its levels choose (experimental).

    ::

        ngram:   levels 0..n-1, n..2n-1, ... ; the last group may be shorter
        prefix:  level 0, levels 0..1, levels 0..2, ...
        row = offset + number of the codes, in lexicographic order     while a table has at most max_rows
        row = offset + hash(codes) % max_rows                          beyond

    Where identifiers are of unequal length (`ItemCodes.ragged`), an identifier that ends inside a group of ``n`` gets
    a row of a table of its own for what there is of the group; prefixes go to its end.

    N-grams: Singh et al., "Better Generalization with Semantic IDs" (2023, 2306.08121). Prefixes: Zheng et al.,
    "Enhancing Embedding Representation Stability in Recommendation Systems with Semantic ID" (2025, 2504.02137).
    Where a table is too large we hash all codes of the group, not its number modulo the rows: modulo a multiple of K,
    groups with equal last codes would fall into one row. Prefixes of each length have a table of their own, so that a
    long one never shares the row of a short one.
    """

    def __init__(self, settings: NgramSettings | PrefixSettings, learned_on: LearnedOn, *, seed: int = 0) -> None:
        self.settings, self.learned_on, self.seed = settings, learned_on, seed
        self.tables = _tables(settings, learned_on)

    @property
    def n_rows(self) -> int:
        """Rows of all tables together."""
        return self.tables[-1].offset + self.tables[-1].size

    def encode(self, codes: ItemCodes) -> PieceFeatures:
        """The rows of any items, in the order of the tables; DataError for codes with other levels."""
        self.learned_on.check(codes)
        if codes.ragged and not self.learned_on.ragged and self.settings.kind == "ngram":
            raise DataError(
                "expected identifiers of equal length, as the pieces were learned with, got ragged ones",
                hint="learn pieces anew on codes that have short identifiers too",
            )
        has_NT = self._has(codes)
        rows_NT = np.empty(has_NT.shape, dtype=np.int32)
        for at, table in enumerate(self.tables):
            rows_NT[:, at] = self._index(codes, table) + table.offset
        offsets = np.zeros(len(codes) + 1, dtype=np.int64)
        np.cumsum(has_NT.sum(axis=1), out=offsets[1:])
        return PieceFeatures(offsets, rows_NT[has_NT], self.n_rows, codes.catalog)

    def details(self, codes: ItemCodes, features: PieceFeatures) -> dict[str, Any]:
        """For each table how many different groups these items have, and how many of them share a row (internal)."""
        has_NT = self._has(codes)
        found = []
        for at, table in enumerate(self.tables):
            groups_MG = codes.codes[has_NT[:, at], table.first : table.end]
            ids = row_numbers(groups_MG)
            n_groups = int(ids.max(initial=-1)) + 1
            row_of = np.zeros(n_groups, dtype=np.int64)
            row_of[ids] = self._index(codes, table)[has_NT[:, at]]
            _, inverse, n_of = np.unique(row_of, return_inverse=True, return_counts=True)
            found.append({"groups": n_groups, "sharing_a_row": int((n_of[inverse] > 1).sum())})
        return {"tables": found}

    def _has(self, codes: ItemCodes) -> npt.NDArray[np.bool_]:
        """Which items have a row of which table, bool ``[N, tables]``."""
        lengths = np.full(len(codes), codes.n_levels) if codes.lengths is None else codes.lengths
        ends = np.array([table.end for table in self.tables])
        whole_NT: npt.NDArray[np.bool_] = lengths[:, None] >= ends
        if self.settings.kind == "ngram" and self.learned_on.ragged:
            full = np.minimum(np.array([table.first for table in self.tables]) + self.settings.n, codes.n_levels)
            return np.where(ends == full, whole_NT, lengths[:, None] == ends)
        return whole_NT

    def _index(self, codes: ItemCodes, table: PieceTable) -> npt.NDArray[np.int64]:
        """The row inside ``table`` that an item's codes choose, int64 ``[N]`` (no meaning where it has none)."""
        columns = [codes.codes[:, level].astype(np.int64) for level in range(table.first, table.end)]
        if table.hashed:
            seed = derive(self.seed, "pieces", table.first, table.end)
            return (_hash(columns, seed) % np.uint64(table.size)).astype(np.int64)
        index = np.zeros(len(codes), dtype=np.int64)
        for column, size in zip(columns, codes.level_sizes[table.first : table.end], strict=True):
            index = index * size + column
        return index


def _tables(settings: NgramSettings | PrefixSettings, learned_on: LearnedOn) -> tuple[PieceTable, ...]:
    n_levels = len(learned_on.level_sizes)
    if isinstance(settings, PrefixSettings):
        spans = [(0, end) for end in range(1, n_levels + 1)]
    else:
        groups = [(first, min(first + settings.n, n_levels)) for first in range(0, n_levels, settings.n)]
        spans = [(a, end) for a, b in groups for end in range(a + 1 if learned_on.ragged else b, b + 1)]
    found: list[PieceTable] = []
    offset = 0
    for first, end in spans:
        possible = prod(learned_on.level_sizes[first:end])
        size = min(possible, settings.max_rows)
        found.append(PieceTable(first, end, offset, size, possible > size))
        offset += size
    if offset > MOST_ROWS:
        raise ConfigError(
            f"max_rows: expected tables of at most {MOST_ROWS:,} rows together, got {offset:,} in {len(spans)} tables",
            hint=f"a max_rows of {MOST_ROWS // len(spans):,} or less always fits",
        )
    return tuple(found)


def _hash(columns: list[npt.NDArray[np.int64]], seed: int) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each row, uint64 ``[N]``, the same on every machine: SplitMix64's mixer after every code."""
    out = np.full(len(columns[0]), seed, dtype=np.uint64)
    for column in columns:
        out += (column.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out ^= out >> np.uint64(31)
    return out
