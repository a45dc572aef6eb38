"""``genrec compare``: runs side by side, with paired tests; repetitions averaged; identifiers side by side."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from genrec.errors import ConfigError

if TYPE_CHECKING:
    from genrec.evaluation.report import EvalReport


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("compare")(compare)


def compare(
    runs: list[Path] = typer.Argument(
        ..., help="Run folders, or eval/<model> folders of runs; or codes, to compare item tokenizers."
    ),
    metric: str | None = typer.Option(
        None, "--metric", help="Metric of the paired test; default: ndcg@10, else at the longest list measured."
    ),
    average: bool = typer.Option(
        False, "--average", help="The runs repeat one job (seeds, orders of ties): print mean ± sd."
    ),
    trec: Path | None = typer.Option(
        None, "--trec", help="Also write each list as a TREC run, and the targets as qrels, into this folder."
    ),
    codes: bool = typer.Option(
        False, "--codes", help="Compare the item identifiers of run folders, not their recommendations."
    ),
    every: bool = typer.Option(False, "--all", help="Identifiers: print every figure, not only the chief ones."),
    held_out: bool = typer.Option(False, "--held-out", help="Identifiers: report on the test targets too."),
    vectors: Path | None = typer.Option(
        None, "--vectors", metavar="PATH", help="Identifiers: judge all by these item vectors; default: each its own."
    ),
    json_file: Path | None = typer.Option(None, "--json", metavar="FILE", help="Identifiers: also write JSON."),
    seed: int = typer.Option(0, "--seed", help="Identifiers: of the random control, and of items and pairs drawn."),
) -> None:
    """Compare evaluations: one table, and paired tests against the first where they answered the same queries.

    Given codes (RUN/codes), or run folders and --codes, it compares item tokenizers instead, before any recommender
    is trained: metrics as rows, the best of each marked with *, and random codes beside them, which no metric of usage
    can tell from good ones. All must be of one catalog. `genrec inspect` shows one of them with all its controls;
    docs/identifiers.md explains the metrics.
    """
    if codes or any(_is_codes(run) for run in runs):
        if metric is not None or average or trec is not None:
            raise ConfigError("--metric, --average and --trec compare evaluations, got codes", hint="leave them out")
        _compare_codes(runs, vectors, json_file, every=every, held_out=held_out, seed=seed)
        return
    if every or held_out or vectors is not None or json_file is not None:
        raise ConfigError(
            "--all, --held-out, --vectors and --json compare identifiers, got evaluations",
            hint="add --codes to compare the identifiers of these runs",
        )
    from genrec.evaluation.compare import comparison_table
    from genrec.evaluation.report import best_metric
    from genrec.evaluation.tables import average_table, results_table

    found = [each for run in runs for each in _evaluations(run, named=len(runs) > 1 and not average)]
    reports = [each.report for each in found]
    if average:
        print(average_table(reports).rstrip())
    else:
        groups: dict[str, list[Found]] = {}
        for each in found:
            groups.setdefault(each.report.queries, []).append(each)
        for group in groups.values():
            print(results_table([each.report for each in group]))
            ours = next((each for each in group if each.trained), group[0])
            others = [each.report for each in group if each is not ours]
            if others:
                tested = metric or best_metric([ours.report, *others], "ndcg")
                print(comparison_table(ours.report, others, (tested,)).rstrip())
    if trec is not None:
        _export(found, trec)


def _is_codes(path: Path) -> bool:
    from genrec import artifacts

    if not (path / "genrec.json").exists():
        return False
    return artifacts.read(path, verify=False).kind in ("codes", "item_tokenizer")


def _compare_codes(
    paths: list[Path], vectors: Path | None, json_file: Path | None, *, every: bool, held_out: bool, seed: int
) -> None:
    from genrec.artifacts import atomic_write_bytes
    from genrec.evaluation.identifier_inputs import check_one_catalog, load_subject
    from genrec.evaluation.identifier_tables import comparison_of_codes, json_bytes, reports_of_codes
    from genrec.evaluation.identifier_tokenizers import CONTROL, notes_of_comparison, tokenizer_reports
    from genrec.evaluation.identifiers import InspectSettings
    from genrec.progress import ProgressBar

    # an item tokenizer of the user's, named module:Class, may lie where the command is run
    sys.path.append(str(Path.cwd()))
    with ProgressBar(total=2 * len(paths) + 1, unit="step") as bar:
        subjects = []
        for path in paths:
            subjects.append(load_subject(path, vectors=vectors))
            check_one_catalog(subjects)
            bar.update()
        reports = tokenizer_reports(subjects, InspectSettings(seed=seed), held_out=held_out, step=bar.update)
    print(comparison_of_codes(reports, every=every, control=CONTROL), end="")
    notes = notes_of_comparison(subjects, reports)
    for note in notes:
        print(f"note: {note}")
    if json_file is not None:
        atomic_write_bytes(json_file, json_bytes(reports_of_codes(reports, notes=notes)))
        print(f"wrote {json_file}")


@dataclass(frozen=True)
class Found:
    """An evaluation of a run; ``trained``: of the run's own model, not of a baseline."""

    report: EvalReport
    run: Path
    trained: bool


def _evaluations(run: Path, named: bool) -> list[Found]:
    """The evaluations that the run's recipe asks for; ``named``: with the run's name before the model's."""
    from genrec import artifacts
    from genrec.evaluation.report import EvalReport

    kind = artifacts.read(run, verify=False).kind if (run / "genrec.json").exists() else None
    if kind == "eval":
        return [Found(EvalReport.load(run), run.parent.parent, True)]
    if not (run / "recipe.json").exists():
        above = next((folder for folder in run.parents if (folder / "recipe.json").exists()), None)
        hint = f"give the run folder: {above}" if above else "a run folder has recipe.json and eval/<model>"
        raise ConfigError(f"{run}: no run there" + (f", but {kind!r}" if kind else ""), hint=hint)
    recipe = artifacts.load_json(run / "recipe.json")
    ours = recipe["model"]["kind"]
    names = [name for name in (*recipe["baselines"], ours) if artifacts.exists(run / "eval" / name)]
    if not names:
        hint = f"`genrec run PIPELINE.yaml --out {run}` goes on where it stopped; --codes compares identifiers"
        raise ConfigError(f"{run}: nothing is evaluated there yet", hint=hint)
    found = []
    for name in names:
        report = EvalReport.load(run / "eval" / name)
        report = replace(report, name=f"{run.name}/{name}") if named else report
        found.append(Found(report, run, name == ours))
    return found


def _export(found: list[Found], trec: Path) -> None:
    """Lists and targets, with ids where the run has its catalog and its log, else with numbers."""
    from genrec.data.catalog import ItemCatalog
    from genrec.data.interactions import Interactions
    from genrec.evaluation.trec import write_trec

    for each in found:
        catalog, log = each.run / "catalog", each.run / "interactions"
        items = ItemCatalog.load(catalog).ids if catalog.is_dir() else None
        users = Interactions.load(log).user_ids if log.is_dir() else None
        name = f"{each.run.name}-{each.report.name.rpartition('/')[2]}"
        for path in write_trec(each.report, trec / name, item_ids=items, user_ids=users):
            print(f"wrote {path}")
