"""Uniform assignment of a batch to codes by Sinkhorn iterations: every code gets its share of the batch.

Axes: B batch, K codes of a level.
"""

from __future__ import annotations

import torch

from genrec.errors import ConfigError

# centred distances span 2 / epsilon in the exponent, and float64 ends at exp(±709)
LEAST_EPSILON = 0.003


@torch.no_grad()
def uniform_codes(distance_BK: torch.Tensor, *, epsilon: float = LEAST_EPSILON, n_iterations: int = 50) -> torch.Tensor:
    """Code of each row, int64 ``[B]``: ``argmax_k`` of :func:`transport_plan` (experimental).

    With B >= 4 K no code stays empty, as far as it was measured, and none gets more than twice its share. With
    B < K the plan says nothing about nearness (every code must receive some mass): take the nearest codeword
    there.
    """
    kernel_BK, column_K = _balance(distance_BK, epsilon, n_iterations)[:2]
    return kernel_BK.mul_(column_K).argmax(dim=1)  # the factor of a row does not change its argmax


@torch.no_grad()
def transport_plan(
    distance_BK: torch.Tensor, *, epsilon: float = LEAST_EPSILON, n_iterations: int = 50
) -> torch.Tensor:
    """Entropic optimal transport of B rows onto K codes of equal capacity, float64 ``[B, K]`` (experimental).

    ::

        middle, half = (max + min) / 2, (max - min) / 2       of all distances
        Q = exp(-(distance - middle) / (half + 1e-5) / epsilon);   Q /= sum(Q)
        repeat n_iterations:  each row /= B * its sum;   each column /= K * its sum
        return B * Q

    As the columns come last, each column sums to ``B / K`` exactly and each row to 1 roughly. Computed in float64
    whatever comes in; the table is made once and only two vectors of factors are iterated, which gives the
    same Q up to rounding. The uniform semantic mapping of LC-Rec (Zheng et al. 2023, 2311.09049); Sinkhorn
    iterations: Cuturi 2013, 1306.0895.

    distance_BK: squared distances, finite, any float dtype. Raises ConfigError for an epsilon below 0.003,
    where float64 overflows.
    """
    kernel_BK, column_K, row_B = _balance(distance_BK, epsilon, n_iterations)
    return kernel_BK.mul_(column_K).mul_(row_B[:, None]).mul_(len(row_B))


def _balance(
    distance_BK: torch.Tensor, epsilon: float, n_iterations: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The kernel, and the factors of its columns and rows after the iterations."""
    if epsilon < LEAST_EPSILON:
        raise ConfigError(f"epsilon: expected {LEAST_EPSILON} or more (float64 overflows below), got {epsilon}")
    n_rows, n_codes = distance_BK.shape
    cost_BK = distance_BK.to(torch.float64, copy=True)
    low, high = torch.aminmax(cost_BK)
    # a constant taken from a row changes its factor only: centring would be undone by the first division
    cost_BK -= cost_BK.amin(dim=1, keepdim=True)
    kernel_BK = cost_BK.mul_(-1 / (((high - low) / 2 + 1e-5) * epsilon)).exp_()
    column_K = torch.ones_like(kernel_BK[0])
    row_B = torch.ones_like(kernel_BK[:, 0])
    for _ in range(n_iterations):
        row_B = (torch.mv(kernel_BK, column_K) * n_rows).reciprocal_()
        column_K = (torch.mv(kernel_BK.T, row_B) * n_codes).reciprocal_()
    return kernel_BK, column_K, row_B
