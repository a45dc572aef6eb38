"""Identifiers in words: what a run, its report and ``genrec encode`` say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genrec import artifacts
from genrec.item_tokenizers.codes import ItemCodes


def raw_report(folder: Path) -> dict[str, Any] | None:
    """What the item tokenizer of a run told of its codes before the collision policy; None of kinds without one."""
    meta = artifacts.read(folder / "item_tokenizer", verify=False).meta
    raw: dict[str, Any] | None = meta.get("report", meta).get("raw")
    return raw


def describe_codes(codes: ItemCodes, raw: dict[str, Any] | None = None) -> str:
    """One line about the identifiers: size, use and perplexity of every level, collisions.

    raw: the report of the codes before the collision policy, whose collisions are told where there are some.
    """
    found = codes.report()
    usage, spread = found["level_usage"], found["perplexity"]
    many = codes.n_levels > 6  # titles: the levels are places in a text
    use = ", ".join(_percent(share) for share in ((min(usage), max(usage)) if many else usage))
    even = ", ".join(f"{value:.0f}" for value in ((min(spread), max(spread)) if many else spread))
    least = "least and most " if many else ""
    before = ""
    if raw and raw["largest_group"] > 1:
        before = (
            f"; before the collision policy {100 * raw['distinct_share']:.1f} %, {100 * raw['collision_share']:.2f} % "
            f"of the items in a collision, largest group {raw['largest_group']}"
        )
    return (
        f"identifiers: {codes.sizes_text} codes, {least}in use {use}, perplexity {even}; "
        f"{100 * found['distinct_share']:.1f} % distinct, largest group {found['largest_group']}{before}"
    )


def _percent(share: float) -> str:
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def oversized(codes: ItemCodes) -> list[str]:
    """What says that levels are too large for the catalog: more codes than items, or most of a level unused.

    Nothing where codes are pieces of text, such as words or digits: their number is not chosen.
    """
    if codes.pieces:
        return []
    found, first = codes.report(), codes.level_sizes[0]
    told = [f"the first level has {first} codes for {codes.n_items} items"] if first > codes.n_items else []
    if codes.shared_vocabulary and codes.ragged:  # a tree: no level is meant to use all codes
        return told
    for level, share in enumerate(found["level_usage"], 1):
        if share < 0.5:
            told.append(f"level {level} uses {_percent(share)} of its {codes.level_sizes[level - 1]} codes")
    return told
