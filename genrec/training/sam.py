"""Sharpness-aware minimisation: the gradient is taken where the loss is worst nearby (Foret et al. 2021,
arXiv 2010.01412), so that what is learned later costs less of what was learned before (DSI++, arXiv 2212.09744).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
@torch.no_grad()
def ascended(weights: Mapping[str, nn.Parameter], rho: float) -> Iterator[float]:
    """The weights moved by ``rho`` along their gradient, for a while (internal).

    ::

        g   = the gradients of all weights together, as they stand in .grad
        in the block:    w + rho g / |g|, and no gradient
        behind it:       w, to the bit; the gradients are those that the block made

    A gradient of zero moves nothing. Gives |g|, which is not finite where the loss was not; then nothing is moved.
    """
    found = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    norm = float(nn.utils.get_total_norm(found.values())) if found else 0.0
    before: dict[str, Tensor] = {}
    if norm and math.isfinite(norm):
        for name, gradient in found.items():
            before[name] = weights[name].detach().clone()
            weights[name].add_(gradient, alpha=rho / norm)
    for weight in weights.values():
        weight.grad = None
    try:
        with torch.enable_grad():
            yield norm
    finally:
        for name, value in before.items():
            weights[name].copy_(value)
