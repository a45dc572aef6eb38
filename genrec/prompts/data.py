"""What a task may look at: the catalog's texts and the training part of the histories, as rows to draw from.

Axes: N items, U users, E events of the training histories, S steps (training events with something before them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog, clean_text
from genrec.data.histories import Histories
from genrec.data.ties import Bools, redraw
from genrec.errors import ConfigError, DataError
from genrec.prompts.template import Rows

Int64 = npt.NDArray[np.int64]

UNKNOWN_USER = -1
"""In the place of a user's number: somebody without an index, whom prompts name ``<unk_user>``."""


@dataclass(frozen=True)
class Fields:
    """Which fields of the catalog hold what; a field that the catalog lacks is empty for every item (experimental)."""

    title: str = "title"
    description: str = "description"
    brand: str = "brand"
    categories: str = "categories"


@dataclass(frozen=True)
class Row:
    """What one example is about (experimental).

    history: item numbers, oldest first, at most ``max_items``. item: the item that a step leads to, or the item of an
    ``items`` row; None in a row of ``users``. user: the user number, or UNKNOWN_USER where it is not told; None in a
    row of ``items``.
    """

    history: tuple[int, ...] = ()
    item: int | None = None
    user: int | None = None

    def last(self, n: int) -> Row:
        """The same with the ``n`` newest items of the history."""
        return replace(self, history=self.history[-n:] if n else ())


@dataclass(frozen=True, eq=False)
class TaskData:
    """What tasks draw their inputs from (experimental).

    histories: the training part and nothing else (``split.train()``), one row per user. max_items: newest items of a
    history that a row holds. queries: for each item the queries that lead to it, or None (then they are made from its
    fields). with_users: whether the vocabulary has user tokens. tied: events whose order is arbitrary
    (``split.train_ties()``), drawn anew every epoch. told: bool ``[E]``, which events may be learned with their user
    named (:meth:`genrec.vocab.user_index.UserIndex.told`); the others are steps of UNKNOWN_USER.

    Rows: ``items`` are the catalog's (not the retired ones), ``steps`` every training event that has events before
    it, ``users`` every training history that is not empty. What a user did later is in no row.
    Raises DataError if histories or queries do not fit the catalog.
    """

    catalog: ItemCatalog
    histories: Histories
    max_items: int = 20
    fields: Fields = field(default_factory=Fields)
    queries: Sequence[Sequence[str]] | None = None
    with_users: bool = False
    tied: Bools | None = None
    told: Bools | None = None

    def __post_init__(self) -> None:
        items, n_items = self.histories.items, len(self.catalog)
        if len(items) and not 0 <= int(items.min()) <= int(items.max()) < n_items:
            raise DataError(f"histories: expected item numbers 0..{n_items - 1}, got {items.min()}..{items.max()}")
        if self.queries is not None and len(self.queries) != n_items:
            raise DataError(f"queries: expected one list per item ({n_items}), got {len(self.queries)}")
        if self.tied is not None and len(self.tied) != len(items):
            raise DataError(f"tied: expected {len(items)} marks, one per event of the histories, got {len(self.tied)}")
        if self.max_items < 1:
            raise ConfigError(f"max_items: expected 1 or more, got {self.max_items}")

    def at_epoch(self, seed: int, epoch: int) -> TaskData:
        """The same data with the order of ties of this epoch."""
        if self.tied is None:
            return self
        items = redraw(self.histories.items, self.tied, seed=seed, epoch=epoch)
        other = replace(self, histories=Histories(self.histories.offsets, items))
        other.__dict__["texts"] = self.texts  # cleaned once
        return other

    def n_rows(self, rows: Rows) -> int:
        """How many rows of this kind there are."""
        return len(self._places[rows])

    def row(self, rows: Rows, place: int) -> Row:
        """Row ``place`` of this kind."""
        at = int(self._places[rows][place])
        if rows == "items":
            return Row(item=at)
        if rows == "users":
            return Row(tuple(self.histories[at][-self.max_items :].tolist()), user=at)
        user = int(self._row_of_event[at])
        first = max(int(self.histories.offsets[user]), at - self.max_items)
        items = self.histories.items
        named = user if self.told is None or self.told[at] else UNKNOWN_USER
        return Row(tuple(items[first:at].tolist()), item=int(items[at]), user=named)

    def title(self, item: int) -> str:
        """Title, "" if it has none."""
        return self.texts.one(self.fields.title, item)

    def description(self, item: int) -> str:
        """Description, "" if it has none."""
        return self.texts.one(self.fields.description, item)

    def brand(self, item: int) -> str:
        """Brand, "" if it has none."""
        return self.texts.one(self.fields.brand, item)

    def category(self, item: int) -> str:
        """The narrowest category (the last of the list), "" if it has none."""
        return self.texts.one(self.fields.categories, item)

    def user(self, row: Row) -> int | None:
        """The row's user where the vocabulary has user tokens, else None."""
        return row.user if self.with_users else None

    @cached_property
    def texts(self) -> _Texts:
        """The cleaned texts, each made when first asked for."""
        return _Texts(self.catalog)

    @cached_property
    def _row_of_event(self) -> Int64:
        return self.histories.rows()

    @cached_property
    def _places(self) -> dict[Rows, Int64]:
        items = np.arange(len(self.catalog), dtype=np.int64)
        first = self.histories.offsets[:-1][self._row_of_event]
        return {
            "items": items if self.catalog.retired is None else items[~self.catalog.retired],
            "steps": np.flatnonzero(np.arange(len(first)) > first),
            "users": np.flatnonzero(self.histories.lengths > 0),
        }


class _Texts:
    """Fields of the catalog as clean text (internal)."""

    def __init__(self, catalog: ItemCatalog) -> None:
        self._fields = catalog.fields
        self._clean: dict[tuple[str, int], str] = {}

    def one(self, field: str, item: int) -> str:
        found = self._clean.get((field, item))
        if found is None:
            value = self._fields[field][item] if field in self._fields else None
            if isinstance(value, list):
                value = value[-1] if value else None
            found = self._clean[(field, item)] = "" if value is None else clean_text(str(value))
        return found
