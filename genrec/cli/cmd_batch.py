"""``genrec batch``: lists for all users of a table, for the night."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from genrec.errors import ConfigError, require


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("batch")(batch)


def batch(
    run: Path = typer.Argument(..., help="A run folder, or a bundle."),
    users: Path = typer.Argument(
        ..., help="A parquet file, or a folder of them: history (lists of item ids), or user (ids of the run's log)."
    ),
    out: Path = typer.Argument(..., help="Folder of the lists, a parquet file for each row group of the input."),
    top_k: int = typer.Option(10, "--top-k", min=1, help="Length of the lists."),
    n_beams: int | None = typer.Option(
        None, "--n-beams", min=1, help="Identifiers kept per step.", show_default="the bundle's, at least --top-k"
    ),
    where: list[str] = typer.Option(
        [], "--where", metavar="CONDITION", help="Only such items, as in 'price < 20'; several must all hold."
    ),
    deny: Path | None = typer.Option(None, "--deny-file", help="A text file of item ids that are never listed."),
    keep_seen: bool = typer.Option(False, "--keep-seen", help="Items of the history may be listed again."),
    exact: bool = typer.Option(False, "--exact", help="Widen each search until the list is proven to be the best."),
    journal: Path | None = typer.Option(
        None, "--journal", help="What a server has changed counts here too.", show_default="RUN.changes.jsonl"
    ),
    base: str | None = typer.Option(None, "--base", help="The pretrained model of an adapter, where it has moved."),
    engine: str = typer.Option(
        "local", "--engine", metavar="[local|ray]", help="ray: several processes of this machine (extra ray)."
    ),
    workers: int = typer.Option(2, "--workers", min=1, help="Processes of --engine ray."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Start over where the folder holds another job."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
) -> None:
    """Recommend for every user of a table; the lists are those that genrec serve would answer.

    A finished file is never made again, so an interrupted command goes on where it stopped. A user without any known
    item gets the most bought items of the run's log (source: popular).
    """
    require("prometheus_client", "serve")
    from pydantic import ValidationError
    from transformers.utils.logging import disable_progress_bar

    from genrec.progress import ProgressBar
    from genrec.serving.offline import recommend_all
    from genrec.serving.schemas import RecommendationRequest
    from genrec.serving.settings import journal_of

    if engine not in ("local", "ray"):
        raise ConfigError(f"--engine: expected local or ray, got {engine!r}")
    if n_beams is not None and n_beams < top_k:
        raise ConfigError(f"--n-beams {n_beams}: expected at least --top-k {top_k}")
    denied = [] if deny is None else [line.strip() for line in deny.read_text("utf-8").splitlines() if line.strip()]
    try:
        request = RecommendationRequest.model_validate(
            {
                "history": [],
                "top_k": top_k,
                "n_beams": n_beams,
                "where": where,
                "deny": denied,
                "exclude_seen": not keep_seen,
                "exact": exact,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]}: {first['msg']}") from error
    disable_progress_bar()
    bar: ProgressBar | None = None

    def progress(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or ProgressBar(total=total, desc="batch", unit="user", unit_scale=True)
        bar.update(done - bar.n)

    made = recommend_all(
        run,
        users,
        out,
        request,
        journal=journal or journal_of(run),
        base=base,
        overwrite=overwrite,
        ray_workers=workers if engine == "ray" else None,
        progress=progress,
    )
    if bar is not None:
        bar.close()
    found = {
        "users": made.users, "files": [str(file) for file in made.files], "reused_shards": made.reused_shards,
        "cold_users": made.cold, "skipped_items": made.skipped_items,
    }  # fmt: skip
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(f"{made.users:,} lists in {len(made.files)} files below {out}" +
          (f", {made.reused_shards} of them done before" if made.reused_shards else ""))  # fmt: skip
    print(f"{made.cold:,} users without a known item, {made.skipped_items:,} unknown items skipped")
