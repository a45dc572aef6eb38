"""Conditions on item fields: "price < 20", "brand = Acme", "categories has Shoes" (numpy only, no torch).

Axis letter: N items.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog, column_kind
from genrec.errors import ConfigError

Mask = npt.NDArray[np.bool_]
ORDERED: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
OPERATORS = ("=", "!=", *ORDERED, "in", "has")
# of stripped texts; no run of blanks can be shared out between two parts, which would take cubic time
_REST = re.compile(r"\s*(<=|>=|!=|==?|<|>|in\b|has\b)\s*(\S.*|)$")
_TEXT = re.compile(r"([^\s<>=!](?:[^<>=!]*?[^\s<>=!])??)\s*(<=|>=|!=|==?|<|>|\bin\b|\bhas\b)\s*(\S.*|)$")


@dataclass(frozen=True)
class Condition:
    """One condition on one field (experimental).

    operator: ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=`` (numbers), ``in`` (value: a list), ``has`` (fields that are
    lists: one of its elements is the value). An item whose field is missing meets no condition, not even ``!=``.
    Raises ConfigError for another operator or a value of the wrong kind.
    """

    field: str
    operator: str
    value: Any

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise ConfigError(f"operator: expected one of {', '.join(OPERATORS)}, got {self.operator!r}")
        if self.operator == "in" and not isinstance(self.value, list | tuple | set):
            raise ConfigError(f"{self.field} in: expected a list of values, got {self.value!r}")
        if self.operator in ORDERED and not _is_number(self.value):
            raise ConfigError(f"{self.field} {self.operator}: expected a number, got {self.value!r}")

    @classmethod
    def parse(cls, text: str, fields: Iterable[str] = ()) -> Condition:
        """From ``price < 20``, ``brand = Acme``, ``brand in Acme,Zeta``, ``categories has Shoes``.

        ``==`` is ``=``. Quotes around a value are not part of it. fields: names that may hold an operator's word, as
        ``days in stock``.
        """
        for name in sorted(fields, key=len, reverse=True):
            rest = _REST.match(text.strip()[len(name) :]) if text.strip().startswith(name) else None
            if rest is not None:
                return cls._read(name, *rest.groups())
        found = _TEXT.match(text.strip())
        if found is None:
            raise ConfigError(
                f"expected FIELD OPERATOR VALUE, got {text!r}",
                hint=f"for example 'price < 20'; operators: {', '.join(OPERATORS)}",
            )
        return cls._read(*found.groups())

    @classmethod
    def _read(cls, field: str, how: str, value: str) -> Condition:
        if how == "in":
            return cls(field, how, [_unquoted(part.strip()) for part in value.split(",")])
        return cls(field, "=" if how == "==" else how, _number(value) if how in ORDERED else _unquoted(value))


class Attributes:
    """The fields of a catalog, ready for conditions; every field is read once (experimental)."""

    def __init__(self, catalog: ItemCatalog) -> None:
        self._catalog = catalog
        self._columns: dict[str, dict[str, Any]] = {}

    def where(self, condition: Condition | str) -> Mask:
        """Which items meet it, bool ``[N]``; several conditions combine as masks do (``&``, ``|``, ``~``).

        Raises ConfigError for a field that the catalog lacks, or a condition that does not suit its type.
        """
        wanted = self.parsed(condition) if isinstance(condition, str) else condition
        column = self._column(wanted.field)
        kind, how = column["kind"], wanted.operator
        if (how == "has") != (kind == "list") or (how in ORDERED and kind != "number"):
            raise ConfigError(
                f"{wanted.field} {how}: the field is of type {kind}",
                hint="lists: has; numbers: < <= > >=; all others: = != in",
            )
        if how in ORDERED:
            with np.errstate(invalid="ignore"):
                met = np.asarray(ORDERED[how](column["values"], wanted.value), dtype=np.bool_)
            return np.asarray(met & ~column["missing"], dtype=np.bool_)
        values = list(wanted.value) if how == "in" else [wanted.value]
        for value in values:
            if not _suits(value, kind):
                raise ConfigError(f"{wanted.field} {how}: expected a {kind}, got {value!r}")
        met = self._equal(column, values)
        return ~met & ~column["missing"] if how == "!=" else met

    def like(self, condition: Condition | str, n: int = 3) -> list[str]:
        """Up to n values of the field that look like the condition's, nearest first, for a hint; empty for numbers."""
        wanted = self.parsed(condition) if isinstance(condition, str) else condition
        known = {str(value).lower(): value for value in self._column(wanted.field)["code"] if isinstance(value, str)}
        asked = [str(each).lower() for each in (wanted.value if wanted.operator == "in" else [wanted.value])]
        parts = [name for name in known if any(each in name for each in asked)]
        near = [name for each in asked for name in difflib.get_close_matches(each, known, n)]
        return [known[name] for name in dict.fromkeys([*near, *parts])][:n]

    def groups(self, field: str) -> npt.NDArray[np.int32]:
        """A number for each distinct value of a field, int32 ``[N]``, -1 = missing: what a cap per group counts.

        Raises ConfigError for a field that the catalog lacks, or one of lists, whose items are of several groups.
        """
        column = self._column(field)
        if column["kind"] == "list":
            raise ConfigError(f"{field}: an item has several values", hint="make one group number per item yourself")
        return np.asarray(column["coded"], dtype=np.int32)

    def parsed(self, text: str) -> Condition:
        """A condition whose field is one of the catalog's, which may have an operator's word in its name."""
        return Condition.parse(text, self._catalog.fields)

    def _equal(self, column: dict[str, Any], values: Any) -> Mask:
        """Items of which one value is among ``values``; columns hold codes of distinct values."""
        codes = [column["code"][key] for each in values if (key := _key(each, column["kind"])) in column["code"]]
        met = np.isin(column["coded"], codes)
        if column["kind"] != "list":
            return met
        out = np.zeros(len(self._catalog), dtype=np.bool_)
        out[column["rows"][met]] = True
        return out

    def _column(self, name: str) -> dict[str, Any]:
        if name not in self._catalog.fields:
            raise ConfigError(
                f"field {name!r} is not in the catalog", hint=f"fields: {', '.join(self._catalog.fields)}"
            )
        if name not in self._columns:
            self._columns[name] = _read(name, self._catalog.fields[name])
        return self._columns[name]


def _read(name: str, values: list[Any]) -> dict[str, Any]:
    """Codes of the distinct values of a column, -1 = missing; of lists one per element, with its item's row."""
    kind: str = column_kind(name, values)
    kind = "number" if kind in ("int", "float") else kind
    rows = np.arange(len(values))
    flat = values
    if kind == "list":
        rows = np.repeat(rows, [len(each or ()) for each in values])
        flat = [part for each in values for part in each or ()]
    distinct: dict[Any, int] = {}
    coded = np.array(
        [-1 if each is None else distinct.setdefault(_key(each, kind), len(distinct)) for each in flat], dtype=np.int64
    )
    found = {"kind": kind, "code": distinct, "coded": coded, "rows": rows, "missing": coded < 0}
    if kind == "number":
        whole = all(each is None or isinstance(each, int) for each in values)  # exact beyond 2 ** 53
        numbers = np.array([0 if each is None else each for each in values], dtype=np.int64 if whole else np.float64)
        found["values"] = numbers
    return found


def _key(value: Any, kind: str) -> Any:
    """What two equal values share, whatever they were written as."""
    if kind == "number":
        found = _number(value) if isinstance(value, str) else value
        return int(found) if isinstance(found, float) and found.is_integer() else found
    if kind == "bool" and isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower(), value)
    return value


def _is_number(value: Any) -> bool:
    """A number that can be compared: no bool, not nan."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _suits(value: Any, kind: str) -> bool:
    """Whether a value can be one of a column's of this kind."""
    if kind == "number":
        return _is_number(_number(value) if isinstance(value, str) else value)
    if kind == "bool":
        return isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false"))
    return kind == "empty" or isinstance(value, str)


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
