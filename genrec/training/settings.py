"""How a generative recommender is trained: one frozen dataclass, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from genrec.errors import ConfigError
from genrec.schedules import warmup_cosine

MAY_CHANGE = ("max_seconds", "save_every", "save_seconds", "n_workers", "gradient_checkpointing", "report_to")
"""Settings that may change between an interrupted call and the one that goes on."""
_LATER = {
    "packing": False, "accumulation_steps": 1, "fsdp": False, "sam_rho": 0.0, "user_drop": 0.1, "rows_first": 0,
}  # fmt: skip
"""Settings that came later: with these values a training is what it was before."""


def decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of the settings, as JSON, makes a training another one (internal)."""
    return {
        name: value
        for name, value in settings.items()
        if name not in MAY_CHANGE and not (name in _LATER and value == _LATER[name])
    }


@dataclass(frozen=True)
class TrainSettings:
    """Settings of :func:`genrec.training.finetune.finetune` (stable).

    epochs: passes over the samples; ``max_steps`` (0 = no limit) may end training earlier, and the schedule
        with it. batch_size: samples per optimiser step, all processes together.
    packing: decoder-only models: several samples share a row, each sees only itself, and a batch holds samples of
        any length. Off: samples of like length make a batch.
    accumulation_steps: the batch of a step is computed in so many parts, one after the other: the same step, with less
        memory.
    gradient_checkpointing: keep the inputs of layers only, and compute the rest again in the backward pass: less
        memory, a third more time, the same step.
    fsdp: several processes keep a share of weights, gradients and optimiser state each (FSDP2), instead of all of it.
    rows_first: with adapters: so many steps at the start change the rows of the item tokens only.
    sam_rho: sharpness-aware steps: the gradient of a step is taken where the loss is worst at this distance, in two
        passes (0 = off; .02 to .1 are usual).
    schedule: after ``warmup_steps`` of linear warm-up, ``cosine`` falls to 5 %, ``inverse_sqrt`` falls with
        the square root of the step, ``constant`` stays. A training of no more than ``warmup_steps`` warms up for a
        tenth of its steps instead, with a warning.
    softmax: what the loss normalises over: ``vocab`` the whole vocabulary, ``level`` the codes of the level
        (and the end of ragged identifiers), ``children`` those that lead to an item of the catalog.
        Decoding with the same normaliser fits best.
    label_smoothing: share of the target spread evenly over that support.
    ema_decay: decay per step of an average of the weights, which is what is evaluated and returned; None = off.
    max_items: longest history, in items. prefix_drop: probability that a sample loses a random number of its
        oldest items in an epoch. user_drop: where users have codes, probability that a sample shows ``<unk_user>``
        instead in an epoch, so that the model also knows what to do for users without.
    eval_every: validation every so many ``eval_unit`` and at the end (0 = never), on ``eval_users`` users
        drawn by the seed, by a search with ``eval_beams`` beams.
    patience: validations without a better ``metric`` before training stops (0 = train to the end). The
        weights of the best validation are returned either way.
    bf16: autocast to bfloat16; None = where the GPU, or else the CPU, has it (weights stay float32). A training
        does not go on in another precision than it began with.
    save_every, save_seconds: a checkpoint after so many steps, and whenever the last one is so many wall seconds
        old, or 20 times as old as its writing took if that is more (0 = not for this reason); there is always one
        when training stops.
    max_seconds: wall seconds of this call, then save and return; the next call goes on from there. None = none.
    n_workers: processes that build batches.
    report_to: trackers that get every line of the log too, as transformers names them: tensorboard, wandb, trackio, …

    Raises ConfigError for a value out of range.
    """

    epochs: int = 16
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 300
    schedule: Literal["cosine", "inverse_sqrt", "constant"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    softmax: Literal["vocab", "level", "children"] = "level"
    packing: bool = False
    accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    fsdp: bool = False
    rows_first: int = 0
    sam_rho: float = 0.0
    max_items: int = 20
    prefix_drop: float = 0.0
    user_drop: float = 0.1
    eval_every: int = 1
    eval_unit: Literal["epochs", "steps"] = "epochs"
    eval_users: int = 2000
    eval_beams: int = 20
    patience: int = 0
    metric: Literal["recall@10", "ndcg@10"] = "recall@10"
    bf16: bool | None = None
    seed: int = 0
    save_every: int = 500
    save_seconds: float = 120.0
    max_steps: int = 0
    max_seconds: float | None = None
    n_workers: int = 0
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "report_to", tuple(self.report_to))
        for name in ("epochs", "batch_size", "accumulation_steps", "max_items", "eval_beams"):
            _check(getattr(self, name) >= 1, name, "at least 1", self)
        for name in ("warmup_steps", "eval_every", "patience", "save_every", "max_steps", "n_workers", "rows_first"):
            _check(getattr(self, name) >= 0, name, "0 or more", self)
        _check(self.accumulation_steps <= self.batch_size, "accumulation_steps", "batch_size or less", self)
        _check(1 <= self.eval_users <= 2000, "eval_users", "1 to 2000", self)
        _check(0 < self.learning_rate < math.inf, "learning_rate", "above 0", self)
        _check(0 <= self.sam_rho < math.inf, "sam_rho", "0 or more", self)
        _check(
            not (self.sam_rho and self.fsdp), "sam_rho", "0 with fsdp, where no process has the whole gradient", self
        )
        _check(self.max_grad_norm > 0, "max_grad_norm", "above 0", self)
        for name in ("weight_decay", "save_seconds"):
            _check(getattr(self, name) >= 0, name, "0 or more", self)
        for name in ("label_smoothing", "prefix_drop", "user_drop"):
            _check(0 <= getattr(self, name) < 1, name, "in [0, 1)", self)
        _check(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "betas", "two in [0, 1)", self)
        _check(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", "in (0, 1), or none", self)
        _check(self.max_seconds is None or self.max_seconds > 0, "max_seconds", "above 0, or none", self)
        for name, values in (
            ("schedule", ("cosine", "inverse_sqrt", "constant")),
            ("softmax", ("vocab", "level", "children")),
            ("eval_unit", ("epochs", "steps")),
            ("metric", ("recall@10", "ndcg@10")),
        ):
            _check(getattr(self, name) in values, name, f"one of {', '.join(values)}", self)

    def rate_factor(self, step: int, n_steps: int) -> float:
        """Share of ``learning_rate`` used by step ``step`` (0-based) of ``n_steps``."""
        if step < self.warmup_steps or self.schedule == "cosine":
            return warmup_cosine(step, n_steps, self.warmup_steps)
        if self.schedule == "constant":
            return 1.0
        return math.sqrt(max(self.warmup_steps, 1) / max(step + 1, self.warmup_steps, 1))


def _check(fine: bool, name: str, expected: str, settings: TrainSettings) -> None:
    if not fine:
        raise ConfigError(f"{name}: expected {expected}, got {getattr(settings, name)!r}")
