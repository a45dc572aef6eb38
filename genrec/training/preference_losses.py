"""Losses over lists of items with a target: DPO with several negatives, and GRPO with a rank-aware reward.

Axes: B queries, C items of a list, A tokens of an item. ``real``: False = padding, which counts for nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genrec.training.preference_settings import GrpoSettings

EPS = 1e-4
NEG_INF = float("-inf")


def dpo_loss(ratio_B: Tensor, negative_BC: Tensor, real_BC: Tensor, beta: float) -> Tensor:
    """S-DPO (Chen et al. 2024, arXiv:2406.09215), float ``[B]``; with one negative, DPO (internal).

        - log sigma( - log sum over negatives l of exp( beta (h_l - h_target) ) )
        h = log of policy probability / reference probability

    It is log(1 + number of negatives) where policy and reference are the same. ratio_B, negative_BC: h of the target
    and of the negatives. A query without negatives has loss 0.
    """
    gap_BC = beta * (negative_BC - ratio_B[:, None])
    # log sigma(-x) of a logsumexp is minus the logsumexp with one 0 more, which is also finite without any negative
    zero_B1 = torch.zeros_like(gap_BC[:, :1])
    return torch.cat([zero_B1, gap_BC.masked_fill(~real_BC, NEG_INF)], 1).logsumexp(1)


def rank_rewards(hit_BC: Tensor, real_BC: Tensor, rank_weight: float) -> Tensor:
    """The reward of every item of lists that are sorted best first, float ``[B, C]`` (internal).

        hit:                                  1
        miss at place i (from 0), hit in list: - rank_weight * (1 / log2(i + 2)) / sum over the list of the same
        miss, no hit in the list:             0

    MiniOneRec's rule plus rank reward: a miss costs more the higher it stands. hit_BC: bool.
    """
    place_C = torch.arange(hit_BC.shape[1], device=hit_BC.device)
    weight_BC = real_BC / torch.log2(place_C + 2.0)
    share_BC = weight_BC / weight_BC.sum(1, keepdim=True).clamp(min=EPS)
    found_B1 = (hit_BC & real_BC).any(1, keepdim=True)
    return torch.where(hit_BC, 1.0, -rank_weight * share_BC * found_B1) * real_BC


def advantages(reward_BC: Tensor, real_BC: Tensor) -> Tensor:
    """``(reward - mean) / (standard deviation + 1e-4)`` within each list, 0 at padding, float ``[B, C]`` (internal).

    The deviation is that of the list itself (divided by its length, not by one less).
    """
    n_B1 = real_BC.sum(1, keepdim=True).clamp(min=1)
    apart_BC = (reward_BC - (reward_BC * real_BC).sum(1, keepdim=True) / n_B1) * real_BC
    deviation_B1 = (apart_BC.square().sum(1, keepdim=True) / n_B1).sqrt()
    return apart_BC / (deviation_B1 + EPS)


def clipped_objective(logp_BC: Tensor, old_BC: Tensor, advantage_BC: Tensor, settings: GrpoSettings) -> Tensor:
    """What is to grow: the smaller of ratio and clipped ratio, times the advantage, float ``[B, C]`` (internal).

    logp_BC: log-probabilities of whole identifiers, now. old_BC: when the lists were made, without gradient, and at
    least ``log p - log(1 + clip_high + early_clip)``: the ratio cannot run away, nor its gradient, where the advantage
    is negative (ECPO).
    """
    limit = math.log(1 + settings.clip_high + settings.early_clip)
    ratio_BC = (logp_BC - torch.maximum(old_BC, logp_BC.detach() - limit)).exp()
    clipped_BC = ratio_BC.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    return torch.minimum(ratio_BC * advantage_BC, clipped_BC * advantage_BC)


def k3(logp: Tensor, reference: Tensor) -> Tensor:
    """``r - 1 - log r`` with r = reference / policy probability: never negative; its mean over draws of the policy is
    KL(policy, reference) (Schulman 2020). Any shape (internal)."""
    gap = reference - logp
    return gap.exp() - gap - 1


def grpo_loss(
    logp_BCA: Tensor,
    old_BC: Tensor,
    reference_BCA: Tensor | None,
    advantage_BC: Tensor,
    real_BC: Tensor,
    settings: GrpoSettings,
) -> Tensor:
    """Mean over each list of ``- clipped objective + kl_weight * KL``, float ``[B]`` (internal).

    The ratio is that of whole identifiers, as in OneRec; the KL is summed over their codes, k3 for each, as in
    MiniOneRec. reference_BCA: None where ``kl_weight`` is 0.
    """
    loss_BC = -clipped_objective(logp_BCA.sum(2), old_BC, advantage_BC, settings)
    if reference_BCA is not None:
        loss_BC = loss_BC + settings.kl_weight * k3(logp_BCA, reference_BCA).sum(2)
    mean_B: Tensor = (loss_BC * real_BC).sum(1) / real_BC.sum(1).clamp(min=1)
    return mean_B
