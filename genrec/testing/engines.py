"""An engine without an engine: a Hugging Face model's own forward over all that is asked; for tests of what asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from genrec.models.engine_scorer import Ask


class ModelEngine:
    """Answers from a causal language model in this process, slowly and obviously.

    asked: all asks so far. before: called with every list of asks; what it raises is the engine's failure.
    """

    def __init__(self, model: Any, before: Callable[[Sequence[Ask]], None] = lambda asks: None) -> None:
        self.model, self.before = model, before
        self.asked: list[Ask] = []

    @torch.no_grad()
    def logprobs(self, asks: Sequence[Ask]) -> list[npt.NDArray[np.float32]]:
        """Each ask from the start, no cache; those of one length together, so nothing is padded."""
        self.asked += asks
        self.before(asks)
        tokens = [ask.prompt + ask.prefix for ask in asks]
        found: dict[int, torch.Tensor] = {}
        for length in {len(each) for each in tokens}:
            places = [place for place, each in enumerate(tokens) if len(each) == length]
            logits = self.model(input_ids=torch.tensor([tokens[place] for place in places])).logits[:, -1]
            found |= zip(places, logits.float().log_softmax(-1), strict=True)
        return [found[place][torch.from_numpy(ask.ids)].numpy() for place, ask in enumerate(asks)]
