"""The encoder of a T5, from its Hugging Face modules and without their overhead.

Axes: B batch, T tokens, R rows (B·T), H heads, D width, E width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.models.products import Product, rms_norm


def encode(encoder: Any, tokens_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Last hidden states ``[B·T, D]`` of a Hugging Face T5 encoder in evaluation mode (internal).

    mask_BT: bool, False = padding; None = no padding. States at padding mean nothing.
    """
    batch, length = tokens_BT.shape
    x = encoder.embed_tokens(tokens_BT).flatten(0, 1)
    bias = encoder.block[0].layer[0].SelfAttention.compute_bias(length, length)
    if mask_BT is not None:
        bias = bias.masked_fill(~mask_BT[:, None, None, :], torch.finfo(bias.dtype).min)
    for block in encoder.block:
        layer = block.layer[0]
        attention = layer.SelfAttention
        normed = rms_norm(layer.layer_norm, x)
        parts = (Product(each)(normed) for each in (attention.q, attention.k, attention.v))
        query, keys, values = (heads(each, batch, attention.n_heads) for each in parts)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=1.0)
        x = Product(attention.o).added_to(x, mixed.transpose(1, 2).flatten(2).flatten(0, 1))
        x = FeedForward(block.layer[-1])(x)
    return rms_norm(encoder.final_layer_norm, x)


def heads(x_RI: Tensor, batch: int, n_heads: int) -> Tensor:
    """``[B·T, H·E]`` → ``[B, H, T, E]``, a view."""
    return x_RI.view(batch, len(x_RI) // max(batch, 1), n_heads, x_RI.shape[1] // n_heads).transpose(1, 2)


class FeedForward:
    """A T5 feed-forward layer and its residual sum, in place where it can be (internal)."""

    def __init__(self, layer: Any) -> None:
        dense = layer.DenseReluDense
        self._norm, self._dense = layer.layer_norm, dense
        # a gated layer has no wi; one that keeps some weights in float32 converts
        self._lean = (
            hasattr(dense, "wi") and isinstance(dense.act, nn.ReLU) and dense.wi.weight.dtype == dense.wo.weight.dtype
        )
        if self._lean:
            self._wide, self._narrow = Product(dense.wi), Product(dense.wo)

    def __call__(self, x_RD: Tensor) -> Tensor:
        """``x + feed_forward(norm(x))``."""
        normed = rms_norm(self._norm, x_RD)
        if self._lean:
            return self._narrow.added_to(x_RD, F.relu_(self._wide(normed)))
        return x_RD + self._dense(normed)  # type: ignore[no-any-return]
