"""Decoder-only models behind the search: the prompt once per user, beams as queries of its keys.

Axes: B batch, W beams, R = B·W rows, T prompt tokens, A tokens of a beam, D width, G key/value heads, Q query heads
of each of them, E width of a head, S symbols of a level.
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
from genrec.models.products import rms_norm
from genrec.models.suffix import Suffix
from genrec.vocab.token_map import TokenMap

MODEL_TYPES = ("llama", "qwen2", "qwen3")


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines of positions in the type of the model, ``[B, T, 1, E]``."""

    cos: Tensor
    sin: Tensor

    def at(self, first: int, last: int) -> Rotary:
        """Those of the columns ``first .. last - 1``."""
        return Rotary(self.cos[:, first:last], self.sin[:, first:last])

    def __call__(self, x_BTHE: Tensor) -> Tensor:
        """Heads turned by the angles of their positions."""
        one, two = x_BTHE.chunk(2, -1)
        return x_BTHE * self.cos + torch.cat([-two, one], -1) * self.sin


@dataclass
class DecoderState:
    """What one search knows: the prompt's keys and values once per row, and those of every step's beams."""

    normalize: Normalize
    hidden: Tensor  # [B, W, D] behind the last tokens
    prompt: list[tuple[Tensor, Tensor]]  # per layer keys and values [B, G, T, E]
    mask: Tensor | None  # float [B, 1, 1, T], 0 = attend, else -inf
    rotary: Rotary  # of the tokens behind the prompt
    suffix: Suffix = field(default_factory=Suffix)
    level: int = 0


class DecoderScorer:
    """A Llama, Qwen2 or Qwen3 causal language model as a :class:`~genrec.decoding.scorer.Scorer`.

    The Hugging Face modules hold the weights, adapters included; the loop is ours. The prompt runs once per user,
    and of its last layer only what is asked for later: all keys and values, and the last token's state. The
    prompt's keys and values are stored once per user, and the user's beams (with all query heads of a key head) are
    the queries of one matrix product with them; ``generate`` keeps a copy of the cache per beam. A beam's own keys and
    values, at most one per code, are gathered by its ancestors, and one softmax covers both parts. The work of a
    step is W · (T + A): linear in the beams. Log-probabilities equal those of the model's forward.

    Float32, bfloat16 and float16. Raises ConfigError for other models, sliding-window layers, models spread over
    devices; FingerprintMismatch for another vocabulary. Stability: stable.
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
        decoder = self._model.base_model
        x = decoder.embed_tokens(torch.from_numpy(prompts.tokens_BT).to(self.device))
        real_BT = torch.from_numpy(prompts.mask_BT).to(self.device)
        length = real_BT.shape[1]
        rotary = self._rotary(x, real_BT)
        seen = None if prompts.mask_BT.all() else _causal(real_BT)
        state = DecoderState(
            normalize=normalize,
            hidden=x,
            prompt=[],
            mask=None if seen is None else torch.zeros(seen[:, :, -1:].shape, device=self.device).masked_fill_(
                ~seen[:, :, -1:], float("-inf")
            ),
            rotary=rotary.at(length, rotary.cos.shape[1]),
        )  # fmt: skip
        at_prompt, at_last = rotary.at(0, length), rotary.at(length - 1, length)
        for layer in decoder.layers[:-1]:
            normed = rms_norm(layer.input_layernorm, x)
            state.prompt.append(_keys_values(layer.self_attn, normed, at_prompt))
            x = x + _prompt_attention(layer.self_attn, normed, at_prompt, state.prompt[-1], seen)
            x = x + layer.mlp(rms_norm(layer.post_attention_layernorm, x))
        layer = decoder.layers[-1]
        normed = rms_norm(layer.input_layernorm, x)
        state.prompt.append(_keys_values(layer.self_attn, normed, at_prompt))
        x = x[:, -1:] + _beam_attention(layer.self_attn, normed[:, -1:], at_last, state.prompt[-1], state.mask, None)
        x = x + layer.mlp(rms_norm(layer.post_attention_layernorm, x))
        state.hidden = rms_norm(decoder.norm, x)
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
        x = decoder.embed_tokens(self._head.tokens(state.level - 1, codes_BW))
        rotary = state.rotary.at(state.level - 1, state.level)
        state.suffix.begin(parents_BW)
        for layer, prompt in zip(decoder.layers, state.prompt, strict=True):
            normed = rms_norm(layer.input_layernorm, x)
            keys, values = _keys_values(layer.self_attn, normed, rotary)
            new_keys, new_values = (each.transpose(1, 2).flatten(2).flatten(0, 1) for each in (keys, values))
            own = state.suffix.with_new(new_keys, new_values, keys.shape[1])
            x = x + _beam_attention(layer.self_attn, normed, rotary, prompt, state.mask, own)
            x = x + layer.mlp(rms_norm(layer.post_attention_layernorm, x))
        state.hidden = rms_norm(decoder.norm, x)

    def _rotary(self, x_BTD: Tensor, real_BT: Tensor) -> Rotary:
        """Of the prompt's tokens and of every token that can follow, by the model's own module."""
        position_BT = (real_BT.long().cumsum(1) - 1).clamp_(min=0)
        behind = torch.arange(1, self._head.n_steps, device=self.device)
        position_BT = torch.cat([position_BT, position_BT[:, -1:] + behind], 1)
        cos, sin = self._model.base_model.rotary_emb(x_BTD, position_BT)
        return Rotary(cos[:, :, None], sin[:, :, None])


def check_decoder(model: Any) -> None:
    """Raise ConfigError for a model that the loop would not compute as its own forward does (internal)."""
    config = model.config
    if config.model_type not in MODEL_TYPES:
        raise ConfigError(f"model: expected one of {', '.join(MODEL_TYPES)}, got {config.model_type!r}")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ConfigError(f"model: expected full attention in every layer, got {sorted(kinds)}")
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


def _heads(attention: Any, projection: Any, norm: str, x_BTD: Tensor) -> Tensor:
    """``[B, T, H, E]``: a projection by heads, normalised where the model does that."""
    found = projection(x_BTD).unflatten(-1, (-1, attention.head_dim))
    layer = getattr(attention, norm, None)
    return found if layer is None else rms_norm(layer, found)


def _keys_values(attention: Any, x_BTD: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """Keys and values of tokens, ``[B, G, T, E]``."""
    keys = rotary(_heads(attention, attention.k_proj, "k_norm", x_BTD))
    values = attention.v_proj(x_BTD).unflatten(-1, (-1, attention.head_dim))
    return keys.transpose(1, 2), values.transpose(1, 2)


def _prompt_attention(
    attention: Any, x_BTD: Tensor, rotary: Rotary, known: tuple[Tensor, Tensor], seen: Tensor | None
) -> Tensor:
    query = rotary(_heads(attention, attention.q_proj, "q_norm", x_BTD)).transpose(1, 2)
    grouped = query.shape[1] != known[0].shape[1]
    mixed = F.scaled_dot_product_attention(
        query, *known, attn_mask=seen, is_causal=seen is None, scale=attention.scaling, enable_gqa=grouped
    )
    return attention.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _beam_attention(
    attention: Any,
    x_BWD: Tensor,
    rotary: Rotary,
    prompt: tuple[Tensor, Tensor],
    mask: Tensor | None,
    own: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Attention of beams over the prompt of their row and their own tokens (``own``: ``[A, R, G, E]`` each).

    softmax([q · K_prompt, q · K_own]) · [V_prompt, V_own], where K_prompt has no axis of beams.
    """
    batch, beams, _ = x_BWD.shape
    keys, values = prompt
    n_groups, n_tokens = keys.shape[1:3]
    query = rotary(_heads(attention, attention.q_proj, "q_norm", x_BWD)) * attention.scaling
    query_BWGQE = query.unflatten(2, (n_groups, -1))
    query_BGXE = query_BWGQE.transpose(1, 2).flatten(2, 3)  # X = W·Q
    score_BGXT = (query_BGXE @ keys.transpose(2, 3)).float()
    if mask is not None:
        score_BGXT = score_BGXT + mask
    if own is not None:
        own_keys, own_values = (
            each.view(len(each), batch, beams, *each.shape[2:])[:, :, :, :, None] for each in own
        )  # [A, B, W, G, 1, E]
        score_ABWGQ = (query_BWGQE * own_keys).sum(-1, dtype=torch.float32)
        score_BGXT = torch.cat([score_BGXT, score_ABWGQ.permute(1, 3, 2, 4, 0).flatten(2, 3)], -1)
    weight_BGXT = score_BGXT.softmax(-1).to(values.dtype)
    mixed = (weight_BGXT[..., :n_tokens] @ values).unflatten(2, (beams, -1)).transpose(1, 2)  # [B, W, G, Q, E]
    if own is not None:
        weight = weight_BGXT[..., n_tokens:].unflatten(2, (beams, -1)).permute(4, 0, 2, 1, 3)
        mixed = mixed + (weight[..., None] * own_values).sum(0)
    return attention.o_proj(mixed.flatten(2))  # type: ignore[no-any-return]
