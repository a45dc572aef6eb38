"""T5 behind the search: the encoder once per user, a decoder step written for beams.

Axes: B batch, W beams, T prompt tokens, R rows (B·W or B·T), H heads, D width,
E width of a head, A tokens of a beam, S symbols of a level.
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
from genrec.models.products import Product, rms_norm
from genrec.models.suffix import Suffix
from genrec.models.t5_encoder import FeedForward, encode, heads
from genrec.vocab.token_map import TokenMap


class Layer:
    """A decoder layer, its weights made ready for a search, and its view of the prompt (internal)."""

    def __init__(self, block: Any, hidden_RD: Tensor, batch: int) -> None:
        own, cross = block.layer[0].SelfAttention, block.layer[1].EncDecAttention
        self.n_heads = own.n_heads
        self.norm, self.cross_norm = block.layer[0].layer_norm, block.layer[1].layer_norm
        self.own = [Product(each) for each in (own.q, own.k, own.v)]
        self.query, self.own_out, self.cross_out = Product(cross.q), Product(own.o), Product(cross.o)
        self.feed_forward = FeedForward(block.layer[-1])
        # [B, H, T, E] each
        self.keys, self.values = (heads(Product(each)(hidden_RD), batch, self.n_heads) for each in (cross.k, cross.v))


@dataclass
class T5State:
    """What one search knows: the prompt's keys and values once per row, and those of every step's beams."""

    normalize: Normalize
    layers: list[Layer]
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
        check_encoder_decoder(model)
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
        hidden_RD = encode(self._model.encoder, torch.from_numpy(prompts.tokens_BT).to(self.device), mask_BT)
        blocks, length = self._model.decoder.block, self._head.n_steps
        bias = blocks[0].layer[0].SelfAttention.compute_bias(length, length)
        return T5State(
            normalize=normalize,
            layers=[Layer(block, hidden_RD, len(prompts)) for block in blocks],
            mask=None if mask_BT is None else mask_BT[:, None, None, :],
            bias=bias[0].permute(1, 2, 0).contiguous(),
        )

    def step(self, state: T5State, parents_BW: Tensor | None, codes_BW: Tensor | None) -> StepScores:
        """Feed the last code of every beam; see the protocol."""
        level, batch = state.level, len(state.layers[0].keys)
        if codes_BW is None:
            start = self._model.config.decoder_start_token_id
            tokens = torch.full((batch, 1), start, dtype=torch.int64, device=self.device)
        else:
            tokens = self._head.tokens(level - 1, codes_BW)
        state.suffix.begin(parents_BW)
        x = self._model.shared(tokens).flatten(0, 1)
        for layer in state.layers:
            x = _self_attention(state, layer, x)
            x = _cross_attention(layer, x, batch, state.mask)
            x = layer.feed_forward(x)
        x = rms_norm(self._model.decoder.final_layer_norm, x)
        state.level += 1
        return self._head.scores(x.view(*tokens.shape, x.shape[-1]), level, state.normalize)


def check_encoder_decoder(model: Any) -> None:
    """Raise ConfigError for a model that the step would not compute as its own forward does (internal)."""
    if model.config.model_type not in ("t5", "mt5"):
        raise ConfigError(f"model: expected T5, got {model.config.model_type!r}")
    if model.dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"dtype: expected float32 or bfloat16 for T5, got {model.dtype}")


def _self_attention(state: T5State, layer: Layer, x_RD: Tensor) -> Tensor:
    """``x + attention(norm(x))`` over the beam's own tokens."""
    normed = rms_norm(layer.norm, x_RD)
    query, new_keys, new_values = (each(normed) for each in layer.own)
    keys, values = state.suffix.with_new(new_keys, new_values, layer.n_heads)
    if state.level == 0:
        # one key: its weight is 1
        return layer.own_out.added_to(x_RD, new_values)
    query = query.view(keys.shape[1:])
    score = (query * keys).sum(-1, dtype=torch.float32).add_(state.bias[state.level, : state.level + 1, None])
    mixed = (score.softmax(0).to(values.dtype)[..., None] * values).sum(0)
    return layer.own_out.added_to(x_RD, mixed.flatten(1))


def _cross_attention(layer: Layer, x_RD: Tensor, batch: int, mask: Tensor | None) -> Tensor:
    """``x + attention(norm(x))`` over the prompt, the beams of a user being the queries."""
    query = heads(layer.query(rms_norm(layer.cross_norm, x_RD)), batch, layer.n_heads)
    mixed = F.scaled_dot_product_attention(query, layer.keys, layer.values, attn_mask=mask, scale=1.0)
    return layer.cross_out.added_to(x_RD, mixed.transpose(1, 2).flatten(2).flatten(0, 1))
