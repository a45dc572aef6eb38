"""One version of a catalog in service: identifiers, index, what is retired, named filters, fields (numpy only).

Axes: N items, M new items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from genrec.data.attributes import ORDERED, Condition
from genrec.decoding.filter_set import Defaults, FilterSet
from genrec.decoding.filters import ItemFilter, RankFilter, in_namespace, item_numbers
from genrec.decoding.index import CatalogIndex
from genrec.decoding.namespaces import Namespace
from genrec.errors import ConfigError, DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes, check_catalog

if TYPE_CHECKING:
    from genrec.data.catalog import ItemCatalog

Mask = npt.NDArray[np.bool_]
Field = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class CatalogSnapshot:
    """Everything that a request needs of a catalog, at one moment; it never changes.

    version: a number that grows with every change. codes: of all items, retired ones included: histories hold them.
    index: of the items that were not retired when it was built. retired: bool ``[N]``. filters: by name; the
    namespaces of the index are among them, and the conditions. fields: numbers of the items ``[N]``, NaN = missing.
    conditions: filters that follow from a field ("price < 30"), by name; they follow its changes. catalog: the ids and
    titles behind the numbers; its tombstones are not looked at. None where the caller keeps them.

    Raises FingerprintMismatch where index, codes and catalog differ, DataError for fields of another length.
    Stability: experimental.
    """

    version: int
    codes: ItemCodes
    index: CatalogIndex
    retired: Mask
    filters: FilterSet
    fields: Mapping[str, Field] = field(default_factory=dict)
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    catalog: ItemCatalog | None = None

    def __post_init__(self) -> None:
        n = self.codes.n_items
        if self.index.codes != self.codes.fingerprint:
            raise FingerprintMismatch(
                f"index was built from codes {self.index.codes[:8]}, got codes {self.codes.fingerprint[:8]}",
                hint="build the index again with CatalogIndex.build",
            )
        if self.catalog is not None:
            check_catalog("codes", self.codes.catalog, self.catalog.fingerprint)
        for name, values in {"retired": self.retired, **self.fields}.items():
            if values.shape != (n,):
                raise DataError(f"{name}: expected one value for each of {n} items, got shape {values.shape}")

    @classmethod
    def of(
        cls,
        codes: ItemCodes,
        *,
        catalog: ItemCatalog | None = None,
        retired: npt.ArrayLike | None = None,
        filters: Mapping[str, ItemFilter | str] | None = None,
        fields: Mapping[str, npt.ArrayLike] | None = None,
        namespaces: tuple[Namespace, ...] = (),
    ) -> CatalogSnapshot:
        """Version 0.

        catalog: with it, answers of any later version can be read as ids (:class:`CatalogStore` takes the catalogs that
        follow). retired: bool ``[N]``, None = the tombstones of ``catalog``, if it is given and has any. filters: an
        :class:`ItemFilter`, or a condition on a field such as ``"price < 30"``, by name.
        """
        stated = catalog.retired if retired is None and catalog is not None else retired
        gone = np.zeros(len(codes), dtype=np.bool_) if stated is None else np.array(stated, dtype=np.bool_)
        index = CatalogIndex.build(codes, keep=~gone, namespaces=namespaces)
        domains = {each.name: in_namespace(index, each.name) for each in namespaces}
        first = cls(
            version=0,
            codes=codes,
            index=index,
            retired=gone,
            filters=FilterSet(domains, n_items=len(codes), catalog=codes.catalog),
            fields={name: np.asarray(values, dtype=np.float64) for name, values in (fields or {}).items()},
            catalog=catalog,
        )
        return replace(first.with_filters(filters or {}), version=0)

    @property
    def n_items(self) -> int:
        """Number of items N, retired ones included."""
        return self.codes.n_items

    @cached_property
    def live(self) -> ItemFilter | None:
        """The items that are not retired; None where the index has no others, so that there is nothing to filter."""
        return None if self.live_ranks is None else ItemFilter.of_mask(~self.retired, self.codes.catalog)

    @cached_property
    def live_ranks(self) -> RankFilter | None:
        """:attr:`live` over the ranks of the index (internal)."""
        ranks = self.index.rank_of[np.flatnonzero(self.retired)]
        return RankFilter.without(ranks[ranks >= 0], self.index) if (ranks >= 0).any() else None

    def where(self, condition: Condition | str) -> ItemFilter:
        """The items whose field meets a condition with ``<``, ``<=``, ``>``, ``>=``, ``=`` or ``!=`` a number.

        A missing value meets none. Raises ConfigError for an unknown field and for other conditions.
        """
        wanted = Condition.parse(condition, self.fields) if isinstance(condition, str) else condition
        if wanted.field not in self.fields:
            raise ConfigError(
                f"field {wanted.field!r} is not in the snapshot", hint=f"fields: {', '.join(self.fields)}"
            )
        values = self.fields[wanted.field]
        try:
            number = float(wanted.value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{wanted.field} {wanted.operator}: expected a number, got {wanted.value!r}") from error
        with np.errstate(invalid="ignore"):
            match wanted.operator:
                case "=":
                    met = values == number
                case "!=":
                    met = (values != number) & ~np.isnan(values)
                case how if how in ORDERED:
                    met = ORDERED[how](values, number)
                case how:
                    raise ConfigError(f"{wanted.field} {how}: the field is a number", hint="= != < <= > >=")
        return ItemFilter.of_mask(np.asarray(met, dtype=np.bool_), self.codes.catalog)

    # --- the next version ----------------------------------------------------------------------------------

    def retiring(self, items: npt.ArrayLike) -> CatalogSnapshot:
        """The next version, in which these items are listed no more; an item may be retired twice.

        Raises DataError for an item that does not exist, and where none would be left.
        """
        gone = self.retired.copy()
        gone[self._known(items)] = True
        if gone.all():
            raise DataError("no item would be left")
        return self._next(retired=gone)

    def updating(self, name: str, items: npt.ArrayLike, values: npt.ArrayLike) -> CatalogSnapshot:
        """The next version, in which a field has other values for these items, and its conditions follow."""
        if name not in self.fields:
            raise ConfigError(f"field {name!r} is not in the snapshot", hint=f"fields: {', '.join(self.fields)}")
        column = self.fields[name].copy()
        column[self._known(items)] = values
        changed = self._next(fields={**self.fields, name: column})
        return replace(changed, filters=changed.filters.with_filters(changed._computed(name)))

    def with_filters(self, named: Mapping[str, ItemFilter | str]) -> CatalogSnapshot:
        """The next version with these filters, each an :class:`ItemFilter` or a condition on a field."""
        if domains := [each.name for each in self.index.namespaces if each.name in named]:
            raise ConfigError(f"filter {domains[0]!r}: the name is that of a namespace")
        conditions = {name: Condition.parse(each, self.fields) for name, each in named.items() if isinstance(each, str)}
        fixed = {name: each for name, each in named.items() if not isinstance(each, str)}
        kept = {name: each for name, each in self.conditions.items() if name not in fixed}
        made = {**fixed, **{name: self.where(each) for name, each in conditions.items()}}
        return self._next(filters=self.filters.with_filters(made), conditions={**kept, **conditions})

    def with_index(self, index: CatalogIndex) -> CatalogSnapshot:
        """The next version with an index of the same codes that leaves out more retired items."""
        return self._next(index=index)

    def growing(
        self,
        codes: ItemCodes,
        index: CatalogIndex,
        *,
        fields: Mapping[str, npt.ArrayLike],
        new: Defaults,
        catalog: ItemCatalog | None = None,
    ) -> CatalogSnapshot:
        """The next version with items behind the present ones. index: made of ``codes``, see :meth:`grown_codes`.

        fields: values ``[M]`` of the new items, NaN where left out. new: whether they are in the filters that do not
        follow from codes or fields. catalog: the one with them. Raises as :meth:`FilterSet.grown`, ConfigError for an
        unknown field.
        """
        added = codes.n_items - self.n_items
        if unknown := set(fields) - set(self.fields):
            raise ConfigError(
                f"field {min(unknown)!r} is not in the snapshot", hint=f"fields: {', '.join(self.fields)}"
            )
        grown = {
            name: np.concatenate([values, np.broadcast_to(np.asarray(fields.get(name, np.nan), np.float64), added)])
            for name, values in self.fields.items()
        }
        computed = dict.fromkeys((*self.conditions, *(each.name for each in index.namespaces)), False)
        stated = {**new, **computed} if isinstance(new, Mapping) else new
        larger = self._next(
            codes=codes,
            index=index,
            retired=np.concatenate([self.retired, np.zeros(added, dtype=np.bool_)]),
            filters=self.filters.grown(codes.n_items, codes.catalog, stated),
            fields=grown,
            catalog=catalog,
        )
        domains = {each.name: in_namespace(index, each.name) for each in index.namespaces}
        return replace(larger, filters=larger.filters.with_filters({**domains, **larger._computed()}))

    def grown_codes(self, rows: npt.ArrayLike, catalog: ItemCatalog | str) -> ItemCodes:
        """The identifiers with these rows (int ``[M, L]``, -1 behind short ones) behind them.

        No level grows, since the model has a token for each of its codes and no other. Raises DataError for codes that
        do not fit, and for another number of them than ``catalog`` has new items; FingerprintMismatch where it does not
        begin with the present items. catalog: the one with the new items, or its fingerprint.
        """
        new, codes = np.asarray(rows), self.codes
        if new.ndim != 2 or new.shape[1] != codes.n_levels or new.dtype.kind not in "iu" or not len(new):
            raise DataError(f"new items: expected integers [M, {codes.n_levels}], got {new.dtype} {new.shape}")
        outside = (new < -1) | (new >= np.array(codes.level_sizes))
        if outside.any():
            row, level = (int(x) for x in np.argwhere(outside)[0])
            last = codes.level_sizes[level] - 1
            raise DataError(
                f"new item {row}: level {level} has the codes 0..{last}, got {int(new[row, level])}",
                hint="the model has a token for each of these codes: encode new items with the item tokenizer it was "
                "trained on",
            )
        if not codes.ragged and (new < 0).any():
            row = int((new < 0).any(axis=1).argmax())
            raise DataError(f"new item {row}: expected {codes.n_levels} codes, as all identifiers have")
        added = ItemCodes.from_int(new, codes.level_sizes, "")
        lengths = None
        if codes.lengths is not None:
            short = np.full(len(new), codes.n_levels, dtype=np.uint8) if added.lengths is None else added.lengths
            lengths = np.concatenate([codes.lengths, short])
        joined = np.concatenate([codes.codes, added.codes])
        return replace(codes, codes=joined, lengths=lengths, catalog=self._fingerprint_of(catalog, len(joined)))

    def _fingerprint_of(self, catalog: ItemCatalog | str, n_items: int) -> str:
        """The fingerprint of the catalog that follows this one."""
        if isinstance(catalog, str):
            return catalog
        if catalog.parent != self.codes.catalog and not catalog.extends(self.codes.catalog, self.n_items):
            raise FingerprintMismatch(
                f"catalog {catalog.fingerprint[:8]} does not begin with the items of {self.codes.catalog[:8]}",
                hint="append the new items to the catalog of the current version (ItemCatalog.append)",
            )
        if len(catalog) != n_items:
            new = len(catalog) - self.n_items
            raise DataError(f"new items: {n_items - self.n_items} identifiers, and the catalog has {new} more items")
        return catalog.fingerprint

    def _next(self, **changes: Any) -> CatalogSnapshot:
        return replace(self, version=self.version + 1, **changes)

    def _computed(self, field_name: str | None = None) -> dict[str, ItemFilter]:
        """The filters that follow from a field, or from any."""
        return {name: self.where(each) for name, each in self.conditions.items() if field_name in (None, each.field)}

    def _known(self, items: npt.ArrayLike) -> npt.NDArray[np.int64]:
        return item_numbers("catalog", items, self.n_items)
