"""Recipes: YAML text to frozen settings dataclasses, checked field by field.

A settings class is a frozen dataclass of numbers, texts, ``Literal``, tuples, lists, dicts and other settings
classes; a union of settings classes is told apart by their ``kind: Literal[...]`` field. Unknown keys are
errors, ``"3"`` is no number and ``true`` is no integer. No inheritance, interpolation or object construction.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class Settings:
...     level_size: int
...     learning_rate: float = 1e-3
>>> load("level_size: 256", Settings, ["learning_rate=1e-4"]).value
Settings(level_size=256, learning_rate=0.0001)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, Generic, NamedTuple, TypeVar

from genrec.errors import ConfigError
from genrec.recipe_build import Builder, set_value
from genrec.recipe_leaves import plain_leaf, pydantic_leaf
from genrec.recipe_text import Place, parse_text, read_text

__all__ = ["Resolved", "Row", "from_dict", "kind_of", "load", "to_json", "validate"]

T = TypeVar("T")


class Row(NamedTuple):
    """One line of a printed recipe; ``origin`` is given, default or derived."""

    path: str
    value: Any
    origin: str


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """Checked settings: ``value``, and ``given``, the dotted paths that the user set."""

    value: T
    given: frozenset[str]
    where: str

    def as_dict(self) -> dict[str, Any]:
        """The settings with every default filled in, JSON-able: what an artifact stores."""
        return to_json(self.value)

    def describe(self, final: T | None = None) -> list[Row]:
        """One row per setting. ``final``: the settings as used; what differs in it was derived from data."""
        before = dict(_flat(self.as_dict()))
        rows = []
        for path, value in _flat(to_json(self.value if final is None else final)):
            given = any(name == path or name.startswith(path + ".") for name in self.given)
            derived = path not in before or before[path] != value
            rows.append(Row(path, value, "derived" if derived else "given" if given else "default"))
        return rows


def load(
    path_or_text: str | Path, model: type[T], overrides: Sequence[str] = (), *, allow_nonfinite: bool = False
) -> Resolved[T]:
    """Read a recipe as ``model`` (a settings dataclass, or a union of them told apart by ``kind``).

    A Path, or a string without line end and ``": "``, is a file. ``overrides`` are ``path.to.field=value``
    (YAML; list elements by number), applied over the file and the defaults. Raises ConfigError naming, for
    each problem, file, line, dotted path, what was expected and found; MissingExtra without pydantic.
    """
    text = read_text(path_or_text, allow_nonfinite=allow_nonfinite)
    data = {} if text.data is None else text.data
    given = {path for path, _ in _flat(data)} if isinstance(data, dict) else set()
    parsed = _overrides(overrides, allow_nonfinite)
    data = _apply(model, data, parsed)
    given |= {".".join(map(str, place)) for place, _ in parsed}
    builder = Builder(text.where, pydantic_leaf(), text.lines, tuple(place for place, _ in parsed))
    return Resolved(builder.run(model, data), frozenset(given), text.where)


def validate(data: Mapping[str, Any], model: type[T], where: str = "recipe") -> T:
    """Check plain values as :func:`load` does; ``where`` names them in errors."""
    value: T = Builder(where, pydantic_leaf()).run(model, data)
    return value


def from_dict(model: type[T], data: Mapping[str, Any]) -> T:
    """Rebuild settings from :func:`to_json`'s dict, without pydantic. Raises ConfigError."""
    value: T = Builder("settings", plain_leaf).run(model, data)
    return value


def kind_of(path_or_text: str | Path, overrides: Sequence[str] = ()) -> str:
    """The ``kind`` of a recipe, to choose the settings class for :func:`load`. Raises ConfigError."""
    text = read_text(path_or_text)
    kind = text.data.get("kind") if isinstance(text.data, dict) else None
    for place, value in _overrides(overrides, False):
        kind = value if place == ("kind",) else kind
    if not isinstance(kind, str):
        raise ConfigError(f"{text.where}: kind: expected a name, got {kind!r}", hint="add a line 'kind: ...'")
    return kind


def to_json(settings: Any) -> dict[str, Any]:
    """Settings as a JSON-able dict (tuples become lists). Raises ConfigError for NaN or objects."""
    found = _json(settings, ())
    if not isinstance(found, dict):
        raise ConfigError(f"expected settings, got {type(settings).__name__}")
    return found


def _json(value: Any, place: Place) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        named = [f.name for f in fields(value) if f.init]
        return {name: _json(getattr(value, name), (*place, name)) for name in named}
    if isinstance(value, Mapping):
        return {str(key): _json(child, (*place, str(key))) for key, child in value.items()}
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, (list, tuple)):
        return [_json(child, (*place, i)) for i, child in enumerate(value)]
    if isinstance(value, Enum):
        return _json(value.value, place)
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ConfigError(f"{'.'.join(map(str, place))}: expected a value with a JSON form, got {value!r}")


def _flat(data: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted path, value) of each setting; a list is one setting unless it holds mappings."""
    if isinstance(data, dict) and data:
        children = list(data.items())
    elif isinstance(data, list) and any(isinstance(child, dict) for child in data):
        children = [(str(i), child) for i, child in enumerate(data)]
    else:
        return [(prefix, data)] if prefix else []
    return [row for key, child in children for row in _flat(child, f"{prefix}.{key}" if prefix else key)]


def _overrides(overrides: Sequence[str], allow_nonfinite: bool) -> list[tuple[tuple[str, ...], Any]]:
    parsed = []
    for override in overrides:
        path, equals, text = override.partition("=")
        place = tuple(path.strip().split("."))
        if not equals or not all(place):
            raise ConfigError(
                f"--set {override}: expected path.to.field=value", hint="for example --set train.epochs=4"
            )
        value = parse_text(text, f"--set {path}", allow_nonfinite=allow_nonfinite).data
        parsed.append((place, value))
    return sorted(parsed, key=lambda item: item[0][-1] != "kind")  # a kind decides which defaults the rest changes


def _apply(model: Any, data: Any, parsed: Sequence[tuple[tuple[str, ...], Any]]) -> Any:
    data = copy.deepcopy(data)
    for place, value in parsed:
        data = set_value(model, data, place, value, to_json, "--set " + ".".join(place))
    return data
