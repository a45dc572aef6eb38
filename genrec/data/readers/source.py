"""Bytes to numbered rows: files, gzip, size limits, encodings, CSV, JSON lines, parquet."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from genrec.data.readers.base import ReaderSettings, RowError, short
from genrec.errors import DataError

_CHUNK = 2**20
_MAX_LINE = 2**26
_BOM = b"\xef\xbb\xbf"

Numbered = tuple[int, "str | RowError"]


@dataclass(frozen=True)
class Files:
    """The files a reader reads: the log, and the items where it has them (internal)."""

    items: Path | None
    log: Path


@dataclass(frozen=True)
class Wanted:
    """A file to look for: what it is, the patterns usual for its format, where to get it (internal)."""

    what: str
    patterns: Sequence[str]
    url: str


def locate(settings: ReaderSettings, items: Wanted, log: Wanted, *, need_items: bool = False) -> Files:
    """The files of a data set (internal).

    Raises :class:`DataError` without a log, or without items unless the settings take them from the log.
    """
    found = _find(settings, settings.items, items)
    if found is None and (need_items or settings.unknown_items == "error"):
        raise _missing(settings, items, "" if need_items else "set unknown_items='add' to do without it, or ")
    events = _find(settings, settings.interactions, log)
    if events is None:
        raise _missing(settings, log)
    return Files(found, events)


def _find(settings: ReaderSettings, name: str | None, wanted: Wanted) -> Path | None:
    """The file of this name, else the only match of the first pattern with a match, else None."""
    folder, what = settings.folder, wanted.what
    if not folder.exists():
        raise DataError(
            f"{folder}: no such folder", hint=f"give the folder that holds the files; the {wanted.what}: {wanted.url}"
        )
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder, found a file", hint="give the folder as path")
    if name is not None:
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: no such file; in the folder: {_names(folder)}", hint=_get_it(wanted))
        return folder / name
    for pattern in wanted.patterns:
        matches = sorted(p for p in folder.glob(pattern) if p.is_file())
        if len(matches) > 1:
            names = ", ".join(p.name for p in matches[:10])
            raise DataError(f"{folder}: several files could be the {what}: {names}", hint="name the one to read")
        if matches:
            return matches[0]
    return None


def _missing(settings: ReaderSettings, wanted: Wanted, advice: str = "") -> DataError:
    """What was looked for, and where to get it."""
    looked = ", ".join(wanted.patterns)
    return DataError(
        f"{settings.folder}: no {wanted.what}; looked for {looked}; found {_names(settings.folder)}",
        hint=advice + _get_it(wanted),
    )


def _names(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"


def _get_it(wanted: Wanted) -> str:
    return f"name the file in the settings if it is called otherwise; the {wanted.what}: {wanted.url}"


def lines(path: Path, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The lines of a plain or gzip file with their numbers from 1, without newline and byte-order mark (internal).

    Raises :class:`DataError` for a damaged gzip file and beyond ``max_bytes`` decompressed bytes: both also
    when bad rows are skipped, since what would be left is an arbitrary part of the data.
    """
    number, rest, total = 0, b"", 0
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream: BinaryIO = gzip.GzipFile(fileobj=raw) if zipped else raw  # type: ignore[assignment]
        while chunk := _read(stream, path, number):
            if total == 0:
                chunk = chunk.removeprefix(_BOM)
            total += len(chunk)
            if total > max_bytes:
                raise DataError(
                    f"{path}: more than {max_bytes} bytes after decompression (reached at line {number + 1})",
                    hint="raise max_bytes if the file is really that large",
                )
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                number += 1
                yield number, line
            if len(rest) > _MAX_LINE:
                raise DataError(f"{path}, line {number + 1}: longer than {_MAX_LINE} bytes; is this a text file?")
    if rest:
        yield number + 1, rest


def _read(stream: BinaryIO, path: Path, number: int) -> bytes:
    try:
        return stream.read(_CHUNK)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: damaged gzip data after line {number} ({error})",
            hint="the file is cut short or corrupt: download it again",
        ) from error


def texts(
    path: Path, settings: ReaderSettings, *, fallback: str | None = None, whole: bool = False
) -> Iterator[Numbered]:
    """The lines as text; blank lines are passed over, one that cannot be decoded is a RowError (internal).

    ``fallback``: encoding of the lines that are not valid UTF-8, unless the settings name the encoding.
    ``whole``: blank lines and carriage returns stay, since a quoted value may contain them.
    """
    encoding = settings.encoding or "utf-8"
    for number, raw in lines(path, settings.max_bytes):
        if not whole:
            raw = raw.removesuffix(b"\r")
            if not raw.strip():
                continue
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError as error:
            if fallback is None or settings.encoding is not None:
                yield number, _undecodable(raw, encoding, error)
                continue
            text = raw.decode(fallback)
        yield number, (RowError("NUL", "line", "contains a NUL character") if "\0" in text else text)


def _undecodable(raw: bytes, encoding: str, error: UnicodeDecodeError) -> RowError:
    message = f"not {encoding}: byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line"
    return RowError("bad encoding", "line", message, "convert the file, or set encoding (for example 'latin-1')")


Row = list[str] | RowError


def csv_rows(path: Path, settings: ReaderSettings, delimiter: str) -> tuple[list[str], Iterator[tuple[int, Row]]]:
    """Header and numbered rows of a CSV file; a row of another width than the header is a RowError (internal).

    The number is that of the line where the row begins (a quoted value may contain line ends). A row over
    several lines that cannot be used costs its first line only, and the lines after it are read again: a
    stray quote would otherwise take everything up to the next one along, thousands of rows under one number.
    """
    numbered = _CsvLines(path, settings)
    reader = csv.reader(numbered, delimiter=delimiter, strict=True)
    line, header = next(_parse_csv(numbered, reader), (1, []))
    if isinstance(header, RowError):
        raise DataError(f"{path}, line {line}, field 'header': {header}", hint=header.hint)
    if not header:
        raise DataError(f"{path}, line 1: expected a header with column names, the file is empty")
    if len(set(header)) != len(header) or "" in header:
        raise DataError(f"{path}, line {line}, field 'header': expected different non-empty names, got {header}")
    return header, _parse_csv(numbered, reader, len(header))


class _CsvLines:
    """The lines a csv.reader asks for; those of the row in work can be put back."""

    def __init__(self, path: Path, settings: ReaderSettings) -> None:
        self._fresh = texts(path, settings, whole=True)
        self._again: deque[tuple[int, str]] = deque()
        self.bad: list[tuple[int, RowError]] = []  # met on the way, not part of any row
        self.taken: list[tuple[int, str]] = []  # of the row in work

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._again:
            self.taken.append(self._again.popleft())
            return self.taken[-1][1]
        for number, text in self._fresh:
            if isinstance(text, RowError):
                self.bad.append((number, text))
                continue
            self.taken.append((number, text + "\n"))
            return self.taken[-1][1]
        raise StopIteration

    def put_back(self) -> None:
        """All lines of the row in work but its first will be given out again."""
        self._again.extendleft(reversed(self.taken[1:]))


def _parse_csv(numbered: _CsvLines, reader: Iterator[list[str]], width: int | None = None) -> Iterator[tuple[int, Row]]:
    while True:
        numbered.taken.clear()
        row: Row | None
        try:
            row = next(reader, None)
        except csv.Error as error:
            row = RowError("bad CSV", "line", f"not a CSV row: {error}", "check the quotes of this row")
        if row and width is not None and not isinstance(row, RowError) and len(row) != width:
            row = RowError("ragged row", "line", f"expected {width} values like the header, got {len(row)}")
        yield from numbered.bad
        numbered.bad.clear()
        if row is None:
            return
        if isinstance(row, RowError):
            numbered.put_back()
        if isinstance(row, RowError) or row:
            yield numbered.taken[0][0], row


def json_objects(
    numbered: Iterable[Numbered],
) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """One JSON object per line; anything else (NaN and Infinity too) is a RowError (internal)."""
    for number, text in numbered:
        yield number, (text if isinstance(text, RowError) else parse_json(text))


def parse_json(text: str) -> dict[str, Any] | RowError:
    """The object in a line of JSON, or the reason why there is none (internal)."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return RowError("bad JSON", "line", f"not JSON: {error}; the line starts {short(text)}")
    if not isinstance(value, dict):
        return RowError("bad JSON", "line", f"expected an object, got {type(value).__name__} {short(value)}")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def parquet_names(path: Path) -> list[str]:
    """The column names of a parquet file (internal)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise _no_parquet(path, error) from error


def _no_parquet(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: not a readable parquet file ({error})", hint="write it again, or check that it is parquet"
    )


def parquet_columns(path: Path, settings: ReaderSettings) -> dict[str, list[Any]]:
    """All columns of a parquet file as Python lists (internal)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(g).total_byte_size for g in groups)
            if size > settings.max_bytes:
                raise DataError(
                    f"{path}: {size} bytes decompressed, limit {settings.max_bytes}",
                    hint="raise max_bytes if the file is really that large",
                )
            table = file.read()
            return {name: table.column(name).to_pylist() for name in table.column_names}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _no_parquet(path, error) from error
