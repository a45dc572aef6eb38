"""One step of a constrained beam search on tensors: real children only, gathered in blocks.

Axes: B batch, W beams, K largest number of children at the level, C = W·K candidates, P picked, S symbols,
D dead nodes. Scores are float32. Nothing here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.decoding.deny import DeadNodes
from genrec.decoding.filters import RowFilters
from genrec.decoding.index import CatalogIndex
from genrec.decoding.scorer import StepScores

NEG_INF = float("-inf")
_LOW32 = (1 << 32) - 1


class DeviceIndex:
    """The edges of a :class:`CatalogIndex` as tensors on one device (internal)."""

    def __init__(self, index: CatalogIndex, device: torch.device) -> None:
        self.host = index
        self.device = device
        self.tokens = [_tensor(tokens, device) for tokens in index.tokens]
        self.pointers = [_tensor(pointers, device) for pointers in index.pointers]
        self.leaf_ranks = _tensor(index.leaf_ranks, device)

    def filters(self, found: RowFilters) -> DeviceFilters:
        """The filters of a batch on the device."""
        return DeviceFilters(
            words_FW=_tensor(found.words.view(np.int64), self.device),
            before_FW=_tensor(found.before, self.device),
            row_B=_tensor(found.of_row, self.device),
        )

    def dead(self, found: list[DeadNodes | None]) -> list[tuple[Tensor, Tensor] | None]:
        """Dead nodes and their parents per level, on the device."""
        return [
            None if d is None else (_tensor(d.nodes_BD, self.device), _tensor(d.parents_BD, self.device)) for d in found
        ]


@dataclass(frozen=True)
class DeviceFilters:
    """:class:`~genrec.decoding.filters.RowFilters` as int64 tensors."""

    words_FW: Tensor
    before_FW: Tensor
    row_B: Tensor

    def alive(self, index: DeviceIndex, depth: int, node_BC: Tensor) -> Tensor:
        """Whether an allowed item lies below each node of a depth, bool ``[B, C]``; nodes must exist."""
        low, high = node_BC, node_BC + 1
        for pointers in (*index.pointers[depth:], index.leaf_ranks):
            low, high = pointers[low].long(), pointers[high].long()
        which = self.row_B.clamp(min=0)[:, None].expand_as(node_BC)
        return (self._before(which, high) > self._before(which, low)) | (self.row_B < 0)[:, None]

    def _before(self, which: Tensor, rank: Tensor) -> Tensor:
        """Allowed ranks before each rank, as :meth:`RowFilters._before`."""
        word = (rank >> 6).clamp_(max=self.words_FW.shape[1] - 1)
        rest = rank - (word << 6)
        some = (torch.ones_like(rest) << (rest & 63)) - 1
        masked = self.words_FW[which, word] & torch.where(rest == 64, -1, some)
        return self.before_FW[which, word] + _bit_count(masked)


def _bit_count(x: Tensor) -> Tensor:
    """Set bits of every int64, by adding neighbours of 1, 2, 4 bits and multiplying the bytes together."""
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (x * 0x0101010101010101) >> 56


@dataclass
class Candidates:
    """All continuations of the beams of a batch, ``[B, C]``; column c has the parent beam ``c // width``."""

    score_BC: Tensor
    code_BC: Tensor
    node_BC: Tensor
    width: int


def expand(
    index: DeviceIndex, level: int, node_BW: Tensor, score_BW: Tensor, found: StepScores, *, renormalise: bool
) -> Candidates:
    """Score the children of every beam.

        for each beam w, for each child (code, node) of it:  score = score_BW[b, w] + (value[b, w, code] - total[b, w])

    K is the largest number of children at the level, known when the index was built, so shapes do not depend
    on the data. A beam with fewer children (node -1: none) has padding of score -inf behind them.

    renormalise: the total is over the beam's children. The order of the sum is the one of Hugging Face: beam score
    plus log-softmax.
    """
    code, child, real = children(index, level, node_BW)
    values_BWS = found.values_BWS
    value = torch.where(real, values_BWS.gather(-1, code.clamp(max=values_BWS.shape[-1] - 1)), NEG_INF)
    total = value.logsumexp(-1) if renormalise else found.total_BW
    if total is None:
        total = values_BWS.logsumexp(-1)
    score = torch.where(real, score_BW[..., None] + (value - total[..., None]), NEG_INF)
    return Candidates(score.flatten(1), code.flatten(1), child.flatten(1), index.host.branching[level])


def children_total(index: DeviceIndex, level: int, node_BW: Tensor, values_BWS: Tensor) -> Tensor:
    """Log of the summed exponentials of the children of each node, ``[B, W]``; every node must be live."""
    code, _, real = children(index, level, node_BW)
    value = values_BWS.expand(*node_BW.shape, -1).gather(-1, code.clamp(max=values_BWS.shape[-1] - 1))
    return torch.where(real, value, NEG_INF).logsumexp(-1)


def children(index: DeviceIndex, level: int, node_BW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, nodes and validity of the children of each node, ``[B, W, K]``; node -1 has none."""
    pointers, tokens = index.pointers[level], index.tokens[level]
    node = node_BW.clamp(min=0)
    first = pointers[node].long()
    count = (pointers[node + 1].long() - first) * (node_BW >= 0)
    place = torch.arange(index.host.branching[level], device=index.device)
    child = (first[..., None] + place).clamp_(max=len(tokens) - 1)
    return tokens[child].long(), child, place < count[..., None]


def kill(index: DeviceIndex, level: int, node_BW: Tensor, found: Candidates, dead: tuple[Tensor, Tensor]) -> None:
    """Set candidates that lead to a dead node of their row to -inf, in place.

    A prefix is held by at most one beam, so each dead node is looked for among the parents only.
    """
    dead_BD, parent_BD = dead
    match = (node_BW[:, :, None] == parent_BD[:, None, :]) & (parent_BD >= 0)[:, None, :]
    beam_BD = match.to(torch.uint8).argmax(1)
    first_BD = index.pointers[level][parent_BD.clamp(min=0)].long()
    column = (beam_BD * found.width + dead_BD - first_BD).clamp_(min=0, max=found.score_BC.shape[1] - 1)
    # amin with +inf leaves a score alone
    ceiling = torch.where(match.any(1), NEG_INF, float("inf"))
    found.score_BC.scatter_reduce_(1, torch.where(match.any(1), column, 0), ceiling, "amin")


def best(score_BC: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Columns of the ``n`` best scores, best first, equal scores in column order; the best score left out.

    ``torch.topk`` promises nothing about ties, so score and column are packed into one int64: results do not
    depend on the batch, the device or ``n``. Returns int64 ``[B, n]`` and float32 ``[B]`` (-inf: none left).
    """
    n_columns = score_BC.shape[1]
    # adding 0.0 turns -0.0 into 0.0: the two must not differ in the key
    bits = (score_BC + 0.0).view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    column = torch.arange(n_columns, device=score_BC.device)
    key = (ordered << 32) | (_LOW32 - column)
    more = min(n + 1, n_columns)
    top = key.topk(more, dim=1).values
    columns = _LOW32 - (top & _LOW32)
    if more <= n:
        return columns, score_BC.new_full((len(score_BC),), NEG_INF)
    return columns[:, :n], score_BC.gather(1, columns[:, n:]).squeeze(1)


def _tensor(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    # torch does not index by uint16/uint32, and maps must not be written to
    wide = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}.get(array.dtype, array.dtype)
    return torch.tensor(np.asarray(array, dtype=wide), device=device)
