"""Rows to a catalog and interactions: every value is checked here, once, whatever the format."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec import seeding
from genrec.data.catalog import SEPARATOR, ItemCatalog, _kind_of, is_text
from genrec.data.interactions import Interactions
from genrec.data.readers.base import Loaded, ReaderSettings, Rejected, RowError, short
from genrec.errors import DataError

_INT64 = 2**63
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
_DATE = re.compile(r"\s*\d{4}-\d{2}-\d{2}")
NUMERIC = frozenset({"rating", "price"})
CONTEXT = ("rating", "price", "split", "event", "session", "locale")


class ItemRows:
    """Collects items; one column per field, None where an item lacks it (internal)."""

    def __init__(self) -> None:
        self.row_of: dict[str, int] = {}
        self.fields: dict[str, list[Any]] = {}
        self._kinds: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.row_of)

    def add(self, item_id: Any, values: dict[str, Any], id_field: str = "item_id") -> None:
        """Take one item, or raise RowError: empty or repeated id, a value of another type than before."""
        text = identifier(item_id, id_field)
        if text in self.row_of:
            raise RowError("duplicate item id", id_field, f"id {short(text)} occurred before")
        kinds = {name: self._kind(name, value) for name, value in values.items()}
        row = len(self.row_of)
        self.row_of[text] = row
        for name, kind in kinds.items():
            if kind != "empty":
                self._kinds[name] = kind
            column = self.fields.setdefault(name, [])
            column.extend([None] * (row - len(column)))
            column.append(values[name])

    def _kind(self, name: str, value: Any) -> str:
        kind, before = _kind_of(value), self._kinds.get(name)
        if kind == "wrong":
            raise RowError(
                "wrong type",
                name,
                "expected text, a list of text, a finite number, true/false or null, "
                f"got {type(value).__name__} {short(value)}",
            )
        if before is None or kind in ("empty", before):
            return kind
        if {before, kind} == {"int", "float"}:
            return "float"
        raise RowError("wrong type", name, f"expected {before} like the items before, got {kind} {short(value)}")

    def catalog(self) -> ItemCatalog:
        """The catalog in the order of the rows."""
        n = len(self.row_of)
        fields = {"title": self.fields.get("title", []), **self.fields}
        return ItemCatalog(tuple(self.row_of), {k: [*v, *[None] * (n - len(v))] for k, v in fields.items()})


class EventRows:
    """Collects events; items unknown to the catalog are refused or remembered, as the settings say (internal)."""

    def __init__(self, items: ItemRows, settings: ReaderSettings, columns: Sequence[str], timed: bool = True) -> None:
        self.known, self.timed, self.columns = items.row_of, timed, tuple(columns)
        self.add_unknown, self.scale = settings.unknown_items == "add", settings.time_scale
        self.users: list[str] = []
        self.items: list[str] = []
        self.times: list[int] = []
        self.dated: bool | None = None  # whether times are dates, once one is known
        self.values: list[list[Any]] = [[] for _ in self.columns]
        self.names = {"user": "user_id", "item": "item_id", "time": "timestamp"}

    def __len__(self) -> int:
        return len(self.users)

    def add(self, user: Any, item: Any, time: Any, values: Sequence[Any] = ()) -> None:
        """Take one event, or raise RowError. ``values`` in the order of ``columns``."""
        user_id = identifier(user, self.names["user"])
        item_id = identifier(item, self.names["item"])
        if item_id not in self.known and not self.add_unknown:
            raise RowError(
                "item not in catalog",
                self.names["item"],
                f"item {short(item_id)} is not in the items file",
                "complete the items file, set data.reader.unknown_items to 'add'",
            )
        stamp = self._stamp(time) if self.timed else 0
        checked = [_context(n, v) for n, v in zip(self.columns, values, strict=True)]
        self.users.append(user_id)
        self.items.append(item_id)
        self.times.append(stamp)
        for column, value in zip(self.values, checked, strict=True):
            column.append(value)

    def _stamp(self, time: Any) -> int:
        """A time in the form of those before: numbers (also 20200102) and dates in one column do not sort."""
        stamp, dated = timestamp(time, self.names["time"], self.scale), is_date(time)
        if self.dated is not None and dated != self.dated:
            before, now = ("a date", "a number") if self.dated else ("a number", "a date")
            raise RowError(
                "mixed times", self.names["time"], f"expected {before} like the times before, got {now} {short(time)}",
                "write all times in one form",
            )  # fmt: skip
        self.dated = dated
        return stamp

    def interactions(self, catalog: ItemCatalog) -> Interactions:
        """The events, sorted, with the numbers of this catalog."""
        return Interactions.from_arrays(
            self.users,
            catalog.numbers(self.items),
            np.array(self.times, np.int64) if self.timed else None,
            n_items=len(catalog),
            catalog=catalog.fingerprint,
            columns={n: _to_array(n, v) for n, v in zip(self.columns, self.values, strict=True)},
        )


def finish(items: ItemRows, events: EventRows, rejected: Rejected) -> Loaded:
    """The result of a reader. Items that only the log knows come last, in an order that tells nothing (internal)."""
    catalog = items.catalog()
    extra = [i for i in dict.fromkeys(events.items) if i not in items.row_of]
    if extra:
        order = np.argsort(seeding.id_hash(extra), kind="stable")
        ids = [extra[n] for n in order.tolist()]
        everything = {name: [*values, *[None] * len(ids)] for name, values in catalog.fields.items()}
        catalog = ItemCatalog((*catalog.ids, *ids), everything)
    return Loaded(catalog, events.interactions(catalog), rejected)


def identifier(value: Any, field: str) -> str:
    """An id as text; whole numbers are accepted (tables often hold them) (internal)."""
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise RowError("wrong type", field, f"expected an id as text, got {type(value).__name__} {short(value)}")
    if not value or value.isspace():
        raise RowError("empty id", field, "expected a non-empty id")
    if "\0" in value or not is_text(value):
        raise RowError("bad encoding", field, f"id {short(value)} contains NUL or is not valid Unicode")
    return value


def timestamp(value: Any, field: str, scale: float = 1.0) -> int:
    """A time as int64 (internal): an ISO 8601 date or a date of a table (seconds, UTC), or a whole number.

    With a ``scale`` other than 1 any number, times the scale, rounded.
    """
    if is_date(value):
        value = _seconds(value, field)
    elif isinstance(value, str):
        if _INTEGER.fullmatch(value):
            value = int(value)
        else:
            try:
                value = number(value, field)
            except RowError as error:
                if error.reason == "wrong type":
                    raise _no_time(value, field) from None
                raise
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise RowError(
            "wrong type", field, f"expected a number or a date as time, got {type(value).__name__} {short(value)}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError("not finite", field, f"expected a finite time, got {value}")
    stamp = value if scale == 1 else value * (Fraction(scale) if isinstance(value, Fraction) else scale)
    if isinstance(stamp, float | Fraction):
        if scale == 1 and (isinstance(stamp, Fraction) or not stamp.is_integer()):
            raise RowError(
                "fractional time",
                field,
                f"expected whole units, got {value if isinstance(value, float) else float(value)}",
                "set time_scale, for example to 1000",
            )
        stamp = round(stamp)
    if not -_INT64 <= stamp < _INT64:
        raise RowError("time out of range", field, f"{short(value)} does not fit into 64 bits")
    return stamp


def is_date(value: Any) -> bool:
    """Whether a time is a date rather than a number (internal)."""
    return isinstance(value, date) or (isinstance(value, str) and _DATE.match(value) is not None)


def _seconds(value: str | date, field: str) -> int | Fraction:
    """Unix seconds of a date or time, a fraction where it has one; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(value.strip() if isinstance(value, str) else value.isoformat())
    except ValueError:
        raise _no_time(value, field) from None
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    microseconds = since // timedelta(microseconds=1)
    whole, rest = divmod(microseconds, 1_000_000)
    return Fraction(microseconds, 1_000_000) if rest else whole


def _no_time(text: Any, field: str) -> RowError:
    expected = "a number or an ISO date as time, such as 2020-11-03 or 2020-11-03T18:30:00"
    return RowError("wrong type", field, f"expected {expected}, got {short(text)}")


def number(text: str, field: str) -> float:
    """A finite number written as text (internal)."""
    try:
        if "_" in text or not text.isascii():  # float() takes 1_000 and digits of any script
            raise ValueError
        value = float(text)
    except ValueError:
        raise RowError("wrong type", field, f"expected a number, got {short(text)}") from None
    if not math.isfinite(value):
        raise RowError("not finite", field, f"expected a finite number, got {short(text)}")
    return value


def nested_to_text(value: Any, field: str) -> Any:
    """JSON values as catalog values: lists of lists become paths "a > b", other nesting becomes JSON text.

    Stability: internal.
    """
    if isinstance(value, list):
        if all(isinstance(v, str) for v in value):
            return value
        if all(isinstance(v, list) and all(isinstance(part, str) for part in v) for v in value):
            return [SEPARATOR.join(v) for v in value]
    if isinstance(value, list | dict):
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except ValueError:
            raise RowError("not finite", field, f"expected finite numbers in {short(value)}") from None
    return value


def _context(name: str, value: Any) -> Any:
    """A context value: text of a numeric column becomes a number, empty becomes None."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        if name in NUMERIC:
            return number(value, name)
        if "\0" in value or not is_text(value):
            raise RowError("bad encoding", name, f"{short(value)} contains NUL or is not valid Unicode")
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError("not finite", name, f"expected a finite number, got {value}")
    if isinstance(value, bool) and name not in NUMERIC:
        return value
    if type(value) is float or (type(value) is int and -_INT64 <= value < _INT64):
        return value
    raise RowError("wrong type", name, f"expected text or a number, got {type(value).__name__} {short(value)}")


def _to_array(name: str, values: list[Any]) -> npt.NDArray[Any]:
    """float64 (missing: NaN), int64 or bool where nothing is missing, else text (missing: None)."""
    kinds = {type(v) for v in values if v is not None}
    complete = not any(v is None for v in values)
    if kinds == {bool} and complete:
        return np.array(values, np.bool_)
    if kinds == {int} and complete and name not in NUMERIC:
        return np.array(values, np.int64)
    if (kinds and kinds <= {int, float}) or (not kinds and name in NUMERIC):
        return np.array([math.nan if v is None else v for v in values], np.float64)
    if kinds <= {str}:
        out = np.empty(len(values), object)
        out[:] = values
        return out
    if kinds == {bool}:
        return _to_array(name, [None if v is None else str(v).lower() for v in values])
    raise DataError(f"column {name!r}: mixes {', '.join(sorted(k.__name__ for k in kinds))} in one file")
