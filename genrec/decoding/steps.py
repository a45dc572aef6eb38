"""One step of a beam search, as tensor operations or as one compiled loop: which of the two is decided here.

Axes: B batch, W beams, P picked, D dead nodes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.decoding.deny import DeadNodes
from genrec.decoding.filters import RowFilters
from genrec.decoding.host import address
from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import StepScores
from genrec.decoding.select import NEG_INF, Beams, DeviceIndex, broken, expand, kill

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What the rows of a search may not get (internal).

    dead: see :func:`genrec.decoding.deny.dead_nodes`. above: float32 ``[B]``, only higher scores count.
    """

    dead: Sequence[DeadNodes | None] | None = None
    filters: RowFilters | None = None
    above: npt.NDArray[np.float32] | None = None


class Step(Protocol):
    """Finds the best continuations of all beams; one for each search.

    pruned_B: float32 ``[B]``, the best score left out so far; NaN where the model returned infinity or NaN for a beam.
    Internal.
    """

    pruned_B: Tensor

    def __init__(self, index: DeviceIndex, batch: int, normalize: Normalize, limits: Limits) -> None: ...

    def __call__(self, level: int, running: Beams, found: StepScores, n: int) -> Beams:
        """The ``n`` best children of the running beams, best first; of equal scores the earlier beam, the lower code.

            score(beam, code) = score of the beam + (value of the code - total of the beam)

        Children of score -inf, dead ones, and those below which the row's filter allows nothing are none.
        """


def fastest_step(index: DeviceIndex) -> type[Step]:
    """:class:`CompiledStep` on a CPU with numba (the extra "fast"), else :class:`TorchStep` (internal)."""
    return CompiledStep if index.device.type == "cpu" and _has_numba() else TorchStep


@functools.cache
def _has_numba() -> bool:
    try:
        import genrec.decoding.kernel  # noqa: F401
    except ImportError as error:
        logger.info("searching without compiled code: %s", error)
        return False
    return True


class TorchStep:
    """Every child of every beam as a tensor, on any device; the reference."""

    def __init__(self, index: DeviceIndex, batch: int, normalize: Normalize, limits: Limits) -> None:
        self._index = index
        self._renormalise = normalize == "children"
        self._dead = index.dead(limits.dead or [None] * index.host.depth)
        self._allowed = None if limits.filters is None else index.filters(limits.filters)
        self._above = None if limits.above is None else torch.from_numpy(limits.above).to(index.device)
        self.pruned_B = torch.full((batch,), NEG_INF, device=index.device) if self._above is None else self._above

    def __call__(self, level: int, running: Beams, found: StepScores, n: int) -> Beams:
        """See the protocol."""
        fresh = expand(self._index, level, running.node, running.score, found, renormalise=self._renormalise)
        wrong = (broken(found, fresh.total_BW) & (running.node >= 0)).any(1)
        if (dead := self._dead[level]) is not None:
            kill(self._index, level, running.node, fresh, dead)
        if self._allowed is not None:
            alive = self._allowed.alive(self._index, level + 1, fresh.node_BC)
            fresh.score_BC = torch.where(alive, fresh.score_BC, NEG_INF)
        if self._above is not None:
            fresh.score_BC = torch.where(fresh.score_BC > self._above[:, None], fresh.score_BC, NEG_INF)
        top, left = fresh.as_beams().keep(n)
        self.pruned_B = torch.maximum(self.pruned_B, torch.where(wrong, torch.nan, left))
        return top


class CompiledStep:
    """One loop over the children that exist (:mod:`genrec.decoding.kernel`), on a CPU, one thread.

    Picks what :class:`TorchStep` picks, up to the rounding of the normaliser (about 1e-7 relative).
    """

    def __init__(self, index: DeviceIndex, batch: int, normalize: Normalize, limits: Limits) -> None:
        from genrec.decoding import kernel

        self._compiled, self._arrays, self._kept = kernel.compiled, index.arrays, limits
        self._dead = limits.dead or [None] * index.host.depth
        self._room, self._widest = 0, max(index.host.branching) + kernel.BLOCK
        # numpy allocates several times faster than torch
        self.pruned_B = torch.from_numpy(np.full(batch, -np.inf if limits.above is None else limits.above, np.float32))
        self._call = call = kernel.Call(batch=batch)
        call.by_children = int(normalize == "children")
        if limits.above is not None:
            call.bars = address(limits.above, np.float32)
        if (filters := limits.filters) is not None:
            call.words, call.n_words = address(filters.words, np.uint64), filters.words.shape[1]
            call.before, call.filter_of = address(filters.before, np.int64), address(filters.of_row, np.int64)

    def __call__(self, level: int, running: Beams, found: StepScores, n: int) -> Beams:
        """See the protocol."""
        at, call = self._arrays.levels[level], self._call
        node, score, values = running.node.contiguous(), running.score.contiguous(), _plain(found.values_BWS)
        batch, beams, call.n_symbols = values.shape
        assert batch == call.batch and node.numel() == score.numel() == batch * beams
        call.n_beams, call.width = beams, at.width
        call.pruned = self.pruned_B.data_ptr()  # now: who searches may have put another tensor in its place
        call.nodes, call.scores, call.values = node.data_ptr(), score.data_ptr(), values.data_ptr()
        total = None if found.total_BW is None or call.by_children else _plain(found.total_BW)
        assert total is None or total.shape == node.shape
        call.totals = 0 if total is None else total.data_ptr()
        dead = self._dead[level]
        call.n_dead = 0 if dead is None else dead.nodes_BD.shape[1]
        call.dead = 0 if dead is None else address(dead.nodes_BD, np.int64)
        ranks, rank_type = self._arrays.ranks(level) if call.n_words else (0, "int32")
        call.ranked = ranks != 0
        call.n_picked = n = min(n, beams * at.width)
        if n >= self._room:
            self._make_room(n + 1)
        picked, parent, code = torch.from_numpy(np.empty((3, batch, n), dtype=np.int64)).unbind()
        scores = torch.from_numpy(np.empty((batch, n), dtype=np.float32))
        call.place, call.score = picked.data_ptr(), scores.data_ptr()
        self._compiled(at.token_type, at.pointer_type, rank_type)(call, at.tokens, at.pointers, ranks)
        return Beams(picked, scores, parent, code)

    def _make_room(self, n: int) -> None:
        """Scratch memory for ``n`` keys and the scores of a beam's children."""
        self._room, self._scratch = n, torch.from_numpy(np.empty(n + self._widest, dtype=np.int64))
        self._call.keys = self._scratch.data_ptr()
        self._call.buffer = self._call.keys + 8 * n


def _plain(x: Tensor) -> Tensor:
    """Float32, in one piece, in the memory of the CPU."""
    assert x.is_cpu
    return x if x.dtype == torch.float32 and x.is_contiguous() else x.float().contiguous()
