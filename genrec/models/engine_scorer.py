"""Models that run in another engine, such as vLLM, behind the search: log-probabilities of asked tokens, nothing else.

Axes: B batch, W beams, T tokens of a beam, S symbols of a level, M asked tokens, P prefixes asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from genrec.decoding.index import CatalogIndex, Children
from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import Prompts, StepScores
from genrec.errors import ConfigError, DataError
from genrec.vocab.token_map import TokenMap

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Ask:
    """What comes after some tokens: the prompt, the tokens of a beam behind it, and int64 ``[M]`` token ids.

    Stability: experimental.
    """

    prompt: list[int]
    prefix: list[int]
    ids: Int64


class Engine(Protocol):
    """Where a language model runs. Stability: experimental."""

    def logprobs(self, asks: Sequence[Ask]) -> Sequence[Float32]:
        """Log-probabilities of the asked tokens, float32 ``[M]`` for each.

            answer[m] = log_softmax(logits after prompt + prefix, over the whole vocabulary)[ids[m]]

        Any number of asks with any number of ids; several threads may ask at once. Raises for all if one has no answer.
        """


@dataclass(eq=False)
class EngineState:
    """One search: the prompts, and the beams as nodes of the index and as tokens."""

    normalize: Normalize
    prompts: list[list[int]]
    node_BW: Int64
    tokens_BWT: Int64
    level: int = 0


class EngineScorer:
    """A causal language model in an :class:`Engine` as a :class:`~genrec.decoding.scorer.Scorer`.

    Asked for are the children of each beam, once for each distinct prefix of a user; the search is the one of every
    other model, so filters, seen items and certificates are too. Symbols that no child has are -inf, so only a search
    of the index it was made :meth:`over` may read the scores. The total is the engine's, over the whole vocabulary;
    with ``normalize="level"`` there is none, and all codes of the level are asked for. Stability: experimental.
    """

    def __init__(self, engine: Engine, token_map: TokenMap, index: CatalogIndex | None = None) -> None:
        self._engine, self._tokens, self._index = engine, token_map, index

    def over(self, index: CatalogIndex) -> EngineScorer:
        """The same for searches of ``index``."""
        return EngineScorer(self._engine, self._tokens, index)

    @property
    def device(self) -> torch.device:
        """The CPU: what the engine answers are numbers."""
        return torch.device("cpu")

    def start(self, prompts: Prompts, normalize: Normalize) -> EngineState:
        """Nothing is asked yet: engines keep what they computed of a prompt."""
        real = zip(prompts.tokens_BT, prompts.mask_BT, strict=True)
        batch = len(prompts)
        return EngineState(
            normalize,
            [tokens[mask].tolist() for tokens, mask in real],
            np.zeros((batch, 1), np.int64),
            np.zeros((batch, 1, 0), np.int64),
        )

    def step(self, state: EngineState, parents_BW: Tensor | None, codes_BW: Tensor | None) -> StepScores:
        """Ask for the children of all beams at once; see the protocol."""
        assert self._index is not None, "made over an index"
        level, index = state.level, self._index
        if parents_BW is not None and codes_BW is not None:
            self._follow(state, index, parents_BW.numpy(), codes_BW.numpy())
        node_BW = state.node_BW
        row, beam = np.nonzero(node_BW >= 0)
        # beams that are dead repeat another one
        key = row * index.n_nodes(level) + node_BW[row, beam]
        _, first, place = np.unique(key, return_index=True, return_inverse=True)
        row_P, beam_P = row[first], beam[first]
        wanted = self._wanted(level, node_BW[row_P, beam_P], state.normalize)
        ids = np.split(self._token_ids(level, wanted.codes), wanted.offsets[1:-1])
        asks = [
            Ask(state.prompts[r], state.tokens_BWT[r, b].tolist(), asked)
            for r, b, asked in zip(row_P.tolist(), beam_P.tolist(), ids, strict=True)
        ]
        found = np.concatenate([np.zeros(0, np.float32), *self._engine.logprobs(asks)])
        if len(found) != len(wanted.codes):
            raise DataError(f"the engine answered {len(found)} log-probabilities, {len(wanted.codes)} were asked for")
        values_PS = np.full((len(asks), index.n_symbols(level)), -np.inf, dtype=np.float32)
        values_PS[np.repeat(np.arange(len(asks)), np.diff(wanted.offsets)), wanted.codes] = found
        values_BWS = np.full((*node_BW.shape, values_PS.shape[1]), -np.inf, dtype=np.float32)
        values_BWS[row, beam] = values_PS[place]
        state.level += 1
        total = None if state.normalize == "level" else torch.zeros(node_BW.shape)
        return StepScores(torch.from_numpy(values_BWS), total)

    def _follow(self, state: EngineState, index: CatalogIndex, parents_BW: Int64, codes_BW: Int64) -> None:
        """Move every beam to the child that the search chose."""
        level = state.level - 1
        node_BW = np.take_along_axis(state.node_BW, parents_BW, axis=1)
        state.node_BW = index.step(level, node_BW.ravel(), codes_BW.ravel()).reshape(node_BW.shape)
        before = np.take_along_axis(state.tokens_BWT, parents_BW[:, :, None], axis=1)
        new = self._token_ids(level, codes_BW)
        state.tokens_BWT = np.concatenate([before, new[:, :, None]], axis=2)

    def _wanted(self, level: int, nodes: Int64, normalize: Normalize) -> Children:
        """The codes to ask for after each prefix."""
        assert self._index is not None
        if normalize != "level":
            return self._index.children(level, nodes)
        n = self._index.n_symbols(level)
        codes = np.tile(np.arange(n), len(nodes))
        return Children(np.arange(len(nodes) + 1) * n, codes, np.full(len(codes), -1))

    def _token_ids(self, level: int, codes: Int64) -> Int64:
        """Token ids of codes of a level; the one behind the last code is the end of a ragged identifier."""
        tokens = self._tokens
        if level == tokens.n_levels:
            return np.full(codes.shape, tokens.eos_id, dtype=np.int64)
        ends = codes == tokens.level_sizes[level]
        return np.where(ends, tokens.eos_id, tokens.level_offset[level] + codes)


def skeleton(folder: Path, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model of a model folder without its weights: they are in an engine (internal).

    dtype: of the engine; None = as stored. Raises ConfigError for an encoder-decoder model.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.is_encoder_decoder:
        raise ConfigError(
            f"{folder}: a {config.model_type} model has an encoder, and vLLM serves decoder-only models",
            hint="genrec serve RUN --engine torch",
        )
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype or config.dtype or torch.float32)
    return model.eval()
