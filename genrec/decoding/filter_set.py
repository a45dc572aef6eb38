"""Filters by name, composed by an expression: "in_stock & shoes & ~adult" (numpy only, no torch).

Axes: N items, M new items.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock

import numpy as np
import numpy.typing as npt

from genrec.data.attributes import Attributes
from genrec.data.catalog import ItemCatalog
from genrec.decoding.filters import ItemFilter
from genrec.errors import ConfigError, DataError, FingerprintMismatch

LONGEST = 1 << 14
"""Characters of an expression."""
_TOKEN = re.compile(r"\s*(\w+|[&|~()])")
_BINDS = {"~": 3, "&": 2, "|": 1, "(": 0}

Defaults = bool | Mapping[str, "bool | npt.NDArray[np.bool_]"]
"""Whether new items are allowed: by all filters alike, or by each; one value, or one for each new item."""


class FilterSet:
    """The named filters of one catalog version.

    A set never changes; :meth:`with_filters` and :meth:`extended` return others. What an expression gives is kept, so
    that the same expression is the same :class:`ItemFilter` object again, and so what an index needs of it is kept too.

    >>> of = ItemFilter.of_items
    >>> filters = FilterSet({"in_stock": of([0, 1, 2], 4), "adult": of([2, 3], 4)}, n_items=4)
    >>> filters["in_stock & ~adult"].mask.tolist()
    [True, True, False, False]
    >>> filters["in_stock & ~adult"] is filters["in_stock&(~adult)"]
    True

    named: all of this catalog. n_composed: how many composed filters are kept, those used last. Raises ConfigError for
    a name that is no word, and as :meth:`ItemFilter.check`. Stability: experimental.
    """

    def __init__(
        self, named: Mapping[str, ItemFilter], *, n_items: int, catalog: str = "", n_composed: int = 64
    ) -> None:
        for name, each in named.items():
            if not name.isidentifier():
                raise ConfigError(f"filter {name!r}: expected a name of letters, digits and _")
            each.check(n_items, catalog)
        self._named = dict(named)
        self.n_items, self.catalog, self._n_composed = n_items, catalog, n_composed
        self._composed: OrderedDict[str, ItemFilter] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def of(cls, catalog: ItemCatalog, named: Mapping[str, ItemFilter | str | npt.ArrayLike]) -> FilterSet:
        """The filters of a catalog by name: each a condition on a field ("price < 30"), flags ``[N]`` or a filter.

        Raises ConfigError as :meth:`genrec.data.attributes.Attributes.where`, DataError for other flags.
        """
        fields = Attributes(catalog)

        def made(given: ItemFilter | str | npt.ArrayLike) -> ItemFilter:
            if isinstance(given, ItemFilter):
                return given
            mask = fields.where(given) if isinstance(given, str) else given
            return ItemFilter.of_mask(mask, catalog.fingerprint)

        filters = {name: made(each) for name, each in named.items()}
        return cls(filters, n_items=len(catalog), catalog=catalog.fingerprint)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order in which they were given."""
        return tuple(self._named)

    @property
    def nbytes(self) -> int:
        """Bytes of all filters that are kept, composed ones included: N / 8 for each."""
        with self._lock:
            return sum(each.words.nbytes for each in (*self._named.values(), *self._composed.values()))

    def __contains__(self, name: object) -> bool:
        return name in self._named

    def __getitem__(self, expression: str) -> ItemFilter:
        """The filter of a name, or of names joined by ``&``, ``|``, ``~`` and parentheses.

        Raises ConfigError for an unknown name and for anything else.
        """
        if expression in self._named:
            return self._named[expression]
        postfix = _postfix(expression)
        if len(postfix) == 1:
            return self._filter(postfix[0])
        key = " ".join(postfix)
        with self._lock:
            if key in self._composed:
                self._composed.move_to_end(key)
                return self._composed[key]
        found = self._value(postfix)
        with self._lock:  # of two threads that composed the same, the first one's is kept by both
            found = self._composed.setdefault(key, found)
            while len(self._composed) > self._n_composed:
                self._composed.popitem(last=False)
        return found

    def with_filters(self, named: Mapping[str, ItemFilter]) -> FilterSet:
        """The set with these filters too, in place of those of the same name; what others compose is kept."""
        found = FilterSet(
            {**self._named, **named}, n_items=self.n_items, catalog=self.catalog, n_composed=self._n_composed
        )
        with self._lock:
            kept = {key: each for key, each in self._composed.items() if named.keys().isdisjoint(key.split())}
        found._composed.update(kept)
        return found

    def without(self, name: str) -> FilterSet:
        """The set without one of its names; ConfigError for an unknown one."""
        self[name]
        left = {key: each for key, each in self._named.items() if key != name}
        return FilterSet(left, n_items=self.n_items, catalog=self.catalog, n_composed=self._n_composed)

    def extended(self, catalog: ItemCatalog, *, new: Defaults) -> FilterSet:
        """The set for a later version of the same catalog, whose new items are allowed as ``new`` says.

        Raises ConfigError where ``new`` leaves a filter out, FingerprintMismatch for a catalog that does not begin with
        the items of this one.
        """
        if not catalog.extends(self.catalog, self.n_items):
            raise FingerprintMismatch(
                f"the filters are of catalog {self.catalog[:8]}, and catalog {catalog.fingerprint[:8]} does not begin "
                "with its items",
                hint="make the filters again from the newer catalog",
            )
        return self.grown(len(catalog), catalog.fingerprint, new)

    def grown(self, n_items: int, catalog: str, new: Defaults) -> FilterSet:
        """:meth:`extended`, where the caller knows that the catalog is a later version (internal)."""
        added = n_items - self.n_items
        named = {}
        for name, each in self._named.items():
            if isinstance(new, Mapping) and name not in new:
                raise ConfigError(f"filter {name!r}: are the {added} new items allowed?", hint="say so by name in new")
            value = np.asarray(new[name] if isinstance(new, Mapping) else new)
            if value.dtype != np.bool_ or value.shape not in ((), (added,)):
                raise DataError(f"filter {name!r}: expected true, false or bool [{added}], got {value!r}")
            mask = np.concatenate([each.mask, np.broadcast_to(value, added)])
            named[name] = ItemFilter.of_mask(mask, catalog)
        return FilterSet(named, n_items=n_items, catalog=catalog, n_composed=self._n_composed)

    def _value(self, postfix: list[str]) -> ItemFilter:
        values: list[ItemFilter] = []
        for token in postfix:
            if token == "~":
                values.append(~values.pop())
            elif token in ("&", "|"):
                right, left = values.pop(), values.pop()
                values.append(left & right if token == "&" else left | right)
            else:
                values.append(self._filter(token))
        return values[0]

    def _filter(self, name: str) -> ItemFilter:
        if name not in self._named:
            raise ConfigError(f"no filter is called {name!r}", hint=f"names: {', '.join(self._named) or 'none'}")
        return self._named[name]


def _postfix(text: str) -> list[str]:
    """Names and operators, operands first: ``a & ~b`` is ``a b ~ &``. Without recursion, so long chains are no trouble.

    ``~`` binds more than ``&``, and that more than ``|``, as in Python. Raises ConfigError for anything else.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"filter: expected an expression of at most {LONGEST} characters, got {len(text)}")
    out: list[str] = []
    waiting: list[str] = []
    operand, at, end = True, 0, len(text.rstrip())  # operand: one is due next

    def settle(least: int) -> None:
        while waiting and _BINDS[waiting[-1]] >= least:
            out.append(waiting.pop())

    while at < end:
        found = _TOKEN.match(text, at)
        token = found[1] if found else ""
        if found is None or operand != (token in "~(" or token.isidentifier()):
            raise _not_an_expression(text)
        at = found.end()
        if token in "~(":
            waiting.append(token)
        elif token in "&|":
            settle(_BINDS[token])
            waiting.append(token)
            operand = True
        elif token == ")":
            settle(1)
            if not waiting:
                raise _not_an_expression(text)
            waiting.pop()
        else:
            out.append(token)
            operand = False
    settle(1)
    if operand or waiting:
        raise _not_an_expression(text)
    return out


def _not_an_expression(text: str) -> ConfigError:
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    return ConfigError(
        f"filter: expected names joined by &, | and ~, got {shown!r}",
        hint="for example 'in_stock & (shoes | boots) & ~adult'",
    )
