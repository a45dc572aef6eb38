"""Any CSV, TSV or parquet table of events, and optionally one of items; the settings name the columns.

user_column, item_column and time_column default to user_id, item_id and to no time (the order of the file).
The items table has the same item_column; title_column (default "title") becomes the title, all others fields.
"""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from genrec.data.readers import source
from genrec.data.readers.base import Ledger, Loaded, OnError, ReaderSettings, Rejected, RowError
from genrec.data.readers.build import ItemRows, finish, nested_to_text
from genrec.data.readers.tables import (
    Columns,
    check_events,
    header,
    open_table,
    read_events,
    rows_as_dicts,
    wrong_delimiter,
)
from genrec.errors import DataError

URL = "your own tables; name them in the settings interactions and items"
EVENTS = source.Wanted("interactions table", ("interactions.*", "events.*", "*.inter*.csv*"), URL)
ITEMS = source.Wanted("items table", ("items.*",), URL)


def files(settings: ReaderSettings) -> source.Files:
    """What :func:`read` reads (internal)."""
    return source.locate(settings, ITEMS, EVENTS)


def read(settings: ReaderSettings, on_error: OnError = "fail") -> Loaded:
    """Read tables with named columns; raises :class:`DataError` naming file, line (or row) and field (internal)."""
    found, rejected, items = files(settings), Rejected(), ItemRows()
    if found.items is not None:
        read_items(found.items, settings, Ledger(found.items, on_error, rejected), items)
    return finish(items, read_events(found.log, settings, on_error, rejected, items, _columns(settings)), rejected)


def check(settings: ReaderSettings) -> None:
    """Raise DataError for a missing file or a header that :func:`read` would not take (internal)."""
    found = files(settings)
    if found.items is not None:
        _check_items(found.items, header(found.items, settings), settings)
    check_events(found.log, settings, _columns(settings))


def item_fields(settings: ReaderSettings) -> list[str] | None:
    """Fields that the catalog will have, from the header; None where there is no items table (internal)."""
    path = files(settings).items
    if path is None:
        return None
    own = settings.item_column or "item_id", settings.title_column or "title"
    return ["title", *(name for name in header(path, settings) if name not in own)]


def _columns(settings: ReaderSettings) -> Columns:
    return Columns(settings.user_column or "user_id", settings.item_column or "item_id", settings.time_column)


def _check_items(path: Path, names: list[str], settings: ReaderSettings) -> None:
    for name in (settings.item_column or "item_id", settings.title_column or "title"):
        if name not in names:
            advice = "name the columns: item_column and title_column of the reader (--item-column, --title-column)"
            raise DataError(
                f"{path}, line 1, field 'header': column {name!r} is missing; found " + ", ".join(names),
                hint=wrong_delimiter(names) or advice,
            )


def read_items(path: Path, settings: ReaderSettings, ledger: Ledger, items: ItemRows) -> None:
    """Add the items of a table (internal)."""
    table = open_table(path, settings)
    ledger.unit = table.unit
    id_column, title = settings.item_column or "item_id", settings.title_column or "title"
    _check_items(path, table.header, settings)

    def add(row: dict[str, Any]) -> None:
        values = {"title": row[title]} | {k: _value(v, k) for k, v in row.items() if k not in (id_column, title)}
        if not isinstance(values["title"], str | None):
            raise RowError("wrong type", title, f"expected text, got {type(values['title']).__name__}")
        items.add(row[id_column], values, id_column)

    ledger.read(rows_as_dicts(table), add, items.__len__)


def _value(value: Any, field: str) -> Any:
    """A table cell as a catalog value: empty text is missing, dates become text, decimals numbers."""
    if value == "":
        return None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return nested_to_text(value, field)
