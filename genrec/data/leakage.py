"""The checks behind :meth:`genrec.data.splits.Split.check_leakage`. Internal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from genrec.errors import DataError

if TYPE_CHECKING:
    from genrec.data.interactions import Interactions
    from genrec.data.splits import Split


def check_layout(split: Split) -> None:
    """Cuts lie inside each user's events, in order; no event twice; item numbers in the catalog."""
    o, n = split.offsets, len(split.items)
    if len(o) == 0 or o[0] != 0 or o[-1] != n or not len(split.train_end) == len(split.valid_end) == len(o) - 1:
        raise DataError("split: offsets, cuts and items do not fit together")
    order = (o[:-1] <= split.train_end) & (split.train_end <= split.valid_end) & (split.valid_end <= o[1:])
    if not bool(order.all()):
        raise DataError(
            f"split: cuts of user row {int(np.flatnonzero(~order)[0])} are not in the order train, valid, test"
        )
    if n and (int(split.items.min()) < 0 or int(split.items.max()) >= split.n_items):
        raise DataError(f"split: item numbers outside 0..{split.n_items - 1}")
    if split.rows is not None:
        if len(split.rows) != n:
            raise DataError(f"split: expected {n} rows, one per event, got {len(split.rows)}")
        if bool((np.diff(np.sort(split.rows)) == 0).any()):
            raise DataError("split: an event is used twice")
    if split.tied is not None and (len(split.tied) != n or bool(split.tied[o[:-1][o[:-1] < o[1:]]].any())):
        raise DataError(f"split: expected {n} tie marks, false for the first event of every user")


def check_held_out(split: Split) -> None:
    """No held-out item (rule["held_out_items"]), and no test target, occurs in any train or valid part."""
    before_test = split.parts() < 2
    cold = np.zeros(split.n_items, np.bool_)
    cold[split.items[~before_test]] = True
    cold[np.asarray(split.rule.get("held_out_items", []), np.int64)] = True
    seen = split.items[before_test & cold[split.items]]
    if len(seen):
        raise DataError(f"split: held-out item {seen[0]} is visible before test")


def check_against(split: Split, interactions: Interactions) -> None:
    """Events, users and times are those of the interactions; time cuts hold."""
    if split.catalog != interactions.catalog or split.rows is None or split.n_users != interactions.n_users:
        raise DataError("split: made from other interactions (catalog, users or missing rows)")
    rows = split.rows
    if len(rows) and (rows.min() < 0 or rows.max() >= len(interactions)):
        raise DataError(f"split: rows outside 0..{len(interactions) - 1}")
    user = np.repeat(np.arange(split.n_users), np.diff(split.offsets))
    time = interactions.time[rows]
    if not (np.array_equal(interactions.item[rows], split.items) and np.array_equal(interactions.user[rows], user)):
        raise DataError("split: events differ from the interactions at their rows")
    if bool(((user[1:] == user[:-1]) & (time[1:] < time[:-1])).any()):
        raise DataError("split: a target is older than its history")
    if split.tied is not None and bool((split.tied[1:] & (time[1:] != time[:-1])).any()):
        raise DataError("split: events of different times are marked as tied")
    if "cuts" in split.rule:
        part = split.parts()
        for p, cut in enumerate(split.rule["cuts"]):
            if bool((time[part == p] > cut).any()) or bool((time[part > p] <= cut).any()):
                raise DataError(f"split: an event lies on the wrong side of the time cut {cut}")
