"""The learning-rate schedule that every training of the package shares."""

from __future__ import annotations

import math

MIN_RATE = 0.05
"""A cosine schedule ends at this share of the learning rate."""


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
