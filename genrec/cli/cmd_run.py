"""``genrec run``: a whole job from a pipeline file, stage by stage; unchanged stages are not run again."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from genrec.cli.console import announce, estimate_table, finish


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("run", help=(run.__doc__ or "").split("\n\n")[0])(run)


def run(
    pipeline: Path = typer.Argument(
        ..., help="A YAML file; ready ones: train/pipelines/*.yaml (`genrec init DIR` copies them)."
    ),
    out: Path | None = typer.Option(None, "--out", help="Run folder [default: runs/<name>]."),
    data: Path | None = typer.Option(
        None, "--data", help="Folder of the data set; short for --set data.reader.path=DIR."
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
        False, "--plan", help="Say what would run, with an estimate of time and memory, and stop."
    ),
) -> None:
    """Run a pipeline: data, split, embed, tokenize, train, evaluate, report. Interrupt it at any moment and
    run the same command again: finished stages are kept and training goes on from its last checkpoint."""
    from genrec.pipeline import runner
    from genrec.pipeline.stages import load_recipe, stages, stages_until

    # a tokenizer of the user's, named module:Class, may lie where the command is run
    sys.path.append(str(Path.cwd()))
    given = [*overrides, *([f"data.reader.path={data}"] if data is not None else [])]
    resolved = load_recipe(pipeline, given)
    folder = out or Path("runs") / resolved.value.name
    todo = stages_until(stages(resolved.value, folder), until)
    if plan:
        print(estimate_table(runner.plan(folder, todo), folder))
        return
    announce(folder, resolved, todo)
    if until is None or until == todo[-1].name == "report":
        finish(folder, resolved.value)
