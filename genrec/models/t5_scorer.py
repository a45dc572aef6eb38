"""T5 behind the search: the encoder once per user, a decoder step written for beams.

Axes: B batch, W beams, T prompt tokens, H heads, D width, A keys of an item prefix, S symbols of a level.
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
from genrec.vocab.token_map import TokenMap


@dataclass
class T5State:
    """What one search knows: the prompt's keys and values once per row, and those of every step's beams."""

    normalize: Normalize
    cross: list[tuple[Tensor, Tensor]]  # per layer keys and values [B, H, T, d_kv]
    mask: Tensor | None  # [B, 1, 1, T], True = attend
    bias: Tensor  # [A, A, H], query position first
    own: list[list[Tensor]]  # per step, per layer [B·W, 2, H·d_kv]
    ancestors: list[Tensor] = field(default_factory=list)  # per step, row of each beam's ancestor [B·W]


class T5Scorer:
    """A T5 model as a :class:`~genrec.decoding.scorer.Scorer`.

    The Hugging Face modules hold the weights and run the encoder; the decoder step is ours. It computes the
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
        tokens_BT = torch.from_numpy(prompts.tokens_BT).to(self.device)
        mask_BT = torch.from_numpy(prompts.mask_BT).to(self.device)
        hidden = self._model.encoder(input_ids=tokens_BT, attention_mask=mask_BT.long()).last_hidden_state
        cross = []
        for block in self._model.decoder.block:
            attention = block.layer[1].EncDecAttention
            cross.append((self._heads(attention.k(hidden)), self._heads(attention.v(hidden))))
        length = self._head.n_steps
        bias = self._model.decoder.block[0].layer[0].SelfAttention.compute_bias(length, length)
        return T5State(
            normalize=normalize,
            cross=cross,
            mask=None if prompts.mask_BT.all() else mask_BT[:, None, None, :],
            bias=bias[0].permute(1, 2, 0).contiguous(),
            own=[],
        )

    def step(self, state: T5State, parents_BW: Tensor | None, codes_BW: Tensor | None) -> StepScores:
        """Feed the last code of every beam; see the protocol."""
        level = len(state.own)
        batch = state.cross[0][0].shape[0]
        if parents_BW is None or codes_BW is None:
            start = self._model.config.decoder_start_token_id
            tokens = torch.full((batch, 1), start, dtype=torch.int64, device=self.device)
        else:
            tokens = self._head.tokens(level - 1, codes_BW)
            _follow(state, parents_BW)
        x = self._model.shared(tokens)
        state.own.append([])
        for number, block in enumerate(self._model.decoder.block):
            x = x + self._self_attention(state, block.layer[0], x)
            x = x + self._cross_attention(state, number, block.layer[1], x)
            x = block.layer[-1](x)
        x = _norm(self._model.decoder.final_layer_norm, x)
        return self._head.scores(x, level, state.normalize)

    def _self_attention(self, state: T5State, layer: Any, x_BWD: Tensor) -> Tensor:
        attention = layer.SelfAttention
        batch, beams, _ = x_BWD.shape
        normed = _norm(layer.layer_norm, x_BWD)
        new = torch.stack([attention.k(normed), attention.v(normed)], dim=2).flatten(0, 1)
        number = len(state.own[-1])
        state.own[-1].append(new)
        past = len(state.ancestors)
        if past == 0:
            # one key: its weight is 1
            return attention.o(new[:, 1]).view(batch, beams, -1)  # type: ignore[no-any-return]
        known = new.new_empty((past + 1, *new.shape))
        for step, rows in enumerate(state.ancestors):
            torch.index_select(state.own[step][number], 0, rows, out=known[step])
        known[past] = new
        keys, values = known.view(*known.shape[:3], attention.n_heads, -1).unbind(2)
        query = attention.q(normed).view(1, batch * beams, attention.n_heads, -1)
        score = (query * keys).sum(-1, dtype=torch.float32) + state.bias[past, : past + 1, None]
        weight = score.softmax(0).to(new.dtype)
        mixed = (weight[..., None] * values).sum(0).flatten(1)
        return attention.o(mixed).view(batch, beams, -1)  # type: ignore[no-any-return]

    def _cross_attention(self, state: T5State, number: int, layer: Any, x_BWD: Tensor) -> Tensor:
        attention = layer.EncDecAttention
        query = self._heads(attention.q(_norm(layer.layer_norm, x_BWD)))
        keys, values = state.cross[number]
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=state.mask, scale=1.0)
        return attention.o(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, T, H·d_kv]`` → ``[B, H, T, d_kv]``."""
        return x.view(*x.shape[:2], self._model.config.num_heads, -1).transpose(1, 2)


def _follow(state: T5State, parents_BW: Tensor) -> None:
    """Point every beam at the rows of its ancestors in each past step."""
    batch = parents_BW.shape[0]
    n_rows = state.own[-1][0].shape[0]
    offset = torch.arange(0, n_rows, n_rows // batch, device=parents_BW.device)
    rows = (parents_BW + offset[:, None]).flatten()
    state.ancestors = [older[rows] for older in state.ancestors] + [rows]


def _norm(layer: Any, x: Tensor) -> Tensor:
    if x.dtype == torch.float32 and layer.weight.dtype == torch.float32:
        return F.rms_norm(x, x.shape[-1:], layer.weight, layer.variance_epsilon)
    return layer(x)  # type: ignore[no-any-return]
