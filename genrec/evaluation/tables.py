"""Reports as tables: side by side, averaged over repetitions, as JSON. Every table prints its rule below."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from genrec.errors import DataError
from genrec.evaluation.report import EvalReport, Row, best_metric, or_none, parts_of

HEADLINE = ("recall@5", "recall@10", "recall@20", "ndcg@10", "mrr@10", "coverage@10")
"""The four numbers most papers report."""


def results_table(
    reports: Sequence[EvalReport],
    metrics: Sequence[str] = HEADLINE,
    *,
    style: str = "text",
    intervals: bool = False,
) -> str:
    """One line per model, one column per metric; the rule under which they were measured below (stable).

    ``metrics``: adapted to what was measured (:func:`table_metrics`). ``style``: "text" or "markdown".
    ``intervals``: add half the width of each interval. Raises DataError when the reports did not answer the same
    queries on the same catalog under one rule: such a table compares nothing.
    """
    if style not in ("text", "markdown"):
        raise DataError(f"style: expected 'text' or 'markdown', got {style!r}")
    rule = rule_text(reports)
    columns = table_metrics(reports, metrics)
    lines = [["model", *columns]]
    for report in reports:
        lines.append([report.name, *(_cell(report, metric, intervals) for metric in columns)])
    return "\n".join([*_aligned(lines, style), "", rule]) + "\n"


def average_table(reports: Sequence[EvalReport], metrics: Sequence[str] = HEADLINE) -> str:
    """Text: mean ± standard deviation over the repetitions of each model, and their rule (stable).

    Reports of one name are repetitions of one evaluation. Raises DataError as :func:`average_rows` does.
    """
    rule = rule_text(reports, repeated=True)
    columns = table_metrics(reports, metrics)
    lines = [["model", *columns, "repetitions"]]
    for name in dict.fromkeys(report.name for report in reports):
        same = [report for report in reports if report.name == name]
        rows = {(row["slice"], row["metric"], row["k"]): row for row in average_rows(same)}
        found = [rows.get(tuple(parts_of(metric).values())) for metric in columns]
        lines.append([name, *(_mean_and_sd(row) for row in found), str(len(same))])
    return "\n".join([*_aligned(lines, "text"), "", rule, "±: standard deviation of one repetition."]) + "\n"


def table_metrics(reports: Sequence[EvalReport], wanted: Sequence[str] = HEADLINE) -> list[str]:
    """The columns of a table that asks for ``wanted`` (internal).

    A metric that no report has gives way to the same metric at 10, else at the longest list. Where a number for
    warm and cold targets together would mislead (:attr:`EvalReport.cold_apart`), recall of both follows. Raises
    DataError for a metric that exists at no length.
    """
    known = {key for report in reports for key in (*report.intervals, *report.figures)}
    found = [metric if metric in known else best_metric(reports, metric.partition("@")[0]) for metric in wanted]
    if any(report.cold_apart for report in reports):
        recall = best_metric(reports, "recall")
        found += [key for key in (f"warm.{recall}", f"cold.{recall}") if key in known]
    return list(dict.fromkeys(found))


def rule_text(reports: Sequence[EvalReport], *, repeated: bool = False) -> str:
    """What is measured and how, as lines of text that hold for all reports (internal).

    ``repeated``: seeds may differ, and with them the queries. Raises DataError when the reports were measured
    under different rules (part, split, seen items, the history that is shown, the order of events at the same
    time), on different catalogs or, unless repeated, with different queries.
    """
    if not reports:
        raise DataError("reports: expected at least one")
    rules = {json.dumps(_rule(report), sort_keys=True, default=str) for report in reports}
    if len(rules) > 1 or len(_ties(reports)) > 1:
        found = "; ".join(f"{r.name}: {_rule_in_words(r)}" for r in reports)
        raise DataError(
            f"the reports were measured under different rules ({found})",
            hint="evaluate them with the same split, ties and evaluate settings, or show them in tables of their own",
        )
    _check_questions(reports, repeated)
    first = reports[0]
    lines = [
        f"{_asked(reports)}, ranked among {first.n_items} items. {first.definitions['seen']}",
        f"Equal scores: expected rank. {ties_text(reports)} {_history_text(reports)}",
    ]
    if any(report.cold_apart for report in reports):
        share = np.mean([r.figures["cold.share_of_targets"] for r in reports if r.cold_apart])
        lines.append(f"cold: targets without any training event, {100 * share:.1f} % of all; warm: the others.")
    return "\n".join(lines)


def ties_text(reports: Sequence[EvalReport]) -> str:
    """A sentence about the order of a user's events at the same time, under one rule for all reports (internal)."""
    rule = _ties(reports)[0]
    if rule == "none":
        return "No two events of a user at the same time."
    seeds = sorted({str(r.context["seed"]) for r in reports if "seed" in r.context})
    named = f", seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if seeds else ""
    known = {"neutral": f"permuted{named}", "file": "order of the file (literature)", None: "order not stated"}
    return f"Events at the same time: {known.get(rule, rule)}."


def reports_json(reports: Sequence[EvalReport]) -> str:
    """All reports as JSON: settings, context, definitions, every number with its interval (nan = null) (stable)."""
    found = [
        {
            "model": report.name,
            "settings": report.settings,
            "context": report.context,
            "history_cap": report.history_cap,
            "definitions": report.definitions,
            "rows": [
                {k: or_none(v) if isinstance(v, float) else v for k, v in row.items()} for row in report.to_rows()
            ],
        }
        for report in reports
    ]
    return json.dumps(found, indent=1, sort_keys=False, allow_nan=False)


def average_rows(reports: Sequence[EvalReport]) -> list[Row]:
    """Mean and standard deviation of every number over reports that repeat one evaluation (stable).

    For repetitions that should not matter: seeds, or orders of tied events. Rows as in
    :meth:`EvalReport.to_rows` with ``sd`` (of one repetition, ddof 1; nan for a single report), ``low`` and
    ``high`` the extremes, and ``n`` the number of reports. Raises DataError when rules, catalogs or models
    differ.
    """
    rule_text(reports, repeated=True)
    if len(names := sorted({report.name for report in reports})) > 1:
        raise DataError(f"repetitions of one model expected, got reports of {', '.join(names)}")
    if len({report.history_cap for report in reports}) > 1:
        found = ", ".join(_seen(report) for report in reports)
        raise DataError(f"{reports[0].name}: repetitions expected, but the history seen differs ({found})")
    common = set.intersection(*({*report.intervals, *report.figures} for report in reports))
    keys = [key for key in [*reports[0].intervals, *reports[0].figures] if key in common]
    rows: list[Row] = []
    for key in keys:
        means = np.array([report.mean(key) for report in reports])
        sd = float(means.std(ddof=1)) if len(means) > 1 else float("nan")
        rows.append(
            {"model": reports[0].name, **parts_of(key), "mean": float(means.mean()), "sd": sd}
            | {"low": float(means.min()), "high": float(means.max()), "n": len(means)}
        )
    return rows


def _aligned(lines: Sequence[Sequence[str]], style: str) -> list[str]:
    widths = [max(len(line[c]) for line in lines) for c in range(len(lines[0]))]
    text = [_line(line, widths, style) for line in lines]
    if style == "markdown":
        text.insert(1, "|" + "|".join("---" if c == 0 else "---:" for c in range(len(widths))) + "|")
    else:
        text.insert(1, "  ".join("-" * width for width in widths))
    return text


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


def _mean_and_sd(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{row['mean']:.4f}" + ("" if np.isnan(row["sd"]) else f" ± {row['sd']:.4f}")


def _rule(report: EvalReport) -> list[Any]:
    """What has to be equal for numbers to be comparable, besides the order of ties."""
    split = report.context.get("split")
    if isinstance(split, dict):  # what a seed decides may differ
        split = {key: value for key, value in split.items() if key not in ("seed", "held_out_items", "dropped_queries")}
    settings = [report.settings[name] for name in ("exclude_seen", "history_cap")]
    return [report.n_items, report.context.get("part"), split, *settings]


def _check_questions(reports: Sequence[EvalReport], repeated: bool) -> None:
    """Raises DataError for other catalogs or, unless ``repeated``, other queries under the same rule."""
    if len({report.catalog for report in reports if report.catalog}) > 1:
        found = "; ".join(f"{r.name}: catalog {(r.catalog or '(none)')[:8]}" for r in reports)
        raise DataError(
            f"the reports rank the items of different catalogs ({found})",
            hint="evaluate them on one catalog, or show them in tables of their own",
        )
    if not repeated and len({report.queries for report in reports}) > 1:
        found = "; ".join(f"{r.name}: {_asked([r])}, digest {r.queries[:8]}" for r in reports)
        raise DataError(
            f"the reports answered different queries: users, histories or targets differ ({found})",
            hint="evaluate them on one split with one seed; of repetitions with other seeds show averages "
            "(`genrec compare --average`, average_table)",
        )


def _rule_in_words(report: EvalReport) -> str:
    cap = report.settings["history_cap"]
    shown = "" if cap is None else f" History shown: last {cap} events."
    seen = report.definitions["seen"]
    return f"{_asked([report])}, {report.n_items} items. {seen} {ties_text([report])}{shown}"


def _asked(reports: Sequence[EvalReport]) -> str:
    """Number of queries (its range), part and kind of the split."""
    context, counts = reports[0].context, [len(report) for report in reports]
    split = context.get("split")
    kind = split.get("kind") if isinstance(split, dict) else split
    number = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    return f"{number} queries of {context.get('part', 'some part')}" + (f" ({kind})" if kind else "")


def _ties(reports: Sequence[EvalReport]) -> list[str | None]:
    """The orders of events at the same time, "neutral", "file" or None = not stated; "none" where none has any."""
    found = {r.context.get("ties") for r in reports if r.context.get("has_ties") is not False}
    return sorted(found, key=str) or ["none"]


def _seen(report: EvalReport) -> str:
    return {None: "all", 0: "not recorded"}.get(report.history_cap, str(report.history_cap))


def _history_text(reports: Sequence[EvalReport]) -> str:
    """How much of a history the models saw: one sentence if it is the same for all, else model by model."""
    seen = {report.name: _seen(report) for report in reports}
    if len(set(seen.values())) == 1:
        return reports[-1].definitions["history"] if reports[-1].history_cap != 0 else "History seen: not recorded."
    named = [f"{name} {cap}" for name, cap in seen.items() if cap != "all"]
    return f"History seen, newest events: {', '.join(named)}{', others all' if 'all' in seen.values() else ''}."
