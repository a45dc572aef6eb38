"""The pictures of a run's report (matplotlib, extra ``plots``). Each function writes one PNG.

Axes: L levels, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genrec.errors import require
from genrec.evaluation.report import EvalReport
from genrec.item_tokenizers.codes import ItemCodes

OURS = "#c2410c"
OTHERS = "#64748b"


def _pyplot() -> Any:
    matplotlib = require("matplotlib", "plots")
    matplotlib.use("Agg")
    return require("matplotlib.pyplot", "plots")


def recall_bars(reports: Sequence[EvalReport], ours: str, file: Path, metric: str) -> None:
    """Recall of every model with its bootstrap interval, best at the top."""
    plt = _pyplot()
    ranked = sorted(reports, key=lambda r: r.mean(metric))
    means = np.array([r.mean(metric) for r in ranked])
    low = means - np.array([r.intervals[metric].low for r in ranked])
    high = np.array([r.intervals[metric].high for r in ranked]) - means
    figure, axis = plt.subplots(figsize=(7, 0.42 * len(ranked) + 1.2), layout="constrained")
    colors = [OURS if r.name == ours else OTHERS for r in ranked]
    spread = np.nan_to_num(np.stack([low, high]).clip(min=0))
    axis.barh([r.name for r in ranked], means, color=colors, xerr=spread, ecolor="#334155", capsize=2)
    for y, mean in enumerate(means):
        axis.text(mean + spread[1][y] + means.max() * 0.01, y, f"{mean:.4f}", va="center", fontsize=8)
    axis.set_xlim(0, (means + spread[1]).max() * 1.15 or 1)  # 1: no model hits anything
    interval = "" if np.isnan(low).all() else ", 95 % bootstrap interval over users"
    axis.set_xlabel(f"{metric} (test{interval})")
    axis.spines[["top", "right"]].set_visible(False)
    _save(plt, figure, file)


def slice_bars(reports: Sequence[EvalReport], ours: str, file: Path, metric: str) -> None:
    """Recall on popularity slices and unseen items, one group of bars per slice."""
    plt = _pyplot()
    slices = [s for s in ("head", "mid", "tail", "cold") if any(f"{s}.{metric}" in r.intervals for r in reports)]
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    width = 0.8 / max(1, len(reports))
    for n, report in enumerate(reports):
        color = OURS if report.name == ours else (OTHERS, "#94a3b8", "#cbd5e1")[n % 3]
        heights = [report.mean(f"{s}.{metric}") if f"{s}.{metric}" in report.intervals else 0.0 for s in slices]
        axis.bar(np.arange(len(slices)) + n * width, heights, width, label=report.name, color=color)
    shares = [reports[0].figures.get(f"{s}.share_of_targets", float("nan")) for s in slices]
    labels = [f"{s}\n{100 * share:.0f} % of targets" for s, share in zip(slices, shares, strict=True)]
    axis.set_xticks(np.arange(len(slices)) + 0.4 - width / 2, labels)
    axis.set_ylabel(metric)
    figure.legend(loc="outside upper center", ncols=min(4, len(reports)), frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    _save(plt, figure, file)


def codebook_usage(codes: ItemCodes, file: Path) -> None:
    """Items per code, sorted, one line per level: a flat line is a used-up codebook, a cliff is collapse."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    perplexity = codes.perplexity()
    axis.set_prop_cycle(color=plt.get_cmap("viridis")(np.linspace(0, 0.85, codes.n_levels)))  # none like OURS
    levels = codes.level_counts()
    for level, counts in enumerate(levels):
        dead = int((counts == 0).sum())
        label = f"level {level + 1}: perplexity {perplexity[level]:.0f} of {len(counts)}, {dead} unused"
        axis.plot(np.sort(counts)[::-1], label=label, linewidth=1.3)
    axis.set_yscale("symlog")
    # 0, 1, 10 at least, so that there are numbers on the axis wherever the counts lie
    axis.set_ylim(0, max(10, 1.5 * max(int(counts.max()) for counts in levels)))
    axis.yaxis.set_major_formatter("{x:.0f}")
    axis.set_xlabel("codes, most used first")
    axis.set_ylabel("items with the code")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    _save(plt, figure, file)


def training_curve(log: Sequence[dict[str, Any]], metric: str, file: Path) -> None:
    """Loss and validation metric against training time."""
    plt = _pyplot()
    points = [line for line in log if metric in line]
    figure, left = plt.subplots(figsize=(7, 3.2), layout="constrained")
    minutes = [line["seconds"] / 60 for line in points]
    found = [line[metric] for line in points]
    left.plot(minutes, found, color=OURS, marker="o", markersize=3)
    left.set_xlabel("minutes of training")
    left.set_ylabel(f"validation {metric}", color=OURS)
    left.set_xlim(0, 1.04 * max(minutes, default=0) or 1)
    left.set_ylim(0, 1.1 * max(found, default=0) or 1)  # 1: no validation found anything
    right = left.twinx()
    right.plot(minutes, [line["loss"] for line in points], color=OTHERS, linestyle="--", marker="s", markersize=3)
    right.set_ylabel("training loss", color=OTHERS)
    right.margins(y=0.1)
    left.spines[["top"]].set_visible(False)
    right.spines[["top"]].set_visible(False)
    _save(plt, figure, file)


def _save(plt: Any, figure: Any, file: Path) -> None:
    # no time stamp or version in the file: equal runs give equal bytes
    figure.savefig(file, dpi=130, metadata={"Software": None})
    plt.close(figure)
