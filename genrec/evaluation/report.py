"""The result of an evaluation: every query's values, their means and intervals, and what each word means.

Axes: Q queries, T targets, N items, k list length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec import artifacts
from genrec.artifacts import Manifest
from genrec.errors import DataError
from genrec.metrics.significance import Interval

KIND = "eval"
SCHEMA = 1
Row = dict[str, Any]
_ARRAYS = ("users", "target_rows", "targets", "ranks", "lists")


@dataclass(frozen=True, eq=False)
class EvalReport:
    """What :func:`genrec.evaluation.evaluate` found for one model on one set of queries.

    name: of the model. settings: the EvalSettings used. context: what else the numbers depend on (part, rule
    of the split, order of ties). definitions: each metric and rule in a sentence. queries: digest of users,
    histories and targets; equal digests = the same questions.
    users: int32 ``[Q]``. targets: int32 ``[T]`` distinct per query, their query in target_rows int64 ``[T]``,
    their expected rank in ranks float64 ``[T]`` (inf = not found).
    lists: int32 ``[Q, max k]``, -1 = nothing.
    values: per query, float64 ``[Q]``, e.g. "recall@10", "identifier.recall@10", "cold.recall@10"; nan where
    a query has nothing to measure. figures: one number for the whole run, e.g. "coverage@10".
    intervals: mean and bootstrap interval of everything in values.
    Stability: stable.
    """

    name: str
    settings: dict[str, Any]
    context: dict[str, Any]
    definitions: dict[str, str]
    queries: str
    n_items: int
    catalog: str | None
    users: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    target_rows: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.float64]
    lists: npt.NDArray[np.int32]
    values: dict[str, npt.NDArray[np.float64]] = field(repr=False)
    figures: dict[str, float] = field(repr=False)
    intervals: dict[str, Interval] = field(repr=False)

    def __len__(self) -> int:
        return len(self.users)

    def mean(self, metric: str) -> float:
        """Mean of a per-query metric ("ndcg@10", "cold.ndcg@10") or a figure ("coverage@10").

        Raises DataError naming what there is.
        """
        if metric in self.intervals:
            return self.intervals[metric].mean
        if metric in self.figures:
            return self.figures[metric]
        known = ", ".join(sorted([*self.intervals, *self.figures]))
        raise DataError(f"metric {metric!r}: not in the report of {self.name!r}", hint=f"there are: {known}")

    def to_rows(self) -> list[Row]:
        """One flat dict per number: model, slice, metric, k, mean, low, high, n.

        ``slice`` is "all", "identifier" (identifier level, all targets) or the name of a slice; ``n`` counts
        queries; figures have no interval.
        """
        rows: list[Row] = []
        for key, found in self.intervals.items():
            rows.append(
                {"model": self.name, **_parts(key), "mean": found.mean, "low": found.low, "high": found.high}
                | {"n": found.n}
            )
        for key, value in self.figures.items():
            rows.append({"model": self.name, **_parts(key), "mean": value, "low": None, "high": None, "n": len(self)})
        return rows

    def save(self, path: str | Path, *, overwrite: bool = False, parents: Mapping[str, str] | None = None) -> None:
        """Write an artifact of kind "eval": report.json and values.safetensors."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"values/{name}": values for name, values in self.values.items()}
        text = {
            "name": self.name,
            "settings": self.settings,
            "context": self.context,
            "definitions": self.definitions,
            "queries": self.queries,
            "n_items": self.n_items,
            "figures": {name: _or_none(value) for name, value in self.figures.items()},
            "intervals": {
                name: {"mean": _or_none(i.mean), "low": _or_none(i.low), "high": _or_none(i.high)}
                | {"n": i.n, "level": i.level}
                for name, i in self.intervals.items()
            },
        }
        with artifacts.write(
            path,
            kind=KIND,
            schema=SCHEMA,
            recipe=self.settings,
            catalog=self.catalog,
            parents=parents,
            overwrite=overwrite,
        ) as draft:
            artifacts.save_json(draft.dir / "report.json", text)
            artifacts.save_arrays(draft.dir / "values.safetensors", arrays)

    @classmethod
    def load(cls, path: str | Path) -> EvalReport:
        """Read an artifact of kind "eval". Raises ArtifactError if it is damaged or something else."""

        def loader(manifest: Manifest) -> EvalReport:
            text = artifacts.load_json(manifest.path / "report.json")
            arrays: dict[str, Any] = artifacts.load_arrays(manifest.path / "values.safetensors")
            start = len("values/")
            return cls(
                **{key: text[key] for key in ("name", "settings", "context", "definitions", "queries")},
                n_items=text["n_items"],
                catalog=manifest.catalog,
                **{name: arrays[name] for name in _ARRAYS},
                values={k[start:]: v for k, v in arrays.items() if k.startswith("values/")},
                figures={name: _or_nan(value) for name, value in text["figures"].items()},
                intervals={
                    name: Interval(_or_nan(i["mean"]), _or_nan(i["low"]), _or_nan(i["high"]), i["n"], i["level"])
                    for name, i in text["intervals"].items()
                },
            )

        return artifacts.load(path, loader, kind=KIND, schema=SCHEMA)


def _parts(key: str) -> Row:
    """``"cold.recall@10"`` → slice cold, metric recall, k 10."""
    name, _, k = key.partition("@")
    group, _, metric = name.rpartition(".")
    return {"slice": group or "all", "metric": metric, "k": int(k) if k else None}


def _or_none(value: float) -> float | None:
    """JSON has no nan."""
    return None if np.isnan(value) else value


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


HEADLINE = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
"""The four numbers most papers report."""


def results_table(
    reports: Sequence[EvalReport],
    metrics: Sequence[str] = HEADLINE,
    *,
    style: str = "text",
    intervals: bool = False,
) -> str:
    """One line per model, one column per metric; the rule under which they were measured below (stable).

    ``style``: "text" or "markdown". ``intervals``: add half the width of each interval. Raises DataError when
    the reports were not measured under one rule: such a table compares nothing.
    """
    if style not in ("text", "markdown"):
        raise DataError(f"style: expected 'text' or 'markdown', got {style!r}")
    rule = _one_rule(reports)
    lines = [["model", *metrics]]
    for report in reports:
        lines.append([report.name, *(_cell(report, metric, intervals) for metric in metrics)])
    widths = [max(len(line[c]) for line in lines) for c in range(len(lines[0]))]
    text = [_line(line, widths, style) for line in lines]
    if style == "markdown":
        text.insert(1, "|" + "|".join("---" if c == 0 else "---:" for c in range(len(widths))) + "|")
    else:
        text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*text, "", rule]) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int], style: str) -> str:
    padded = [c.ljust(w) if n == 0 else c.rjust(w) for n, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return "| " + " | ".join(padded) + " |" if style == "markdown" else "  ".join(padded).rstrip()


def _cell(report: EvalReport, metric: str, intervals: bool) -> str:
    if metric not in report.intervals and metric not in report.figures:
        return "-"  # e.g. identifier level of a model without identifiers
    text = f"{report.mean(metric):.4f}"
    found = report.intervals.get(metric)
    if intervals and found is not None and not np.isnan(found.high):
        text += f" ±{(found.high - found.low) / 2:.4f}"
    return text


def _one_rule(reports: Sequence[EvalReport]) -> str:
    """The sentence about seen items, history and queries that holds for all reports."""
    if not reports:
        raise DataError("reports: expected at least one")
    rules = {
        (r.definitions["seen"], r.definitions["history"], r.n_items, len(r), r.context.get("part")) for r in reports
    }
    if len(rules) > 1:
        found = "; ".join(
            f"{r.name}: {len(r)} queries of {r.context.get('part', 'some part')}, {r.n_items} items, "
            f"{r.definitions['seen']} {r.definitions['history']}"
            for r in reports
        )
        raise DataError(f"the reports were measured under different rules ({found})")
    seen, history, n_items, n_queries, _ = rules.pop()
    return f"{n_queries} queries, ranked among {n_items} items. {seen} {history} Ties: expected rank."


def reports_json(reports: Sequence[EvalReport]) -> str:
    """All reports as JSON: settings, context, definitions, every number with its interval (nan = null) (stable)."""
    found = [
        {
            "model": report.name,
            "settings": report.settings,
            "context": report.context,
            "definitions": report.definitions,
            "rows": [
                {k: _or_none(v) if isinstance(v, float) else v for k, v in row.items()} for row in report.to_rows()
            ],
        }
        for report in reports
    ]
    return json.dumps(found, indent=1, sort_keys=False, allow_nan=False)


def average_rows(reports: Sequence[EvalReport]) -> list[Row]:
    """Mean and standard deviation of every number over reports that repeat one evaluation (stable).

    For repetitions that should not matter: seeds, or orders of tied events. Rows as in
    :meth:`EvalReport.to_rows` with ``sd`` (of one repetition, ddof 1; nan for a single report), ``low`` and
    ``high`` the extremes, and ``n`` the number of reports. Raises DataError when rules or models differ.
    """
    _one_rule(reports)
    if len(names := sorted({report.name for report in reports})) > 1:
        raise DataError(f"repetitions of one model expected, got reports of {', '.join(names)}")
    common = set.intersection(*({*report.intervals, *report.figures} for report in reports))
    keys = [key for key in [*reports[0].intervals, *reports[0].figures] if key in common]
    rows: list[Row] = []
    for key in keys:
        means = np.array([report.mean(key) for report in reports])
        sd = float(means.std(ddof=1)) if len(means) > 1 else float("nan")
        rows.append(
            {"model": reports[0].name, **_parts(key), "mean": float(means.mean()), "sd": sd}
            | {"low": float(means.min()), "high": float(means.max()), "n": len(means)}
        )
    return rows
