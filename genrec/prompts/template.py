"""Templates of alignment tasks: a header, then several wordings, each a prompt and a target in sandboxed Jinja2.

::

    ---
    task: sequential
    version: 1
    rows: steps
    inputs: {history: items, target: item, user: optional user}
    about: the items that a user had, then the next one
    ---
    A user had these items, oldest first: {{ history }}. Which one comes next?
    => {{ target }}
    ---
    (the next wording)

The line that begins with ``=>`` is where the prompt ends and the target begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Template

from genrec import recipes
from genrec.errors import ConfigError
from genrec.prompts.sandbox import compile_text, run, unknown_input
from genrec.prompts.segments import CLOSE, OPEN, Many, One, Piece, Segment, Slots, one_line
from genrec.recipe_text import parse_text

Rows = Literal["steps", "items", "users"]
Kind = Literal["item", "items", "text", "texts", "user"]
_OPTIONAL = "optional "
ARROW, RULE = "=>", "---"
_NUMBERS = (int, np.integer)
_KINDS: tuple[Kind, ...] = ("item", "items", "text", "texts", "user")


@dataclass(frozen=True)
class Header:
    """The head of a template file (experimental).

    task: its name. version: raise it when a wording changes. rows: what the task draws from (see
    :class:`genrec.prompts.data.TaskData`). inputs: name → ``item``, ``items``, ``text``, ``texts`` or ``user``;
    ``optional`` before it: a wording that uses it can do without. about: one line for ``genrec prompts list``.
    """

    task: str
    version: int
    rows: Rows
    inputs: dict[str, str]
    about: str

    def __post_init__(self) -> None:
        if self.version < 1:
            raise ConfigError(f"version: expected 1 or more, got {self.version}")
        for name, kind in self.inputs.items():
            if kind.removeprefix(_OPTIONAL) not in _KINDS:
                raise ConfigError(f"inputs.{name}: expected {', '.join(_KINDS)} (or 'optional item' …), got {kind!r}")


@dataclass(frozen=True)
class Rendered:
    """An example as segments (experimental). wording: which of the template's, from 0."""

    task: str
    wording: int
    prompt: Piece
    target: Piece


@dataclass(frozen=True)
class Wording:
    """One prompt and target of a template (internal). required: inputs without which it cannot be rendered."""

    prompt: Template
    target: Template
    uses: frozenset[str]
    required: frozenset[str]


@dataclass(frozen=True, eq=False)
class PromptTemplate:
    """A versioned template file (experimental). Rendering is a pure function of the inputs and the wording's number."""

    header: Header
    wordings: tuple[Wording, ...]
    source: str

    @classmethod
    def load(cls, path: str | Path) -> PromptTemplate:
        """Read a file. Raises ConfigError naming the file and what is wrong in it."""
        return cls.parse(read_template(path), str(path))

    @classmethod
    def parse(cls, text: str, where: str = "template") -> PromptTemplate:
        """The template with this text; ``where`` names it in errors."""
        if OPEN in text or CLOSE in text:
            raise ConfigError(f"{where}: the characters U+E000 and U+E001 are not allowed")
        head, bodies = _sections(text, where)
        header = recipes.validate(parse_text(head, where).data or {}, Header, where)
        wordings = tuple(_wording(body, header, f"{where}, wording {n}") for n, body in enumerate(bodies, 1))
        if not wordings:
            raise ConfigError(
                f"{where}: no wording below the header", hint=f"put them below each other, {RULE} between"
            )
        return cls(header, wordings, text)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that identify the text of the template."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:32]

    def fitting(self, inputs: Mapping[str, Any]) -> list[int]:
        """The wordings that can be rendered: none of their required inputs is None, empty or missing."""
        there = {name for name, value in inputs.items() if _given(value)}
        return [n for n, wording in enumerate(self.wordings) if wording.required <= there]

    def prompt(self, inputs: Mapping[str, Any], wording: int, *, max_text: int = 400) -> Piece:
        """The prompt alone, as a model is asked; lists may be empty (a user without a history).

        Raises ConfigError where the prompt of this wording needs an input that is not given.
        """
        where = f"{self.header.task}, wording {wording + 1}"
        return run(self.wordings[wording].prompt, *self._values(inputs, wording, max_text), where)

    def check_asks(self, wording: int, given: Mapping[str, Any] | None = None) -> None:
        """Raise ConfigError unless this wording asks, with a history alone, for one item (internal).

        given: values of other inputs that it has to do with.
        """
        known: Mapping[str, Any] = {"history": []} if given is None else given
        if not 0 <= wording < len(self.wordings):
            raise ConfigError(f"wording: expected 0..{len(self.wordings) - 1}, got {wording}")
        for name in known:
            if name not in self.header.inputs:
                raise ConfigError(f"{self.header.task}: a template without the input {name!r} cannot recommend")
        self.prompt(known, wording)
        where, wanted = f"{self.header.task}, wording {wording + 1}", (Segment("item", 0),)
        for optional in (True, False):
            values, slots = self._values(self._trial(optional), wording, 400)
            if run(self.wordings[wording].target, values, slots, where) != wanted:
                raise ConfigError(
                    f"{where}: a model can be asked only for the next item, and the answer of this wording is another",
                    hint=f"the target has to be one item and nothing else, such as {ARROW} {{{{ target }}}}",
                )

    def _trial(self, optional: bool) -> dict[str, Any]:
        """Inputs by which a target of one item is told from words, lists and items of the history."""
        of_kind: dict[str, Any] = {"item": 0, "items": [1, 2], "text": "a", "texts": ["a", "b"], "user": 0}
        kinds = {name: kind for name, kind in self.header.inputs.items() if optional or not kind.startswith(_OPTIONAL)}
        return {name: of_kind[kind.removeprefix(_OPTIONAL)] for name, kind in kinds.items()}

    def render(self, inputs: Mapping[str, Any], wording: int, *, max_text: int = 400) -> Rendered:
        """The example with these inputs (item and user numbers, texts, or lists of them).

        max_text: longest text in characters; longer ones are cut at a space. Raises ConfigError for an input that is
        missing, of another kind, or not of this template.
        """
        header, chosen = self.header, self.wordings[wording]
        values, slots = self._values(inputs, wording, max_text)
        where = f"{header.task}, wording {wording + 1}"
        prompt, target = (run(part, values, slots, where) for part in (chosen.prompt, chosen.target))
        if not prompt or not target:
            raise ConfigError(f"{where}: the {'target' if prompt else 'prompt'} is empty")
        return Rendered(header.task, wording, prompt, target)

    def _values(self, inputs: Mapping[str, Any], wording: int, max_text: int) -> tuple[dict[str, Any], Slots]:
        """What a template may see of the inputs, and what its marks will stand for."""
        header, uses = self.header, self.wordings[wording].uses
        slots, values = Slots(), dict[str, Any].fromkeys(uses)
        for name, value in inputs.items():
            if name not in header.inputs:
                raise unknown_input(header.task, name, header.inputs)
            if name in uses:
                values[name] = _opaque(slots, f"{header.task}: {name}", header.inputs[name], value, max_text)
        return values, slots


def read_template(path: str | Path) -> str:
    """The text of a template file (internal). Raises ConfigError."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text ({error.reason} at byte {error.start})") from error


def _sections(text: str, where: str) -> tuple[str, list[str]]:
    """The header and the wordings."""
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.rstrip() == RULE:
            parts.append([])
        else:
            parts[-1].append(line)
    if len(parts) < 2 or any(line.strip() for line in parts[0]):
        raise ConfigError(f"{where}: expected a header between two lines {RULE} at the top of the file")
    bodies = ["\n".join(lines).strip() for lines in parts[2:]]
    return "\n".join(parts[1]), [body for body in bodies if body]


def _wording(body: str, header: Header, where: str) -> Wording:
    prompt, arrow, target = f"\n{body}".partition(f"\n{ARROW}")
    if not arrow or f"\n{ARROW}" in target:
        raise ConfigError(f"{where}: expected one line that begins with {ARROW}, where the target begins")
    parts = [compile_text(part.strip(), header.inputs, where) for part in (prompt, target)]
    uses = parts[0].uses | parts[1].uses
    optional = {name for name, kind in header.inputs.items() if kind.startswith(_OPTIONAL)}
    return Wording(parts[0].template, parts[1].template, uses, uses - optional)


def _given(value: Any) -> bool:
    """Item 0 is a value; a blank text and a list without values are none."""
    if isinstance(value, str):
        return bool(one_line(value, 1))
    return value is not None and (isinstance(value, _NUMBERS) or any(map(_given, value)))


def _opaque(slots: Slots, where: str, kind: str, value: Any, max_text: int) -> One | Many | None:
    """The value as a template may see it; blank texts of a list are left out."""
    base = kind.removeprefix(_OPTIONAL)
    if not _given(value):
        return slots.many([]) if base.endswith("s") and value is not None else None
    one, wanted = base in ("item", "text", "user"), str if base.startswith("text") else _NUMBERS
    values = [value] if one else list(value)
    if (isinstance(value, str) and not one) or not all(isinstance(v, wanted) for v in values):
        raise ConfigError(f"{where}: expected {base}, got {str(value)[:60]!r}")
    role: Any = base.removesuffix("s")
    segments = [Segment(role, one_line(v, max_text) if isinstance(v, str) else int(v)) for v in values if _given(v)]
    return slots.one(*segments) if one else slots.many(segments)
