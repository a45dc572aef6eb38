"""What the verbs print while a pipeline runs."""

from __future__ import annotations

import logging
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import combining, east_asian_width

if TYPE_CHECKING:
    from genrec.pipeline.recipe import PipelineRecipe
    from genrec.pipeline.runner import Planned, Stage
    from genrec.recipes import Resolved


def seconds_text(seconds: float) -> str:
    """0.4 s, 12 s, 3.5 min, 2.1 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def bytes_text(n: float) -> str:
    """Mebibytes or gibibytes."""
    return f"{n / 2**20:.0f} MiB" if n < 2**30 else f"{n / 2**30:.1f} GiB"


def padded(text: str, width: int) -> str:
    """``text`` cut or filled to ``width`` columns of a terminal; a Chinese or Japanese letter takes two of them."""
    kept, used = [], 0
    for letter in text:
        size = 0 if combining(letter) else 1 + (east_asian_width(letter) in "WF")
        if used + size > width:
            break
        kept.append(letter)
        used += size
    return "".join(kept) + " " * (width - used)


def estimate_table(planned: Sequence[Planned], folder: Path) -> str:
    """The plan as a table: what will run, why, and what it is expected to cost here."""
    from genrec.pipeline.runner import WILL_FAIL

    wrong = []
    lines = [f"plan for {folder}", f"{'stage':<30}{'will':<10}{'time':>10}{'memory':>10}   why"]
    for p in planned:
        verb = "skip" if p.status == "done" else "run"
        cost = ("-", "-") if verb == "skip" else (seconds_text(p.estimate.seconds), bytes_text(p.estimate.bytes))
        reason, fails, error = p.reason.partition(WILL_FAIL)
        lines.append(
            f"{p.stage.name:<30}{verb:<10}{cost[0]:>10}{cost[1]:>10}   {reason}{', and will fail' * bool(fails)}"
        )
        wrong += [f"{p.stage.name} will fail: {error}"] if fails else []
    total = sum(p.estimate.seconds for p in planned)
    peak = max((p.estimate.bytes for p in planned), default=0.0)
    lines.append(f"{'total':<30}{'':<10}{seconds_text(total):>10}{bytes_text(peak):>10}   estimated, this machine")
    if any(p.stage.name == "prepare" and p.status != "done" for p in planned):
        lines.append("the data are unread: their size is that of the recipe, or guessed from the files")
    return "\n".join([*lines, *wrong])


def recipe_text(resolved: Resolved[PipelineRecipe], *, defaults: bool = False) -> str:
    """The settings by their origin (given, derived from the seed; and the defaults, if wanted) and block."""
    from genrec.pipeline.recipe_files import described

    titles = {"given": "given", "derived": "derived from the seed"}
    if defaults:
        titles["default"] = "defaults (recipe.json has the empty ones)"
    rows, lines = described(resolved), []
    for origin, title in titles.items():
        blocks: dict[str, list[str]] = {}
        for path, value, found in rows:
            if found == origin:
                block, _, name = path.rpartition(".")
                blocks.setdefault(block, []).append(f"{name}={value}")
        lines += [f"    {title}:"] if blocks else []
        for block, values in blocks.items():
            text = f"{block}: {', '.join(values)}".removeprefix(": ")
            lines += textwrap.wrap(text, 116, initial_indent=" " * 6, subsequent_indent=" " * 8)
    if not defaults:
        lines.append("    defaults for the rest: --plan prints them, recipe.json keeps all")
    return "\n".join(lines)


REPLACE = (
    "Allow the run to replace what the folder holds: a run of another name or data, or a finished training that took "
    "more than 2 CPU-minutes. Without it such a run stops before anything is changed."
)
"""Help of the option --replace."""


def say_plan(folder: Path, resolved: Resolved[PipelineRecipe], todo: Sequence[Stage]) -> None:
    """Print the whole recipe, what would run, what it is expected to cost, and what it would replace."""
    from genrec.pipeline import replacement, runner

    recipe = resolved.value
    print(recipe_text(resolved, defaults=True))
    print(estimate_table(runner.plan(folder, todo), folder))
    other = replacement.other_run(folder, recipe, todo)
    for each in [other] if other is not None else replacement.replaced(folder, recipe, todo):
        print(f"note: {each}" + " (only with --replace)" * each.refused)


def announce(
    folder: Path, resolved: Resolved[PipelineRecipe], todo: Sequence[Stage], *, replace: bool = False
) -> dict[str, Any]:
    """Run the stages, printing each with its time and peak memory; returns the ledger.

    Raises ConfigError, unless ``replace``, where the folder holds another run or a training that took long.
    """
    from transformers.utils.logging import disable_progress_bar

    from genrec.pipeline import replacement, runner

    logging.basicConfig(level=logging.INFO, format="    %(message)s", stream=sys.stderr, force=True)
    for quiet in ("httpx", "transformers", "sentence_transformers", "filelock"):
        logging.getLogger(quiet).setLevel(logging.ERROR)
    disable_progress_bar()  # of loading weights; ours stay
    logging.getLogger("genrec").setLevel(logging.WARNING)
    for told in ("genrec.pipeline", "genrec.item_tokenizers", "genrec.training"):
        logging.getLogger(told).setLevel(logging.INFO)
    head = [f"run {resolved.value.name!r} in {folder}, seed {resolved.value.seed}", recipe_text(resolved)]
    lost = replacement.guard(folder, resolved.value, todo, allowed=replace)
    head += [f"warning: {each}" for each in lost]
    number = {stage.name: f"[{n}/{len(todo)}]" for n, stage in enumerate(todo, 1)}

    def say(what: Planned | Stage, line: dict[str, Any] | None) -> None:
        while head:  # only now: what is wrong before anything runs is told without it
            print(head.pop(0))
        if isinstance(what, runner.Planned):
            tail = " (unchanged, kept)" if what.status == "done" else ""
            print(f"{number[what.stage.name]} {what.stage.name}: {what.stage.about}{tail}", flush=True)
        elif line is not None:
            took = f"{seconds_text(line['wall_seconds'])}, peak {bytes_text(line['peak_bytes'])}"
            print(f"    done in {took}", flush=True)

    try:
        return runner.run(folder, todo, say, recipe=resolved.as_dict())
    except KeyboardInterrupt:
        print("interrupted: finished stages are kept; run the same command again to go on", file=sys.stderr)
        raise


def finish(folder: Path, recipe: PipelineRecipe) -> None:
    """Print the results of a finished run: the table, how to read it, a few lists, where the rest is."""
    from genrec.evaluation.tables import results_table
    from genrec.pipeline.report_stage import example_lists, headline, load_reports

    reports = load_reports(folder, recipe)
    print()
    print(results_table(reports))
    for line in headline(reports, recipe.model.kind):
        print(line)
    print()
    print(example_lists(folder, recipe))
    print()
    print(f"report: {folder / 'report' / 'report.md'} (it explains every name above)")
    print(f"try:    genrec recommend {folder} --user USER   (or --history ID,ID,...)")
