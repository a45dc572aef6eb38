"""The Jinja2 in which templates run: no files, no random numbers, nothing that takes a value apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, Undefined, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

from genrec.errors import ConfigError
from genrec.prompts.segments import Many, One, Piece, Slots

_FILTERS = ("first", "join", "last", "length", "list", "reverse")  # those that are pure and keep values whole


@dataclass(frozen=True)
class Compiled:
    """A piece of template text and the inputs that it uses (internal)."""

    template: Template
    uses: frozenset[str]


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja2 without files, random numbers, or anything that takes values apart (internal)."""
    made = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True, finalize=_printable
    )
    made.filters = {name: made.filters[name] for name in _FILTERS}
    made.globals = {"range": safe_range}
    return made


def _printable(value: Any) -> Any:
    if value is None:
        raise ConfigError("an optional input that is missing was printed", hint="{% if name %}…{% endif %} around it")
    if not isinstance(value, (str, int, One, Many, Undefined)):  # the last raises by itself
        raise ConfigError(f"a {type(value).__name__} was printed", hint="print inputs, texts and numbers")
    return value


_ENVIRONMENT = environment()


def compile_text(text: str, known: Any, where: str) -> Compiled:
    """Template text that uses only ``known`` inputs (internal). Raises ConfigError naming ``where``."""
    try:
        uses = meta.find_undeclared_variables(_ENVIRONMENT.parse(text)) - set(_ENVIRONMENT.globals)
        template = _ENVIRONMENT.from_string(text)
    except (TemplateError, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from error
    for name in sorted(uses - set(known)):
        raise unknown_input(where, name, known)
    return Compiled(template, frozenset(uses))


def run(template: Template, values: Mapping[str, Any], slots: Slots, where: str) -> Piece:
    """The segments that the template prints (internal). Raises ConfigError naming ``where``."""
    try:
        return tuple(slots.parse(template.render(values)))
    except (TemplateError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ConfigError(f"{where}: {error}", hint=getattr(error, "hint", None)) from error


def unknown_input(where: str, name: str, known: Any) -> ConfigError:
    """The error for an input that a header does not name, with the nearest that it does (internal)."""
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else None
    return ConfigError(f"{where}: {name!r} is none of the inputs {', '.join(sorted(known))}", hint=hint)
