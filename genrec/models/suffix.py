"""Keys and values of the codes that beams consist of, and what both kinds of model ask of their modules.

Axes: B batch, W beams, R = B·W rows, A tokens of a beam, G key/value heads, E width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Suffix:
    """Keys and values of every step's beams, found again through the ancestors of today's beams (internal).

    Beams that reorder move no keys: a step stores those of its own tokens, and a layer gathers the rows of the
    ancestors when it needs them, at most one token per code.
    """

    own: list[list[Tensor]] = field(default_factory=list)  # per step, per layer [R, 2, G, E]
    ancestors: list[Tensor] = field(default_factory=list)  # per past step, row of each beam's ancestor [R]

    def begin(self, parents_BW: Tensor | None) -> None:
        """Begin a step whose beams continue those of the step before; None = every row begins anew."""
        if parents_BW is not None and self.own:
            n_rows, batch = len(self.own[-1][0]), len(parents_BW)
            first_B = torch.arange(0, n_rows, n_rows // batch, device=parents_BW.device)
            rows = (parents_BW + first_B[:, None]).flatten()
            self.ancestors = [older[rows] for older in self.ancestors] + [rows]
        self.own.append([])

    def with_new(self, keys_RGE: Tensor, values_RGE: Tensor) -> tuple[Tensor, Tensor]:
        """Store what the next layer says of the step's tokens; keys and values of whole beams, ``[A, R, G, E]``."""
        layer = len(self.own[-1])
        new = torch.stack([keys_RGE, values_RGE], 1)
        self.own[-1].append(new)
        past = len(self.ancestors)
        if past == 0:
            return keys_RGE[None], values_RGE[None]
        known = new.new_empty((past + 1, *new.shape))
        for step, rows in enumerate(self.ancestors):
            torch.index_select(self.own[step][layer], 0, rows, out=known[step])
        known[past] = new
        keys, values = known.unbind(2)
        return keys, values


def rms_norm(layer: Any, x: Tensor) -> Tensor:
    """What a root-mean-square norm of Hugging Face returns, in one kernel where it is a plain one."""
    # the layer's own attribute: a wrapper around it (an adapter) only passes it on
    epsilon = vars(layer).get("variance_epsilon")
    if epsilon is not None and layer.weight.dtype == x.dtype:
        return F.rms_norm(x, x.shape[-1:], layer.weight, epsilon)
    return layer(x)  # type: ignore[no-any-return]
