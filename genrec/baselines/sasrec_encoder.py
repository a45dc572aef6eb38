"""The network of SASRec and its loss. Internal: use :mod:`genrec.baselines.sasrec`.

Axes: B rows of a batch, T items of a row, P positions that carry a loss, N items, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.baselines.softmax import linear_cross_entropy
from genrec.data.histories import Histories

if TYPE_CHECKING:
    from genrec.baselines.sasrec import SasRecSettings


class _Block(nn.Module):
    """Pre-norm causal self-attention and a GELU feed-forward, each with dropout and a residual."""

    def __init__(self, settings: SasRecSettings) -> None:
        super().__init__()
        dim, inner = settings.dim, settings.inner or 4 * settings.dim
        self.n_heads, self.dropout = settings.n_heads, settings.dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        n_rows, n_items, dim = x_BTD.shape
        heads = self.qkv(self.norm1(x_BTD)).view(n_rows, n_items, 3, self.n_heads, dim // self.n_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=drop, is_causal=True)
        mixed_BTD = mixed.transpose(1, 2).reshape(n_rows, n_items, dim)
        x_BTD = x_BTD + F.dropout(self.out(mixed_BTD), drop)
        hidden = F.dropout(F.gelu(self.up(self.norm2(x_BTD))), drop)
        return x_BTD + F.dropout(self.down(hidden), drop)


class SasRecEncoder(nn.Module):
    """Right-padded histories to one vector per position (internal).

    Position t sees items 0..t only, so padding on the right changes nothing and no mask is needed. The
    output layer is the item table itself: ``score(i) = h_t . E_i``.
    """

    def __init__(self, n_items: int, settings: SasRecSettings) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items, settings.dim)
        self.positions = nn.Embedding(settings.max_items, settings.dim)
        self.blocks = nn.ModuleList(_Block(settings) for _ in range(settings.n_layers))
        self.norm = nn.LayerNorm(settings.dim)
        self.dropout = settings.dropout
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, items_BT: Tensor) -> Tensor:
        """items_BT: int64, padding is any valid item number on the right. Returns float ``[B, T, D]``."""
        x_BTD = self.items(items_BT) * self.items.embedding_dim**0.5
        x_BTD = x_BTD + self.positions.weight[: items_BT.shape[1]]
        x_BTD = F.dropout(x_BTD, self.dropout if self.training else 0.0)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return cast(Tensor, self.norm(x_BTD))


def padded(histories: Histories, rows: npt.NDArray[np.int64]) -> Tensor:
    """Rows of ``histories`` as int64 ``[B, T]``, padded on the right with item 0 (never looked at)."""
    return torch.from_numpy(histories.take(rows).padded(pad=0, side="right").astype(np.int64))


def batch_loss(encoder: SasRecEncoder, windows: Histories, rows: npt.NDArray[np.int64], eps: float) -> Tensor:
    """Mean cross-entropy over the positions of ``rows`` that have a next item."""
    device = encoder.items.weight.device
    items_BT = padded(windows, rows)
    lengths_B = torch.from_numpy(windows.lengths[rows])
    exists_BT = torch.arange(items_BT.shape[1] - 1) < (lengths_B[:, None] - 1)
    # found on the CPU and copied without waiting: indexing by a mask that is on the GPU would wait for it
    row_P, place_P = (index.to(device, non_blocking=True) for index in exists_BT.nonzero(as_tuple=True))
    target_P = items_BT[:, 1:][exists_BT].to(device, non_blocking=True)
    hidden_PD = encoder(items_BT[:, :-1].to(device, non_blocking=True))[row_P, place_P]
    return linear_cross_entropy(hidden_PD, encoder.items.weight, target_P, label_smoothing=eps)
