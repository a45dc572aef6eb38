"""Figures that describe a data set, and the text table that shows them."""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec.data.catalog import ItemCatalog
from genrec.data.interactions import Interactions
from genrec.data.ties import tied_with_previous


def statistics(interactions: Interactions, catalog: ItemCatalog) -> dict[str, Any]:
    """The figures of a data set, in the order of the table; shares lie in 0..1 (stable).

    density: distinct (user, item) pairs / (users × items of the catalog). Lengths are over users with events;
    p95 is the smallest length that at least 95 % do not exceed. repeat_share: events that repeat an earlier
    (user, item) pair / events. tied_share: neighbouring events of a user with equal time / all neighbours.
    top_1_percent_share: events on the most popular 1 % of the catalog (rounded, at least one item) / events.
    """
    n, users, items = len(interactions), interactions.n_users, len(catalog)
    lengths = np.diff(interactions.offsets())
    lengths = lengths[lengths > 0]
    pairs = len(np.unique(interactions.user.astype(np.int64) * max(items, 1) + interactions.item))
    per_item = np.bincount(interactions.item, minlength=items)
    neighbours = interactions.user[1:] == interactions.user[:-1]
    tied = tied_with_previous(interactions.user, interactions.time)
    top = np.sort(per_item)[::-1][: max(1, round(items / 100))]
    titles = catalog.text("title")
    return {
        "users": users,
        "items": items,
        "items_with_interactions": int((per_item > 0).sum()),
        "interactions": n,
        "density": pairs / max(users * items, 1),
        "length_min": int(lengths.min(initial=n)),
        "length_median": float(np.median(lengths)) if n else 0.0,
        "length_mean": float(lengths.mean()) if n else 0.0,
        "length_p95": int(np.percentile(lengths, 95, method="inverted_cdf")) if n else 0,
        "length_max": int(lengths.max(initial=0)),
        "repeat_share": (n - pairs) / max(n, 1),
        "tied_share": int(tied.sum()) / max(int(neighbours.sum()), 1),
        "time_min": int(interactions.time.min()) if n else None,
        "time_max": int(interactions.time.max()) if n else None,
        "titles": sum(bool(t.strip()) for t in titles),
        "top_1_percent_share": int(top.sum()) / max(n, 1),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures of :func:`statistics` as lines of text, one per figure (stable)."""
    rows = [(name.replace("_", " "), _shown(name, value)) for name, value in figures.items()]
    left, right = (max(len(row[side]) for row in rows) for side in (0, 1))
    return "\n".join(f"{name:<{left}}  {value:>{right}}" for name, value in rows)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "density":
        return f"{100 * value:.4f} %"
    if name.endswith("_share"):
        return f"{100 * value:.2f} %"
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
