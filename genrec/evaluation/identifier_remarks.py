"""Where a figure of an identifier report is in the danger zone, and what that means.

The limits are rules of thumb: they sort out what is broken, they do not rank what works.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genrec.evaluation.identifiers import IdentifierReport

LIMITS = {
    "collision_rate": 0.05,
    "traffic_share": 0.05,
    "usage": 0.95,
    "first_perplexity_share": 0.5,
    "reconstruction_error": 0.8,
    "neighbours_kept": 2.0,
    "hit_rate_ratio": 0.5,
    "pair_prefix_lift": 2.0,
    "category_ami": 0.02,
    "cold_error_ratio": 1.3,
}
"""collision_rate, traffic_share: above (before the collision policy). usage: below, at any level.
first_perplexity_share: perplexity / K of the first level, below. reconstruction_error: above. neighbours_kept: below
so many times the random control. hit_rate_ratio, pair_prefix_lift (first level), category_ami (first level): below.
cold_error_ratio: above."""
Figures = Mapping[str, Any]


def remarks(reports: Mapping[str, IdentifierReport]) -> dict[str, str]:
    """One sentence for each figure of the first report in the danger zone, by key (experimental).

    ``raw``, ``random`` and ``shuffled`` among the reports are used where they are there.
    """
    own = next(iter(reports.values())).figures
    raw = reports["raw"].figures if "raw" in reports else own
    chance = reports["random"].figures if "random" in reports else {}
    said = {**_collisions(own, raw, reports.get("raw_random")), **_fidelity(own, chance), **_behaviour(own, chance)}
    if next(iter(reports.values())).context.get("one_tree_vocabulary"):  # words or tree nodes: each has its levels
        return said
    return {**said, **_load(own, raw)}


def _collisions(own: Figures, raw: Figures, raw_chance: IdentifierReport | None) -> dict[str, str]:
    said: dict[str, str] = {}
    rate = raw["collision_rate"]
    if rate is None:  # no items
        return said
    hidden = own["collision_rate"] < rate
    if rate > LIMITS["collision_rate"]:
        chance = "" if raw_chance is None else f"; random codes: {raw_chance.figures['collision_rate']:.2g}"
        said["collision_rate"] = (
            f"before the collision policy {100 * rate:.1f} % of the items add no identifier of their own{chance}"
            if hidden
            else f"{100 * rate:.1f} % of the items add no identifier of their own: no list can tell them apart"
        )
    shared = raw.get("traffic_share")
    if shared is not None and shared > LIMITS["traffic_share"]:
        where = "before the collision policy " if hidden else ""
        said["traffic_share"] = (
            f"{where}{100 * shared:.1f} % of the training events are on items that share their identifier"
        )
    if own["largest_group"] > 20:
        said["largest_group"] = f"{own['largest_group']} items cannot be told apart: duplicates, or collapsed codes?"
    return said


def _load(own: Figures, raw: Figures) -> dict[str, str]:
    said = {}
    idle = [level for level, used in enumerate(raw["usage"], 1) if used is not None and used < LIMITS["usage"]]
    if idle:
        dead = ", ".join(f"{raw['dead_codes'][level - 1]:.0f} of level {level}" for level in idle)
        said["usage"] = f"dead codes: {dead}"
    share = own["perplexity_share"][0]
    if share is not None and share < LIMITS["first_perplexity_share"]:
        said["perplexity"] = (
            f"the first level is used like one of {own['perplexity'][0]:.0f} codes of its "
            f"{own['perplexity'][0] / share:.0f}: the later levels carry the load"
        )
    return said


def _fidelity(own: Figures, chance: Figures) -> dict[str, str]:
    said = {}
    error = own.get("reconstruction_error")
    if error is not None and error > LIMITS["reconstruction_error"]:
        said["reconstruction_error"] = "hardly better than saying the mean for every item"
    for key, value in own.items():
        by_chance = chance.get(key)
        if not key.startswith("neighbours_kept") or value is None or by_chance is None:
            continue
        if value < LIMITS["neighbours_kept"] * by_chance:
            said[key] = "hardly more neighbours are kept than by random codes"
    return said


def _behaviour(own: Figures, chance: Figures) -> dict[str, str]:
    said = {}
    for key, value in own.items():
        name, first = key.removeprefix("held_out."), value[0] if isinstance(value, list) and value else value
        if first is None or isinstance(first, list):
            continue
        if name.startswith("hit_rate_ratio") and first < LIMITS["hit_rate_ratio"]:
            said[key] = "the codes lose more than half of what the vectors know about the next item"
        elif name == "pair_prefix_lift" and first < LIMITS["pair_prefix_lift"]:
            said[key] = "items that follow each other hardly share a first code more often than random items do"
        elif name == "next_item_bits" and first >= chance.get(key, float("inf")):
            said[key] = "counts foretell these identifiers no better than random ones"
        elif name.startswith("category_ami") and first < LIMITS["category_ami"]:
            said[key] = "first codes and categories agree no more than by chance"
        elif name == "cold_error_ratio" and first > LIMITS["cold_error_ratio"]:
            said[key] = "new items are described much worse than those that the tokenizer was fitted on"
        elif name == "append_moved" and first > 0:
            said[key] = "append gave published items another identifier: a trained model would list the wrong items"
    return said
