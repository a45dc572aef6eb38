"""How a trained recommender is taught preferences: the two methods, and the bounds at which a run is given up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from genrec.errors import ConfigError


@dataclass(frozen=True)
class DpoSettings:
    """The target against other items that the model ranks high (experimental).

    DPO (Rafailov et al. 2023, arXiv:2305.18290) with several negatives under one softmax, S-DPO (Chen et al. 2024,
    arXiv:2406.09215); one negative is DPO itself. Ready file: ``train/preference/dpo.yaml``.

    beta: how strongly the log-ratios to the reference count; larger stays nearer to it. n_negatives: items per target,
    from the library's constrained search. negatives: ``sample`` draws them without replacement by their probability:
    with draws of the reference and beta 1 this is close to noise contrastive estimation, whose best policy is the true
    distribution; ``beam`` takes the best ones, which are pushed down however often they are right. made_by: whose lists
    these are, the ``reference``'s or those of the ``policy`` as it is at the step. sft_weight: of the cross-entropy of
    the target (nats per identifier), which keeps its probability from falling along with that of the negatives.

    Raises ConfigError for a value out of range.
    """

    kind: Literal["dpo"] = "dpo"
    beta: float = 1.0
    n_negatives: int = 8
    negatives: Literal["sample", "beam"] = "sample"
    made_by: Literal["reference", "policy"] = "reference"
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        _check(0 < self.beta < math.inf, self, "beta", "above 0")
        _check(self.n_negatives >= 1, self, "n_negatives", "at least 1")
        _check(self.negatives in ("sample", "beam"), self, "negatives", "sample or beam")
        _check(self.made_by in ("reference", "policy"), self, "made_by", "reference or policy")
        _check(0 <= self.sft_weight < math.inf, self, "sft_weight", "0 or more")

    @property
    def n_updates(self) -> int:
        """Steps that use the same lists."""
        return 1


@dataclass(frozen=True)
class GrpoSettings:
    """The model's own lists, rewarded by where the target stands (experimental).

    GRPO (Shao et al. 2024, arXiv:2402.03300) with the rollouts and the reward of MiniOneRec (2025, arXiv:2510.24431).
    Ready file: ``train/preference/grpo.yaml``.

    n_rollouts: G, items per history; no two of them share an identifier, and all are in the catalog. rollouts: ``beam``
    is the list that would be recommended; ``sample`` draws without replacement, at ``temperature``. add_target: a list
    without the target gets it in its last place; otherwise such a list teaches nothing.
    rank_weight: of the penalty for items above or below a target that was found, 0 = the hit alone counts.
    n_updates: steps that use the same lists; the ratio to the policy that made them is clipped to
    ``1 - clip_low .. 1 + clip_high``, and for items that did badly held below ``1 + clip_high + early_clip`` (ECPO of
    OneRec 2025, arXiv:2506.13695). With 1 the ratio is 1, and nothing is clipped.
    kl_weight: of the distance to the reference. sft_weight: of the cross-entropy of the target (nats per identifier).

    Raises ConfigError for a value out of range.
    """

    kind: Literal["grpo"] = "grpo"
    n_rollouts: int = 16
    rollouts: Literal["beam", "sample"] = "beam"
    temperature: float = 1.0
    add_target: bool = False
    rank_weight: float = 1.0
    n_updates: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.2
    early_clip: float = 0.1
    kl_weight: float = 1e-3
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        _check(self.n_rollouts >= 2, self, "n_rollouts", "at least 2, which are compared with each other")
        _check(self.rollouts in ("beam", "sample"), self, "rollouts", "beam or sample")
        _check(0 < self.temperature < math.inf, self, "temperature", "above 0")
        _check(self.n_updates >= 1, self, "n_updates", "at least 1")
        _check(0 < self.clip_low < 1, self, "clip_low", "in (0, 1)")
        for name in ("clip_high", "early_clip"):
            _check(0 < getattr(self, name) < math.inf, self, name, "above 0")
        for name in ("rank_weight", "kl_weight", "sft_weight"):
            _check(0 <= getattr(self, name) < math.inf, self, name, "0 or more")
        if self.temperature != 1.0 and self.rollouts == "beam":
            raise ConfigError("temperature: no effect on rollouts: beam", hint="leave it out, or rollouts: sample")


Method = DpoSettings | GrpoSettings


@dataclass(frozen=True)
class Alarms:
    """Bounds at which a preference training stops: what it teaches is then no longer a recommender (experimental).

    Every validation is compared with that of the model that training started from. min_valid: least share of the
    probability that stays inside the catalog (see ``valid_mass`` in :mod:`genrec.training.preference_figures`), as a
    share of what it was. min_coverage: least share of the number of distinct items in the lists. min_reward: least
    share of recall@10 on training queries. max_kl: greatest distance to the reference, in nats per identifier.
    0 (for max_kl: none) = no alarm.

    Raises ConfigError for a value out of range.
    """

    min_valid: float = 0.8
    min_coverage: float = 0.5
    min_reward: float = 0.5
    max_kl: float | None = 2.0

    def __post_init__(self) -> None:
        for name in ("min_valid", "min_coverage", "min_reward"):
            _check(0 <= getattr(self, name) <= 1, self, name, "in [0, 1]")
        _check(self.max_kl is None or self.max_kl > 0, self, "max_kl", "above 0, or none")


def _check(fine: bool, settings: Any, name: str, expected: str) -> None:
    if not fine:
        raise ConfigError(f"{name}: expected {expected}, got {getattr(settings, name)!r}")
