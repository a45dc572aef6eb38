"""Cross-entropy over codes with the softmax named: the vocabulary, the level, or the children in the catalog.

Axes: N items, L levels, K codes of a level, S symbols of a level (its codes, and the end when identifiers are
ragged), P positions that carry a loss, C children of a node, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import Normalize
from genrec.item_tokenizers.codes import ItemCodes
from genrec.vocab.token_map import TokenMap


def level_symbols(token_map: TokenMap) -> list[Tensor]:
    """Token ids of the symbols of every level, int64 ``[S]`` each: what a search scores at that level (internal).

    Ragged identifiers may end at every level, and must after the last: one more level of ``</s>`` alone.
    """
    end = [token_map.eos_id] if token_map.ragged else []
    levels = zip(token_map.level_offset, token_map.level_sizes, strict=True)
    symbols = [torch.tensor([*range(first, first + size), *end]) for first, size in levels]
    return [*symbols, torch.tensor(end)] if end else symbols


def parent_nodes(index: CatalogIndex) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The index node that precedes each symbol of each item, int64 ``[N, depth]`` (internal)."""
    nodes = np.zeros((index.n_items, index.depth), dtype=np.int64)
    nodes[:, 1:] = index.nodes_of(index.rank_of)[:, :-1]
    return nodes


class CodeLoss(nn.Module):
    """Sum over positions of the cross-entropy of the next symbol (internal).

        for each position p of level l with hidden state h and target symbol y:
            support = vocab: all V tokens | level: the S symbols of l | children: symbols below its node
            q       = (1 - eps) [. = y] + eps / |support|
            loss   += - sum over s in support of q(s) log softmax over the support of (h . W_s)

    ``level`` and ``children`` compute only the rows of W that belong to the level. Positions arrive sorted by
    level, so no data-dependent shape is asked of the device.
    """

    def __init__(
        self,
        token_map: TokenMap,
        softmax: Normalize,
        label_smoothing: float = 0.0,
        codes: ItemCodes | None = None,
    ) -> None:
        """``codes`` (all items) is needed for ``children``."""
        super().__init__()
        self.softmax, self.eps = softmax, label_smoothing
        self.symbols = level_symbols(token_map)
        for level, symbols in enumerate(self.symbols):
            self.register_buffer(f"symbols_{level}", symbols, persistent=False)
        if softmax == "children":
            assert codes is not None
            self._add_children(CatalogIndex.build(codes))

    def _add_children(self, index: CatalogIndex) -> None:
        """Edges of the index as buffers; the children of node n are ``edges[first[n]:first[n + 1]]``."""
        self.branching = index.branching
        for level in range(index.depth):
            first, edges = (np.asarray(a[level], dtype=np.int64) for a in (index.pointers, index.tokens))
            self.register_buffer(f"first_{level}", torch.from_numpy(first), persistent=False)
            self.register_buffer(f"edges_{level}", torch.from_numpy(edges), persistent=False)

    def _children(self, level: int, node_P: Tensor) -> Tensor:
        """Symbols below the nodes, int64 ``[P, C]``, -1 = none; C is the same for every batch."""
        first = cast(Tensor, getattr(self, f"first_{level}"))
        edges = cast(Tensor, getattr(self, f"edges_{level}"))
        place_C = torch.arange(self.branching[level], device=node_P.device)
        at_PC = first[node_P][:, None] + place_C
        real_PC = at_PC < first[node_P + 1][:, None]
        return torch.where(real_PC, edges[at_PC.clamp(max=len(edges) - 1)], -1)

    def forward(
        self,
        hidden_PD: Tensor,
        weight_VD: Tensor,
        target_P: Tensor,
        node_P: Tensor,
        level_counts: Sequence[int],
    ) -> Tensor:
        """The summed loss, float32 scalar.

        hidden_PD: states that are multiplied by the output layer (T5's scaling already applied), sorted by
        level. target_P: int64 symbols, i.e. codes, the level's size for the end of a ragged identifier.
        node_P: int64 index node before the symbol (used by ``children``). level_counts: positions per level.
        """
        total = hidden_PD.new_zeros((), dtype=torch.float32)
        start = 0
        for level, count in enumerate(level_counts):
            part = slice(start, start + count)
            start += count
            if count:
                total = total + self._level(level, hidden_PD[part], weight_VD, target_P[part], node_P[part])
        return total

    def _level(self, level: int, hidden_PD: Tensor, weight_VD: Tensor, target_P: Tensor, node_P: Tensor) -> Tensor:
        symbols_S = cast(Tensor, getattr(self, f"symbols_{level}"))
        if self.softmax == "vocab":
            logits = hidden_PD @ weight_VD.T
            return F.cross_entropy(logits.float(), symbols_S[target_P], reduction="sum", label_smoothing=self.eps)
        logits_PS = (hidden_PD @ weight_VD[symbols_S].T).float()
        if self.softmax == "level":
            return F.cross_entropy(logits_PS, target_P, reduction="sum", label_smoothing=self.eps)
        return _masked_cross_entropy(logits_PS, self._children(level, node_P), target_P, self.eps)


def _masked_cross_entropy(logits_PS: Tensor, child_PC: Tensor, target_P: Tensor, eps: float) -> Tensor:
    """Summed cross-entropy over the columns ``child_PC`` (-1 = none) of each row, smoothed over them."""
    real_PC = child_PC >= 0
    picked_PC = logits_PS.gather(1, child_PC.clamp(min=0))
    norm_P = picked_PC.masked_fill(~real_PC, float("-inf")).logsumexp(1)
    loss_P = norm_P - (1 - eps) * logits_PS.gather(1, target_P[:, None])[:, 0]
    if eps:
        mean_P = picked_PC.masked_fill(~real_PC, 0.0).sum(1) / real_PC.sum(1)
        loss_P = loss_P - eps * mean_P
    return loss_P.sum()
