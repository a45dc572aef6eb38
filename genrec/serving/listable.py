"""Which items a request may get: the first ones for users of whom nothing is known, and a count of what was listed.

Axes: N items.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog
from genrec.decoding.filters import ItemFilter
from genrec.decoding.snapshot import CatalogSnapshot

Mask = npt.NDArray[np.bool_]
_BLOCK = 4096


def catalog_of(snapshot: CatalogSnapshot) -> ItemCatalog:
    """The ids of a version in service (internal)."""
    assert snapshot.catalog is not None, "a served snapshot has its catalog"
    return snapshot.catalog


def may_be_listed(items: npt.NDArray[np.integer[Any]], allowed: ItemFilter | None, snapshot: CatalogSnapshot) -> Mask:
    """Which of these items a request may get (internal)."""
    may = ~snapshot.retired[items]
    return np.asarray(may if allowed is None else may & allowed.has(items), dtype=np.bool_)


def not_allowed(items: npt.NDArray[np.int32], allowed: ItemFilter | None, snapshot: CatalogSnapshot) -> int:
    """How many of these items should not have been listed: looked up anew, so that a bug of the search would show."""
    return int((~may_be_listed(items, allowed, snapshot)).sum())


def first_listable(
    order: npt.NDArray[np.int64], allowed: ItemFilter | None, top_k: int, snapshot: CatalogSnapshot
) -> npt.NDArray[np.int64]:
    """The first items in this order that a request may get; items that the order lacks come last (internal).

    order: int64 ``[N]`` of the catalog before new items. Read block by block.
    """
    found, n = [np.zeros(0, np.int64)], 0
    for first in range(0, snapshot.n_items, _BLOCK):
        known = order[first : first + _BLOCK]
        new = np.arange(max(first, len(order)), min(first + _BLOCK, snapshot.n_items))
        block = np.concatenate([known, new])
        found.append(block[may_be_listed(block, allowed, snapshot)])
        n += len(found[-1])
        if n >= top_k:
            break
    return np.concatenate(found)[:top_k]
