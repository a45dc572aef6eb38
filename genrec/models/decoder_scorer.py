"""Decoder-only models behind the search: the prompt once per user, beams as a tree of tokens.

Axes: B batch, W beams, T prompt tokens, A tokens of the tree so far, D width, S symbols of a level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import Prompts, StepScores
from genrec.errors import ConfigError
from genrec.models.head import OutputHead
from genrec.vocab.token_map import TokenMap

MODEL_TYPES = ("llama", "qwen2", "qwen3")


@dataclass
class DecoderState:
    """What one search knows; ``cache`` holds the prompt and every beam token fed so far, once per row."""

    normalize: Normalize
    hidden: Tensor  # [B, W, D] behind the last tokens
    cache: Any
    prompt_BT: Tensor  # bool
    length_B: Tensor  # int64 prompt tokens
    ancestors_BWA: Tensor  # bool: which tree tokens the beam consists of
    level: int = 0


class DecoderScorer:
    """A Llama, Qwen2 or Qwen3 causal language model as a :class:`~genrec.decoding.scorer.Scorer`.

    The stock Hugging Face forward runs the prompt once per user. A step feeds the last tokens of all W beams
    as W further tokens of the *same* row: equal positions, and a mask by which each sees the prompt and its
    own ancestors only (tree attention, as in Miao et al. 2023, SpecInfer, arXiv:2305.09781). So the cache
    grows by W tokens per step and is never copied per beam; when beams reorder, only the mask does. Attention
    of a step costs W · (T + A), which is quadratic in the beams: for catalogs of thousands of items use
    beams, not n_beams = N.

    Raises ConfigError for other models, sliding-window layers, and attention kernels without masks;
    FingerprintMismatch for another vocabulary. Stability: stable.
    """

    def __init__(self, model: PreTrainedModel, token_map: TokenMap) -> None:
        base = getattr(model, "get_base_model", lambda: model)()
        config = base.config
        if config.model_type not in MODEL_TYPES:
            raise ConfigError(f"model: expected one of {', '.join(MODEL_TYPES)}, got {config.model_type!r}")
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ConfigError(f"model: expected full attention in every layer, got {sorted(kinds)}")
        if config._attn_implementation not in ("sdpa", "eager"):
            raise ConfigError(
                f"attention: expected 'sdpa' or 'eager', got {config._attn_implementation!r}",
                hint='load the model with attn_implementation="sdpa"',
            )
        self._model: Any = base
        self._head = OutputHead(base, token_map)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self._model.device)

    def start(self, prompts: Prompts, normalize: Normalize) -> DecoderState:
        """Run the prompts, padded on the left."""
        assert not self._model.training, "a model in training mode drops activations: call model.eval()"
        assert prompts.mask_BT[:, -1].all(), "decoder prompts must be padded on the left"
        prompt_BT = torch.from_numpy(prompts.mask_BT).to(self.device)
        out = self._model.base_model(
            input_ids=torch.from_numpy(prompts.tokens_BT).to(self.device),
            attention_mask=prompt_BT.long(),
            position_ids=(prompt_BT.long().cumsum(1) - 1).clamp_(min=0),
            use_cache=True,
        )
        batch = len(prompts)
        return DecoderState(
            normalize=normalize,
            hidden=out.last_hidden_state[:, -1:],
            cache=out.past_key_values,
            prompt_BT=prompt_BT,
            length_B=prompt_BT.sum(1),
            ancestors_BWA=torch.zeros((batch, 1, 0), dtype=torch.bool, device=self.device),
        )

    def step(self, state: DecoderState, parents_BW: Tensor | None, codes_BW: Tensor | None) -> StepScores:
        """Feed the last code of every beam; see the protocol."""
        if parents_BW is not None and codes_BW is not None:
            self._feed(state, parents_BW, codes_BW)
        scores = self._head.scores(state.hidden, state.level, state.normalize)
        state.level += 1
        return scores

    def _feed(self, state: DecoderState, parents_BW: Tensor, codes_BW: Tensor) -> None:
        batch, beams = codes_BW.shape
        older = state.ancestors_BWA.shape[2]
        inherited = state.ancestors_BWA.gather(1, parents_BW[..., None].expand(-1, -1, older))
        itself = torch.eye(beams, dtype=torch.bool, device=self.device).expand(batch, -1, -1)
        state.ancestors_BWA = torch.cat([inherited, itself], dim=2)
        prompt = state.prompt_BT[:, None, :].expand(-1, beams, -1)
        seen = torch.cat([prompt, state.ancestors_BWA], dim=2)[:, None]
        dtype = self._model.dtype
        out = self._model.base_model(
            input_ids=self._head.tokens(state.level - 1, codes_BW),
            attention_mask=torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill_(
                ~seen, torch.finfo(dtype).min
            ),
            position_ids=(state.length_B + state.level - 1)[:, None].expand(batch, beams),
            past_key_values=state.cache,
            use_cache=True,
        )
        state.hidden, state.cache = out.last_hidden_state, out.past_key_values
