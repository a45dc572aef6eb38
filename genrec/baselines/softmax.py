"""Cross-entropy of a linear layer over many classes, without ever storing all logits.

Axes: P positions, D width, N classes.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

CHUNK = 64
"""Positions worked on at a time: 64 x 12,000 floats are 3 MB, near the size of a second-level cache."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and both gradients in one sweep over chunks of positions, whose logits are overwritten.

    With E = exp(logits - row maximum) and Z its row sums, the gradients of the sum over positions are
    ``E W / Z - (1 - eps) W[y] - eps mean(W)`` for the hidden states and ``E' (H / Z)`` minus the same two
    corrections for W, so the probabilities themselves are never written.
    """

    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, weight_ND: Tensor, target_P: Tensor, eps: float) -> Tensor:
        n_rows, n_classes = len(hidden_PD), len(weight_ND)
        hidden_PD, wanted_PD = hidden_PD.contiguous(), weight_ND[target_P] * (1 - eps)
        if eps:
            wanted_PD = wanted_PD + eps * weight_ND.mean(dim=0)
        grad_hidden, grad_weight = torch.empty_like(hidden_PD), torch.zeros_like(weight_ND)
        buffer = hidden_PD.new_empty(min(CHUNK, n_rows), n_classes)
        total = -(hidden_PD * wanted_PD).sum(dtype=torch.float64)
        for start in range(0, n_rows, CHUNK):
            part = slice(start, min(start + CHUNK, n_rows))
            h = hidden_PD[part]
            logits = torch.mm(h, weight_ND.T, out=buffer[: len(h)])
            top = logits.amax(dim=1, keepdim=True)
            odds = logits.sub_(top).exp_()
            norm = odds.sum(dim=1, keepdim=True)
            total += (top + norm.log()).sum(dtype=torch.float64)
            torch.mm(odds, weight_ND, out=grad_hidden[part])
            grad_hidden[part].div_(norm)
            grad_weight.addmm_(odds.T, h / norm)
        grad_weight.index_add_(0, target_P, hidden_PD, alpha=eps - 1)
        if eps:
            grad_weight.sub_(hidden_PD.sum(dim=0) * (eps / n_classes))
        ctx.save_for_backward(grad_hidden.sub_(wanted_PD).div_(n_rows), grad_weight.div_(n_rows))
        return (total / n_rows).to(hidden_PD.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0], None, None


def linear_cross_entropy(
    hidden_PD: Tensor, weight_ND: Tensor, target_P: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of ``softmax(hidden @ weight.T)`` (internal).

    ``F.cross_entropy(hidden_PD @ weight_ND.T, target_P, label_smoothing=...)``, to rounding, with memory
    for 64 rows of logits instead of all. First derivatives only.

    hidden_PD, weight_ND: float. target_P: int64 class numbers. Returns a scalar.
    """
    loss: Any = _LinearCrossEntropy.apply
    return cast(Tensor, loss(hidden_PD, weight_ND, target_P, label_smoothing))
