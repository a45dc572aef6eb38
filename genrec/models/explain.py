"""Why an item is listed: the way of the search to it, and what the catalog and the request ruled out on that way.

Axes: M items, P leaves, W prefixes fed at a level, S symbols of a level, C children.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch

from genrec.data.histories import Histories
from genrec.decoding.deny import denied_ranks
from genrec.decoding.exact import PREFIXES_AT_ONCE
from genrec.decoding.filters import ItemFilter, RankFilter, RowFilters
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import Prompts, check_normalize
from genrec.decoding.walk import Step, Walk, blocks, leaves_of, plan
from genrec.errors import DataError
from genrec.models.backbone import evaluating

if TYPE_CHECKING:
    from genrec.models.recommender import GenerativeRecommender

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
END = "</s>"
FATES = ("allowed", "no_identifier", "retired", "filtered", "seen")
"""Where the probability of a step goes, see :class:`PathStep`."""


@dataclass(frozen=True)
class PathStep:
    """One code on the way to an item.

    token: of the vocabulary, as ``<b_17>``; ``</s>`` where an identifier of unequal length ends. code: of the level.
    logp: log-probability of the code after those before it, by the softmax of the scores. score: their sum so far; that
    of the last step is the item's score. n_children: codes that the request could go on with here.

    mass: what the model gave to the next codes, by the softmax over the vocabulary where the scores are of it, else by
    that over the codes of the level; its parts sum to one. ``allowed``: codes that lead to an item which the request
    may get. The others were ruled out, each for the first reason that takes its last item away: ``no_identifier``: no
    item of the index goes on so (of a vocabulary: words too); ``retired``: all that do are retired; ``filtered``: the
    request's filter allows none of the others; ``seen``: those left are in the history.

    Stability: experimental.
    """

    level: int
    token: str
    code: int
    logp: float
    score: float
    n_children: int
    mass: dict[str, float]


def as_json(step: PathStep) -> dict[str, Any]:
    """A step for JSON, with its probability (internal)."""
    return {**asdict(step), "probability": math.exp(step.logp)}


def explain(
    recommender: GenerativeRecommender,
    history: Sequence[int] | npt.NDArray[np.integer],
    items: npt.ArrayLike,
    *,
    normalize: str | None,
    user: str = "",
    allowed: ItemFilter | str | None = None,
    exclude_seen: bool = True,
    query: str | None = None,
) -> list[list[PathStep]]:
    """The way to each of these items, in their order; items are numbers that :meth:`recommend` has listed.

        for each item, for each code of its identifier:  one softmax of the model after the codes before it

    The model reads the codes of the items once more, all at once, so the search itself remembers nothing. normalize,
    allowed, exclude_seen, query: as the list was made (:attr:`Recommendations.normalize`, the request's filter). Raises
    DataError for an item that is not in the index, ConfigError for scores that are no log-probabilities.
    Stability: experimental.
    """
    how = check_normalize(cast("Normalize", normalize))
    view = recommender.now
    index, rows = view.index, Histories.from_lists([list(history)])
    snapshot = view.snapshot
    (named,) = view._named(allowed, 1)
    limits = _Limits.of(
        index,
        live=None if snapshot is None else snapshot.live_ranks,
        chosen=None if named is None else RankFilter.of(named, index),
        seen=rows if exclude_seen else None,
    )
    leaf = leaves_of(index, items)
    leaves, place = np.unique(leaf, return_inverse=True)
    found: list[list[PathStep]] = [[] for _ in leaves]
    with evaluating(view.model), torch.inference_mode():
        ((_, prompts),) = view._batches(rows, [user], None if query is None else [query])
        zeros = np.zeros(len(leaves), dtype=np.int64)
        for block in blocks(index, zeros, leaves, PREFIXES_AT_ONCE):
            walk = plan(index, zeros[block], leaves[block])
            paths = _walked(view, prompts, walk, limits, how)
            for number, path in zip(block.tolist(), paths, strict=True):
                found[number] = path
    return [found[number] for number in place.tolist()]


@dataclass(frozen=True)
class _Limits:
    """Counts of items below a node that are left after each rule.

    live, chosen: None = all. seen: ranks of the history that both allow, ascending.
    """

    live: RowFilters | None
    chosen: RowFilters | None
    seen: Int64

    @classmethod
    def of(
        cls, index: CatalogIndex, *, live: RankFilter | None, chosen: RankFilter | None, seen: Histories | None
    ) -> _Limits:
        both = live if chosen is None else chosen if live is None else chosen & live
        filters = RowFilters.of([both])
        ranks = np.zeros(0, np.int64) if seen is None else denied_ranks(index, seen)[1]
        if filters is not None:
            ranks = ranks[filters.allows(np.zeros(len(ranks), np.int64), ranks)]
        return cls(RowFilters.of([live]), filters, ranks)

    def fates(self, low: Int64, high: Int64) -> Int64:
        """For nodes with the ranks ``low:high``: a number into :data:`FATES`, int64 ``[C]``."""
        row = np.zeros(len(low), dtype=np.int64)
        live = high - low if self.live is None else self.live.count(row, low, high)
        chosen = high - low if self.chosen is None else self.chosen.count(row, low, high)
        seen = np.searchsorted(self.seen, high) - np.searchsorted(self.seen, low)
        names = [FATES.index(name) for name in ("retired", "filtered", "seen")]
        return np.asarray(np.select([live == 0, chosen == 0, chosen == seen], names, FATES.index("allowed")))


@dataclass(frozen=True)
class _Level:
    """What the model says behind each prefix fed: log-probabilities ``[W, S]`` of the scores, children, masses."""

    logp_WS: Float64
    n_children: list[int]
    masses: list[dict[str, float]]


def _walked(
    view: GenerativeRecommender, prompts: Prompts, walk: Walk, limits: _Limits, normalize: Normalize
) -> list[list[PathStep]]:
    """The paths of the leaves of a walk of one row."""
    scorer = view._over_index()
    # masses are of all codes of the level where the scores are not of the vocabulary, so an engine is asked for all
    state = scorer.start(prompts, "vocab" if normalize == "vocab" else "level")
    levels: list[_Level] = []
    for level, step in enumerate(walk.steps):
        if level == 0:
            found = scorer.step(state, None, None)
        else:
            parents, codes = (torch.from_numpy(x).to(scorer.device) for x in (step.fed_parents, step.fed_codes))
            found = scorer.step(state, parents, codes)
        values_WS, logp_WS = (x[0].double().cpu().numpy() for x in (found.values_BWS, found.logp()))
        levels.append(_examined(view.index, level, step, values_WS, logp_WS, limits, normalize))
    if any(np.isnan(each.logp_WS).any() for each in levels):
        raise DataError("the model returned inf or NaN", hint="the weights or the inputs are not finite")
    places = [walk.place]
    for step in reversed(walk.steps):
        places.append(step.above[0][places[-1]])
    places = places[::-1][1:]  # of every leaf among the nodes behind each step
    return [_path(view, walk, levels, [int(each[leaf]) for each in places]) for leaf in range(len(walk.place))]


def _examined(
    index: CatalogIndex,
    level: int,
    step: Step,
    values_WS: Float64,
    logp_WS: Float64,
    limits: _Limits,
    normalize: Normalize,
) -> _Level:
    """What becomes of the probability behind each prefix that is fed at a level."""
    nodes = step.fed_nodes[0]
    children = index.children(level, nodes)
    slot = np.repeat(np.arange(len(nodes)), np.diff(children.offsets))
    fates = limits.fates(*index.rank_range(level + 1, children.nodes))
    mass = np.zeros((len(nodes), len(FATES)))
    np.add.at(mass, (slot, fates), np.exp(logp_WS[slot, children.codes]))
    mass[:, FATES.index("no_identifier")] = np.maximum(1 - mass.sum(axis=1), 0)
    n_children = np.bincount(slot[fates == FATES.index("allowed")], minlength=len(nodes))
    if normalize == "children":
        values = values_WS[slot, children.codes]
        logp_WS = values_WS - np.logaddexp.reduceat(values, children.offsets[:-1])[:, None]
    masses = [dict(zip(FATES, row, strict=True)) for row in mass.tolist()]
    return _Level(logp_WS, n_children.tolist(), masses)


def _path(view: GenerativeRecommender, walk: Walk, levels: list[_Level], places: list[int]) -> list[PathStep]:
    """The steps to one leaf; places: its node's among those behind each step."""
    path: list[PathStep] = []
    score = 0.0
    for level, (step, found, at) in enumerate(zip(walk.steps, levels, places, strict=True)):
        if step.passed is not None and step.passed[0, at]:
            break
        slot, code = int(step.slot[0, at]), int(step.code[0, at])
        logp = float(found.logp_WS[slot, code])
        score += logp
        ends = view.index.ragged and code == view.index.end_code(level)
        token = END if ends else view.token_map.token(level, code)
        path.append(PathStep(level, token, code, logp, score, found.n_children[slot], found.masses[slot]))
    return path
