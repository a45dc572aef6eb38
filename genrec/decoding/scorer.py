"""What a beam search needs from a model: log-probabilities of the next code, for all beams at once.

Axes: B batch, W beams, T tokens, S symbols of a level (its codes, and the end when identifiers are ragged).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from genrec.decoding.interface import Normalize
from genrec.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Prompts:
    """Model inputs of a batch, padded on one side.

    tokens_BT: int64 token ids. mask_BT: bool, False = padding. Stability: stable.
    """

    tokens_BT: npt.NDArray[np.int64]
    mask_BT: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens_BT)


@dataclass(frozen=True, eq=False)
class StepScores:
    """What a model says of the next code of every beam.

    values_BWS: float32, any device; log-probabilities up to one constant per beam (logits will do). total_BW: float32,
    that constant's log-normaliser, so that ``values - total`` are the log-probabilities; None = the search normalises,
    over all S symbols ("level") or over the children that the index has ("children", whatever ``total_BW`` says).
    Stability: experimental.
    """

    values_BWS: torch.Tensor
    total_BW: torch.Tensor | None = None

    def logp(self) -> torch.Tensor:
        """Log-probabilities, float32 ``[B, W, S]``, normalised over the S symbols where no total is given."""
        total = self.values_BWS.logsumexp(-1) if self.total_BW is None else self.total_BW
        return self.values_BWS - total[..., None]


class Scorer(Protocol):
    """Scores continuations of prompts by codes; models implement it, and so can a remote engine.

    One search: ``start`` once, then ``step`` for level 0, 1, … The state belongs to the scorer, which may
    change it in place. Row ``b`` of every answer depends on row ``b`` of the prompts only. Stability: experimental
    (engines that answer for the asked codes only are to come).
    """

    @property
    def device(self) -> torch.device:
        """Where ``step`` expects and returns its tensors."""

    def start(self, prompts: Prompts, normalize: Normalize) -> Any:
        """State before the first code: whatever is computed once per row and shared by its beams.

        normalize: what ``step`` returns. ``"vocab"``: values with the total over the whole vocabulary (as in Hugging
        Face ``generate``). ``"level"``, ``"children"``: values alone; the search normalises them.
        """

    def step(self, state: Any, parents_BW: torch.Tensor | None, codes_BW: torch.Tensor | None) -> StepScores:
        """Scores of the symbols of the next level, values float32 ``[B, W, S]``.

        parents_BW: int64, which beam of the step before each beam continues; codes_BW: int64, by which code
        of the level before (never by its end). Both None in the first step, which has one beam per row. Beams
        that are dead carry code 0; their answers are ignored. No host synchronisation.
        """


@dataclass(frozen=True, eq=False)
class Watched:
    """A scorer that calls ``look`` before it reads prompts and before every step; what that raises ends the search.

    look: told ``"prefill"`` where the prompts are read and the first codes scored, ``"steps"`` for all codes after. It
    may not ask the device: a search that runs on a GPU would wait for it at every level. Internal.
    """

    scorer: Scorer
    look: Callable[[str], object]

    @property
    def device(self) -> torch.device:
        """That of the scorer."""
        return self.scorer.device

    def start(self, prompts: Prompts, normalize: Normalize) -> Any:
        """See :class:`Scorer`."""
        self.look("prefill")
        return self.scorer.start(prompts, normalize)

    def step(self, state: Any, parents_BW: torch.Tensor | None, codes_BW: torch.Tensor | None) -> StepScores:
        """See :class:`Scorer`."""
        self.look("prefill" if parents_BW is None else "steps")  # an engine reads prompts with the first codes
        return self.scorer.step(state, parents_BW, codes_BW)


def check_normalize(normalize: Normalize | None) -> Normalize:
    """``normalize`` if it is one of the names; raises ConfigError for anything else."""
    if normalize not in ("vocab", "level", "children"):
        raise ConfigError(f"normalize: expected 'vocab', 'level' or 'children', got {normalize!r}")
    return normalize
