"""Decoder-only models behind the search: the prompt once per user, beams as queries of its keys.

Axes: B batch, W beams, R = B·W rows, T prompt tokens, A tokens of a beam, D width, G key/value heads, Q query heads
of each of them, E width of a head, S symbols of a level.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import Prompts, StepScores
from genrec.errors import ConfigError
from genrec.models.decoder_layer import DecoderLayer, KeysValues, Rotary
from genrec.models.head import OutputHead
from genrec.models.products import rms_norm
from genrec.models.suffix import Suffix
from genrec.vocab.token_map import TokenMap

MODEL_TYPES = ("llama", "qwen2", "qwen3")


@dataclass
class DecoderState:
    """What one search knows: the prompt's keys and values once per row, and those of every step's beams."""

    normalize: Normalize
    layers: list[DecoderLayer]
    mask: Tensor | None  # float [B, 1, 1, T], 0 = attend, else -inf
    rotary: Rotary  # of the prompt and the tokens behind it
    n_tokens: int  # T
    prompt: list[KeysValues] = field(default_factory=list)  # per layer keys and values [B, G, T, E]
    suffix: Suffix = field(default_factory=Suffix)
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))  # [B, W, D] behind the last tokens
    level: int = 0


class DecoderScorer:
    """A Llama, Qwen2 or Qwen3 causal language model as a :class:`~genrec.decoding.scorer.Scorer`.

    The Hugging Face modules hold the weights, adapters included; the loop is ours. The prompt runs once per user,
    and of its last layer only what is asked for later: all keys and values, and the last token's state. The
    prompt's keys and values are stored once per user, and the user's beams (with all query heads of a key head) are
    the queries of one matrix product with them; ``generate`` keeps a copy of the cache per beam. A beam's own keys and
    values, at most one per code, are gathered by its ancestors, and one softmax covers both parts. The work of a
    step is W · (T + A): linear in the beams. Log-probabilities equal those of the model's forward.

    Float32, bfloat16 and float16. Raises ConfigError for other models, sliding-window layers, rotary positions that
    follow the length of the prompt, models spread over devices; FingerprintMismatch for another vocabulary.
    Stability: stable.
    """

    def __init__(self, model: PreTrainedModel, token_map: TokenMap) -> None:
        base = getattr(model, "get_base_model", lambda: model)()
        check_decoder(base)
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
        decoder, batch = self._model.base_model, len(prompts)
        embedded = decoder.embed_tokens(torch.from_numpy(prompts.tokens_BT).to(self.device))
        real_BT = torch.from_numpy(prompts.mask_BT).to(self.device)
        n_tokens, rotary = real_BT.shape[1], self._rotary(embedded, real_BT)
        seen = None if prompts.mask_BT.all() else _causal(real_BT)
        mask = None if seen is None else torch.where(seen[:, :, -1:], 0.0, float("-inf"))
        state = DecoderState(normalize, [DecoderLayer(each) for each in decoder.layers], mask, rotary, n_tokens)
        x, at_prompt = embedded.flatten(0, 1), rotary.rows(0, n_tokens)
        for layer in state.layers:
            normed = rms_norm(layer.norm, x)
            keys, values = (
                each.view(batch, n_tokens, *each.shape[1:]).transpose(1, 2).contiguous()
                for each in layer.keys_values(normed, at_prompt)
            )
            state.prompt.append((keys, values))
            if layer is state.layers[-1]:  # of which only the last token is asked for
                x, normed = (each.view(*embedded.shape)[:, -1].contiguous() for each in (x, normed))
                query = layer.queries(normed, rotary.rows(n_tokens - 1, n_tokens))
                mixed = layer.beam_attention(query, state.prompt[-1], mask, None)
            else:
                mixed = layer.prompt_attention(layer.queries(normed, at_prompt), state.prompt[-1], seen)
            x = layer.feed_forward(layer.out.added_to(x, mixed))
        state.hidden = rms_norm(decoder.norm, x)[:, None]
        return state

    def step(self, state: DecoderState, parents_BW: Tensor | None, codes_BW: Tensor | None) -> StepScores:
        """Feed the last code of every beam; see the protocol."""
        if parents_BW is not None and codes_BW is not None:
            self._feed(state, parents_BW, codes_BW)
        scores = self._head.scores(state.hidden, state.level, state.normalize)
        state.level += 1
        return scores

    def _feed(self, state: DecoderState, parents_BW: Tensor, codes_BW: Tensor) -> None:
        decoder = self._model.base_model
        x = decoder.embed_tokens(self._head.tokens(state.level - 1, codes_BW)).flatten(0, 1)
        at = state.n_tokens + state.level - 1
        rotary = state.rotary.rows(at, at + 1, codes_BW.shape[1])
        state.suffix.begin(parents_BW)
        for layer, prompt in zip(state.layers, state.prompt, strict=True):
            normed = rms_norm(layer.norm, x)
            keys, values = layer.keys_values(normed, rotary)
            own = state.suffix.with_new(keys.flatten(1), values.flatten(1), keys.shape[1])
            mixed = layer.beam_attention(layer.queries(normed, rotary), prompt, state.mask, own)
            x = layer.feed_forward(layer.out.added_to(x, mixed))
        state.hidden = rms_norm(decoder.norm, x).view(*codes_BW.shape, x.shape[1])

    def _rotary(self, x_BTD: Tensor, real_BT: Tensor) -> Rotary:
        """Of the prompt's tokens and of every token that can follow, by the model's own module."""
        position_BT = (real_BT.long().cumsum(1) - 1).clamp_(min=0)
        behind = torch.arange(1, self._head.n_steps, device=self.device)
        position_BT = torch.cat([position_BT, position_BT[:, -1:] + behind], 1)
        cos, sin = self._model.base_model.rotary_emb(x_BTD, position_BT)
        return Rotary.of(cos, sin)


def check_decoder(model: Any) -> None:
    """Raise ConfigError for a model that the loop would not compute as its own forward does (internal)."""
    config = model.config
    if config.model_type not in MODEL_TYPES:
        raise ConfigError(f"model: expected one of {', '.join(MODEL_TYPES)}, got {config.model_type!r}")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ConfigError(f"model: expected full attention in every layer, got {sorted(kinds)}")
    if (rope := (getattr(config, "rope_parameters", None) or {}).get("rope_type")) in ("dynamic", "longrope"):
        raise ConfigError(
            f"model: rotary positions of type {rope!r} are not supported: the angles of all tokens follow the longest "
            "prompt of the batch",
            hint="types that depend on the position alone are: default, linear, yarn, llama3",
        )
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None) is not None:
            raise ConfigError(f"model: {name} is not supported, got {getattr(config, name)}")
    spread = set((getattr(model, "hf_device_map", None) or {}).values())
    if len(spread) > 1:
        raise ConfigError(
            f"model: expected all layers on one device, got {sorted(map(str, spread))}",
            hint="load the model without device_map, or with one device",
        )


def _causal(real_BT: Tensor) -> Tensor:
    """Which tokens each token sees, bool ``[B, 1, T, T]``; padding sees itself, so that nothing is NaN."""
    n_tokens = real_BT.shape[1]
    square = torch.ones((n_tokens, n_tokens), dtype=torch.bool, device=real_BT.device)
    itself = torch.eye(n_tokens, dtype=torch.bool, device=real_BT.device)
    return (square.tril() & real_BT[:, None, None, :]) | itself
