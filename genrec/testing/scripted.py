"""A model without a model: log-probabilities from a function, for tests of searches.

Axes: B batch, W beams, S symbols of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import Prompts, StepScores
from genrec.seeding import rng

LogProbs = Callable[[int, tuple[int, ...]], npt.NDArray[np.float64]]


def random_logp(level_sizes: Sequence[int], *, ragged: bool, seed: int, grid: float | None = None) -> LogProbs:
    """(row, codes before) → float64 ``[S]``, a pure function of seed, row and prefix, all values below 0.

    grid: values are multiples of it (exact in float32 for powers of two), so ties are frequent.
    """
    sizes = [*level_sizes, 0] if ragged else list(level_sizes)

    def logp(row: int, prefix: tuple[int, ...]) -> npt.NDArray[np.float64]:
        random = rng(seed, row, *prefix, "logp")
        n = sizes[len(prefix)] + int(ragged)
        if grid is None:
            return np.asarray(-random.exponential(1.0, n) - 1e-3, dtype=np.float64)
        return np.asarray(-grid * random.integers(1, 4, n), dtype=np.float64)

    return logp


@dataclass
class ScriptedState:
    """Codes of every beam of every row so far, and what was asked for."""

    rows: list[int]
    prefixes: list[list[tuple[int, ...]]] = field(default_factory=list)


class ScriptedScorer:
    """A scorer that looks log-probabilities up in ``logp(row, prefix)``; a prompt's first token is its row.

    ``shapes`` records the ``[B, W]`` of every step.
    """

    def __init__(self, logp: LogProbs) -> None:
        self.logp = logp
        self.shapes: list[tuple[int, int]] = []

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def start(self, prompts: Prompts, normalize: Normalize) -> ScriptedState:
        """Only the row numbers; values count as log-probabilities of the vocabulary and of the level alike."""
        return ScriptedState([int(t) for t in prompts.tokens_BT[:, 0]])

    def step(self, state: ScriptedState, parents_BW: torch.Tensor | None, codes_BW: torch.Tensor | None) -> StepScores:
        """Follow the parents, append the codes, look up."""
        if parents_BW is None or codes_BW is None:
            state.prefixes = [[()] for _ in state.rows]
        else:
            state.prefixes = [
                [before[p] + (c,) for p, c in zip(parents, codes, strict=True)]
                for before, parents, codes in zip(state.prefixes, parents_BW.tolist(), codes_BW.tolist(), strict=True)
            ]
        self.shapes.append((len(state.rows), len(state.prefixes[0])))
        values = [
            [self.logp(row, prefix) for prefix in beams] for row, beams in zip(state.rows, state.prefixes, strict=True)
        ]
        scores = torch.tensor(np.array(values), dtype=torch.float32)
        return StepScores(scores, torch.zeros(scores.shape[:2]))


def row_prompts(rows: Sequence[int]) -> Prompts:
    """Prompts of one token each, the row number that a :class:`ScriptedScorer` reads."""
    tokens = np.array(rows, dtype=np.int64).reshape(-1, 1)
    return Prompts(tokens, np.ones_like(tokens, dtype=bool))
