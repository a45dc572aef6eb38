"""``genrec recommend``: titles, scores and identifiers for one history."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from genrec.cli.console import padded
from genrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from genrec.data.catalog import ItemCatalog
    from genrec.decoding.diversity import MaxPer
    from genrec.decoding.filters import ItemFilter
    from genrec.decoding.interface import SearchOptions
    from genrec.item_tokenizers.codes import ItemCodes
    from genrec.models.recommender import GenerativeRecommender

AMONG = {
    "vocab": "among all tokens",
    "level": "among the codes of each level",
    "children": "among the codes that lead to an item",
}
"""What a score is normalised over, in words."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("recommend")(recommend)


def recommend(
    run: Path = typer.Argument(..., help="A run folder, or a bundle."),
    user: str | None = typer.Option(None, "--user", help="A user of the run's log: the whole log is the history."),
    history: str | None = typer.Option(None, "--history", metavar="ID,ID,...", help="Item ids, oldest first."),
    top_k: int = typer.Option(10, "--top-k", min=1, help="Length of the list."),
    n_beams: int | None = typer.Option(
        None, "--n-beams", min=1, help="Identifiers kept per step.", show_default="the bundle's, at least --top-k"
    ),
    where: list[str] = typer.Option(
        [], "--where", metavar="CONDITION", help="Only such items, as in 'price < 20'; several must all hold."
    ),
    max_per: list[str] = typer.Option(
        [],
        "--max-per",
        metavar="FIELD:M",
        help="At most M items of one value of a field, as in brand:2; all must hold.",
    ),
    sample: int | None = typer.Option(
        None, "--sample", metavar="SEED", help="Draw the items by chance, in proportion to their probability."
    ),
    keep_seen: bool = typer.Option(False, "--keep-seen", help="Items of the history may be listed again."),
    base: str | None = typer.Option(
        None, "--base", metavar="PATH", help="The pretrained model of an adapter, where it has moved."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
) -> None:
    """Recommend items for a user of the run, or for a history given as item ids.

    A condition is FIELD OPERATOR VALUE on a field of the catalog: = != < <= > >=, in A,B, and has for lists of texts,
    as in --where 'brand in Acme,Zeta' --where 'categories has Shoes'. The search stays inside such items.

    The same --sample SEED draws the same items for the same history; --max-per caps lists, not draws.

    A model with user tokens is asked about a bare history with the token of the user whose id is empty, which says
    nothing about the user: a warning says so.
    """
    from transformers.utils.logging import disable_progress_bar

    from genrec.decoding.interface import SearchOptions
    from genrec.models.bundle import load_bundle

    if (user is None) == (history is None):
        given = "neither" if user is None else "both"
        raise ConfigError(
            f"expected either --user or --history, got {given}", hint=f"genrec recommend {run} --history ID,ID,..."
        )
    disable_progress_bar()  # of loading weights
    bundle = load_bundle(run, base=base)
    model = bundle.recommender
    _check_user(run, user, model)
    _check_lineage(run, model.codes)
    catalog = bundle.catalog or _catalog(run)
    items = _of_user(run, user, catalog) if user is not None else _of_ids(history or "", catalog)
    _check_beams(n_beams, top_k)
    options = SearchOptions(
        top_k=top_k,
        n_beams=n_beams,
        exclude_seen=not keep_seen,
        filter=_allowed(where, catalog) if where else None,
        diversity=_caps(max_per, catalog) if max_per else None,
    )
    found = _ask(model, items, options, user, sample)
    titles = catalog.text("title", clean=True)
    rows = _rows(found, model, catalog, titles)
    limits = [name for name, given in (("--where", where), ("--max-per", max_per)) if given]
    if len(rows) < top_k and limits:
        print(f"note: {len(rows)} of {top_k} items: no more were found under {' and '.join(limits)}", file=sys.stderr)
    if as_json:
        answer = {"history": [catalog.ids[i] for i in items], "items": rows}
        print(json.dumps(answer, indent=1, ensure_ascii=False))
        return
    print("history (newest last):")
    for item in items[-10:]:
        print(f"    {catalog.ids[item]:<14} {titles[item][:80]}")
    _print_list(found, rows)


@dataclass(frozen=True)
class _Found:
    """One list: item numbers (-1 = no more) and scores, what they are, and what the scores are normalised over."""

    items: list[int]
    scores: list[float]
    header: str
    normalize: str


def _ask(
    model: GenerativeRecommender, items: list[int], options: SearchOptions, user: str | None, seed: int | None
) -> _Found:
    """The best items, or with a seed items drawn by chance."""
    if seed is None:
        lists = model.recommend([items], options, users=[user or ""])
        header = "recommended, best first (score: log-probability of the identifier"
        return _Found(lists.items[0].tolist(), lists.scores[0].tolist(), header, str(lists.normalize))
    drawn = model.sample([items], options, users=[user or ""], seed=seed)
    header = "drawn, in this order (score: log-probability of the item"
    return _Found(drawn.items[0].tolist(), drawn.logp[0].tolist(), header, drawn.normalize)


def _rows(found: _Found, model: GenerativeRecommender, catalog: ItemCatalog, titles: list[str]) -> list[dict[str, Any]]:
    """What is printed of every item."""
    codes = model.codes.as_int()
    return [
        {
            "item_id": catalog.ids[item],
            "title": titles[item],
            "score": score,
            "identifier": model.token_map.text(codes[item]),
        }
        for item, score in zip(found.items, found.scores, strict=True)
        if item >= 0
    ]


def _print_list(found: _Found, rows: list[dict[str, Any]]) -> None:
    print(f"{found.header} {AMONG[found.normalize]}):")
    for place, row in enumerate(rows, 1):
        print(f"{place:>3} {row['score']:>8.3f}  {row['item_id']:<14} {padded(row['title'], 70)}  {row['identifier']}")


def _check_user(run: Path, user: str | None, model: GenerativeRecommender) -> None:
    """Refuse a user where there is no log; warn of a bare history where the model tells users apart."""
    if user is not None and not (run / "interactions").is_dir():
        raise ConfigError(
            f"{run} holds no log", hint="give the folder of the run that was trained, or the items with --history"
        )
    if user is None and model.token_map.n_user_tokens:
        print(
            "warning: this list is not personal: the model tells users apart and was asked as an unknown one\n"
            "hint: for a user of the log give --user USER and the run folder instead of --history",
            file=sys.stderr,
        )


def _check_beams(n_beams: int | None, top_k: int) -> None:
    if n_beams is not None and n_beams < top_k:
        print(
            f"warning: --n-beams {n_beams} finds {n_beams} identifiers: the list may be shorter than --top-k {top_k}\n"
            f"hint: give --n-beams {top_k} or more, or leave it out",
            file=sys.stderr,
        )


def _check_lineage(run: Path, codes: ItemCodes) -> None:
    """Refuse a model of another catalog than the run folder's; warn where the folder has newer identifiers."""
    from genrec import artifacts
    from genrec.item_tokenizers.codes import ItemCodes
    from genrec.pipeline.runner import same_catalog

    same_catalog(run, codes.catalog, *(name for name in ("catalog", "interactions") if (run / name).is_dir()))
    inside = (run / "bundle").is_dir() and artifacts.exists(run / "codes")
    if inside and ItemCodes.load(run / "codes").fingerprint != codes.fingerprint:
        print(
            f"warning: the model in {run} is older than the identifiers beside it: a run with other settings stopped "
            "before its training ended\nhint: run that pipeline to its end",
            file=sys.stderr,
        )


def _catalog(run: Path) -> ItemCatalog:
    from genrec.data.catalog import ItemCatalog

    return ItemCatalog.load(run / "catalog")


def _allowed(where: list[str], catalog: ItemCatalog) -> ItemFilter:
    """The items that meet every condition."""
    import numpy as np

    from genrec.data.attributes import Attributes
    from genrec.decoding.filters import ItemFilter

    fields = Attributes(catalog)
    masks = [fields.where(condition) for condition in where]
    mask = np.logical_and.reduce(masks)
    if not mask.any():
        alone = [text for text, met in zip(where, masks, strict=True) if not met.any()]
        near = fields.like(alone[0]) if alone else []
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "loosen the conditions"
        raise ConfigError(f"--where: no item meets {' and '.join(alone or where)}", hint=hint)
    return ItemFilter.of_mask(mask, catalog.fingerprint)


def _caps(max_per: list[str], catalog: ItemCatalog) -> list[MaxPer]:
    """The caps of ``--max-per``."""
    from genrec.data.attributes import Attributes
    from genrec.decoding.diversity import MaxPer

    fields, caps = Attributes(catalog), []
    for each in max_per:
        field, _, most = each.rpartition(":")
        if not field or not most.isdecimal() or int(most) < 1:
            raise ConfigError(f"--max-per: expected FIELD:M, got {each!r}", hint="for example --max-per brand:2")
        caps.append(MaxPer(int(most), fields.groups(field)))
    return caps


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
