"""Is one model better than another on the same queries?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from genrec.errors import DataError
from genrec.evaluation.report import EvalReport
from genrec.evaluation.tables import rule_text, table_metrics
from genrec.metrics.significance import (
    Interval,
    PairedTest,
    bootstrap_mean,
    paired_randomization_test,
    paired_t_test,
)

_SAME_SETTINGS = ("exclude_seen", "history_cap")


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two reports on one metric.

    mean_a, mean_b: over the queries that have a value in both. difference: of ``a - b`` with its bootstrap
    interval. t_test, randomization: two-sided tests that it is zero. Stability: stable.
    """

    metric: str
    a: str
    b: str
    mean_a: float
    mean_b: float
    difference: Interval
    t_test: PairedTest
    randomization: PairedTest


def compare(
    a: EvalReport, b: EvalReport, metric: str = "ndcg@10", *, n_resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare the per-query values of two models on one metric, query by query (stable).

    n_resamples: sign patterns of the randomization test; the interval of the difference takes 1,000 at most.
    Raises DataError when the reports do not answer the same queries under the same rule, or lack the metric.
    """
    if a.n_items != b.n_items or (a.catalog and b.catalog and a.catalog != b.catalog):
        found = "; ".join(f"{r.name!r}: {r.n_items} items, catalog {(r.catalog or '?')[:8]}" for r in (a, b))
        raise DataError(f"the reports rank the items of different catalogs ({found})")
    if a.queries != b.queries:
        raise DataError(
            f"{a.name!r} and {b.name!r} answered different queries (users, histories or targets differ)",
            hint="evaluate both on the same split, part and order of ties",
        )
    for setting in _SAME_SETTINGS:
        if a.settings[setting] != b.settings[setting]:
            raise DataError(
                f"{setting}: {a.name!r} was measured with {a.settings[setting]}, {b.name!r} with {b.settings[setting]}"
            )
    for report in (a, b):
        if metric not in report.values:
            near = get_close_matches(metric, report.values, cutoff=0.7)
            parts = [name.partition("@") for name in sorted(report.values) if "." not in name]
            names, lengths = dict.fromkeys(p[0] for p in parts), sorted({int(p[2]) for p in parts if p[2]})
            known = f"{', '.join(names)}, each with @ and one of {', '.join(map(str, lengths))}"
            raise DataError(
                f"metric {metric!r}: no per-query values in the report of {report.name!r}",
                hint=f"did you mean {' or '.join(near)}?" if near else f"there are: {known}",
            )
    x, y = a.values[metric], b.values[metric]
    both = ~np.isnan(x - y)
    return Comparison(
        metric=metric,
        a=a.name,
        b=b.name,
        mean_a=float(x[both].mean()) if both.any() else float("nan"),
        mean_b=float(y[both].mean()) if both.any() else float("nan"),
        difference=bootstrap_mean(x - y, n_resamples=min(n_resamples, 1000), seed=seed),
        t_test=paired_t_test(x, y),
        randomization=paired_randomization_test(x, y, n_resamples=n_resamples, seed=seed),
    )


def comparison_table(
    ours: EvalReport, others: Sequence[EvalReport], metrics: Sequence[str] | None = None, *, seed: int = 0
) -> str:
    """Text: ``ours`` against each other report, one line per metric, with difference, interval and p-values.

    ``metrics``: None = the columns of a results table. A positive difference means that ``ours`` is better.
    Raises DataError as :func:`compare` does. Stability: stable.
    """
    rule = rule_text([ours, *others])
    metrics = table_metrics([ours, *others], ("recall@10", "ndcg@10")) if metrics is None else metrics
    width = max([len(other.name) for other in others] + [16])
    lines = [
        f"{'against':<{width}}  {'metric':<12} {'ours':>7} {'theirs':>7} {'diff':>8}  {'95 % interval':<19} "
        f"{'p (t)':>8} {'p (rand)':>8}"
    ]
    for other in others:
        for metric in metrics:
            c = compare(ours, other, metric, seed=seed)
            d = c.difference
            lines.append(
                f"{other.name:<{width}}  {metric:<12} {c.mean_a:7.4f} {c.mean_b:7.4f} {d.mean:+8.4f}  "
                f"{f'[{d.low:+.4f}, {d.high:+.4f}]':<19} "
                f"{_p_text(c.t_test.p_value):>8} {_p_text(c.randomization.p_value):>8}"
            )
    names = (
        f"ours: {ours.name}. diff: mean of ours - theirs over the queries, with its bootstrap interval.",
        "p: chance of so large a difference if both were equally good, two-sided; (t) paired t test, "
        "(rand) paired randomization.",
    )
    return "\n".join([*lines, "", *names, rule]) + "\n"


def _p_text(p: float) -> str:
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"
