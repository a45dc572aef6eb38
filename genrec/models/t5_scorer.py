"""T5 behind the search: the encoder once per user, a decoder step written for beams.

Axes: B batch, W beams, T prompt tokens, H heads, D width, A tokens of a beam, S symbols of a level.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import Prompts, StepScores
from genrec.errors import ConfigError
from genrec.models.head import OutputHead
from genrec.models.suffix import Suffix, rms_norm
from genrec.models.t5_encoder import encode, feed_forward, heads
from genrec.vocab.token_map import TokenMap


@dataclass
class T5State:
    """What one search knows: the prompt's keys and values once per row, and those of every step's beams."""

    normalize: Normalize
    cross: list[tuple[Tensor, Tensor]]  # per layer keys and values [B, H, T, d_kv]
    mask: Tensor | None  # [B, 1, 1, T], True = attend
    bias: Tensor  # [A, A, H], query position first
    suffix: Suffix = field(default_factory=Suffix)
    level: int = 0


class T5Scorer:
    """A T5 model as a :class:`~genrec.decoding.scorer.Scorer`.

    The Hugging Face modules hold the weights; encoder and decoder step are ours. The step computes the
    cross-attention keys and values once per user and lets the user's beams be the query axis, where
    ``generate`` keeps a copy per beam and reorders it at every step. A beam's own keys and values, at most
    one per code, are gathered by its ancestors. Log-probabilities equal those of the model's forward.

    Float32 and bfloat16. Raises ConfigError for another kind of model, FingerprintMismatch for another
    vocabulary. Stability: stable.
    """

    def __init__(self, model: PreTrainedModel, token_map: TokenMap) -> None:
        if model.config.model_type not in ("t5", "mt5"):
            raise ConfigError(f"model: expected T5, got {model.config.model_type!r}")
        if model.dtype not in (torch.float32, torch.bfloat16):
            raise ConfigError(f"dtype: expected float32 or bfloat16 for T5, got {model.dtype}")
        self._model: Any = model
        self._head = OutputHead(model, token_map)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self._model.device)

    def start(self, prompts: Prompts, normalize: Normalize) -> T5State:
        """Run the encoder and project its output for every decoder layer."""
        assert not self._model.training, "a model in training mode drops activations: call model.eval()"
        mask_BT = None if prompts.mask_BT.all() else torch.from_numpy(prompts.mask_BT).to(self.device)
        hidden = encode(self._model.encoder, torch.from_numpy(prompts.tokens_BT).to(self.device), mask_BT)
        cross = []
        for block in self._model.decoder.block:
            attention = block.layer[1].EncDecAttention
            cross.append((heads(attention.k(hidden), attention.n_heads), heads(attention.v(hidden), attention.n_heads)))
        length = self._head.n_steps
        bias = self._model.decoder.block[0].layer[0].SelfAttention.compute_bias(length, length)
        return T5State(
            normalize=normalize,
            cross=cross,
            mask=None if mask_BT is None else mask_BT[:, None, None, :],
            bias=bias[0].permute(1, 2, 0).contiguous(),
        )

    def step(self, state: T5State, parents_BW: Tensor | None, codes_BW: Tensor | None) -> StepScores:
        """Feed the last code of every beam; see the protocol."""
        level, batch = state.level, state.cross[0][0].shape[0]
        if codes_BW is None:
            start = self._model.config.decoder_start_token_id
            tokens = torch.full((batch, 1), start, dtype=torch.int64, device=self.device)
        else:
            tokens = self._head.tokens(level - 1, codes_BW)
        state.suffix.begin(parents_BW)
        x = self._model.shared(tokens)
        for block, (keys, values) in zip(self._model.decoder.block, state.cross, strict=True):
            x = x + self._self_attention(state, block.layer[0], x)
            x = x + self._cross_attention(block.layer[1], x, keys, values, state.mask)
            x = x + feed_forward(block.layer[-1], x)
        x = rms_norm(self._model.decoder.final_layer_norm, x)
        state.level += 1
        return self._head.scores(x, level, state.normalize)

    def _self_attention(self, state: T5State, layer: Any, x_BWD: Tensor) -> Tensor:
        attention = layer.SelfAttention
        normed = rms_norm(layer.layer_norm, x_BWD)
        shape = (normed.shape[0] * normed.shape[1], attention.n_heads, -1)
        keys, values = state.suffix.with_new(attention.k(normed).view(shape), attention.v(normed).view(shape))
        if state.level == 0:
            # one key: its weight is 1
            mixed = values[0]
        else:
            query = attention.q(normed).view(shape)
            score = (query * keys).sum(-1, dtype=torch.float32) + state.bias[state.level, : state.level + 1, None]
            mixed = (score.softmax(0).to(values.dtype)[..., None] * values).sum(0)
        return attention.o(mixed.view(*x_BWD.shape[:2], -1))  # type: ignore[no-any-return]

    def _cross_attention(self, layer: Any, x_BWD: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        attention = layer.EncDecAttention
        query = heads(attention.q(rms_norm(layer.layer_norm, x_BWD)), attention.n_heads)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=1.0)
        return attention.o(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
