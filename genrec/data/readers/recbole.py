"""RecBole's atomic files: tab-separated ``.inter`` and ``.item`` with typed headers such as ``rating:float``.

Types: token (text), token_seq (list of text), float (number), float_seq (kept as a list of text). Columns:
user_id, item_id, timestamp unless the settings name others; the title is title_column, else the first of
"title", "movie_title", "item_name", "name" that exists. Without a timestamp the order of the file counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from genrec.data.readers import source
from genrec.data.readers.base import Ledger, Loaded, OnError, ReaderSettings, Rejected, RowError, log
from genrec.data.readers.build import EventRows, ItemRows, finish, number
from genrec.errors import DataError

URL = "atomic files are described and offered at https://recbole.io/docs/user_guide/data/atomic_files.html"
ITEMS = source.Wanted(".item file", ("*.item",), URL)
EVENTS = source.Wanted(".inter file", ("*.inter",), URL)
TYPES = ("token", "token_seq", "float", "float_seq")
TITLES = ("title", "movie_title", "item_name", "name")

Typed = dict[str, str]


def files(settings: ReaderSettings) -> source.Files:
    """What :func:`read` reads (internal)."""
    return source.locate(settings, ITEMS, EVENTS)


def read(settings: ReaderSettings, on_error: OnError = "fail") -> Loaded:
    """Read ``.inter`` and ``.item``; raises :class:`DataError` naming file, line and field (internal)."""
    found, rejected, items = files(settings), Rejected(), ItemRows()
    if found.items is not None:
        _read_items(found.items, settings, Ledger(found.items, on_error, rejected), items)
    events = _read_events(found.log, settings, Ledger(found.log, on_error, rejected), items)
    return finish(items, events, rejected)


def _read_items(path: Path, settings: ReaderSettings, ledger: Ledger, items: ItemRows) -> None:
    types, rows = _open(path, settings)
    id_column = settings.item_column or "item_id"
    title = settings.title_column or next((name for name in TITLES if name in types), None)
    _need_columns(path, types, [id_column, *([title] if title else [])])
    if title is None:
        log.warning("%s: no title column (looked for %s); titles are missing", path, ", ".join(TITLES))

    def add(row: dict[str, str]) -> None:
        values = {"title": row[title] or None} if title else {}
        for name, type_ in types.items():
            if name not in (id_column, title):
                values[name] = _convert(row[name], type_, name)
        items.add(row[id_column], values, id_column)

    ledger.read(rows, add, items.__len__)


def _read_events(path: Path, settings: ReaderSettings, ledger: Ledger, items: ItemRows) -> EventRows:
    types, rows = _open(path, settings)
    user, item = settings.user_column or "user_id", settings.item_column or "item_id"
    time = settings.time_column or ("timestamp" if "timestamp" in types else None)
    others = [name for name in types if name not in (user, item, time)]
    context = others if settings.context is None else list(settings.context)
    _need_columns(path, types, [user, item, *([time] if time else []), *context])
    events = EventRows(items, settings, context, timed=time is not None)
    events.names = {"user": user, "item": item, "time": time or ""}

    def add(row: dict[str, str]) -> None:
        values = [number(row[n], n) if types[n] == "float" and row[n] else row[n] for n in context]
        events.add(row[user], row[item], row[time] if time else None, values)

    ledger.read(rows, add, events.__len__)
    return events


def _convert(text: str, type_: str, name: str) -> Any:
    if text == "":
        return None
    if type_ == "float":
        return number(text, name)
    return text.split(" ") if type_.endswith("_seq") else text


def _open(path: Path, settings: ReaderSettings) -> tuple[Typed, Iterator[tuple[int, dict[str, str] | RowError]]]:
    numbered = source.texts(path, settings)
    line, header = next(numbered, (1, ""))
    types: Typed = {}
    for column in header.split("\t") if isinstance(header, str) else []:
        name, _, type_ = column.rpartition(":")
        if type_ not in TYPES or not name or name in types:
            raise DataError(
                f"{path}, line {line}, field 'header': expected name:type with type {', '.join(TYPES)}, "
                f"each name once, got {column!r}",
                hint="the first line of an atomic file looks like user_id:token<tab>item_id:token",
            )
        types[name] = type_
    if not types:
        raise DataError(f"{path}, line {line}, field 'header': {header or 'the file is empty'}")
    return types, _rows(numbered, list(types))


def _rows(numbered: Iterator[source.Numbered], names: list[str]) -> Iterator[tuple[int, dict[str, str] | RowError]]:
    for line, text in numbered:
        if isinstance(text, RowError):
            yield line, text
            continue
        values = text.split("\t")
        if len(values) != len(names):
            yield line, RowError("ragged row", "line", f"expected {len(names)} values, got {len(values)}")
        else:
            yield line, dict(zip(names, values, strict=True))


def _need_columns(path: Path, types: Typed, wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in types]
    if missing:
        raise DataError(
            f"{path}, line 1, field 'header': column {missing[0]!r} is missing; found {', '.join(types)}",
            hint="name the columns in the settings",
        )
