"""Finite scalar quantization as a torch module.

Axes: B batch, L codes of a vector, C scalars of a code, K codes (the product of the levels), D width of the
vectors, H width of a quantized piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

_EPS = 1e-3


@dataclass(frozen=True, eq=False)
class ScalarCodes:
    """Result of :class:`ScalarQuantizer` (internal).

    codes_BL: int64, 0..K-1. quantized_BLH: float32, with the gradient of the bounded scalars (straight-through).
    bounded_BLC: the scalars before rounding, on the scale of :attr:`ScalarGrid.points_KC`.
    """

    codes_BL: torch.Tensor
    quantized_BLH: torch.Tensor
    bounded_BLC: torch.Tensor


class ScalarGrid(nn.Module):
    """The grid of finite scalar quantization (Mentzer et al. 2023, 2309.15505) (internal).

    For each of the C scalars, with n levels::

        h = (n - 1)(1 - 0.001) / 2;   o = 0.5 if n is even else 0;   s = tan(o / h)
        b = h tanh(z + s) - o;        r = round(b)  in  -floor(n / 2) .. ceil(n / 2) - 1
        point = r / floor(n / 2);     code = sum over scalars of (r + floor(n / 2)) basis,  basis = 1, n_1, n_1 n_2, …

    The shift keeps z = 0 in the middle of the cell of 0 when n is even (exactly it would be ``atanh(o / h)``; tan, as
    published, is off by less than 0.001 for n >= 6 and also exists for n = 2). Without ``o`` an even n would have
    one level too many.

    Every step is float32 whatever autocast says, and codes are rounded, cast, and only then multiplied: half
    precision does not hold integers above 2048.
    """

    basis_C: torch.Tensor
    levels_C: torch.Tensor
    points_KC: torch.Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        basis = (1, *accumulate(levels[:-1], mul))
        self.register_buffer("levels_C", torch.tensor(levels), persistent=False)
        self.register_buffer("basis_C", torch.tensor(basis), persistent=False)
        self.register_buffer("points_KC", self.points(torch.arange(self.n_codes)), persistent=False)

    @property
    def n_codes(self) -> int:
        """Number of codes K."""
        return prod(self.levels)

    def bound(self, z_C: torch.Tensor) -> torch.Tensor:
        """``b`` of the formula, float32 of the shape of ``z_C`` (``[..., C]``)."""
        with torch.autocast(z_C.device.type, enabled=False):
            levels = self.levels_C.float()
            half = (levels - 1) * (1 - _EPS) / 2
            offset = (self.levels_C % 2 == 0).float() / 2
            return half * torch.tanh(z_C.float() + torch.tan(offset / half)) - offset

    def codes(self, bounded_C: torch.Tensor) -> torch.Tensor:
        """The code of each row of scalars ``b``: int64 ``[...]`` for ``[..., C]``."""
        digits = torch.round(bounded_C).to(torch.int64) + self.levels_C // 2
        return (digits * self.basis_C).sum(dim=-1)

    def points(self, codes: torch.Tensor) -> torch.Tensor:
        """The scalars a code stands for, float32 ``[..., C]`` in -1..1, from the integers alone."""
        digits = codes[..., None] // self.basis_C % self.levels_C
        half = self.levels_C // 2
        return (digits - half).float() / half.float()


class ScalarQuantizer(nn.Module):
    """Quantize vectors ``[B, D]`` to L codes each: as many pieces, projected to a few scalars, rounded (internal).

    ::

        for each piece p of x:  z = in(p) [C];   b, r, code = grid(z);   quantized = out(r / floor(n / 2)) [H]

    ``in`` and ``out`` are linear and shared by the pieces, so a code means the same wherever it stands. Pieces are
    contiguous and as equal as can be; where L does not divide D the first ones are one wider, and the others get a
    zero at their end. The gradient passes the rounding as if it were not there: it is the gradient of tanh.
    As a recommender's tokenizer: RecGPT (Jiang et al. 2025, 2506.06270).
    """

    columns: torch.Tensor

    def __init__(self, levels: tuple[int, ...], n_tokens: int, width: int, dim: int) -> None:
        super().__init__()
        pieces = [part.tolist() for part in np.array_split(np.arange(width), n_tokens)]
        size = len(pieces[0])
        # column number ``width`` is the zero that fills a short piece
        padded = [part + [width] * (size - len(part)) for part in pieces]
        self.register_buffer("columns", torch.tensor(padded).flatten(), persistent=False)
        self.n_tokens = n_tokens
        self.grid = ScalarGrid(levels)
        self.project_in = nn.Linear(size, len(levels))
        self.project_out = nn.Linear(len(levels), dim)

    def forward(self, x_BD: torch.Tensor) -> ScalarCodes:
        """Quantize ``x_BD`` (float, any device)."""
        with torch.autocast(x_BD.device.type, enabled=False):
            pieces = F.pad(x_BD.float(), (0, 1))[:, self.columns].view(-1, self.n_tokens, self.project_in.in_features)
            bounded = self.grid.bound(_linear(self.project_in, pieces))
            codes = self.grid.codes(bounded.detach())
            half = (self.grid.levels_C // 2).float()
            # the difference is zero: exact points forward, the gradient of ``bounded`` backward
            points = self.grid.points(codes) + (bounded - bounded.detach()) / half
            return ScalarCodes(codes, _linear(self.project_out, points), bounded / half)

    def lookup(self, codes_BL: torch.Tensor) -> torch.Tensor:
        """The quantized pieces of ``codes_BL`` (int64), float32 ``[B, L, H]`` (any shape: ``[...] → [..., H]``)."""
        with torch.autocast(codes_BL.device.type, enabled=False):
            return _linear(self.project_out, self.grid.points(codes_BL))


def _linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """The layer in float32, also of a model that was cast to half precision."""
    return F.linear(x, layer.weight.float(), layer.bias.float())
