"""Residual vector quantization as a torch module.

Axes: B batch, L levels, K codes of a level, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from genrec.errors import ConfigError
from genrec.item_tokenizers.quantizers.sinkhorn import LEAST_EPSILON, uniform_codes

Gradient = Literal["straight-through", "rotation"]
GRADIENTS: tuple[Gradient, ...] = ("straight-through", "rotation")


@dataclass(frozen=True)
class ResidualOptions:
    """How :class:`ResidualQuantizer` works; ConfigError for values out of range (internal).

    gradient: how the gradient of ``quantized`` passes to ``z``: unchanged, or turned and scaled as ``z`` would have
    to be to become ``quantized`` (:func:`rotate`). shared: all levels use one codebook. sinkhorn_epsilon,
    sinkhorn_iterations: assign the last level uniformly while training
    (:func:`genrec.item_tokenizers.quantizers.sinkhorn.uniform_codes`); 0 = off.
    """

    gradient: Gradient = "straight-through"
    shared: bool = False
    sinkhorn_epsilon: float = 0.0
    sinkhorn_iterations: int = 50

    def __post_init__(self) -> None:
        if self.gradient not in GRADIENTS:
            raise ConfigError(f"gradient: expected {' or '.join(GRADIENTS)}, got {self.gradient!r}")
        if self.sinkhorn_epsilon != 0 and not self.sinkhorn_epsilon >= LEAST_EPSILON:
            found = self.sinkhorn_epsilon
            raise ConfigError(f"sinkhorn_epsilon: expected 0 (off) or {LEAST_EPSILON} or more, got {found}")
        if self.sinkhorn_iterations < 1:
            raise ConfigError(f"sinkhorn_iterations: expected 1 or more, got {self.sinkhorn_iterations}")


@dataclass(frozen=True, eq=False)
class ResidualCodes:
    """Result of :class:`ResidualQuantizer` (internal).

    codes_BL: int64. quantized_BD: the sum of the chosen codewords, with a gradient to ``z`` only.
    codebook_L, commitment_L: the two losses of each level, sums over D, means over B.
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

    options: other gradients of ``quantized``; one codebook for all levels (then ``codebooks`` holds the same
    parameter L times); in training mode, uniform codes at the last level for batches of at least K rows.
    In eval mode a row's codes depend on that row alone.
    """

    def __init__(self, n_levels: int, level_size: int, dim: int, options: ResidualOptions | None = None) -> None:
        super().__init__()
        self.options = options or ResidualOptions()
        books = [nn.Parameter(torch.zeros(level_size, dim)) for _ in range(1 if self.options.shared else n_levels)]
        self.codebooks = nn.ParameterList(books * n_levels if self.options.shared else books)

    def forward(self, z_BD: torch.Tensor) -> ResidualCodes:
        """Quantize ``z_BD`` (float, any device)."""
        residual_BD = z_BD
        total_BD = torch.zeros_like(z_BD)
        codes, codebook, commitment = [], [], []
        for level, book_KD in enumerate(self.codebooks):
            code_B = self._assign(level, residual_BD.detach(), book_KD.detach())
            word_BD = F.embedding(code_B, book_KD)
            codes.append(code_B)
            codebook.append(_mean_square(residual_BD.detach() - word_BD))
            residual_BD = residual_BD - word_BD.detach()
            commitment.append(_mean_square(residual_BD))
            total_BD = total_BD + word_BD.detach()
        moved_BD = z_BD if self.options.gradient == "straight-through" else rotate(z_BD, total_BD)
        return ResidualCodes(
            codes_BL=torch.stack(codes, dim=1),
            quantized_BD=moved_BD + (total_BD - moved_BD).detach(),
            codebook_L=torch.stack(codebook),
            commitment_L=torch.stack(commitment),
        )

    def lookup(self, codes_BL: torch.Tensor) -> torch.Tensor:
        """The sum of the codewords of ``codes_BL`` (int64), ``[B, D]``."""
        words = [F.embedding(codes_BL[:, level], book) for level, book in enumerate(self.codebooks)]
        return torch.stack(words).sum(dim=0)

    def _assign(self, level: int, r_BD: torch.Tensor, book_KD: torch.Tensor) -> torch.Tensor:
        options = self.options
        last = level == len(self.codebooks) - 1
        if self.training and last and options.sinkhorn_epsilon > 0 and len(r_BD) >= len(book_KD):
            distance_BK = _square_distances(r_BD.double(), book_KD.double())
            return uniform_codes(
                distance_BK, epsilon=options.sinkhorn_epsilon, n_iterations=options.sinkhorn_iterations
            )
        return nearest_codeword(r_BD, book_KD)


def rotate(z_BD: torch.Tensor, target_BD: torch.Tensor) -> torch.Tensor:
    """``target_BD``, made from ``z_BD`` by a rotation and a scaling that count as constants (internal).

    ::

        R = the rotation in the plane of z and target that turns z to the direction of target
        out = (|target| / |z|) R z;     its gradient with respect to z:  (|target| / |z|) Rᵀ g

    The rotation trick (Fifty et al. 2024, 2410.06424): the angle between gradient and vector survives the
    quantization, where straight-through gives all vectors of a cell one gradient. The paper quantizes once; with
    several levels we turn once, from ``z`` to the sum of its codewords, so that the gradient is not counted
    once per level. A row where either vector is zero has no direction and is passed straight through; opposite
    vectors, between which the rotation is not unique, are mirrored.
    """
    with torch.no_grad():
        length_z, length_t = z_BD.norm(dim=1, keepdim=True), target_BD.norm(dim=1, keepdim=True)
        none = torch.minimum(length_z, length_t) < 1e-12
        from_BD, to_BD = F.normalize(z_BD, dim=1), F.normalize(target_BD, dim=1)
        between_BD = F.normalize(from_BD + to_BD, dim=1)
        scale = torch.where(none, 1.0, length_t / length_z)
        from_BD, between_BD = from_BD.masked_fill(none, 0), between_BD.masked_fill(none, 0)
    # R = I - 2 m mᵀ + 2 to fromᵀ with m halfway: mirror at the plane across m after the mirror across from
    along_from = (z_BD * from_BD).sum(dim=1, keepdim=True)
    along_between = (z_BD * between_BD).sum(dim=1, keepdim=True)
    return scale * (z_BD - 2 * along_between * between_BD + 2 * along_from * to_BD)


def nearest_codeword(r_BD: torch.Tensor, book_KD: torch.Tensor) -> torch.Tensor:
    """``argmin_k |r - book[k]|²`` for each row, int64 ``[B]``; of equal distances the lowest k (internal)."""
    scores_BK = torch.addmm(book_KD.square().sum(dim=1), r_BD, book_KD.T, alpha=-2)
    if scores_BK.device.type == "cpu":  # numpy's argmin is several times faster than torch's here
        return torch.from_numpy(scores_BK.numpy().argmin(axis=1))
    return scores_BK.argmin(dim=1)


def _square_distances(r_BD: torch.Tensor, book_KD: torch.Tensor) -> torch.Tensor:
    products_BK = torch.addmm(book_KD.square().sum(dim=1), r_BD, book_KD.T, alpha=-2)
    return products_BK.add_(r_BD.square().sum(dim=1, keepdim=True)).clamp_(min=0)


def _mean_square(gap_BD: torch.Tensor) -> torch.Tensor:
    return gap_BD.square().sum(dim=1).mean()
