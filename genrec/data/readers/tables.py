"""Event tables with named columns: CSV (plain or gzip) and parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec.data.readers import source
from genrec.data.readers.base import Ledger, OnError, ReaderSettings, Rejected, RowError
from genrec.data.readers.build import EventRows, ItemRows
from genrec.errors import DataError


@dataclass(frozen=True)
class Columns:
    """Which columns of an event table mean what; ``time`` None = the order of the file (internal).

    ``optional`` are kept where they exist. With ``known_only`` any further column is an error: a misspelt
    name would otherwise be lost without a word.
    """

    user: str
    item: str
    time: str | None
    optional: Sequence[str] = ()
    known_only: bool = False


@dataclass(frozen=True, eq=False)
class Table:
    """Header, numbered rows, and whether the numbers count lines or rows (internal)."""

    header: list[str]
    rows: Iterable[tuple[int, Sequence[Any] | RowError]]
    unit: str


def header(path: Path, settings: ReaderSettings, delimiter: str | None = None) -> list[str]:
    """The column names of a table, without reading on (internal)."""
    if path.suffix != ".parquet":
        return open_table(path, settings, delimiter).header
    return source.parquet_names(path)


def check_events(path: Path, settings: ReaderSettings, columns: Columns) -> None:
    """Raise DataError where :func:`read_events` would for the header (internal)."""
    wanted = [columns.user, columns.item, *([columns.time] if columns.time else [])]
    names = header(path, settings)
    _check_header(path, names, [*wanted, *(settings.context or ())])
    if columns.known_only:
        _check_known(path, names, [*wanted, *columns.optional])


def open_table(path: Path, settings: ReaderSettings, delimiter: str | None = None) -> Table:
    """A CSV or parquet file as rows (internal)."""
    if path.suffix == ".parquet":
        columns = source.parquet_columns(path, settings)
        return Table(list(columns), enumerate(zip(*columns.values(), strict=True), start=1), "row")
    name = path.name.removesuffix(".gz")
    guess = "\t" if name.endswith((".tsv", ".txt", ".tab")) else ","
    header, rows = source.csv_rows(path, settings, delimiter or settings.delimiter or guess)
    return Table(header, rows, "line")


def read_events(
    path: Path,
    settings: ReaderSettings,
    on_error: OnError,
    rejected: Rejected,
    items: ItemRows,
    columns: Columns,
) -> EventRows:
    """The events of a table (internal)."""
    table = open_table(path, settings)
    wanted = [columns.user, columns.item, *([columns.time] if columns.time else [])]
    at = {name: n for n, name in enumerate(table.header)}
    context = [c for c in columns.optional if c in at and c not in wanted] if settings.context is None else None
    names = context if context is not None else list(settings.context or ())
    _check_header(path, table.header, [*wanted, *names])
    if columns.known_only:
        _check_known(path, table.header, [*wanted, *columns.optional])

    events = EventRows(items, settings, names, timed=columns.time is not None)
    events.names = {"user": columns.user, "item": columns.item, "time": columns.time or ""}
    user, item, time = at[columns.user], at[columns.item], at[columns.time] if columns.time else -1
    extra = [at[name] for name in names]

    def add(row: Sequence[Any]) -> None:
        events.add(row[user], row[item], row[time], [row[n] for n in extra])

    Ledger(path, on_error, rejected, table.unit).read(table.rows, add, events.__len__)
    return events


def wrong_delimiter(header: Sequence[str]) -> str | None:
    """What to do about a header that looks like one column because other characters separate its names (internal)."""
    found = [mark for mark in (";", "|", "\t", ",") if len(header) == 1 and mark in header[0]]
    return f"the columns seem to be separated by {found[0]!r}: set delimiter" if found else None


def _check_header(path: Path, header: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in header]
    if missing:
        raise DataError(
            f"{path}, line 1, field 'header': column {missing[0]!r} is missing; found {', '.join(header)}",
            hint=wrong_delimiter(header) or "correct the header, or name the column in the settings",
        )


def _check_known(path: Path, header: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in header if name not in known]
    if unknown:
        raise DataError(
            f"{path}, line 1, field 'header': unknown column {unknown[0]!r}; known: {', '.join(known)}",
            hint="correct its name, or list the columns to keep in the setting context",
        )


def rows_as_dicts(table: Table) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """The rows of a table as dicts from column name to value (internal)."""
    for line, row in table.rows:
        yield line, row if isinstance(row, RowError) else dict(zip(table.header, row, strict=True))
