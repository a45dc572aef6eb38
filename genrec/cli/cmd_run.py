"""``genrec run``: a whole job from a pipeline file, stage by stage; unchanged stages are not run again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from genrec.cli.console import REPLACE, announce, finish, say_plan
from genrec.errors import ConfigError

if TYPE_CHECKING:
    from genrec.pipeline.recipe import PipelineRecipe
    from genrec.recipes import Resolved


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("run", help=(run.__doc__ or "").split("\n\n")[0])(run)


def run(
    pipeline: Path = typer.Argument(
        ..., help="A YAML file; ready ones: train/pipelines/*.yaml (`genrec init DIR` copies them)."
    ),
    out: Path | None = typer.Option(None, "--out", help="Run folder.", show_default="runs/<name>"),
    data: Path | None = typer.Option(
        None, "--data", help="Folder of the data set; short for --set data.reader.path=DIR."
    ),
    on_error: str | None = typer.Option(
        None,
        "--on-error",
        metavar="[fail|skip]",
        help="What a malformed row of the data does: stop the run, or be left out and counted; short for "
        "--set data.on_error=VALUE.",
    ),
    overrides: list[str] = typer.Option(
        [],
        "--set",
        metavar="PATH=VALUE",
        help="Change one value of the recipe, e.g. --set train.epochs=4. Repeatable.",
    ),
    until: str | None = typer.Option(
        None, "--until", help="Run only this stage and what it needs (--plan names them)."
    ),
    plan: bool = typer.Option(
        False, "--plan", help="Print the recipe and what would run, with an estimate of time and memory, and stop."
    ),
    replace: bool = typer.Option(False, "--replace", help=REPLACE),
) -> None:
    """Run a pipeline: data, split, embed, tokenize, train, evaluate, report. Interrupt it at any moment and
    run the same command again: finished stages are kept and training goes on from its last checkpoint."""
    from genrec.pipeline.report_stage import left_out
    from genrec.pipeline.stages import stages, stages_until

    # a tokenizer of the user's, named module:Class, may lie where the command is run
    sys.path.append(str(Path.cwd()))
    short = {"data.reader.path": data, "data.on_error": on_error}
    given = [*overrides, *(f"{path}={value}" for path, value in short.items() if value is not None)]
    resolved = _load(pipeline, given, data)
    folder = out or Path("runs") / resolved.value.name
    todo = stages_until(stages(resolved.value, folder), until)
    if plan:
        say_plan(folder, resolved, todo)
        return
    announce(folder, resolved, todo, replace=replace)
    for line in left_out(folder):
        print(line)
    if until is None or until == todo[-1].name == "report":
        finish(folder, resolved.value)


def _load(pipeline: Path, given: list[str], data: Path | None) -> Resolved[PipelineRecipe]:
    """The checked recipe; where the file is none, or has no data, the error names the ready pipelines."""
    from genrec import workbench
    from genrec.pipeline.recipe_files import load_recipe
    from genrec.recipe_text import read_text

    try:
        return load_recipe(pipeline, given)
    except ConfigError as error:
        text, hint = str(error), error.hint
        recipe = read_text(pipeline).data if pipeline.is_file() else None
        block = recipe.get("data") if isinstance(recipe, dict) else None
        if data is not None and isinstance(block, dict) and "synthetic" in block:
            text = f"{pipeline} makes its own data (data.synthetic), got --data {data}"
            hint = "leave --data out, or take a pipeline that reads files: `genrec init DIR` copies ready ones"
        elif isinstance(recipe, dict) and "kind" in recipe and not block:
            text = f"{pipeline} is the recipe of an item tokenizer, expected a pipeline"
            hint = f"use it in one: genrec run train/pipelines/own.yaml --set tokenizer={pipeline}"
        elif not block and hint is None:
            ready = ", ".join(Path(name).name for name in workbench.files() if name.startswith("train/pipelines/"))
            hint = f"`genrec init DIR` copies ready pipelines ({ready}); `genrec demo` runs demo.yaml"
        raise ConfigError(text, hint=hint) from error
