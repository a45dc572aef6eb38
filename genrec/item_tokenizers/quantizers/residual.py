"""Residual vector quantization as a torch module.

Axes: B batch, L levels, K codes of a level, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class ResidualCodes:
    """Result of :class:`ResidualQuantizer` (internal).

    codes_BL: int64. quantized_BD: the sum of the chosen codewords, with the gradient of ``z``
    (straight-through). codebook_L, commitment_L: the two losses of each level, sums over D, means over B.
    """

    codes_BL: torch.Tensor
    quantized_BD: torch.Tensor
    codebook_L: torch.Tensor
    commitment_L: torch.Tensor


class ResidualQuantizer(nn.Module):
    """Quantize a vector level by level, each level taking what the ones before left over (internal).

    ::

        r = z
        for each level l:
            c = argmin_k |r - e[l, k]|²
            codebook[l] = |sg(r) - e[l, c]|²;   commitment[l] = |r - sg(e[l, c])|²
            r = r - sg(e[l, c])
        quantized = z + sg(sum_l e[l, c_l] - z)

    The residual subtracts ``sg(e)``, so each level's commitment loss pulls on ``z``, as the formula in TIGER
    (Rajput et al. 2023, 2305.05065) says. Code that subtracts a straight-through output instead has
    commitment gradients at the first level only. Codebook l gets gradients from ``codebook[l]`` alone, and
    only in its chosen rows; nothing computed from ``quantized`` reaches a codebook.
    """

    def __init__(self, n_levels: int, level_size: int, dim: int) -> None:
        super().__init__()
        self.codebooks = nn.ParameterList(nn.Parameter(torch.zeros(level_size, dim)) for _ in range(n_levels))

    def forward(self, z_BD: torch.Tensor) -> ResidualCodes:
        """Quantize ``z_BD`` (float, any device)."""
        residual_BD = z_BD
        total_BD = torch.zeros_like(z_BD)
        codes, codebook, commitment = [], [], []
        for book_KD in self.codebooks:
            code_B = nearest_codeword(residual_BD.detach(), book_KD.detach())
            word_BD = F.embedding(code_B, book_KD)
            codes.append(code_B)
            codebook.append(_mean_square(residual_BD.detach() - word_BD))
            residual_BD = residual_BD - word_BD.detach()
            commitment.append(_mean_square(residual_BD))
            total_BD = total_BD + word_BD.detach()
        return ResidualCodes(
            codes_BL=torch.stack(codes, dim=1),
            quantized_BD=z_BD + (total_BD - z_BD).detach(),
            codebook_L=torch.stack(codebook),
            commitment_L=torch.stack(commitment),
        )

    def lookup(self, codes_BL: torch.Tensor) -> torch.Tensor:
        """The sum of the codewords of ``codes_BL`` (int64), ``[B, D]``."""
        words = [F.embedding(codes_BL[:, level], book) for level, book in enumerate(self.codebooks)]
        return torch.stack(words).sum(dim=0)


def nearest_codeword(r_BD: torch.Tensor, book_KD: torch.Tensor) -> torch.Tensor:
    """``argmin_k |r - book[k]|²`` for each row, int64 ``[B]``; of equal distances the lowest k (internal)."""
    scores_BK = torch.addmm(book_KD.square().sum(dim=1), r_BD, book_KD.T, alpha=-2)
    if scores_BK.device.type == "cpu":  # numpy's argmin is several times faster than torch's here
        return torch.from_numpy(scores_BK.numpy().argmin(axis=1))
    return scores_BK.argmin(dim=1)


def _mean_square(gap_BD: torch.Tensor) -> torch.Tensor:
    return gap_BD.square().sum(dim=1).mean()
