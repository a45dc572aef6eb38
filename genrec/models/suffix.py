"""Keys and values of the codes that beams consist of.

Axes: B batch, W beams, R = B·W rows, A tokens of a beam, G key/value heads, E width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Suffix:
    """Keys and values of every step's beams, found again through the ancestors of today's beams (internal).

    Beams that reorder move no keys: a step stores those of its own tokens, and a layer gathers the rows of the
    ancestors when it needs them, at most one token per code.
    """

    own: list[list[Tensor]] = field(default_factory=list)  # per step, per layer [2, R, G·E]
    ancestors: list[Tensor] = field(default_factory=list)  # per past step, row of each beam's ancestor [R]

    def begin(self, parents_BW: Tensor | None) -> None:
        """Begin a step whose beams continue those of the step before; None = every row begins anew."""
        if parents_BW is not None and self.own:
            n_rows, batch = self.own[-1][0].shape[1], len(parents_BW)
            first_B = torch.arange(batch, device=parents_BW.device) * (n_rows // max(batch, 1))
            rows = (parents_BW + first_B[:, None]).flatten()
            self.ancestors = [older[rows] for older in self.ancestors] + [rows]
        self.own.append([])

    def with_new(self, keys_RI: Tensor, values_RI: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
        """Store what the next layer says of the step's tokens (I = G·E); those of whole beams, ``[A, R, G, E]``."""
        layer, past = len(self.own[-1]), len(self.ancestors)
        new = torch.stack([keys_RI, values_RI])
        self.own[-1].append(new)
        known = new[None]
        if past:
            known = new.new_empty((past + 1, *new.shape))
            for step, rows in enumerate(self.ancestors):
                torch.index_select(self.own[step][layer], 1, rows, out=known[step])
            known[past] = new
        keys, values = known.view(past + 1, 2, len(keys_RI), n_heads, keys_RI.shape[1] // n_heads).unbind(1)
        return keys, values
