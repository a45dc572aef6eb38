"""The encoder of a T5, from its Hugging Face modules and without their overhead.

Axes: B batch, T tokens, H heads, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.models.suffix import rms_norm


def encode(encoder: Any, tokens_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Last hidden states ``[B, T, D]`` of a Hugging Face T5 encoder in evaluation mode (internal).

    mask_BT: bool, False = padding; None = no padding. States at padding mean nothing.
    """
    x = encoder.embed_tokens(tokens_BT)
    length = tokens_BT.shape[1]
    bias = encoder.block[0].layer[0].SelfAttention.compute_bias(length, length)
    if mask_BT is not None:
        bias = bias.masked_fill(~mask_BT[:, None, None, :], torch.finfo(bias.dtype).min)
    for block in encoder.block:
        layer = block.layer[0]
        attention = layer.SelfAttention
        normed = rms_norm(layer.layer_norm, x)
        query, keys, values = (
            heads(each(normed), attention.n_heads) for each in (attention.q, attention.k, attention.v)
        )
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias.to(query.dtype), scale=1.0)
        x = x + attention.o(mixed.transpose(1, 2).flatten(2))
        x = x + feed_forward(block.layer[-1], x)
    return rms_norm(encoder.final_layer_norm, x)


def heads(x_BTD: Tensor, n_heads: int) -> Tensor:
    """``[B, T, H·E]`` → ``[B, H, T, E]``, a view."""
    return x_BTD.view(*x_BTD.shape[:2], n_heads, -1).transpose(1, 2)


def feed_forward(layer: Any, x: Tensor) -> Tensor:
    """What a T5 feed-forward layer adds to the residual stream; ReLU works in place."""
    dense = layer.DenseReluDense
    normed = rms_norm(layer.layer_norm, x)
    if isinstance(dense.act, nn.ReLU) and hasattr(dense, "wi") and dense.wo.weight.dtype == x.dtype:
        return dense.wo(F.relu_(dense.wi(normed)))  # type: ignore[no-any-return]
    return dense(normed)  # type: ignore[no-any-return]
