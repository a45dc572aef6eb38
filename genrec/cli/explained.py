"""``genrec recommend --explain``: how the search came to each item of a list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genrec.decoding.interface import SearchOptions
    from genrec.models.recommender import GenerativeRecommender

WHY = {
    "no_identifier": "no such identifier",
    "retired": "retired",
    "filtered": "filtered out",
    "seen": "in the history",
}


def with_paths(
    rows: list[dict[str, Any]],
    model: GenerativeRecommender,
    history: list[int],
    items: list[int],
    *,
    user: str | None,
    query: str | None,
    options: SearchOptions,
    normalize: str,
) -> list[dict[str, Any]]:
    """The printed rows of the listed items, each with its ``path``."""
    from genrec.decoding.filters import ItemFilter
    from genrec.models.explain import as_json, explain

    assert options.filter is None or isinstance(options.filter, ItemFilter)
    paths = explain(
        model,
        history,
        [item for item in items if item >= 0],
        normalize=normalize,
        user=user or "",
        allowed=options.filter,
        exclude_seen=options.exclude_seen,
        query=query,
    )
    return [{**row, "path": [as_json(step) for step in path]} for row, path in zip(rows, paths, strict=True)]


def print_paths(rows: list[dict[str, Any]]) -> None:
    """A line for each code of each item."""
    print("how each was reached (probability of the code; of what could not be listed; ways on):")
    for place, row in enumerate(rows, 1):
        print(f"{place:>3} {row['item_id']}")
        for step in row["path"]:
            ruled = ", ".join(f"{WHY[why]} {share:.1%}" for why, share in step["mass"].items() if why in WHY and share)
            print(f"      {step['token']:<10} {step['probability']:>7.2%}  {ruled}  ({step['n_children']:,})")
