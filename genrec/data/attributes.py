"""Conditions on item fields: "price < 20", "brand = Acme", "categories has Shoes" (numpy only, no torch).

Axis letter: N items.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
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
_TEXT = re.compile(r"\s*([^<>=!]+?)\s*(<=|>=|!=|=|<|>|\bin\b|\bhas\b)\s*(.*?)\s*$")


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
        number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if self.operator in ORDERED and not number:
            raise ConfigError(f"{self.field} {self.operator}: expected a number, got {self.value!r}")

    @classmethod
    def parse(cls, text: str) -> Condition:
        """From ``price < 20``, ``brand = Acme``, ``brand in Acme,Zeta``, ``categories has Shoes``."""
        found = _TEXT.match(text)
        if found is None:
            raise ConfigError(
                f"expected FIELD OPERATOR VALUE, got {text!r}",
                hint=f"for example 'price < 20'; operators: {', '.join(OPERATORS)}",
            )
        field, how, value = found.groups()
        if how == "in":
            return cls(field, how, [part.strip() for part in value.split(",")])
        return cls(field, how, _number(value) if how in ORDERED else value)


class Attributes:
    """The fields of a catalog, ready for conditions; every field is read once (experimental)."""

    def __init__(self, catalog: ItemCatalog) -> None:
        self._catalog = catalog
        self._columns: dict[str, dict[str, Any]] = {}

    def where(self, condition: Condition | str) -> Mask:
        """Which items meet it, bool ``[N]``; several conditions combine as masks do (``&``, ``|``, ``~``).

        Raises ConfigError for a field that the catalog lacks, or a condition that does not suit its type.
        """
        wanted = Condition.parse(condition) if isinstance(condition, str) else condition
        column = self._column(wanted.field)
        kind, how = column["kind"], wanted.operator
        if (how == "has") != (kind == "list") or (how in ORDERED and kind != "number"):
            raise ConfigError(
                f"{wanted.field} {how}: the field is of type {kind}",
                hint="lists: has; numbers: < <= > >=; all others: = != in",
            )
        if how in ORDERED:
            with np.errstate(invalid="ignore"):
                return np.asarray(ORDERED[how](column["values"], wanted.value), dtype=np.bool_)
        values = wanted.value if how == "in" else [wanted.value]
        met = self._equal(column, values)
        return ~met & ~column["missing"] if how == "!=" else met

    def _equal(self, column: dict[str, Any], values: Any) -> Mask:
        """Items of which one value is among ``values``; columns hold codes of distinct values."""
        codes = [column["code"][key] for each in values if (key := _key(each, column["kind"])) in column["code"]]
        met = np.isin(column["values"] if column["kind"] != "number" else column["coded"], codes)
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
    found = {"kind": kind, "code": distinct, "values": coded, "rows": rows, "missing": coded < 0}
    if kind == "number":
        numbers = np.array([np.nan if each is None else each for each in values], dtype=np.float64)
        found |= {"values": numbers, "coded": coded}
    return found


def _key(value: Any, kind: str) -> Any:
    """What two equal values share, whatever they were written as."""
    if kind == "number":
        return _number(value) if isinstance(value, str) else float(value)
    if kind == "bool" and isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower(), value)
    return value


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
