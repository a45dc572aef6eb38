"""``genrec demo``: the whole job on a synthetic catalog, in minutes on two cores."""

from __future__ import annotations

from pathlib import Path

import typer

from genrec.cli.console import REPLACE, announce, finish, say_plan


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("demo")(demo)


def demo(
    out: Path = typer.Option(Path("runs/demo"), "--out", help="Run folder."),
    overrides: list[str] = typer.Option([], "--set", metavar="PATH=VALUE", help="Change one value of the recipe."),
    plan: bool = typer.Option(False, "--plan", help="Say what would run, with an estimate, and stop."),
    replace: bool = typer.Option(False, "--replace", help=REPLACE),
) -> None:
    """Make a synthetic shop, tokenize it, train a small model, and compare it with baselines and the oracle.

    Nothing is downloaded. The recipe is train/pipelines/demo.yaml; the result is in OUT/report/report.md.
    """
    from genrec import workbench
    from genrec.pipeline.recipe_files import load_recipe
    from genrec.pipeline.stages import stages

    resolved = load_recipe(workbench.find("train/pipelines/demo.yaml"), overrides)
    todo = stages(resolved.value, out)
    if plan:
        say_plan(out, resolved, todo)
        return
    announce(out, resolved, todo, replace=replace)
    finish(out, resolved.value)
