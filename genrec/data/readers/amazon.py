"""Amazon reviews and metadata: the 2014, 2018 and 2023 releases, recognised by their keys.

Reviews: one JSON object per line. 2014 and 2018: reviewerID, asin, unixReviewTime (seconds), overall.
2023: user_id, parent_asin, timestamp (milliseconds), rating. Metadata of 2014 has Python literals, not JSON.
Fields that sum up the whole history (sales rank, also bought, average rating, number of ratings) are not
read: they know the future of every user.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genrec.data.readers import source
from genrec.data.readers.base import Ledger, Loaded, OnError, ReaderSettings, Rejected, RowError, short
from genrec.data.readers.build import EventRows, ItemRows, finish

URL = (
    "reviews and metadata of 2014, 2018 and 2023: https://cseweb.ucsd.edu/~jmcauley/datasets.html, "
    "https://nijianmo.github.io/amazon, https://amazon-reviews-2023.github.io"
)
META = source.Wanted("metadata file", ("meta_*",), URL)
REVIEWS = source.Wanted("reviews file", ("*_5.json*", "reviews_*", "[!m]*.json*"), URL)
_PRICE = re.compile(r"\s*\$?\s*([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(\.[0-9]+)?\s*")
_OLD = ("reviewerID", "asin", "unixReviewTime", "overall")
_NEW = ("user_id", "parent_asin", "timestamp", "rating")


def files(settings: ReaderSettings) -> source.Files:
    """What :func:`read` reads (internal)."""
    return source.locate(settings, META, REVIEWS)


def read(settings: ReaderSettings, on_error: OnError = "fail") -> Loaded:
    """Read a reviews file and its metadata file; raises :class:`DataError` naming file, line and field (internal)."""
    found, rejected, items = files(settings), Rejected(), ItemRows()
    if found.items is not None:
        rows = _objects(found.items, settings)
        Ledger(found.items, on_error, rejected).read(rows, lambda row: _add_item(items, row), items.__len__)
    return finish(items, _read_reviews(found.log, settings, on_error, rejected, items), rejected)


def _read_reviews(
    path: Path, settings: ReaderSettings, on_error: OnError, rejected: Rejected, items: ItemRows
) -> EventRows:
    context = settings.context or ()
    events = EventRows(items, settings, ("rating", *(c for c in context if c != "rating")))

    def add(row: dict[str, Any]) -> None:
        user, item, time, rating = _NEW if "parent_asin" in row else _OLD
        events.names = {"user": user, "item": item, "time": time}
        for key in (user, item, time):
            if key not in row:
                raise RowError("missing field", key, f"no {key}; keys: {', '.join(row)}")
        values = [row.get(rating), *(_plain(row.get(name), name) for name in events.columns[1:])]
        events.add(row[user], row[item], row[time], values)

    rows = source.json_objects(source.texts(path, settings))
    Ledger(path, on_error, rejected).read(rows, add, events.__len__)
    return events


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, list | dict):
        raise RowError("wrong type", name, f"expected text or a number, got {type(value).__name__}")
    return value


def _objects(path: Path, settings: ReaderSettings) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    for number, text in source.texts(path, settings):
        if isinstance(text, RowError):
            yield number, text
            continue
        row = source.parse_json(text)
        yield number, (_parse_literal(text) or row) if isinstance(row, RowError) else row


def _parse_literal(text: str) -> dict[str, Any] | None:
    """A Python dict literal; never evaluated, only parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # titles contain "\d" and the like
            value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    return value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else None


def _add_item(items: ItemRows, row: dict[str, Any]) -> None:
    key = "parent_asin" if "parent_asin" in row else "asin"
    if key not in row:
        raise RowError("missing field", key, f"no asin or parent_asin; keys: {', '.join(map(str, row))}")
    values: dict[str, Any] = {
        "title": _text(row, "title"),
        "description": _joined(row, "description"),
        "brand": _text(row, "brand") if "brand" in row else _text(row, "store"),
        "categories": _categories(row),
        "features": _list(row, "features" if "features" in row else "feature"),
        "price": _price(row.get("price")),
    }
    items.add(row[key], values, key)


def _text(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise RowError("wrong type", key, f"expected text, got {type(value).__name__} {short(value)}")
    return value


def _list(row: dict[str, Any], key: str) -> list[str] | None:
    value = row.get(key)
    if value is None or value == "" or value == []:
        return None
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise RowError("wrong type", key, f"expected a list of text, got {short(value)}")
    return value


def _joined(row: dict[str, Any], key: str) -> str | None:
    parts = _list(row, key)
    return None if parts is None else "\n".join(parts)


def _categories(row: dict[str, Any]) -> list[str] | None:
    """The category path; 2014 gives several, the first is the main one."""
    paths = row.get("categories")
    if isinstance(paths, list) and paths and isinstance(paths[0], list):
        return _list({"categories": paths[0]}, "categories")
    return _list(row, "categories" if "categories" in row else "category")


def _price(value: Any) -> float | None:
    """A price as a number; ranges, texts and style sheets, which occur, are missing."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    match = _PRICE.fullmatch(value) if isinstance(value, str) else None
    return float(match[1].replace(",", "") + (match[2] or "")) if match else None
