"""Measure a recommender on the queries of a split.

Axes: Q queries, T targets, N items.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.decoding.interface import DenseRecommender, Recommender
from genrec.errors import DataError
from genrec.evaluation import slices as slicing
from genrec.evaluation.ranked import Ranked, ranked_batches
from genrec.evaluation.report import EvalReport
from genrec.evaluation.settings import EvalSettings
from genrec.metrics import beyond_accuracy, identifiers, ranking
from genrec.metrics.ranking import RankedTargets, ranking_metrics
from genrec.metrics.significance import bootstrap_means

Ids = npt.NDArray[np.int32]
Values = dict[str, npt.NDArray[np.float64]]


def evaluate(
    model: Recommender | DenseRecommender,
    evalset: EvalSet,
    *,
    settings: EvalSettings | None = None,
    train: Histories | None = None,
    identifier_of: npt.NDArray[np.integer] | None = None,
    name: str | None = None,
    catalog: str | None = None,
    context: dict[str, Any] | None = None,
    progress: bool = True,
) -> EvalReport:
    """Rank every target of ``evalset`` and report means, intervals, slices and per-query values (stable).

    Ranking is over the whole catalog, nothing is sampled; ties have their expected rank; item-exact always,
    and identifier-level beside it when ``identifier_of`` (int ``[N]``, equal = shared identifier) is given.
    ``train``: the training histories, for slices by popularity, cold items and novelty. ``catalog``: its
    fingerprint. ``context``: noted in the report (part, rule of the split, order of ties).
    A target asked twice in one query counts once.
    Raises DataError when the model's answer has the wrong shape, nan, or ranks that fall.
    """
    settings = settings or EvalSettings()
    rows, targets = _distinct_targets(evalset.targets, model.n_items)
    if identifier_of is not None and len(identifier_of) != model.n_items:
        raise DataError(f"identifier_of: expected {model.n_items} numbers, got {len(identifier_of)}")
    batches = list(ranked_batches(model, evalset, rows, targets, settings, identifier_of, progress))
    found = _joined(batches, max(settings.ks))
    ranked = RankedTargets(found.ranks, rows, len(evalset))
    counts = None if train is None else np.bincount(train.items, minlength=model.n_items)
    masks = slicing.target_slices(evalset.histories, rows, targets, counts, model.n_items)

    values = ranking_metrics(ranked, settings.ks) | _list_values(found.lists, settings.ks, counts)
    figures = _list_figures(found.lists, settings.ks, model.n_items)
    if identifier_of is not None and found.identifier_ranks is not None:
        by_id = _distinct_identifiers(found.identifier_ranks, rows, identifier_of[targets], len(evalset))
        values |= _named("identifier", ranking_metrics(by_id, settings.ks))
        figures["exposed_targets"] = identifiers.exposed_share(identifier_of, targets)
    for slice_name, mask in masks.items():
        values |= _named(slice_name, ranking_metrics(ranked.where(mask), settings.ks))
        figures[f"{slice_name}.share_of_targets"] = float(mask.mean())
    matrix = np.stack(list(values.values()), axis=1)
    cap = _history_cap(model, settings)
    intervals = bootstrap_means(matrix, n_resamples=settings.n_bootstrap, seed=settings.seed)
    return EvalReport(
        name=name or type(model).__name__,
        settings=asdict(settings) | {"ks": list(settings.ks)},
        context=dict(context or {}),
        definitions=_definitions(settings, cap, list(masks), identifier_of is not None, counts is not None),
        queries=_digest(evalset),
        n_items=model.n_items,
        catalog=catalog,
        history_cap=cap,
        users=evalset.users,
        targets=targets,
        target_rows=rows,
        ranks=found.ranks,
        lists=found.lists,
        values=values,
        figures=figures,
        intervals=dict(zip(values, intervals, strict=True)),
    )


def _history_cap(model: Recommender | DenseRecommender, settings: EvalSettings) -> int | None:
    """The smaller of the settings' and the model's own limit; None = neither has one."""
    caps = [cap for cap in (settings.history_cap, getattr(model, "history_cap", None)) if cap is not None]
    return min(caps, default=None)


def _joined(batches: list[Ranked], k_max: int) -> Ranked:
    """All batches below each other."""
    if not batches:
        return Ranked(np.zeros(0), None, np.zeros((0, k_max), np.int32))
    by_id = [b.identifier_ranks for b in batches if b.identifier_ranks is not None]
    return Ranked(
        np.concatenate([b.ranks for b in batches]),
        np.concatenate(by_id) if by_id else None,
        np.concatenate([b.lists for b in batches]),
    )


def _named(group: str, values: Values) -> Values:
    return {f"{group}.{key}": value for key, value in values.items()}


def _distinct_targets(targets: Histories, n_items: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Query and item of every target, each pair once, sorted by query."""
    if len(targets.items) and (targets.items.min() < 0 or targets.items.max() >= n_items):
        raise DataError(f"targets: expected items 0..{n_items - 1}, got {targets.items.max()}")
    pairs = np.unique(targets.rows() * n_items + targets.items)
    return pairs // n_items, (pairs % n_items).astype(np.int32)


def _distinct_identifiers(
    ranks: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
    identifier: npt.NDArray[np.integer],
    n_queries: int,
) -> RankedTargets:
    """Targets of one query that share an identifier are one target at the identifier level."""
    _, first = np.unique(np.stack([rows, identifier.astype(np.int64)]), axis=1, return_index=True)
    return RankedTargets(ranks[first], rows[first], n_queries)


def _list_values(lists: Ids, ks: tuple[int, ...], counts_N: npt.NDArray[np.integer] | None) -> Values:
    values = {f"shortfall@{k}": beyond_accuracy.shortfall(lists, k) for k in ks}
    if counts_N is not None:
        values |= {f"novelty@{k}": beyond_accuracy.novelty(lists, counts_N, k) for k in ks}
    return values


def _list_figures(lists: Ids, ks: tuple[int, ...], n_items: int) -> dict[str, float]:
    figures = {}
    for k in ks:
        figures[f"coverage@{k}"] = beyond_accuracy.coverage(lists, n_items, k)
        figures[f"validity@{k}"] = beyond_accuracy.validity(lists, n_items, k)
        short = beyond_accuracy.shortfall(lists, k) > 0
        figures[f"short_lists@{k}"] = float(short.mean()) if len(short) else float("nan")
    return figures


def _digest(evalset: EvalSet) -> str:
    """32 hex digits that two evaluation sets share if and only if they ask the same."""
    digest = hashlib.sha256()
    for part in (evalset.histories, evalset.targets):
        digest.update(np.ascontiguousarray(part.offsets, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(part.items, dtype="<i4").tobytes())
    digest.update(np.ascontiguousarray(evalset.users, dtype="<i4").tobytes())
    return digest.hexdigest()[:32]


def _definitions(
    settings: EvalSettings, cap: int | None, slice_names: list[str], with_identifiers: bool, with_counts: bool
) -> dict[str, str]:
    found = dict(ranking.DEFINITIONS) | beyond_accuracy.DEFINITIONS
    if not with_counts:
        del found["novelty"]
    if with_identifiers:
        found |= identifiers.DEFINITIONS
    found |= {name: slicing.DEFINITIONS[name] for name in slice_names}
    found["seen"] = (
        "Seen items excluded: no item of the entire history is ranked; a target in the history is a miss."
        if settings.exclude_seen
        else "Seen items kept: items of the history are ranked like all others."
    )
    found["history"] = "The model sees the entire history." if cap is None else f"The model sees the last {cap} events."
    found["interval"] = (
        f"95 % percentile bootstrap over queries, {settings.n_bootstrap} resamples, seed {settings.seed}"
        if settings.n_bootstrap
        else "none"
    )
    return found
