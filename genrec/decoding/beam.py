"""Constrained beam search over the identifiers of a catalog.

Axes: B batch, W beams, C candidates, P picked, S symbols of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.data.histories import Histories
from genrec.decoding.deny import dead_nodes
from genrec.decoding.filters import RowFilters
from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import Prompts, Scorer
from genrec.decoding.select import NEG_INF, Candidates, DeviceIndex, best, expand, kill
from genrec.errors import DataError


@dataclass(frozen=True, eq=False)
class Found:
    """Identifiers found, best first.

    leaves: int64 ``[B, P]`` leaves of the index, -1 = padding. scores: float32 ``[B, P]`` summed
    log-probabilities, -inf for padding. pruned: float32 ``[B]``, the best score dropped at any step: no
    identifier that is not listed scores more, because log-probabilities only fall.
    """

    leaves: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    pruned: npt.NDArray[np.float32]


@dataclass
class _Beams:
    """Beams at one depth; node -1 and score -inf = no beam. parent, code: what the scorer is told."""

    node: Tensor
    score: Tensor
    parent: Tensor
    code: Tensor

    def keep(self, n: int) -> tuple[_Beams, Tensor]:
        """The ``n`` best beams and the best score among the others."""
        columns, left = best(self.score, min(n, self.score.shape[1]))
        score = self.score.gather(1, columns)
        alive = score > NEG_INF
        node, parent, code = (x.gather(1, columns) for x in (self.node, self.parent, self.code))
        return _Beams(torch.where(alive, node, -1), score, parent, torch.where(alive, code, 0)), left

    def only(self, mask: Tensor) -> _Beams:
        """The beams where ``mask`` holds; the others die."""
        return _Beams(self.node, torch.where(mask, self.score, NEG_INF), self.parent, self.code)


@torch.inference_mode()
def beam_search(
    scorer: Scorer,
    index: DeviceIndex,
    prompts: Prompts,
    *,
    n_beams: int,
    normalize: Normalize,
    deny: Histories | None = None,
    filters: RowFilters | None = None,
    above: npt.NDArray[np.float32] | None = None,
) -> Found:
    """The identifiers of highest summed log-probability, by beam search inside the catalog.

        beams = {root: 0}
        for each level:
            candidates = {beam + code: score + logp(code | beam)  for each child code of each beam}
            beams = the n_beams best candidates

    Equal to Hugging Face ``generate(num_beams=n_beams, length_penalty=0)`` with a prefix trie. Ragged
    identifiers that end leave the running beams and compete among themselves, as there: a candidate ends only
    from among the ``n_beams`` best of its step, and ``n_beams`` running beams go on beside ``n_beams`` ended
    ones. With ``n_beams`` of at least the number of identifiers the search is exhaustive.

    deny: items per row that must not be found. filters: the only items that each row may get. A prefix with nothing
    allowed below it takes no beam, so as many identifiers are found as there are, up to ``n_beams``.
    above: float32 ``[B]``: nothing that scores less or the same is followed. Then every step has as many beams as its
    neediest row, ``n_beams`` at most, and waits for the device to know how many.
    Equal scores go to the earlier beam, then the lower code. Raises DataError if the model returns NaN.
    """
    host = index.host
    dead = index.dead(dead_nodes(host, deny, filters)) if deny is not None else [None] * host.depth
    allowed = None if filters is None else index.filters(filters)
    state = scorer.start(prompts, normalize)
    zeros = torch.zeros((len(prompts), 1), dtype=torch.int64, device=index.device)
    running = _Beams(zeros, zeros.float(), zeros, zeros)
    ended: _Beams | None = None
    pruned = torch.full((len(prompts),), NEG_INF, device=index.device)
    broken = torch.zeros(len(prompts), dtype=torch.bool, device=index.device)
    floor = None if above is None else torch.from_numpy(above).to(index.device)
    most = n_beams
    for level in range(host.depth):
        first = level == 0
        found = scorer.step(state, None if first else running.parent, None if first else running.code)
        broken |= found.values_BWS.sum((1, 2)).isnan()
        candidates = expand(index, level, running.node, running.score, found, renormalise=normalize == "children")
        if (dead_here := dead[level]) is not None:
            kill(index, level, running.node, candidates, dead_here)
        if allowed is not None:
            alive = allowed.alive(index, level + 1, candidates.node_BC)
            candidates.score_BC = torch.where(alive, candidates.score_BC, NEG_INF)
        if floor is not None:
            candidates.score_BC = torch.where(candidates.score_BC > floor[:, None], candidates.score_BC, NEG_INF)
            n_beams = min(most, _most_alive(candidates.score_BC, ended))
        fresh = _as_beams(candidates)
        if host.ragged:
            running, ended, left = _split_ended(index, level, fresh, ended, n_beams)
        else:
            running, left = fresh.keep(min(n_beams, host.n_nodes(level + 1)))
        pruned = torch.maximum(pruned, left)
    if floor is not None:
        pruned = torch.maximum(pruned, floor)
    final = ended if ended is not None else running
    return _to_host(final, pruned, broken)


def _as_beams(found: Candidates) -> _Beams:
    column = torch.arange(found.score_BC.shape[1], device=found.score_BC.device)
    parent = (column // found.width).expand_as(found.node_BC)
    return _Beams(found.node_BC, found.score_BC, parent, found.code_BC)


def _most_alive(score_BC: Tensor, ended: _Beams | None) -> int:
    """The largest number of live candidates and ended beams of a row, 1 or more."""
    alive = (score_BC > NEG_INF).sum(1)
    if ended is not None:
        alive = alive + (ended.score > NEG_INF).sum(1)
    return max(1, int(alive.max()))


def _split_ended(
    index: DeviceIndex, level: int, fresh: _Beams, ended: _Beams | None, n_beams: int
) -> tuple[_Beams, _Beams, Tensor]:
    """Running beams, ended beams and the best dropped score of one level of ragged identifiers.

    A beam has at most one end edge, so twice ``n_beams`` candidates hold ``n_beams`` that go on.
    """
    n_nodes = index.host.n_nodes(level + 1)
    top, left = fresh.keep(min(2 * n_beams, n_nodes))
    ends = top.code == index.host.end_code(level)
    among_best = torch.arange(top.node.shape[1], device=index.device) < n_beams
    late = top.only(ends & ~among_best).score.amax(1)
    done = top.only(ends & among_best)
    if ended is not None:
        # an identifier that has ended moves down its only edge
        node = index.pointers[level][ended.node.clamp(min=0)].long()
        done = _Beams(
            torch.cat([torch.where(ended.node >= 0, node, -1), done.node], 1),
            torch.cat([ended.score, done.score], 1),
            torch.cat([ended.parent, done.parent], 1),
            torch.cat([ended.code, done.code], 1),
        )
    done, worse = done.keep(min(n_beams, n_nodes))
    running, rest = top.only(~ends).keep(min(n_beams, n_nodes))
    return running, done, torch.stack([left, late, worse, rest]).amax(0)


def _to_host(beams: _Beams, pruned: Tensor, broken: Tensor) -> Found:
    rows = torch.nonzero(broken).flatten().tolist()
    if rows:
        raise DataError(
            f"the model returned NaN for {len(rows)} of {len(broken)} rows of the batch, first row {rows[0]}",
            hint="the weights or the inputs are not finite; half precision may overflow",
        )
    return Found(
        leaves=beams.node.cpu().numpy(),
        scores=beams.score.cpu().numpy(),
        pruned=pruned.cpu().numpy(),
    )
