"""``genrec recommend``: titles, scores and identifiers for one history."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from genrec.cli.console import padded
from genrec.cli.explained import print_paths, with_paths
from genrec.cli.request import allowed_items, caps, numbers_of
from genrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from genrec.data.catalog import ItemCatalog
    from genrec.decoding.interface import SearchOptions
    from genrec.item_tokenizers.codes import ItemCodes
    from genrec.models.recommender import GenerativeRecommender

AMONG = {
    "vocab": "among all tokens",
    "level": "among the codes of each level",
    "children": "among the codes that lead to an item",
}
"""What a score is normalised over, in words."""
SCORE = "score: log-probability of the identifier"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("recommend")(recommend)


def recommend(
    run: Path = typer.Argument(..., help="A run folder, or a bundle."),
    user: str | None = typer.Option(None, "--user", help="A user of the run's log: the whole log is the history."),
    history: str | None = typer.Option(None, "--history", metavar="ID,ID,...", help="Item ids, oldest first."),
    query: str | None = typer.Option(
        None, "--query", metavar="TEXT", help="What the user searches for; alone, or beside --user or --history."
    ),
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
    deny: str | None = typer.Option(None, "--deny", metavar="ID,ID,...", help="Items that must not be listed."),
    exact: bool = typer.Option(
        False, "--exact", help="Search until the list is proven to be the best of all allowed items."
    ),
    scores: str | None = typer.Option(
        None, "--scores", metavar="ID,ID,...", help="Instead of a search: how probable these items are, best first."
    ),
    keep_seen: bool = typer.Option(False, "--keep-seen", help="Items of the history may be listed again."),
    explained: bool = typer.Option(
        False, "--explain", help="Say how the search came to each item, and what was ruled out on the way."
    ),
    base: str | None = typer.Option(
        None, "--base", metavar="PATH", help="The pretrained model of an adapter, where it has moved."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
) -> None:
    """Recommend items for a user of the run, for a history given as item ids, or for a query.

    A condition is FIELD OPERATOR VALUE on a field of the catalog: = != < <= > >=, in A,B, and has for lists of texts,
    as in --where 'brand in Acme,Zeta' --where 'categories has Shoes': one for each --where. The search stays inside
    such items.

    The same --sample SEED draws the same items for the same history; --max-per caps lists, not draws.

    A model with user tokens is asked about a bare history as about nobody (with hashed tokens: as about the user whose
    id is empty): a warning says so. So it is about users without an index, who came after the training.
    """
    from transformers.utils.logging import disable_progress_bar

    from genrec.decoding.interface import SearchOptions
    from genrec.models.bundle import load_bundle

    if (user is None) == (history is None) and (query is None or user is not None):
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
    items: list[int] = []
    if user is not None:
        items = _of_user(run, user, catalog)
    elif history is not None:
        items = numbers_of("--history", history, catalog)
    limits = [name for name, given in (("--where", where), ("--deny", deny), ("--max-per", max_per)) if given]
    if scores is not None:
        others = {
            "--sample": sample is not None, "--exact": exact, "--n-beams": n_beams, "--keep-seen": keep_seen,
            "--explain": explained, "--query": query is not None,
        }  # fmt: skip
        _check_alone([*limits, *(name for name, given in others.items() if given)])
        found = _scored(model, items, numbers_of("--scores", scores, catalog), user)
    else:
        options = SearchOptions(
            top_k=top_k,
            n_beams=n_beams,
            exclude_seen=not keep_seen,
            filter=allowed_items(where, deny, catalog),
            exact=exact,
            diversity=caps(max_per, catalog) if max_per else None,
        )
        if query is not None and sample is not None:
            raise ConfigError("--query: not for draws", hint="leave --sample out")
        if explained and (sample is not None or max_per):
            raise ConfigError("--explain: not for draws and lists under caps", hint="leave --sample and --max-per out")
        found = _ask(model, items, options, user, sample, query)
    titles = catalog.text("title", clean=True)
    rows = _rows(found, model, catalog, titles)
    if explained:
        rows = with_paths(
            rows, model, items, found.items, user=user, query=query, options=options, normalize=found.normalize
        )
    if scores is None and len(rows) < top_k and limits:
        print(f"note: {len(rows)} of {top_k} items: no more were found under {' and '.join(limits)}", file=sys.stderr)
    if as_json:
        proven = {} if found.certified is None else {"certified": found.certified}
        asked = {} if query is None else {"query": query}
        answer = {"history": [catalog.ids[i] for i in items], **asked, **proven, "items": rows}
        print(json.dumps(answer, indent=1, ensure_ascii=False))
        return
    if query is not None:
        print(f"query: {query}")
    print("history (newest last):")
    for item in items[-10:]:
        print(f"    {catalog.ids[item]:<14} {titles[item][:80]}")
    _print_list(found, rows)
    if explained:
        print_paths(rows)


@dataclass(frozen=True)
class _Found:
    """One list: item numbers (-1 = no more) and scores, what they are, and what the scores are normalised over.

    certified: whether it is proven to be the best of all allowed items; None where that is not asked.
    """

    items: list[int]
    scores: list[float]
    header: str
    normalize: str
    certified: bool | None = None


def _ask(
    model: GenerativeRecommender,
    items: list[int],
    options: SearchOptions,
    user: str | None,
    seed: int | None,
    query: str | None,
) -> _Found:
    """The best items, or with a seed items drawn by chance."""
    if seed is None:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("default")
            queries = None if query is None else [query]
            lists = model.recommend([items], options, users=[user or ""], queries=queries)
        for each in told:
            print(f"warning: {each.message}", file=sys.stderr)
        header = f"recommended, best first ({SCORE}"
        proven = None if lists.certified is None else bool(lists.certified[0])
        if options.exact and not proven:
            print(f"note: {options.max_beams} beams did not prove that this is the best list", file=sys.stderr)
        return _Found(lists.items[0].tolist(), lists.scores[0].tolist(), header, str(lists.normalize), proven)
    drawn = model.sample([items], options, users=[user or ""], seed=seed)
    header = "drawn, in this order (score: log-probability of the item"
    return _Found(drawn.items[0].tolist(), drawn.logp[0].tolist(), header, drawn.normalize)


def _scored(model: GenerativeRecommender, items: list[int], asked: list[int], user: str | None) -> _Found:
    """The given items, the most probable one first."""
    logp = model.score([items], list(dict.fromkeys(asked)), users=[user or ""])[0].tolist()
    order = sorted(zip(logp, dict.fromkeys(asked), strict=True), key=lambda pair: -pair[0])
    normalize = model.settings.normalize or model.settings.loss
    return _Found([item for _, item in order], [score for score, _ in order], f"best first ({SCORE}", normalize)


def _check_alone(others: list[str]) -> None:
    if others:
        raise ConfigError(
            f"--scores: {' and '.join(others)} beside it", hint="it searches nothing: leave the others out"
        )


def _rows(found: _Found, model: GenerativeRecommender, catalog: ItemCatalog, titles: list[str]) -> list[dict[str, Any]]:
    """What is printed of every item."""
    codes = model.codes.as_int()
    return [
        {
            "item_id": catalog.ids[item],
            "title": titles[item],
            "score": score if score > float("-inf") else None,  # which JSON has no number for
            "identifier": model.token_map.text(codes[item]),
        }
        for item, score in zip(found.items, found.scores, strict=True)
        if item >= 0
    ]


def _print_list(found: _Found, rows: list[dict[str, Any]]) -> None:
    print(f"{found.header} {AMONG[found.normalize]}):")
    for place, row in enumerate(rows, 1):
        score = float("-inf") if row["score"] is None else row["score"]
        print(f"{place:>3} {score:>8.3f}  {row['item_id']:<14} {padded(row['title'], 70)}  {row['identifier']}")


def _check_user(run: Path, user: str | None, model: GenerativeRecommender) -> None:
    """Refuse a user where there is no log; warn of a list that is not personal where the model tells users apart."""
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
    if user is not None and model.user_index is not None and user not in model.user_index:
        print(
            f"warning: user {user!r} has no index, for want of events in the training part: the model was asked as "
            "for an unknown user",
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


def _of_user(run: Path, user: str, catalog: ItemCatalog) -> list[int]:
    from genrec.data.interactions import Interactions

    log = Interactions.load(run / "interactions")
    if user not in log.user_ids:
        raise DataError(f"user {user!r} is not in the log of {run}", hint=f"users look like {log.user_ids[0]!r}")
    row = log.user_ids.index(user)
    return [int(i) for i in log.histories()[row]]
