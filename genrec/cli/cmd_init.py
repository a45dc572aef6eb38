"""``genrec init``: copy the workbench (recipes, scripts, templates) into a folder of the user's."""

from __future__ import annotations

from pathlib import Path

import typer

from genrec.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("init", help="Copy recipes and scripts into DIR, to edit and run there.")(init)


def init(folder: Path = typer.Argument(..., metavar="DIR", help="A folder that does not exist yet.")) -> None:
    """Copy the workbench; refuses to overwrite."""
    from genrec import workbench

    try:
        workbench.copy(folder)
    except OSError as error:
        hint = "give a new folder in a place that you may write to"
        raise ConfigError(f"cannot write {folder}: {error.strerror}", hint=hint) from error
    print(f"copied the workbench to {folder}")
    print(f"next: genrec run {folder}/train/pipelines/demo.yaml --plan")
    print(f"for data of your own: edit {folder}/train/pipelines/own.yaml")
