"""Recipe text to plain values, with the line of each. Internal: use :mod:`genrec.recipes`.

YAML without surprises: ``1e-4`` is a number, ``no``, ``1:30`` and dates are text, ``010`` is ten; duplicate
keys, aliases, merge keys, tags and numbers that are not finite are refused.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from genrec.errors import ConfigError

Place = tuple[str | int, ...]
_PREFIX = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Composes nodes only; the YAML 1.1 readings of plain words are replaced below."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases: a recipe says what it means where it means it."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)


_DIGITS = r"[0-9][0-9_]*"
_WORDS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", rf"[-+]?(?:{_DIGITS}|0x[0-9a-fA-F]+|0o[0-7]+)", "-+0123456789"),
    (
        "float",
        rf"[-+]?(?:{_DIGITS}\.[0-9_]*|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?|[-+]?{_DIGITS}[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)
for _tag, _pattern, _first in _WORDS:
    _Loader.add_implicit_resolver(_PREFIX + _tag, re.compile(rf"^(?:{_pattern})$"), list(_first))


# what PyYAML says, what it means, and whether the line to look at is the one where the thing began
_PLAIN = (
    (
        "mapping values are not allowed",
        "a second 'key: ' in one line, or a wrong indentation; a text with ': ' in it needs quotes",
        False,
    ),
    ("could not find expected ':'", "expected 'key: value', with a space after the colon", True),
    ("'\\t' that cannot start", "a tab; indent with spaces", False),
    ("that cannot start any token", "a text that begins with such a sign needs quotes", False),
    ("expected <block end>", "the line does not fit the lines above; check its indentation", False),
    ("expected ',' or", "a '[' or '{' that is not closed, or a ',' that is missing in it", True),
    ("expected the node content", "expected a value", False),
    ("unexpected end of stream", "a quote that is not closed", True),
    ("found another document", "expected one recipe in a file; take out the line '---'", False),
)


@dataclass(frozen=True)
class Text:
    """Plain values of a recipe: ``data``, and the line (from 1) of each place in it."""

    where: str
    data: Any
    lines: dict[Place, int] = field(default_factory=dict)


def read_text(path_or_text: str | Path, *, allow_nonfinite: bool = False) -> Text:
    """Read a file, or a string that has a line end or ``": "`` in it. Raises ConfigError with the line."""
    if isinstance(path_or_text, str) and ("\n" in path_or_text or ": " in path_or_text):
        return parse_text(path_or_text, "recipe", allow_nonfinite=allow_nonfinite)
    path = Path(path_or_text)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text ({error})") from error
    except OSError as error:
        files = [p for p in (*path.parent.glob("*.yaml"), *path.parent.glob("*.yml")) if p.is_file() and p != path]
        near = difflib.get_close_matches(path.stem, [p.stem for p in files], n=1, cutoff=0.7)
        found = next((p for p in files if p.stem in near), None)
        raise ConfigError(
            f"cannot read the recipe {path}: {error.strerror}",
            hint=f"did you mean {found}?" if found else None,
        ) from error
    return parse_text(text, str(path), allow_nonfinite=allow_nonfinite)


def parse_text(text: str, where: str, *, allow_nonfinite: bool = False) -> Text:
    """Parse YAML text; ``where`` names it in errors. Raises ConfigError with the line."""
    lines: dict[Place, int] = {}
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = None if node is None else _plain(node, (), lines, allow_nonfinite)
    except yaml.MarkedYAMLError as error:
        problem, mark = str(error.problem or error.context), error.problem_mark or error.context_mark
        for said, meant, begun in _PLAIN:
            if said in problem:
                problem, mark = meant, error.context_mark if begun else mark
                break
        place = f"{where}:{mark.line + 1}" if mark else where
        raise ConfigError(f"{place}: {problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{where}:{line}: {chr(error.character)!r} is no printable character") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply") from error
    return Text(where, data, lines)


def _refuse(node: yaml.Node, message: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark)


def _plain(node: yaml.Node, place: Place, lines: dict[Place, int], allow_nonfinite: bool) -> Any:
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode) and node.tag == _PREFIX + "map":
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _key(key_node, found)
            lines[(*place, key)] = key_node.start_mark.line + 1
            found[key] = _plain(value_node, (*place, key), lines, allow_nonfinite)
        return found
    if isinstance(node, yaml.SequenceNode) and node.tag == _PREFIX + "seq":
        return [_plain(child, (*place, i), lines, allow_nonfinite) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        value = _scalar(node)
        if isinstance(value, float) and not math.isfinite(value) and not allow_nonfinite:
            raise _refuse(node, f"expected a finite number, got {node.value}")
        return value
    raise _refuse(node, f"the tag {node.tag!r} is not allowed: a recipe builds no objects")


def _key(node: yaml.Node, found: dict[str, Any]) -> str:
    if not isinstance(node, yaml.ScalarNode) or not node.tag.startswith(_PREFIX):
        raise _refuse(node, "expected a word as key")
    key: str = node.value
    if key == "<<":
        raise _refuse(node, "merge keys (<<) are not allowed: a recipe does not inherit")
    if key in found:
        raise _refuse(node, f"the key {key!r} appears twice")
    return key


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    kind = node.tag.removeprefix(_PREFIX)
    try:
        if kind == "str":
            return text
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind == "int":
            bare = text.replace("_", "")
            return int(bare, 0) if bare.lstrip("+-").startswith(("0x", "0o")) else int(bare)
        if kind == "float":
            return float(re.sub(r"\.(inf|nan)$", r"\1", text.replace("_", "").lower()))
    except ValueError as error:
        raise _refuse(node, f"{text!r} is no {kind}: {error}") from error
    raise _refuse(node, f"the tag {node.tag!r} is not allowed: a recipe builds no objects")
