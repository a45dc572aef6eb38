"""Which items a request allows: named filters, conditions, lists of ids; made once for requests that say the same."""

from __future__ import annotations

import functools
import operator
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genrec.data.attributes import Attributes, Condition
from genrec.data.catalog import ItemCatalog
from genrec.decoding.filters import ItemFilter
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.errors import ConfigError
from genrec.serving.problems import Problem
from genrec.serving.schemas import RecommendationRequest

KEPT = 64


@dataclass(frozen=True, eq=False)
class _Made:
    """A filter, the fields that it reads, and all that it was made from."""

    allowed: ItemFilter | None
    fields: tuple[str, ...]
    sources: tuple[object, ...]


@dataclass(frozen=True, eq=False)
class _Said:
    """What was answered last: whose, of which version, and the filter or what was wrong."""

    request: RecommendationRequest
    snapshot: CatalogSnapshot
    allowed: ItemFilter | None
    refused: Problem | None


class Rules:
    """The filters of requests, kept as long as what they read is the same (internal).

    What an index needs of a filter is kept with the filter, so a version of the catalog that changed nothing of it
    costs nothing. The users of one request cost nothing after the first, whatever their rules say and whether they can
    be followed or not. Only one thread at a time may use it.
    """

    def __init__(self, catalog: ItemCatalog) -> None:
        self._read, self._attributes = catalog, Attributes(catalog)
        self._kept: OrderedDict[tuple[Any, ...], _Made] = OrderedDict()
        self._last: _Said | None = None

    def of(self, request: RecommendationRequest, snapshot: CatalogSnapshot) -> ItemFilter | None:
        """What the request allows; None = everything. Raises Problem for what the catalog does not know."""
        last = self._last
        if last is None or last.request is not request or last.snapshot is not snapshot:
            last = self._last = self._said(request, snapshot)
        if (problem := last.refused) is not None:
            raise _again(problem)
        return last.allowed

    def _said(self, request: RecommendationRequest, snapshot: CatalogSnapshot) -> _Said:
        try:
            return _Said(request, snapshot, self._allowed(request, snapshot), None)
        except Problem as problem:
            return _Said(request, snapshot, None, _again(problem))

    def _allowed(self, request: RecommendationRequest, snapshot: CatalogSnapshot) -> ItemFilter | None:
        allow = None if request.allow is None else tuple(request.allow)
        key = (request.filter, tuple(request.where), allow, tuple(request.deny))
        made = self._kept.get(key)
        if made is None or not _same(made.sources, _sources(request, made.fields, snapshot)):
            made = self._kept[key] = self._made(request, snapshot)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return made.allowed

    def _made(self, request: RecommendationRequest, snapshot: CatalogSnapshot) -> _Made:
        catalog = snapshot.catalog
        assert catalog is not None, "a served snapshot has its catalog"
        if self._read is not catalog:
            self._read, self._attributes = catalog, Attributes(catalog)
        parts: list[ItemFilter] = []
        if request.filter is not None:
            parts.append(_named(request.filter, snapshot))
        names: list[str] = []
        for text in request.where:
            condition, met = _said(lambda text=text: self._where(text, snapshot), "where", tuple(catalog.fields))
            names.append(condition.field)
            parts.append(met)
        for ids, negated in ((request.allow, False), (request.deny or None, True)):
            if ids is not None:
                numbers = catalog.numbers(ids, missing="negative")
                listed = ItemFilter.of_items(numbers[numbers >= 0], snapshot.n_items, snapshot.codes.catalog)
                parts.append(~listed if negated else listed)
        found = functools.reduce(operator.and_, parts) if parts else None
        return _Made(found, tuple(names), _sources(request, tuple(names), snapshot))

    def _where(self, text: str, snapshot: CatalogSnapshot) -> tuple[Condition, ItemFilter]:
        """A condition on a field: numbers by their values of the moment, others by the catalog."""
        condition = self._attributes.parsed(text)
        if condition.field not in snapshot.fields:
            return condition, ItemFilter.of_mask(self._attributes.where(condition), snapshot.codes.catalog)
        if condition.operator != "in":
            return condition, snapshot.where(condition)
        values = [Condition(condition.field, "=", value) for value in condition.value]
        return condition, functools.reduce(operator.or_, [snapshot.where(each) for each in values])


def _again(problem: Problem) -> Problem:
    """The same, without the frames that a raised exception keeps."""
    return Problem(problem.status, problem.message, param=problem.param, code=problem.code)


def _sources(request: RecommendationRequest, names: Sequence[str], snapshot: CatalogSnapshot) -> tuple[object, ...]:
    """What a filter is made from: none of these objects ever changes."""
    named = None if request.filter is None else _named(request.filter, snapshot)
    return (snapshot.catalog, named, *(snapshot.fields.get(name) for name in names))


def _same(before: tuple[object, ...], now: tuple[object, ...]) -> bool:
    return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))


def _named(expression: str, snapshot: CatalogSnapshot) -> ItemFilter:
    found: ItemFilter = _said(lambda: snapshot.filters[expression], "filter", snapshot.filters.names)
    return found


def _said(make: Any, param: str, known: Sequence[str]) -> Any:
    """What is made of a text; what is wrong with it is said without the words of the request."""
    try:
        return make()
    except ConfigError:
        names = ", ".join(known[:20]) or "none"
        hints = {
            "filter": f"expected names joined by &, | and ~; names: {names}",
            "where": f"expected FIELD OPERATOR VALUE that suits the field, as 'price < 20'; fields: {names}",
        }
        raise Problem(400, f"{param}: {hints[param]}", param=param, code="invalid_filter") from None
