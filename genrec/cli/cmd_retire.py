"""``genrec retire``: items that are never listed again, and whose identifiers nobody else gets."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from genrec.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("retire")(retire)


def retire(
    run: Path = typer.Argument(..., help="A run folder that has got as far as `tokenize`, or a version of one."),
    out: Path = typer.Option(..., "--out", metavar="DIR", help="Folder of the new version."),
    ids: str | None = typer.Option(None, "--ids", metavar="ID,ID,...", help="Item ids."),
    ids_file: Path | None = typer.Option(
        None, "--ids-file", metavar="FILE", help="A text file with one item id a line."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
) -> None:
    """Take items out of a run's lists: a new version whose index lacks them.

    They keep their number and their identifier: histories that hold them stay readable, and no later item gets the
    identifier. With the normaliser `children` their probability goes to their siblings.
    """
    from genrec.pipeline.catalog_life import retire_items

    if (ids is None) == (ids_file is None):
        given = "neither" if ids is None else "both"
        raise ConfigError(f"expected either --ids or --ids-file, got {given}")
    if ids_file is not None and not ids_file.is_file():
        raise ConfigError(f"--ids-file: no file {ids_file}")
    text = (ids or "").split(",") if ids_file is None else ids_file.read_text(encoding="utf-8").splitlines()
    wanted = [part.strip() for part in text if part.strip()]
    if not wanted:
        raise ConfigError("expected at least one item id, got none")
    made = retire_items(run, wanted, out)
    if as_json:
        print(json.dumps({**made.report, "drift": made.drift.to_json(made.catalog)}, indent=1))
        return
    print(f"{made.report['n_retired']} items retired, {made.report['n_left']} left to recommend")
    print(f"new version: {made.folder}")
