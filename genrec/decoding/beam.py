"""Constrained beam search over the identifiers of a catalog.

Axes: B batch, P picked.
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
from genrec.decoding.select import Beams, DeviceIndex
from genrec.decoding.steps import Limits, Step, fastest_step
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
    step: type[Step] | None = None,
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
    Equal scores go to the earlier beam, then the lower code. step: how the best continuations are found, None = the
    fastest way there is (:mod:`genrec.decoding.steps`). Raises DataError if the model returns infinity or NaN.
    """
    host = index.host
    dead = None if deny is None else dead_nodes(host, deny, filters)
    pick = (step or fastest_step(index))(index, len(prompts), normalize, Limits(dead, filters, above))
    state = scorer.start(prompts, normalize)
    running = Beams.roots(len(prompts), index.device)
    ended: Beams | None = None
    for level in range(host.depth):
        first, n_nodes = level == 0, host.n_nodes(level + 1)
        found = scorer.step(state, None if first else running.parent, None if first else running.code)
        if host.ragged:
            top = pick(level, running, found, min(2 * n_beams, n_nodes))
            running, ended, left = _split_ended(index, level, top, ended, n_beams)
            pick.pruned_B = torch.maximum(pick.pruned_B, left)
        else:
            running = pick(level, running, found, min(n_beams, n_nodes))
        if above is not None:
            running = running.cut()
    return _to_host(running if ended is None else ended, pick.pruned_B)


def _split_ended(
    index: DeviceIndex, level: int, top: Beams, ended: Beams | None, n_beams: int
) -> tuple[Beams, Beams, Tensor]:
    """Running beams, ended beams and the best score dropped here, of one level of ragged identifiers.

    top: the best ``2 · n_beams`` candidates. A beam has at most one end edge, so they hold ``n_beams`` that go on.
    """
    n = min(n_beams, index.host.n_nodes(level + 1))
    ends = top.code == index.host.end_code(level)
    among_best = torch.arange(top.node.shape[1], device=index.device) < n_beams
    late = top.only(ends & ~among_best).score.amax(1)
    done = top.only(ends & among_best)
    if ended is not None:
        # an identifier that has ended moves down its only edge
        node = index.first_child(level, ended.node.clamp(min=0))
        moved = Beams(torch.where(ended.node >= 0, node, -1), ended.score, ended.parent, ended.code)
        done = moved.beside(done)
    done, worse = done.keep(n)
    running, rest = top.only(~ends).keep(n)
    return running, done, torch.stack([late, worse, rest]).amax(0)


def _to_host(beams: Beams, pruned_B: Tensor) -> Found:
    pruned = pruned_B.cpu().numpy()
    refuse_broken(np.isnan(pruned))
    return Found(leaves=beams.node.cpu().numpy(), scores=beams.score.cpu().numpy(), pruned=pruned)


def refuse_broken(broken_B: npt.NDArray[np.bool_]) -> None:
    """Raise DataError where the model returned infinity or NaN for some rows of a batch (internal)."""
    rows = broken_B.nonzero()[0]
    if len(rows):
        raise DataError(
            f"the model returned inf or NaN for {len(rows)} of {len(broken_B)} rows of the batch, first row {rows[0]}",
            hint="the weights or the inputs are not finite; half precision may overflow",
        )
