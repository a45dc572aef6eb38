"""What all engines of the vLLM kind have in common: few ids in one request, prompts of bounded length, failures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genrec.models.engine_scorer import Ask, Float32
from genrec.serving.problems import Problem

log = logging.getLogger(__name__)

MAX_IDS = 128
"""Ids in one request: vLLM's limit of ``logprob_token_ids``."""


@dataclass(frozen=True, eq=False)
class Read:
    """One request of one token: the tokens before it, and at most ``MAX_IDS`` ids whose log-probabilities come back."""

    tokens: list[int]
    ids: list[int]


def reads_of(asks: Sequence[Ask], max_len: int) -> list[Read]:
    """The requests that answer the asks, in their order; long lists of ids are cut (internal).

    max_len: tokens that the engine takes, the one to come included. Raises Problem 400 for a prompt that is longer.
    """
    found = []
    for ask in asks:
        tokens = ask.prompt + ask.prefix
        if len(tokens) >= max_len:
            message = f"history: its prompt is longer than the {max_len} tokens that the engine takes"
            raise Problem(400, message, param="history", code="prompt_too_long")
        ids = ask.ids.tolist()
        found += [Read(tokens, ids[start : start + MAX_IDS]) for start in range(0, len(ids), MAX_IDS)]
    return found


def answers_of(asks: Sequence[Ask], values: Sequence[Sequence[float]]) -> list[Float32]:
    """The answers to the asks from those to their :func:`reads_of` (internal).

    Raises Problem 503 for values that are no log-probabilities, as of an engine that returns logits.
    """
    whole = np.array([value for each in values for value in each], dtype=np.float32)
    if np.isnan(whole).any():
        raise failed("NaN instead of a log-probability: the weights or their numbers are not finite")
    if len(whole) and float(whole.max()) > 1e-3:
        raise failed(f"a log-probability of {float(whole.max()):.3g}: expected --logprobs-mode raw_logprobs")
    return np.split(whole, np.cumsum([len(ask.ids) for ask in asks])[:-1]) if asks else []


def by_id(ids: Sequence[int], found_ids: Sequence[int], values: Sequence[float]) -> list[float]:
    """The values of ids; of those that come twice, the first: vLLM pads rows with id 0 (internal).

    Raises Problem 503 where one is missing.
    """
    if [*found_ids[1 : len(ids) + 1]] == [*ids]:  # behind the sampled token, as they were asked for
        return [*values[1 : len(ids) + 1]]
    first = dict(zip(reversed(found_ids), reversed(values), strict=True))
    try:
        return [first[each] for each in ids]
    except KeyError as error:
        raise failed(f"no log-probability of token {error} came back") from None


def failed(why: object) -> Problem:
    """The answer where the engine has none; why goes to the log (internal)."""
    log.error("the engine failed: %s", why)
    return Problem(503, "the engine has no answer; try again", code="engine_failed", retry_after=1)


def gone() -> Problem:
    """The answer while an engine elsewhere is lost (internal)."""
    return Problem(503, "the engine does not answer; try again", code="engine_gone", retry_after=2)
