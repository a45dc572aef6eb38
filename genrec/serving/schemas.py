"""What a request may say, checked field by field; strict JSON (no NaN, no double keys, no lone surrogates)."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from genrec.serving.problems import Problem
from genrec.serving.settings import ServeSettings

_LISTS = ("allow", "deny", "items", "where")
LONGEST_ID = 512
"""Characters of an id or a condition."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Input(_Strict):
    """One user: a history of item ids, oldest first, or the id of a user whose history the server has, or a query."""

    history: list[str] | None = Field(None, description="Item ids, oldest first; unknown ones are skipped.")
    user: str | None = Field(None, description="A user of the server's log; alone, the log is the history.")
    query: str | None = Field(None, description="What the user searches for; alone, or beside history or user.")

    @model_validator(mode="after")
    def _one_of_them(self) -> Input:
        if self.history is None and self.user is None and self.query is None:
            raise ValueError("expected history, user or query")
        return self


class RecommendationRequest(_Strict):
    """Lists for one user (``history`` or ``user``, or a ``query``) or several (``inputs``)."""

    model: str | None = Field(None, description="Name of the served model; left out: the one there is.")
    history: list[str] | None = Field(None, description="Item ids, oldest first; unknown ones are skipped.")
    user: str | None = Field(None, description="A user of the server's log; alone, the log is the history.")
    query: str | None = Field(None, description="What the user searches for; alone, or beside history or user.")
    inputs: list[Input] | None = Field(None, min_length=1, description="Several users, answered in this order.")
    top_k: int = Field(10, ge=1, description="Length of the lists.")
    n_beams: int | None = Field(None, ge=1, description="Identifiers kept per step; default: the model's.")
    exclude_seen: bool = Field(True, description="List no item of the history.")
    filter: str | None = Field(None, description="Named filters joined by &, | and ~, as 'in_stock & ~adult'.")
    where: list[str] = Field([], max_length=16, description="Conditions on item fields, as 'price < 20'; all hold.")
    allow: list[str] | None = Field(None, description="Only these items.")
    deny: list[str] = Field([], description="None of these items.")
    exact: bool = Field(False, description="Widen the search until the list is proven to be the best one.")
    scores: Literal["raw", "renormalized"] | None = Field(
        None,
        description="raw: over the whole vocabulary; renormalized: over what the catalog has; default: as trained.",
    )
    explain: bool = Field(False, description="Say how each item was reached: its codes, and what was ruled out there.")
    timeout: float | None = Field(None, gt=0, description="Seconds until the answer is of no use.")

    @model_validator(mode="after")
    def _who(self) -> RecommendationRequest:
        single = self.history is not None or self.user is not None or self.query is not None
        if single == (self.inputs is not None):
            raise ValueError("expected history, user or query, or inputs")
        return self

    @property
    def users(self) -> list[Input]:
        """The users, one or several."""
        return self.inputs or [Input(history=self.history, user=self.user, query=self.query)]


class FilterChange(_Strict):
    """A named filter: a condition on a number field, or the items it allows."""

    name: str = Field(min_length=1, max_length=64)
    condition: str | None = Field(None, max_length=LONGEST_ID)
    items: list[str] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> FilterChange:
        if (self.condition is None) == (self.items is None):
            raise ValueError("expected condition or items")
        return self


class ItemsChange(_Strict):
    """Items by id."""

    items: list[str] = Field(min_length=1)


class FieldChange(_Strict):
    """Other values of a number field for some items; null = missing."""

    field: str = Field(min_length=1, max_length=64)
    values: dict[str, float | None] = Field(min_length=1)


class ModelChange(_Strict):
    """Another model answers than the one at the usual place; empty texts = that one."""

    place: str
    digest: str
    instead_of: str


def parse_json(body: bytes) -> Any:
    """The JSON of a body. Raises Problem 400 for anything that is none, or that would not survive a round trip."""
    try:
        text = body.decode("utf-8")
        found = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_distinct)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # lone surrogates
    except _Bad as error:
        raise Problem(400, str(error), code="invalid_json") from None
    except RecursionError:
        raise Problem(400, "the JSON is nested too deeply", code="invalid_json") from None
    except (UnicodeError, ValueError):
        raise Problem(400, "the body is not valid UTF-8 JSON", code="invalid_json") from None
    return found


def parsed(kind: type[_Strict], body: bytes, settings: ServeSettings) -> Any:
    """A request of a kind, within the limits. Raises Problem 400 naming the field, never its value."""
    try:
        value = parse_json(body)
        if isinstance(value, dict) and any(name not in kind.model_fields for name in value):
            raise Problem(400, "unknown field", code="unknown_field")
        _check_lists(value, settings)
        found = kind.model_validate(value)
    except ValidationError as error:
        raise _invalid(error) from None
    if isinstance(found, RecommendationRequest):
        _check_limits(found, settings)
    elif isinstance(found, ItemsChange | FilterChange):
        _at_most("items", len(found.items or ()), settings.max_listed)
    elif isinstance(found, FieldChange):
        _at_most("values", len(found.values), settings.max_listed)
    return found


def _check_lists(value: Any, settings: ServeSettings) -> None:
    """Lengths and types of lists, one glance each: the schema would make an error object of every wrong element."""
    if not isinstance(value, dict):
        return
    inputs = value.get("inputs")
    if isinstance(inputs, list):
        _at_most("inputs", len(inputs), settings.max_inputs)
    several = [each for each in (inputs if isinstance(inputs, list) else []) if isinstance(each, dict)]
    for each in (value, *several):
        for name, limit in (("history", settings.max_history), *((n, settings.max_listed) for n in _LISTS)):
            ids = each.get(name)
            if isinstance(ids, list):
                _at_most(name, len(ids), limit)
                if not all(isinstance(item, str) for item in ids):
                    raise Problem(400, f"{name}: expected texts", param=name, code="string_type")


def _check_limits(request: RecommendationRequest, settings: ServeSettings) -> None:
    _at_most("inputs", len(request.users), settings.max_inputs)
    _at_most("top_k", request.top_k, settings.max_top_k)
    _at_most("n_beams", request.n_beams or 0, settings.max_beams)
    for name, ids in (("allow", request.allow), ("deny", request.deny)):
        _at_most(name, len(ids or ()), settings.max_listed)
    if request.explain:
        _at_most("explain: users times top_k", len(request.users) * request.top_k, settings.max_top_k, "explain")
    for user in request.users:
        _at_most("history", len(user.history or ()), settings.max_history)
    texts = [*request.where, request.filter or "", request.model or ""]
    texts += [text or "" for user in request.users for text in (user.user, user.query)]
    for text in texts:
        _at_most("a text", len(text), LONGEST_ID)


def _at_most(name: str, value: int, limit: int, param: str | None = None) -> None:
    if value > limit:
        raise Problem(400, f"{name}: at most {limit}", param=param or name, code="too_large")


def _invalid(error: ValidationError) -> Problem:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    known = {*RecommendationRequest.model_fields, *Input.model_fields, *FilterChange.model_fields}
    known |= {*ItemsChange.model_fields, *FieldChange.model_fields}
    place = [str(part) for part in first["loc"] if isinstance(part, int) or part in known]
    param = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        return Problem(400, "unknown field" + (f" in {param}" if param else ""), param=param, code="unknown_field")
    return Problem(400, f"{param or 'the request'}: {first['msg']}", param=param, code=first["type"])


class _Bad(ValueError):
    """A message for the client."""


def _refuse(name: str) -> float:
    raise _Bad("NaN and Infinity are not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Bad("a number is out of range")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Bad("an object has the same key twice")
    return found
