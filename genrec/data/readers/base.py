"""What all readers share: settings, the result, and the account of every row that was read."""

from __future__ import annotations

import codecs
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from genrec.data.catalog import ItemCatalog
from genrec.data.interactions import Interactions
from genrec.errors import ConfigError, DataError

log = logging.getLogger(__name__)
OnError = Literal["fail", "skip"]
T = TypeVar("T")
N_EXAMPLES = 20


@dataclass(frozen=True)
class ReaderSettings:
    """Where data lies and how to read it.

    format: which reader. path: the folder of the files. interactions, items: file names in it; without them
    the names usual for the format are looked for.
    user_column, item_column, time_column, title_column: column names (tabular, recbole; other formats know
    theirs). Tabular data without time_column takes the order of the file as time.
    context: further columns (amazon: keys) to keep for every event; None = those usual for the format.
    unknown_items: what to do with an item that only the log knows: "error", or "add" it without text.
    delimiter, encoding: of text files, where the format leaves it open. The encoding must have ASCII's line
    ends (UTF-16 does not).
    time_scale: stored time = time in the file × this, rounded; 1000 keeps milliseconds of fractional seconds.
    max_bytes: limit on the decompressed size of one file, in bytes.
    Stability: stable.
    """

    format: Literal["neutral", "amazon", "movielens", "recbole", "tabular"]
    path: str | Path
    interactions: str | None = None
    items: str | None = None
    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    title_column: str | None = None
    context: tuple[str, ...] | None = None
    unknown_items: Literal["error", "add"] = "error"
    delimiter: str | None = None
    encoding: str | None = None
    time_scale: float = 1.0
    max_bytes: int = 16 * 2**30

    def __post_init__(self) -> None:
        if self.unknown_items not in ("error", "add"):
            raise ConfigError(f"unknown_items: expected 'error' or 'add', got {self.unknown_items!r}")
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ConfigError(f"delimiter: expected one character, got {self.delimiter!r}")
        if not (np.isfinite(self.time_scale) and self.time_scale > 0):
            raise ConfigError(f"time_scale: expected a positive number, got {self.time_scale}")
        if self.max_bytes < 1:
            raise ConfigError(f"max_bytes: expected at least 1, got {self.max_bytes}")
        if self.encoding is not None and not _splits_at_newlines(self.encoding):
            raise ConfigError(
                f"encoding: expected one that Python knows and that has ASCII's line ends, got {self.encoding!r}",
                hint="such as 'utf-8', 'latin-1', 'cp1252'; convert UTF-16 files to UTF-8",
            )

    @property
    def folder(self) -> Path:
        """``path`` as a Path."""
        return Path(self.path)


@dataclass(frozen=True)
class Reject:
    """One row that was left out: where, which field, why (stable)."""

    file: str
    line: int
    field: str
    reason: str
    message: str


@dataclass(frozen=True)
class RowCount:
    """Rows of one file; ``rows_in == rows_kept + rows_rejected`` always (stable)."""

    rows_in: int
    rows_kept: int
    rows_rejected: int


@dataclass
class Rejected:
    """What was left out: counts by (file, reason), up to 20 examples, and the row balance of every file (stable)."""

    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    examples: list[Reject] = field(default_factory=list)
    rows: dict[str, RowCount] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of rows left out."""
        return sum(self.counts.values())

    def account(self, folder: Path) -> dict[str, dict[str, Any]]:
        """The balance of every file with rejects, and their number by reason, as JSON: what artifacts keep.

        Files inside ``folder`` are named relative to it.
        """
        found: dict[str, dict[str, Any]] = {}
        for (file, reason), n in self.counts.items():
            path = Path(file)
            name = str(path.relative_to(folder)) if path.is_relative_to(folder) else file
            found.setdefault(name, {**asdict(self.rows[file]), "reasons": {}})["reasons"][reason] = n
        return found

    def __bool__(self) -> bool:
        """Whether anything was left out."""
        return self.total > 0

    def __str__(self) -> str:
        lines = [f"{file}: {n} x {reason}" for (file, reason), n in self.counts.items()]
        first = {(e.file, e.reason): e for e in reversed(self.examples)}
        places = [f"; first: line {first[k].line}: {first[k].message}" if k in first else "" for k in self.counts]
        return "\n".join([f"left out {self.total} rows", *map(str.__add__, lines, places)])


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a reader returns. Stability: stable."""

    catalog: ItemCatalog
    interactions: Interactions
    rejected: Rejected


class RowError(Exception):
    """A row cannot be used; turned into a DataError, or counted (internal)."""

    def __init__(self, reason: str, field: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.reason, self.field, self.hint = reason, field, hint


class Ledger:
    """Accounts for the rows of one file: a bad row raises :class:`DataError`, or is counted (internal)."""

    def __init__(self, file: Path, on_error: OnError, rejected: Rejected, unit: str = "line") -> None:
        if on_error not in ("fail", "skip"):
            raise ConfigError(f"on_error: expected 'fail' or 'skip', got {on_error!r}")
        self.file, self.on_error, self.rejected, self.unit = file, on_error, rejected, unit

    def fail(self, line: int, field: str, message: str, hint: str | None = None) -> DataError:
        """The error for something that skipping rows cannot mend."""
        return DataError(f"{self.file}, {self.unit} {line}, field {field!r}: {message}", hint=hint)

    def read(
        self,
        rows: Iterable[tuple[int, T | RowError]],
        add: Callable[[T], None],
        kept: Callable[[], int],
    ) -> None:
        """Give every row to ``add``, reject what raises RowError; ``kept()`` counts what ``add`` took."""
        rows_in, rejected, before, rows = 0, 0, kept(), iter(rows)
        for line, row in rows:
            rows_in += 1
            try:
                if isinstance(row, RowError):
                    raise row
                add(row)
            except RowError as error:
                rejected += 1
                if self.on_error == "fail":
                    raise self._stop(line, error, rows, add) from None
                self._reject(line, error)
        count = RowCount(rows_in, kept() - before, rejected)
        if count.rows_in != count.rows_kept + count.rows_rejected:
            raise DataError(f"{self.file}: rows got lost without a reason: {count}", hint="this is a bug of the reader")
        self.rejected.rows[str(self.file)] = count
        if rejected:
            log.warning("%s: left out %d of %d rows", self.file, rejected, rows_in)
        if not rows_in:
            raise DataError(f"{self.file}: no rows in the file", hint="is it the right file, and complete?")
        if rejected == rows_in:
            first = next(r for r in self.rejected.examples if r.file == str(self.file))
            raise DataError(
                f"{self.file}: none of the {rows_in} rows can be used, first: {self.unit} {first.line}, "
                f"field {first.field!r}: {first.message}"
            )

    def _stop(
        self, line: int, error: RowError, rest: Iterable[tuple[int, T | RowError]], add: Callable[[T], None]
    ) -> DataError:
        """The error for the first bad row, with the number of all: one round of corrections may do."""
        reasons = Counter([error.reason])
        with contextlib.suppress(DataError):  # what is wrong with the whole file is told when it is reached
            for _, row in rest:
                try:
                    if isinstance(row, RowError):
                        raise row
                    add(row)
                except RowError as other:
                    reasons[other.reason] += 1
        more = ", ".join(f"{n} x {reason}" for reason, n in reasons.items())
        more = f" ({reasons.total()} bad rows in this file: {more})" if reasons.total() > 1 else ""
        hint = f"{error.hint or 'correct the file'}, or leave such rows out: on_error='skip' (--on-error skip)"
        return self.fail(line, error.field, f"{error}{more}", hint)

    def _reject(self, line: int, error: RowError) -> None:
        file, reason = str(self.file), error.reason
        counts = self.rejected.counts
        counts[file, reason] = counts.get((file, reason), 0) + 1
        ours = sum(r.file == file for r in self.rejected.examples)
        # the first reject of every file has a place, so that a file with many cannot hide another
        if len(self.rejected.examples) < N_EXAMPLES or not ours:
            if len(self.rejected.examples) == N_EXAMPLES:
                self.rejected.examples.pop()
            self.rejected.examples.append(Reject(file, line, error.field, reason, str(error)))


def _splits_at_newlines(encoding: str) -> bool:
    try:
        return codecs.encode("a\n", encoding) == b"a\n"
    except (LookupError, TypeError, ValueError):
        return False


def short(value: Any) -> str:
    """A value for an error message, cut to 60 characters (internal)."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
