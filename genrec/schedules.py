"""The learning-rate schedule that every training of the package shares."""

from __future__ import annotations

import math

MIN_RATE = 0.05
"""A cosine schedule ends at this share of the learning rate."""


def fitting_warmup(warmup_steps: int, n_steps: int) -> int:
    """``warmup_steps``; a tenth of the training where it would last as long as the whole (internal).

    >>> fitting_warmup(200, 201), fitting_warmup(200, 200), fitting_warmup(1, 1)
    (200, 20, 1)
    """
    short = max(1, n_steps // 10)
    return warmup_steps if warmup_steps < n_steps or warmup_steps <= short else short


def warmup_cosine(step: int, n_steps: int, warmup_steps: int) -> float:
    """Share of the learning rate at step ``step`` (0-based) of ``n_steps`` (internal).

    ``warmup_steps`` of linear warm-up, then half a cosine down to 5 %.

    >>> [round(warmup_cosine(step, 12, 2), 3) for step in (0, 1, 2, 7, 12)]
    [0.5, 1.0, 1.0, 0.525, 0.05]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, n_steps - warmup_steps))
    return MIN_RATE + (1 - MIN_RATE) * 0.5 * (1 + math.cos(math.pi * done))
