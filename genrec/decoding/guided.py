"""A beam search whose beams are chosen by a rule: so many inside one prefix, or by chance.

Axes: B batch, W beams, K largest number of children at the level, C = W·K candidates, P picked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.decoding.beam import refuse_broken
from genrec.decoding.deny import dead_nodes
from genrec.decoding.filters import RowFilters
from genrec.decoding.search import ROWS_TIMES_BEAMS, WIDER, Batch, Search, parts_of
from genrec.decoding.select import NEG_INF, Candidates, DeviceIndex, broken, expand, kill
from genrec.decoding.small import SMALL_SET

Rows = npt.NDArray[np.intp]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Walked:
    """Identifiers found (internal).

    leaves: int64 ``[B, P]``, -1 = padding. scores: float32 ``[B, P]`` summed log-probabilities. keys: float64
    ``[B, P]``, what they were chosen by, -inf for padding. pruned: float64 ``[B]``, the best key that was dropped.
    """

    leaves: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    keys: npt.NDArray[np.float64]
    pruned: npt.NDArray[np.float64]


@dataclass
class Beams:
    """Beams at one depth, ``[B, W]``; node -1 and key -inf = no beam. parent, code: what the scorer is told."""

    node: Tensor
    score: Tensor
    key: Tensor
    parent: Tensor
    code: Tensor


class Rule(Protocol):
    """How beams are chosen. It may keep notes of one search (internal)."""

    def keys(self, level: int, beams: Beams, found: Candidates) -> Tensor:
        """What the candidates are chosen by, float ``[B, C]``; forbidden ones are still among them."""

    def choose(self, level: int, node_BC: Tensor, key_BC: Tensor, n: int) -> Tensor:
        """Columns of at most ``n`` candidates, int64 ``[B, P]``, -1 = none; key -inf = not to be chosen."""


@torch.inference_mode()
def guided_search(search: Search, batch: Batch, rule: Rule, root: Tensor, *, n_beams: int) -> Walked:
    """Beam search inside the catalog and what each row allows, whose beams ``rule`` chooses.

        beams = {root}
        for each level:
            candidates = {beam + code: score + logp(code | beam)  for each child code of each beam}
            beams = rule.choose(the allowed ones of the candidates, n_beams)

    An identifier that has ended keeps its beam and competes with all others. With ``n_beams`` of at least the number
    of identifiers (or of allowed ones) the search is exhaustive, if the rule chooses as many as it may.

    root: the key of the root, ``[B, 1]``. Raises DataError if the model returns infinity or NaN for a beam. Internal.
    """
    scorer, index, host = search.scorer, search.index, search.index.host
    deny, filters = batch.deny, RowFilters.of(batch.filters)
    dead = index.dead(dead_nodes(host, deny, filters)) if deny is not None else [None] * host.depth
    allowed = None if filters is None else index.filters(filters)
    state = scorer.start(batch.prompts, search.normalize)
    zeros = torch.zeros((len(batch), 1), dtype=torch.int64, device=index.device)
    beams = Beams(zeros, zeros.float(), root, zeros, zeros)
    pruned = torch.full((len(batch),), NEG_INF, dtype=root.dtype, device=index.device)
    wrong = torch.zeros(len(batch), dtype=torch.bool, device=index.device)
    for level in range(host.depth):
        step = scorer.step(
            state, None if level == 0 else beams.parent, None if level == 0 else _fed(index, level, beams)
        )
        found = expand(index, level, beams.node, beams.score, step, renormalise=search.normalize == "children")
        asked = beams.node >= 0
        if host.ragged:
            asked &= ~_pass_on(found, beams, host.pass_code(level))
        wrong |= (broken(step, found.total_BW) & asked).any(1)
        key = rule.keys(level, beams, found)
        if (dead_here := dead[level]) is not None:
            kill(index, level, beams.node, found, dead_here)
        alive = found.score_BC > NEG_INF
        if allowed is not None:
            alive &= allowed.alive(index, level + 1, found.node_BC)
        key = torch.where(alive, key, NEG_INF)
        columns = rule.choose(level, found.node_BC, key, min(n_beams, host.n_nodes(level + 1)))
        pruned = torch.maximum(pruned, _best_left(key, columns))
        beams = _chosen(found, key, columns)
    refuse_broken(wrong.cpu().numpy())
    return Walked(
        leaves=beams.node.cpu().numpy(),
        scores=beams.score.cpu().numpy(),
        keys=beams.key.double().cpu().numpy(),
        pruned=pruned.double().cpu().numpy(),
    )


def widen(
    once: Callable[[Rows, int], T],
    unfinished: Callable[[T], npt.NDArray[np.bool_]],
    join: Callable[[Sequence[T], Sequence[Rows]], T],
    search: Search,
    batch: Batch,
) -> T:
    """``once(rows, n_beams)`` for all rows, and for unfinished ones again with more and more beams (internal).

    Rows that are allowed few items begin with as many beams as find them all. T is a dataclass of arrays with a row
    for each row of the batch; join: answers and the rows that they are of.
    """
    n_beams, limit = search.n_beams, min(search.wanted.max_beams, search.index.host.n_identifiers)
    few = np.array([each is not None and len(each) <= SMALL_SET for each in batch.filters], dtype=np.bool_)
    kinds = [(np.flatnonzero(~few), n_beams), (np.flatnonzero(few), max(n_beams, SMALL_SET))]
    kinds = [(rows, width) for rows, width in kinds if len(rows)]
    found = join([once(rows, width) for rows, width in kinds], [rows for rows, _ in kinds])
    while n_beams < limit and (more := unfinished(found)).any():
        n_beams = min(WIDER * n_beams, limit)
        rows, size = np.flatnonzero(more), max(1, ROWS_TIMES_BEAMS // n_beams)
        parts = parts_of(rows, size)
        kept = np.flatnonzero(~more)
        found = join([_take(found, kept), *(once(part, n_beams) for part in parts)], [kept, *parts])
    return found


def _take(found: T, rows: Rows) -> T:
    """Some of the rows."""
    values = {each.name: getattr(found, each.name) for each in fields(found)}  # type: ignore[arg-type]
    arrays = {name: value[rows] for name, value in values.items() if isinstance(value, np.ndarray)}
    return replace(found, **arrays)  # type: ignore[type-var]


def _fed(index: DeviceIndex, level: int, beams: Beams) -> Tensor:
    """The last codes; identifiers that have ended go on as dead beams."""
    return torch.where(beams.code < index.host.level_sizes[level - 1], beams.code, 0)


def _pass_on(found: Candidates, beams: Beams, pass_code: int) -> Tensor:
    """Give identifiers that have ended their own score again, whatever the scorer says; which beams, ``[B, W]``."""
    shape = (*beams.node.shape, found.width)
    # behind the end there is one edge; what stands behind a beam's children are edges of others
    ended = (found.code_BC.view(shape)[..., 0] == pass_code) & (beams.node >= 0)
    score = found.score_BC.view(shape).clone()
    score[..., 0] = torch.where(ended, beams.score, score[..., 0])
    found.score_BC = score.flatten(1)
    return ended


def _best_left(key_BC: Tensor, columns_BP: Tensor) -> Tensor:
    """The best key that was not chosen, ``[B]``; -inf = none."""
    # one more column takes the marks of beams that are none
    left = torch.cat([key_BC, torch.full_like(key_BC[:, :1], NEG_INF)], 1)
    at = torch.where(columns_BP < 0, key_BC.shape[1], columns_BP)
    return left.scatter(1, at, NEG_INF).amax(1)


def _chosen(found: Candidates, key_BC: Tensor, columns_BP: Tensor) -> Beams:
    at = columns_BP.clamp(min=0)
    key = key_BC.gather(1, at)
    alive = (columns_BP >= 0) & (key > NEG_INF)
    return Beams(
        node=torch.where(alive, found.node_BC.gather(1, at), -1),
        score=torch.where(alive, found.score_BC.gather(1, at), NEG_INF),
        key=torch.where(alive, key, NEG_INF),
        parent=at // found.width,
        code=torch.where(alive, found.code_BC.gather(1, at), 0),
    )
