"""Smaller data: k-core filtering of interactions, and catalogs without the items nobody touched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genrec.data.catalog import ItemCatalog
from genrec.data.interactions import Interactions
from genrec.errors import ConfigError, FingerprintMismatch


def k_core(interactions: Interactions, user_min: int, item_min: int) -> Interactions:
    """The largest part where every user has ``user_min`` events and every item ``item_min`` (0: any number) (stable).

    Repeat until nothing changes: drop the events of users and of items with too few (the order of dropping
    does not matter). Users without events go; items keep their numbers, since the catalog stays.
    """
    if user_min < 0 or item_min < 0:
        raise ConfigError(f"k-core: expected minimums of at least 0, got users {user_min}, items {item_min}")
    kept = np.ones(len(interactions), np.bool_)
    while True:
        per_user = np.bincount(interactions.user[kept], minlength=interactions.n_users)
        per_item = np.bincount(interactions.item[kept], minlength=interactions.n_items)
        enough = (per_user[interactions.user] >= user_min) & (per_item[interactions.item] >= item_min)
        if not bool((kept & ~enough).any()):
            return interactions.keep(kept)
        kept &= enough


@dataclass(frozen=True, eq=False)
class Used:
    """A catalog of only the items that occur, and the interactions renumbered to it (stable)."""

    catalog: ItemCatalog
    interactions: Interactions


def drop_unused_items(catalog: ItemCatalog, interactions: Interactions) -> Used:
    """A new catalog (no child: the numbering changes) of the items with an event, in the old order (stable).

    Use it before anything is built on the catalog. Raises FingerprintMismatch for another catalog's events.
    """
    if interactions.catalog != catalog.fingerprint:
        raise FingerprintMismatch(
            f"interactions belong to catalog {interactions.catalog[:8]}, got {catalog.fingerprint[:8]}"
        )
    used = np.unique(interactions.item)
    rows = used.tolist()
    smaller = ItemCatalog(
        tuple(catalog.ids[n] for n in rows),
        {name: [values[n] for n in rows] for name, values in catalog.fields.items()},
        None if catalog.retired is None else catalog.retired[used],
    )
    renumbered = Interactions(
        user_ids=interactions.user_ids,
        user=interactions.user,
        item=np.searchsorted(used, interactions.item).astype(np.int32),
        time=interactions.time,
        n_items=len(smaller),
        catalog=smaller.fingerprint,
        columns=interactions.columns,
    )
    return Used(smaller, renumbered)
