"""``genrec recommend``: titles, scores and identifiers for one history."""

from __future__ import annotations

import json
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from genrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from genrec.data.catalog import ItemCatalog


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("recommend")(recommend)


def recommend(
    run: Path = typer.Argument(..., help="A run folder, or a bundle."),
    user: str | None = typer.Option(None, "--user", help="A user of the run's log: the whole log is the history."),
    history: str | None = typer.Option(None, "--history", metavar="ID,ID,...", help="Item ids, oldest first."),
    top_k: int = typer.Option(10, "--top-k", min=1, help="Length of the list."),
    n_beams: int | None = typer.Option(
        None, "--n-beams", min=1, help="Identifiers kept per step [default: the bundle's]."
    ),
    keep_seen: bool = typer.Option(False, "--keep-seen", help="Items of the history may be listed again."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
) -> None:
    """Recommend items for a user of the run, or for a history given as item ids.

    A model with user tokens is asked about a bare history with the token of the user whose id is empty, which says
    nothing about the user: a warning says so.
    """
    from transformers.utils.logging import disable_progress_bar

    from genrec.decoding.interface import SearchOptions
    from genrec.models.bundle import load_bundle
    from genrec.pipeline.runner import same_catalog

    if (user is None) == (history is None):
        given = "neither" if user is None else "both"
        raise ConfigError(
            f"expected either --user or --history, got {given}", hint=f"genrec recommend {run} --history ID,ID,..."
        )
    disable_progress_bar()  # of loading weights
    bundle = load_bundle(run)
    model = bundle.recommender
    if user is not None and not (run / "interactions").is_dir():
        raise ConfigError(f"{run} holds no log", hint="give the run folder, or the items with --history")
    if user is None and model.token_map.n_user_tokens:
        print(
            "warning: this list is not personal: the model tells users apart and was asked as an unknown one\n"
            "hint: for a user of the log give --user USER and the run folder instead of --history",
            file=sys.stderr,
        )
    read = [*(["catalog"] if bundle.catalog is None else []), *(["interactions"] if user is not None else [])]
    same_catalog(run, model.codes.catalog, *read)
    catalog = bundle.catalog or _catalog(run)
    items = _of_user(run, user, catalog) if user is not None else _of_ids(history or "", catalog)
    # fewer beams than places would give short lists
    options = SearchOptions(top_k=top_k, n_beams=n_beams, exclude_seen=not keep_seen)
    found = model.recommend([items], options, users=[user or ""])
    titles = catalog.text("title", clean=True)
    codes = model.codes.as_int()
    rows: list[dict[str, Any]] = []
    for item, score in zip(found.items[0].tolist(), found.scores[0].tolist(), strict=True):
        if item >= 0:
            identifier = model.token_map.text(codes[item])
            rows.append(
                {
                    "item_id": catalog.ids[item],
                    "title": titles[item],
                    "score": score,
                    "identifier": identifier,
                }
            )
    if as_json:
        print(json.dumps({"history": [catalog.ids[i] for i in items], "items": rows}, indent=1))
        return
    print("history (newest last):")
    for item in items[-10:]:
        print(f"    {catalog.ids[item]:<14} {titles[item][:80]}")
    print(f"recommended (log-probability, normaliser: {found.normalize}):")
    for place, row in enumerate(rows, 1):
        print(f"{place:>3} {row['score']:>8.3f}  {row['item_id']:<14} {row['title'][:70]:<70}  {row['identifier']}")


def _catalog(run: Path) -> ItemCatalog:
    from genrec.data.catalog import ItemCatalog

    return ItemCatalog.load(run / "catalog")


def _of_user(run: Path, user: str, catalog: ItemCatalog) -> list[int]:
    from genrec.data.interactions import Interactions

    log = Interactions.load(run / "interactions")
    if user not in log.user_ids:
        raise DataError(f"user {user!r} is not in the log of {run}", hint=f"users look like {log.user_ids[0]!r}")
    row = log.user_ids.index(user)
    return [int(i) for i in log.histories()[row]]


def _of_ids(history: str, catalog: ItemCatalog) -> list[int]:
    ids = [part.strip() for part in history.split(",") if part.strip()]
    if not ids:
        hint = f"for example --history {','.join(catalog.ids[:2])}"
        raise ConfigError(f"--history: expected item ids separated by commas, got {history!r}", hint=hint)
    try:
        return [int(i) for i in catalog.numbers(ids)]
    except DataError as error:
        near = get_close_matches(next(i for i in ids if i not in catalog.ids), catalog.ids, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"--history: {error}", hint=f"{hint}ids look like {catalog.ids[0]!r}") from error
