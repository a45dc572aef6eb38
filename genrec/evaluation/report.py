"""The result of an evaluation: every query's values, their means and intervals, and what each word means.

Axes: Q queries, T targets, N items, k list length.
"""

from __future__ import annotations

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
_TEXTS = ("name", "settings", "context", "definitions", "queries", "n_items")
COLD_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class EvalReport:
    """What :func:`genrec.evaluation.evaluate` found for one model on one set of queries.

    name: of the model. settings: the EvalSettings used. context: what else the numbers depend on (part, rule
    of the split, order of ties). definitions: each metric and rule in a sentence. queries: digest of users,
    histories and targets; equal digests = the same questions. history_cap: how many events of a history the model
    saw, by the settings or by its own limit, the newest ones; None = all, 0 = not recorded (older reports).
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
    history_cap: int | None
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

    @property
    def cold_apart(self) -> bool:
        """Whether one number for warm and cold targets together would mislead, so that tables show both beside it.

        Any cold target under a time or predefined split; more than 5 % of the targets under another one.
        """
        rule = self.context.get("split")
        by_time = isinstance(rule, dict) and rule.get("kind") in ("time_split", "predefined")
        return self.figures.get("cold.share_of_targets", 0.0) > (0.0 if by_time else COLD_SHARE)

    def summary(self) -> str:
        """Recall and NDCG in one line, with the recall of warm and cold targets where they are told apart."""
        recall, ndcg = best_metric([self], "recall"), best_metric([self], "ndcg")
        keys = {part: f"{part}.{recall}" for part in ("warm", "cold")} if self.cold_apart else {}
        apart = ", ".join(f"{part} {self.mean(key):.4f}" for part, key in keys.items() if key in self.intervals)
        both = f" ({apart})" if apart else ""
        return f"{recall} {self.mean(recall):.4f}{both}, {ndcg} {self.mean(ndcg):.4f}"

    def to_rows(self) -> list[Row]:
        """One flat dict per number: model, slice, metric, k, mean, low, high, n.

        ``slice`` is "all", "identifier" (identifier level, all targets) or the name of a slice; ``n`` counts
        queries; figures have no interval.
        """
        rows: list[Row] = []
        for key, found in self.intervals.items():
            rows.append(
                {"model": self.name, **parts_of(key), "mean": found.mean, "low": found.low, "high": found.high}
                | {"n": found.n}
            )
        for key, value in self.figures.items():
            rows.append({"model": self.name, **parts_of(key), "mean": value, "low": None, "high": None, "n": len(self)})
        return rows

    def save(self, path: str | Path, *, overwrite: bool = False, parents: Mapping[str, str] | None = None) -> None:
        """Write an artifact of kind "eval": report.json and values.safetensors."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"values/{name}": values for name, values in self.values.items()}
        text: dict[str, Any] = {name: getattr(self, name) for name in (*_TEXTS, "history_cap")}
        text |= {
            "figures": {name: or_none(value) for name, value in self.figures.items()},
            "intervals": {
                name: {"mean": or_none(i.mean), "low": or_none(i.low), "high": or_none(i.high)}
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
                **{key: text[key] for key in _TEXTS},
                catalog=manifest.catalog,
                history_cap=text.get("history_cap", 0),
                **{name: arrays[name] for name in _ARRAYS},
                values={k[start:]: v for k, v in arrays.items() if k.startswith("values/")},
                figures={name: _or_nan(value) for name, value in text["figures"].items()},
                intervals={
                    name: Interval(_or_nan(i["mean"]), _or_nan(i["low"]), _or_nan(i["high"]), i["n"], i["level"])
                    for name, i in text["intervals"].items()
                },
            )

        return artifacts.load(path, loader, kind=KIND, schema=SCHEMA)


def best_metric(reports: Sequence[EvalReport], name: str, k: int = 10) -> str:
    """``name@k`` if all reports have it, else ``name`` at the longest list length that all have (internal).

    Raises DataError naming the metrics that there are.
    """
    common = set.intersection(*({*report.intervals, *report.figures} for report in reports))
    lengths = [int(key.removeprefix(f"{name}@")) for key in common if key.startswith(f"{name}@")]
    if not lengths:
        names = sorted({key.partition("@")[0] for key in common if "@" in key and "." not in key})
        found = f"they share: {', '.join(names)}" if names else "evaluate them with the same list lengths (evaluate.ks)"
        raise DataError(f"metric {name!r}: not at one list length in all of the {len(reports)} reports", hint=found)
    return f"{name}@{k if k in lengths else max(lengths)}"


def parts_of(key: str) -> Row:
    """``"cold.recall@10"`` → slice cold, metric recall, k 10 (internal)."""
    name, _, k = key.partition("@")
    group, _, metric = name.rpartition(".")
    return {"slice": group or "all", "metric": metric, "k": int(k) if k else None}


def or_none(value: float) -> float | None:
    """JSON has no nan (internal)."""
    return None if np.isnan(value) else value


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
