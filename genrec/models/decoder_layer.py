"""A layer of a decoder-only model, its weights made ready for a search and its attention written for beams.

Axes: B batch, W beams, T prompt tokens, R rows (B·T or B·W), A tokens of a beam, D width, G key/value heads, Q query
heads of each of them, H = G·Q, X = W·Q, E width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.models.products import Product, rms_norm

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines of positions in the type of the model; the first half of the sines has the other sign.

    ``[B, T, 1, E]``, or ``[R, 1, E]`` of the rows that :meth:`rows` gives.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, cos_BTE: Tensor, sin_BTE: Tensor) -> Rotary:
        """From what a Hugging Face module returns."""
        one, two = sin_BTE.chunk(2, -1)
        return cls(cos_BTE[:, :, None], torch.cat([-one, two], -1)[:, :, None])

    def rows(self, first: int, last: int, beams: int = 1) -> Rotary:
        """Of the columns ``first .. last - 1``, or of one column for every beam."""
        some = (
            each[:, first:last].expand(-1, beams if last - first == 1 else -1, -1, -1) for each in vars(self).values()
        )
        return Rotary(*(each.flatten(0, 1) for each in some))

    def turn(self, x_RHE: Tensor) -> Tensor:
        """Heads turned by the angles of their positions."""
        return (x_RHE * self.cos).addcmul_(x_RHE.roll(x_RHE.shape[-1] // 2, -1), self.sin)


class DecoderLayer:
    """One layer of a Llama, Qwen2 or Qwen3 on rows ``[R, D]``; residual sums are made in place (internal)."""

    def __init__(self, layer: Any) -> None:
        attention = layer.self_attn
        self.norm, self.mlp_norm, self._mlp = layer.input_layernorm, layer.post_attention_layernorm, layer.mlp
        self._attention, self._scaling, self._width = attention, attention.scaling, attention.head_dim
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        self._query, self._key, self._value, self.out = (Product(each) for each in projections)
        # the layer's own parts: a wrapper around it (an adapter) only passes them on
        parts = self._mlp._modules
        self._gated = {"gate_proj", "up_proj", "down_proj"} <= parts.keys() and isinstance(self._mlp.act_fn, nn.SiLU)
        if self._gated:
            self._gate, self._up, self._down = (Product(parts[name]) for name in ("gate_proj", "up_proj", "down_proj"))

    def queries(self, normed_RD: Tensor, rotary: Rotary) -> Tensor:
        """Queries ``[R, H, E]``."""
        return rotary.turn(self._heads(self._query(normed_RD), "q_norm"))

    def keys_values(self, normed_RD: Tensor, rotary: Rotary) -> KeysValues:
        """Keys and values, ``[R, G, E]`` each."""
        keys = rotary.turn(self._heads(self._key(normed_RD), "k_norm"))
        return keys, self._heads(self._value(normed_RD))

    def prompt_attention(self, query_RHE: Tensor, known: KeysValues, seen: Tensor | None) -> Tensor:
        """Of all tokens of the prompt over those before them, ``[R, H·E]``; known: ``[B, G, T, E]`` each."""
        query = query_RHE.view(len(known[0]), known[0].shape[2], *query_RHE.shape[1:]).transpose(1, 2)
        grouped = query.shape[1] != known[0].shape[1]
        mixed = F.scaled_dot_product_attention(
            query, *known, attn_mask=seen, is_causal=seen is None, scale=self._scaling, enable_gqa=grouped
        )
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1)

    def beam_attention(
        self, query_RHE: Tensor, prompt: KeysValues, mask: Tensor | None, own: KeysValues | None
    ) -> Tensor:
        """Of beams over the prompt of their row and their own tokens, ``[R, H·E]``.

        softmax([q · K_prompt, q · K_own]) · [V_prompt, V_own], where K_prompt has no axis of beams.

        prompt: ``[B, G, T, E]`` each; mask: float ``[B, 1, 1, T]``; own: ``[A, R, G, E]`` each.
        """
        keys, values = prompt
        batch, n_groups, n_tokens, width = keys.shape
        n_rows, n_heads = query_RHE.shape[:2]
        beams, n_each = n_rows // max(batch, 1), n_heads // n_groups
        query_BWGQE = (query_RHE * self._scaling).view(batch, beams, n_groups, n_each, width)
        query_BGXE = query_BWGQE.transpose(1, 2).reshape(batch, n_groups, beams * n_each, width)
        score_BGXT = (query_BGXE @ keys.transpose(2, 3)).float()
        if mask is not None:
            score_BGXT = score_BGXT + mask
        if own is not None:
            own_keys, own_values = (each[:, :, :, None] for each in own)  # [A, R, G, 1, E]
            score_ARGQ = (query_BWGQE.flatten(0, 1) * own_keys).sum(-1, dtype=torch.float32)
            score_BGXA = (
                score_ARGQ.view(len(own_keys), batch, beams, n_groups, n_each).permute(1, 3, 2, 4, 0).flatten(2, 3)
            )
            score_BGXT = torch.cat([score_BGXT, score_BGXA], -1)
        weight_BGXT = score_BGXT.softmax(-1).to(values.dtype)
        mixed_BGXE = weight_BGXT[..., :n_tokens] @ values
        mixed_RGQE: Tensor = mixed_BGXE.unflatten(2, (beams, n_each)).transpose(1, 2).flatten(0, 1)
        if own is not None:
            weight = weight_BGXT[..., n_tokens:].unflatten(2, (beams, n_each)).permute(4, 0, 2, 1, 3).flatten(1, 2)
            mixed_RGQE = mixed_RGQE + (weight[..., None] * own_values).sum(0)
        return mixed_RGQE.flatten(1)

    def feed_forward(self, x_RD: Tensor) -> Tensor:
        """``x + feed_forward(norm(x))``."""
        normed = rms_norm(self.mlp_norm, x_RD)
        if not self._gated:
            return x_RD + self._mlp(normed)  # type: ignore[no-any-return]
        return self._down.added_to(x_RD, F.silu(self._gate(normed), inplace=True).mul_(self._up(normed)))

    def _heads(self, x_RI: Tensor, norm: str = "") -> Tensor:
        """``[R, H, E]``, normalised where the model does that."""
        found = x_RI.view(len(x_RI), x_RI.shape[1] // self._width, self._width)
        layer = getattr(self._attention, norm, None) if norm else None
        return found if layer is None else rms_norm(layer, found)
