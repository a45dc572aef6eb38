"""Losses of the RQ-VAE: reconstruction and codebooks, and the two regularisers of LETTER.

LETTER: Wang et al. 2024, 2405.07314. Axes: N items, B batch, L levels, K codes of a level, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from genrec.item_tokenizers.quantizers.balanced import balanced_kmeans


class _SquaredError(torch.autograd.Function):
    """The squares of autograd in fewer passes over ``[B, width]``, with the same bits."""

    @staticmethod
    def forward(ctx: Any, found_BD: torch.Tensor, target_BD: torch.Tensor) -> torch.Tensor:
        gap_BD = found_BD - target_BD
        ctx.save_for_backward(gap_BD)
        return gap_BD.square().sum(dim=1).mean()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gap_BD,) = ctx.saved_tensors
        return gap_BD * (2 * grads[0] / len(gap_BD)), None


def squared_error(found_BD: torch.Tensor, target_BD: torch.Tensor) -> torch.Tensor:
    """``|found - target|²``, a sum over dimensions and a mean over rows; ``target`` is a constant (internal)."""
    error: torch.Tensor = _SquaredError.apply(found_BD, target_BD)  # type: ignore[no-untyped-call]
    return error


def collaborative_loss(quantized_BD: torch.Tensor, vectors_BD: torch.Tensor) -> torch.Tensor:
    """Each item of a batch finds its own collaborative vector among those of the batch (internal).

    ::

        loss = - mean_i log( exp(q_i · h_i) / sum_j exp(q_i · h_j) )

    Dot products as they are: no temperature, no normalisation, one direction. An item whose vector is zero
    (nothing is known about it) is neither i nor j; without any the loss is 0. With nothing learned (q near 0) the
    loss is ``log B``. ``vectors_BD`` are constants; the gradient goes where ``quantized_BD`` comes from.
    """
    known_B = vectors_BD.any(dim=1)
    own_B = torch.arange(len(vectors_BD), device=vectors_BD.device)
    logits_BB = quantized_BD @ vectors_BD.T
    if bool(known_B.all()):
        return F.cross_entropy(logits_BB, own_B)
    logits_BB = logits_BB.masked_fill(~known_B, torch.finfo(logits_BB.dtype).min)
    total = F.cross_entropy(logits_BB, own_B.where(known_B, -100), reduction="sum")
    return total / known_B.sum().clamp(min=1)


def diversity_loss(book_KD: torch.Tensor, codes_B: torch.Tensor, positives_B: torch.Tensor) -> torch.Tensor:
    """A codeword prefers another one of its own cluster to all other codewords (internal).

    ::

        loss = - mean_b log( exp(e_c · e_p) / sum over j != c of exp(e_c · e_j) ),  c = codes[b], p = positives[b]

    Codewords of one cluster are drawn together and the others pushed apart, in proportion to their use. Rows whose
    positive is -1 do not count. Gradients go to the codebook alone. With all codewords equal the loss is
    ``log(K - 1)``.
    """
    used, row_B = torch.unique(codes_B, return_inverse=True)
    logits_UK = book_KD[used] @ book_KD.T
    own = torch.zeros_like(logits_UK, dtype=torch.bool)
    own[torch.arange(len(used), device=used.device), used] = True
    logp_UK = logits_UK.masked_fill(own, torch.finfo(logits_UK.dtype).min).log_softmax(dim=1)
    counts_B = positives_B >= 0
    picked_B = logp_UK[row_B, positives_B.clamp(min=0)]
    return -picked_B.where(counts_B, 0).sum() / counts_B.sum().clamp(min=1)


@dataclass(frozen=True, eq=False)
class CodewordClusters:
    """Which codewords of one codebook belong together, ready for drawing from (internal).

    order_K: codes, cluster by cluster. first_K, size_K: where the cluster of a code starts in it and how many
    codes it has; place_K: of the code within its cluster.
    """

    order_K: torch.Tensor
    first_K: torch.Tensor
    size_K: torch.Tensor
    place_K: torch.Tensor

    @classmethod
    def of_labels(cls, labels_K: npt.NDArray[Any]) -> Self:
        """From the cluster number of each code, integers ``[K]``."""
        order = np.argsort(labels_K, kind="stable")
        counts = np.bincount(labels_K)
        first = (np.cumsum(counts) - counts)[labels_K]
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        parts = (order, first, counts[labels_K], place - first)
        return cls(*(torch.from_numpy(part.astype(np.int64)) for part in parts))

    def draw(self, codes_B: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """For each code another one of its cluster, all equally likely; -1 for a code alone in its cluster."""
        codes = codes_B.cpu()
        others_B = self.size_K[codes] - 1
        # a float below 1 times n may round to n
        draw_B = (torch.rand(len(codes), generator=generator, dtype=torch.float64) * others_B).long()
        draw_B = draw_B.minimum((others_B - 1).clamp(min=0))
        draw_B += draw_B >= self.place_K[codes]
        at_B = (self.first_K[codes] + draw_B).clamp(max=len(self.order_K) - 1)
        return self.order_K[at_B].where(others_B > 0, -1).to(codes_B.device)


def cluster_codewords(book_KD: torch.Tensor, n_clusters: int, *, seed: int) -> CodewordClusters:
    """Clusters of limited size: for 256 codewords in 10 clusters 10 to 60 each, as published; else in proportion
    (internal).
    """
    words = book_KD.detach().cpu().numpy()
    low, high = cluster_limits(len(words), n_clusters)
    found = balanced_kmeans(words, n_clusters, seed=seed, min_size=low, max_size=high, max_iterations=10)
    return CodewordClusters.of_labels(found.labels)


def cluster_limits(n_codes: int, n_clusters: int) -> tuple[int, int]:
    """Least and greatest number of codewords of a cluster; at least two, or there is nothing to draw (internal)."""
    low = max(2, min(n_codes // (2 * n_clusters), 10))
    return low, max(math.ceil(n_codes * 60 / 256), math.ceil(n_codes / n_clusters))
