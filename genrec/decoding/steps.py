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
from genrec.decoding.select import NEG_INF, Beams, DeviceIndex, expand, kill

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
        finite = (found.values_BWS.sum(-1) < torch.inf) & (fresh.total_BW < torch.inf)
        broken = (~finite & (running.node >= 0)).any(1)
        if (dead := self._dead[level]) is not None:
            kill(self._index, level, running.node, fresh, dead)
        if self._allowed is not None:
            alive = self._allowed.alive(self._index, level + 1, fresh.node_BC)
            fresh.score_BC = torch.where(alive, fresh.score_BC, NEG_INF)
        if self._above is not None:
            fresh.score_BC = torch.where(fresh.score_BC > self._above[:, None], fresh.score_BC, NEG_INF)
        top, left = fresh.as_beams().keep(n)
        self.pruned_B = torch.maximum(self.pruned_B, torch.where(broken, torch.nan, left))
        return top


class CompiledStep:
    """One loop over the children that exist (:mod:`genrec.decoding.kernel`), on a CPU, one thread.

    Picks what :class:`TorchStep` picks, up to the rounding of the normaliser (about 1e-7 relative).
    """

    def __init__(self, index: DeviceIndex, batch: int, normalize: Normalize, limits: Limits) -> None:
        from genrec.decoding import kernel

        self._kernel, self._arrays, self._kept = kernel, index.arrays, limits
        self._own_mode = kernel.CHILDREN if normalize == "children" else kernel.LEVEL
        dead = limits.dead or [None] * index.host.depth
        self._dead = [(0, 0) if d is None else (address(d.nodes_BD, np.int64), d.nodes_BD.shape[1]) for d in dead]
        self._filters: tuple[int, ...] = (0, 0, 0, 0)
        if (filters := limits.filters) is not None:
            arrays = ((filters.words, np.uint64), (filters.before, np.int64), (filters.of_row, np.int64))
            self._filters = (*(address(array, kind) for array, kind in arrays), filters.words.shape[1])
        # numpy allocates several times faster than torch
        bars = np.full((2, batch), -np.inf if limits.above is None else limits.above, dtype=np.float32)
        self._bars, self.pruned_B = (torch.from_numpy(each) for each in bars)
        self._buffer = torch.from_numpy(np.empty(max(index.host.branching) + kernel.BLOCK, dtype=np.float32))
        self._keys, self._room = self._buffer, 0

    def __call__(self, level: int, running: Beams, found: StepScores, n: int) -> Beams:
        """See the protocol."""
        at = self._arrays.levels[level]
        ranks, rank_type = self._arrays.ranks(level) if self._kept.filters is not None else (0, "int32")
        values = _plain(found.values_BWS)
        batch, beams, n_symbols = values.shape
        node, score = running.node.contiguous(), running.score.contiguous()
        assert node.shape == (batch, beams)
        mode, total = self._own_mode, None
        if found.total_BW is not None and mode == self._kernel.LEVEL:
            mode, total = self._kernel.GIVEN, _plain(found.total_BW)
            assert total.shape == node.shape
        n = min(n, beams * at.width)
        if self._room <= n:
            self._keys, self._room = torch.from_numpy(np.empty(n + 1, dtype=np.int64)), n + 1
        picked, parent, code = (torch.from_numpy(x) for x in np.empty((3, batch, n), dtype=np.int64))
        scores = torch.from_numpy(np.empty((batch, n), dtype=np.float32))
        self._kernel.compiled(at.token_type, at.pointer_type, rank_type)(
            at.tokens, at.pointers, ranks, ranks, at.width,
            node.data_ptr(), score.data_ptr(), batch, beams,
            values.data_ptr(), 0 if total is None else total.data_ptr(), n_symbols, mode,
            *self._dead[level], *self._filters, self._bars.data_ptr(),
            self._keys.data_ptr(), self._buffer.data_ptr(), n,
            picked.data_ptr(), scores.data_ptr(), self.pruned_B.data_ptr(),
        )  # fmt: skip
        return Beams(picked, scores, parent, code)


def _plain(x: Tensor) -> Tensor:
    """Float32, in one piece, in the memory of the CPU."""
    assert x.is_cpu
    return x if x.dtype == torch.float32 and x.is_contiguous() else x.float().contiguous()
