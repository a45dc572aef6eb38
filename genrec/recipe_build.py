"""Plain values to settings dataclasses, collecting every problem. Internal: use :mod:`genrec.recipes`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from genrec.errors import ConfigError
from genrec.recipe_leaves import MAPPINGS, Leaf, Mismatch, bare, element, members_of, short
from genrec.recipe_text import Place

_BAD = object()
_SEQUENCES = (list, tuple, Sequence)


# --- types -------------------------------------------------------------------------------------------------


def _is_settings(tp: Any) -> bool:
    return isinstance(tp, type) and is_dataclass(tp)


def _holds_settings(tp: Any) -> bool:
    return _is_settings(bare(tp)) or any(_holds_settings(arg) for arg in get_args(tp) if arg is not Ellipsis)


def _init_fields(cls: Any) -> dict[str, Field[Any]]:
    return {f.name: f for f in fields(cls) if f.init}


def _kinds(cls: Any) -> tuple[Any, ...] | None:
    """Values that its ``kind`` may have; None when it may be any text."""
    hint = bare(get_type_hints(cls, include_extras=True).get("kind", Literal[()]))
    return get_args(hint) if get_origin(hint) is Literal else None


def _choose(classes: Sequence[Any], kind: Any) -> Any:
    """The settings class for a mapping with this kind, or None."""
    if len(classes) == 1:
        return classes[0]
    exact = [cls for cls in classes if kind in (_kinds(cls) or ())]
    free = [cls for cls in classes if _kinds(cls) is None and isinstance(kind, str)]
    return (exact or free or [None])[0]


def _shaped(tp: Any, origins: tuple[Any, ...]) -> Any:
    """The alternative of ``tp`` whose origin is one of ``origins``, or None."""
    return next((m for m in members_of(tp) if get_origin(m) in origins), None)


# --- building ----------------------------------------------------------------------------------------------


@dataclass
class Builder:
    """Builds one recipe; ``lines`` and ``overridden`` say where a value came from."""

    where: str
    leaf: Leaf
    lines: Mapping[Place, int] = field(default_factory=dict)
    overridden: tuple[Place, ...] = ()
    problems: list[str] = field(default_factory=list)
    hint: str | None = None

    def run(self, model: Any, data: Any) -> Any:
        """The settings, or ConfigError with all problems."""
        value = self.build(model, data, ())
        if self.problems:
            text = self.problems[0]
            if len(self.problems) > 1:
                text = f"{len(self.problems)} problems:\n  " + "\n  ".join(self.problems)
            raise ConfigError(text, hint=self.hint)
        return value

    def complain(self, place: Place, message: str, hint: str | None = None) -> Any:
        """Note a problem."""
        self.hint = self.hint or hint
        texts = tuple(map(str, place))
        silent = bool(place) and place not in self.lines  # the file has no such key: an override made it
        by = [o for o in self.overridden if texts[: len(o)] == o or (silent and o[: len(texts)] == texts)]
        line = next((self.lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in self.lines), None)
        origin = f"--set {'.'.join(map(str, by[0]))}" if by else f"{self.where}:{line}" if line else self.where
        self.problems.append(f"{origin}: {'.'.join(texts) + ': ' if place else ''}{message}")
        return _BAD

    def build(self, tp: Any, value: Any, place: Place) -> Any:
        """``value`` as ``tp``, or a mark that a problem was noted."""
        if not _holds_settings(tp):
            try:
                return self.leaf(tp, value)
            except Mismatch as error:
                for below, message in error.problems:
                    self.complain((*place, *below), message)
                return _BAD
        members = members_of(tp)
        classes = [m for m in members if _is_settings(m)]
        if (value is None and type(None) in members) or isinstance(value, tuple(classes)):
            return value
        if isinstance(value, Mapping) and classes:
            return self._by_kind(classes, value, place)
        sequence, mapping = _shaped(tp, _SEQUENCES), _shaped(tp, MAPPINGS)
        if sequence is not None and isinstance(value, (list, tuple)):
            return self._sequence(sequence, value, place)
        if mapping is not None and isinstance(value, Mapping):
            return self._mapping(mapping, value, place)
        rest = tuple(m for m in members if not _holds_settings(m) and m is not type(None))
        if rest and not isinstance(value, Mapping):
            return self.build(Union[rest], value, place)  # noqa: UP007
        expected = "a list" if sequence is not None and not classes else "a mapping"
        return self.complain(place, f"expected {expected}, got {short(value)}")

    def _beside(self, place: Place) -> str:
        """The overridden settings beside the one at ``place``, where that one is not: they made it wrong."""
        beside = [".".join(map(str, o)) for o in self.overridden if o[:-1] == place[:-1]]
        if not beside or any(o[: len(place)] == place for o in self.overridden):
            return ""
        return f" (with --set {', '.join(beside)})"

    def _sequence(self, tp: Any, value: Sequence[Any], place: Place) -> Any:
        built = [self.build(element(tp, i), child, (*place, i)) for i, child in enumerate(value)]
        if any(child is _BAD for child in built):
            return _BAD
        args = get_args(tp)
        if get_origin(tp) is not tuple:
            return built
        if Ellipsis not in args and len(args) != len(built):
            return self.complain(place, f"expected {len(args)} elements, got {len(built)}")
        return tuple(built)

    def _mapping(self, tp: Any, value: Mapping[Any, Any], place: Place) -> Any:
        child_type = (*get_args(tp), Any, Any)[1]
        built = {key: self.build(child_type, child, (*place, key)) for key, child in value.items()}
        return _BAD if any(child is _BAD for child in built.values()) else built

    def _by_kind(self, classes: list[Any], value: Mapping[Any, Any], place: Place) -> Any:
        cls = _choose(classes, value.get("kind"))
        if cls is not None:
            return self._settings(cls, value, place)
        known = [str(kind) for c in classes for kind in _kinds(c) or ()]
        found = f"got {short(value['kind'])}" if "kind" in value else "it is missing"
        near = get_close_matches(str(value.get("kind")), known, n=1)
        advice = f"; did you mean {near[0]!r}?" if near else ""
        return self.complain((*place, "kind"), f"expected one of {', '.join(known)}, {found}{advice}")

    def _settings(self, cls: Any, value: Mapping[Any, Any], place: Place) -> Any:
        known, hints = _init_fields(cls), get_type_hints(cls, include_extras=True)
        before, built = len(self.problems), {}
        hint = f"{cls.__name__} has the keys {', '.join(known)}"
        if (*map(str, place), "kind") in self.overridden:  # the rest of the block is still that of the old kind
            block, kind = ".".join(map(str, place)), value.get("kind")
            hint = f"another kind takes other keys: replace the whole block, --set '{block}={{kind: {kind}}}'; {hint}"
        for key in value:
            if key not in known:
                near = get_close_matches(str(key), known, n=1)
                advice = f"; did you mean {near[0]!r}?" if near else ""
                self.complain((*place, key), f"unknown key{advice}", hint)
        for name, spec in known.items():
            if name in value:
                built[name] = self.build(hints[name], value[name], (*place, name))
            elif spec.default is MISSING and spec.default_factory is MISSING:
                self.complain((*place, name), f"expected a value (it has no default), but {name!r} is missing")
        if len(self.problems) > before:
            return _BAD
        try:
            return cls(**built)
        except (ValueError, TypeError) as error:  # ConfigError is a ValueError
            name, colon, rest = str(error).partition(": ")
            inner = tuple(name.split("."))
            if colon and inner[0] in known:
                rest += self._beside((*map(str, place), inner[0]))
                return self.complain((*place, *inner), rest, getattr(error, "hint", None))
            return self.complain(place, str(error), getattr(error, "hint", None))


# --- overrides ---------------------------------------------------------------------------------------------


def set_value(tp: Any, node: Any, place: Place, value: Any, to_json: Callable[[Any], dict[str, Any]], what: str) -> Any:
    """``node`` (plain values of type ``tp``) with ``value`` at ``place``; where it is silent, defaults count.

    Raises ConfigError when the path leads through something that is neither mapping nor list.
    """
    if not place:
        return value
    key, rest = str(place[0]), place[1:]
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            raise ConfigError(f"{what}: expected an index from 0 to {len(node) - 1}, got {key!r}")
        child_type = element(_shaped(tp, _SEQUENCES) or Any, int(key))
        node[int(key)] = set_value(child_type, node[int(key)], rest, value, to_json, what)
        return node
    if not isinstance(node, dict):
        raise ConfigError(f"{what}: {key!r} is not inside a mapping or a list: the value there is {short(node)}")
    classes = [m for m in members_of(tp) if _is_settings(m)]
    cls = _choose(classes, node.get("kind")) if classes else None
    child_type = get_type_hints(cls, include_extras=True).get(key, Any) if cls is not None else Any
    if cls is None and (mapping := _shaped(tp, MAPPINGS)) is not None:
        child_type = (*get_args(mapping), Any, Any)[1]
    child = node.get(key)
    if key not in node and rest and cls is not None and rest != ("kind",):
        child = _default(cls, key, to_json)
    if child is None and rest:
        child = {}
    node[key] = set_value(child_type, child, rest, value, to_json, what)
    return node


def _default(cls: Any, name: str, to_json: Callable[[Any], dict[str, Any]]) -> Any:
    spec = _init_fields(cls).get(name)
    if spec is None:
        return None
    if spec.default_factory is not MISSING:
        default = spec.default_factory()
    else:
        default = None if spec.default is MISSING else spec.default
    holder = {"value": default}
    return to_json(holder)["value"]
