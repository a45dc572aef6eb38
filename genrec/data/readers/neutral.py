"""The neutral format: ``items.jsonl`` and ``interactions.csv`` (also ``.csv.gz`` or ``.parquet``).

``items.jsonl``: one JSON object per line with ``item_id`` and ``title`` (text, may be empty); any other key
becomes a field. ``interactions``: ``user_id,item_id,timestamp`` and optionally rating, price, split, event,
session, locale; further columns must be named in ``context``. Row order decides between equal times.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genrec.data.readers import source
from genrec.data.readers.base import Ledger, Loaded, OnError, ReaderSettings, Rejected, RowError
from genrec.data.readers.build import CONTEXT, ItemRows, finish, nested_to_text
from genrec.data.readers.tables import Columns, check_events, read_events

URL = "the neutral format is described in docs/data.md; genrec.data.export.export_neutral writes it"
ITEMS = source.Wanted("items file", ("items.jsonl", "items.jsonl.gz"), URL)
EVENTS = source.Wanted("interactions file", ("interactions.csv", "interactions.csv.gz", "interactions.parquet"), URL)


def files(settings: ReaderSettings) -> source.Files:
    """What :func:`read` reads (internal)."""
    return source.locate(settings, ITEMS, EVENTS)


def read(settings: ReaderSettings, on_error: OnError = "fail") -> Loaded:
    """Read a folder in the neutral format; raises :class:`DataError` naming file, line and field (internal)."""
    found, rejected, items = files(settings), Rejected(), ItemRows()
    if found.items is not None:
        read_items(found.items, settings, Ledger(found.items, on_error, rejected), items)
    return finish(items, read_events(found.log, settings, on_error, rejected, items, _columns(settings)), rejected)


def check(settings: ReaderSettings) -> None:
    """Raise DataError for a missing file or a header that :func:`read` would not take (internal)."""
    check_events(files(settings).log, settings, _columns(settings))


def _columns(settings: ReaderSettings) -> Columns:
    return Columns("user_id", "item_id", "timestamp", optional=CONTEXT, known_only=settings.context is None)


def read_items(path: Path, settings: ReaderSettings, ledger: Ledger, items: ItemRows) -> None:
    """Add the items of a JSON-lines file (internal)."""

    def add(row: dict[str, Any]) -> None:
        if "item_id" not in row:
            raise RowError("missing field", "item_id", f"no item_id; keys: {', '.join(row) or 'none'}")
        if not isinstance(row.get("title"), str):
            what = f"got {type(row['title']).__name__}" if "title" in row else "the key is missing"
            raise RowError("wrong type", "title", f"expected text (may be empty), {what}")
        fields = {k: nested_to_text(v, k) for k, v in row.items() if k != "item_id"}
        if not isinstance(row["item_id"], str):
            raise RowError("wrong type", "item_id", f"expected text, got {type(row['item_id']).__name__}")
        items.add(row["item_id"], fields)

    ledger.read(source.json_objects(source.texts(path, settings)), add, items.__len__)
