"""``genrec compare``: runs side by side, with paired tests; repetitions averaged."""

from __future__ import annotations

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
    runs: list[Path] = typer.Argument(..., help="Run folders, or eval/<model> folders of runs."),
    metric: str = typer.Option("ndcg@10", "--metric", help="Metric of the paired test."),
    average: bool = typer.Option(
        False, "--average", help="The runs repeat one job (seeds, orders of ties): print mean ± sd."
    ),
    trec: Path | None = typer.Option(
        None, "--trec", help="Also write each list as a TREC run, and the targets as qrels, into this folder."
    ),
) -> None:
    """Compare evaluations: one table, and paired tests against the first where they answered the same queries."""
    from genrec.evaluation import report as reporting
    from genrec.evaluation.compare import comparison_table

    folders = [f for run in runs for f in _evaluations(run)]
    reports = [reporting.EvalReport.load(f) for f in folders]
    if average:
        _print_average(reports)
    else:
        groups: dict[str, list[EvalReport]] = {}
        for found in reports:
            groups.setdefault(found.queries, []).append(found)
        for group in groups.values():
            print(reporting.results_table(group))
            if len(group) > 1:
                print(comparison_table(group[1:], group[0], (metric,)))
    if trec is not None:
        _export(reports, folders, trec)


def _evaluations(run: Path) -> list[Path]:
    if (run / "genrec.json").exists():
        return [run]
    found = sorted(p.parent for p in (run / "eval").glob("*/genrec.json"))
    if not found:
        raise ConfigError(f"{run}: no evaluation there", hint="a run folder has eval/<model> after `genrec run`")
    return found


def _print_average(reports: list[EvalReport]) -> None:
    from genrec.evaluation.report import HEADLINE, average_rows

    names = sorted({r.name for r in reports}, key=[r.name for r in reports].index)
    print(f"{'model':<22}" + "".join(f"{m:>22}" for m in HEADLINE) + "   repetitions")
    for name in names:
        same = [r for r in reports if r.name == name]
        rows = {(r["slice"], r["metric"], r["k"]): r for r in average_rows(same)}
        cells = []
        for metric in HEADLINE:
            base, k = metric.split("@")
            row = rows["all", base, int(k)]
            cells.append(f"{row['mean']:.4f} ± {row['sd']:.4f}" if len(same) > 1 else f"{row['mean']:.4f}")
        print(f"{name:<22}" + "".join(f"{cell:>22}" for cell in cells) + f"   {len(same)}")


def _export(reports: list[EvalReport], folders: list[Path], trec: Path) -> None:
    from genrec.data.catalog import ItemCatalog
    from genrec.evaluation.trec import write_trec

    for report, folder in zip(reports, folders, strict=True):
        catalog = folder.parent.parent / "catalog"
        ids = ItemCatalog.load(catalog).ids if catalog.is_dir() else None
        name = f"{folder.parent.parent.name}-{report.name}"
        for path in write_trec(report, trec / name, item_ids=ids):
            print(f"wrote {path}")
