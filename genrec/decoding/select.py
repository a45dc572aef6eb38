"""One step of a constrained beam search on tensors: real children only, gathered in blocks.

Axes: B batch, W beams, K largest number of children at the level, C = W·K candidates, P picked, S symbols,
D dead nodes. Scores are float32. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.decoding.deny import DeadNodes
from genrec.decoding.filters import RowFilters
from genrec.decoding.host import HostIndex
from genrec.decoding.index import CatalogIndex
from genrec.decoding.scorer import StepScores

NEG_INF = float("-inf")
_LOW32 = (1 << 32) - 1


class DeviceIndex:
    """The edges of a :class:`CatalogIndex` as tensors on one device, made when first asked for (internal)."""

    def __init__(self, index: CatalogIndex, device: torch.device) -> None:
        self.host = index
        self.device = device

    @cached_property
    def tokens(self) -> list[Tensor]:
        """The index's tokens per level."""
        return [_tensor(tokens, self.device) for tokens in self.host.tokens]

    @cached_property
    def pointers(self) -> list[Tensor]:
        """The index's pointers per level."""
        return [_tensor(pointers, self.device) for pointers in self.host.pointers]

    @cached_property
    def leaf_ranks(self) -> Tensor:
        """The first rank of every leaf."""
        return _tensor(self.host.leaf_ranks, self.device)

    @cached_property
    def arrays(self) -> HostIndex:
        """The index's own arrays, for compiled code."""
        return HostIndex(self.host)

    def first_child(self, level: int, node: Tensor) -> Tensor:
        """The first child of existing nodes of a level, int64; on a CPU no tensor of all pointers is made."""
        if self.device.type == "cpu":
            return torch.from_numpy(self.host.pointers[level][node.numpy()].astype(np.int64))
        return self.pointers[level][node].long()

    def filters(self, found: RowFilters) -> DeviceFilters:
        """The filters of a batch on the device."""
        return DeviceFilters(
            words_FW=_tensor(found.words.view(np.int64), self.device),
            before_FW=_tensor(found.before, self.device),
            row_B=_tensor(found.of_row, self.device),
        )

    def dead(self, found: Sequence[DeadNodes | None]) -> list[tuple[Tensor, Tensor] | None]:
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
class Beams:
    """Beams at one depth, ``[B, W]``; node -1 and score -inf = no beam. parent, code: what the scorer is told."""

    node: Tensor
    score: Tensor
    parent: Tensor
    code: Tensor

    @classmethod
    def roots(cls, batch: int, device: torch.device) -> Beams:
        """One beam per row at the root."""
        zeros = torch.from_numpy(np.zeros((batch, 1), dtype=np.int64)).to(device)
        score = torch.from_numpy(np.zeros((batch, 1), dtype=np.float32)).to(device)
        return cls(zeros, score, zeros, zeros)

    def keep(self, n: int) -> tuple[Beams, Tensor]:
        """The ``n`` best beams and the best score among the others."""
        columns, left = best(self.score, min(n, self.score.shape[1]))
        score = self.score.gather(1, columns)
        alive = score > NEG_INF
        node, parent, code = (x.gather(1, columns) for x in (self.node, self.parent, self.code))
        return Beams(torch.where(alive, node, -1), score, parent, torch.where(alive, code, 0)), left

    def only(self, mask: Tensor) -> Beams:
        """The beams where ``mask`` holds; the others die."""
        return Beams(self.node, torch.where(mask, self.score, NEG_INF), self.parent, self.code)

    def cut(self) -> Beams:
        """Without the last columns, as far as no row has a beam there; one column stays. Waits for the device."""
        n = max(1, int((self.score > NEG_INF).sum(1).amax())) if len(self.score) else 1
        return Beams(self.node[:, :n], self.score[:, :n], self.parent[:, :n], self.code[:, :n])

    def beside(self, other: Beams) -> Beams:
        """These beams, then those of ``other``."""
        mine, theirs = vars(self), vars(other)
        return Beams(**{name: torch.cat([mine[name], theirs[name]], 1) for name in mine})


@dataclass
class Candidates:
    """All continuations of the beams of a batch, ``[B, C]``; column c has the parent beam ``c // width``.

    total_BW: the log-normaliser that was used.
    """

    score_BC: Tensor
    code_BC: Tensor
    node_BC: Tensor
    total_BW: Tensor
    width: int

    def as_beams(self) -> Beams:
        """The same as beams."""
        column = torch.arange(self.score_BC.shape[1], device=self.score_BC.device)
        parent = (column // self.width).expand_as(self.node_BC)
        return Beams(self.node_BC, self.score_BC, parent, self.code_BC)


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
    # a value of -inf stays one, also below a total of -inf
    score = torch.where(value > NEG_INF, score_BW[..., None] + (value - total[..., None]), NEG_INF)
    return Candidates(score.flatten(1), code.flatten(1), child.flatten(1), total, index.host.branching[level])


def broken(found: StepScores, total_BW: Tensor) -> Tensor:
    """Beams for which the model returned +inf or NaN, bool ``[B, W]``; total_BW: the normaliser used (internal)."""
    return ~((found.values_BWS.sum(-1) < torch.inf) & (total_BW < torch.inf))


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
