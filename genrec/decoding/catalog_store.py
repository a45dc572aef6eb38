"""A catalog that changes while it is searched: writers make snapshots, readers hold one (numpy only)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from genrec.decoding.filter_set import Defaults
from genrec.decoding.filters import ItemFilter
from genrec.decoding.snapshot import CatalogSnapshot

if TYPE_CHECKING:
    from genrec.data.catalog import ItemCatalog

Change = Callable[[CatalogSnapshot], CatalogSnapshot]


class CatalogStore:
    """The current :class:`CatalogSnapshot`, and the ways to change it.

    A reader takes :attr:`snapshot` once and works with it as long as it likes: a snapshot never changes. Writers take
    turns. What is small acts at once (:meth:`retire`, :meth:`update`, :meth:`set_filters`); new items wait for an index
    that holds them, which one background thread makes from the present one (:meth:`add`).

    An item that is retired is filtered away at once, and left out of the index when that is built the next time, by
    :meth:`add` or :meth:`merge`. Under the normaliser "children" it keeps its share of the probability until then, as
    an item that a request denies, and gives it to its siblings afterwards; under "vocab" and "level" no score of any
    other item ever changes.

    publish: called with every new snapshot before it becomes the current one, such as
    :meth:`genrec.models.recommender.GenerativeRecommender.swap`; where it raises, nothing changes. Stability:
    experimental.

    >>> from genrec.item_tokenizers.codes import ItemCodes
    >>> store = CatalogStore(CatalogSnapshot.of(ItemCodes.from_int([[0, 0], [0, 1]], (2, 2), "a")))
    >>> store.retire([1]).version, store.add([[1, 1]], catalog="b").result().index.items.tolist()
    (1, [0, 2])
    >>> store.close()
    """

    def __init__(
        self, snapshot: CatalogSnapshot, *, publish: Callable[[CatalogSnapshot], object] | None = None
    ) -> None:
        self._publish = publish or (lambda _: None)
        self._publish(snapshot)
        self._snapshot = snapshot
        self._lock = Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="genrec-catalog")

    @property
    def snapshot(self) -> CatalogSnapshot:
        """The current version."""
        return self._snapshot

    def retire(self, items: npt.ArrayLike) -> CatalogSnapshot:
        """List these items no more, from the next request on."""
        return self.change(lambda now: now.retiring(items))

    def update(self, field: str, items: npt.ArrayLike, values: npt.ArrayLike) -> CatalogSnapshot:
        """Give a field of these items other values; filters that follow from the field change with it."""
        return self.change(lambda now: now.updating(field, items, values))

    def set_filters(self, named: Mapping[str, ItemFilter | str]) -> CatalogSnapshot:
        """Name filters: each an :class:`ItemFilter` of the current catalog, or a condition on a field."""
        return self.change(lambda now: now.with_filters(named))

    def add(
        self,
        rows: npt.ArrayLike,
        *,
        catalog: ItemCatalog | str,
        fields: Mapping[str, npt.ArrayLike] | None = None,
        new: Defaults | None = None,
    ) -> Future[CatalogSnapshot]:
        """Append items with these identifiers; the answer comes when they can be found.

        rows: int ``[M, L]``, -1 behind short ones; the items get the numbers N, N + 1, … . catalog: the one with them
        (``ItemCatalog.append``), or its fingerprint alone: then the snapshot has no ids for their numbers. fields:
        values of the new items, left out means missing. new: whether they are in the filters that do not follow from a
        field; to be said where there are any.

        Changes made meanwhile by others are kept. The future raises DataError or ConfigError for what does not fit, and
        whatever went wrong: the current version then stays.
        """

        def work() -> CatalogSnapshot:
            base = self._snapshot
            known = None if isinstance(catalog, str) else catalog
            codes = base.grown_codes(rows, catalog)
            keep = np.concatenate([~base.retired, np.ones(codes.n_items - base.n_items, dtype=np.bool_)])
            index = base.index.grown(codes, keep=keep)
            return self.change(
                lambda now: now.growing(
                    codes, index, fields=fields or {}, new={} if new is None else new, catalog=known
                )
            )

        return self._worker.submit(work)

    def merge(self) -> Future[CatalogSnapshot]:
        """Build the index again without the retired items."""

        def work() -> CatalogSnapshot:
            base = self._snapshot
            index = base.index.grown(base.codes, keep=~base.retired)
            return self.change(lambda now: now.with_index(index))

        return self._worker.submit(work)

    def close(self) -> None:
        """Wait for what is under way and end the background thread; the last snapshot stays."""
        self._worker.shutdown()

    def change(self, change: Change) -> CatalogSnapshot:
        """Make any next version from the current one, in turn with other writers.

        change: from a snapshot to its successor; it must not append items, which only the worker does, one piece of
        work at a time: so codes never change between its look and its change.
        """
        with self._lock:
            after = change(self._snapshot)
            self._publish(after)
            self._snapshot = after
            return after
