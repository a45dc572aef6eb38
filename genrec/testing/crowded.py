"""Large catalogs whose codes collide the way real ones do, for measuring collision policies.

Axes: N items, L levels, K codes of a level, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.collisions import Quantized
from genrec.item_tokenizers.quantizers.kmeans import kmeans
from genrec.item_tokenizers.rqkmeans import residual_codes
from genrec.seeding import rng

_BLOCK = 65_536


@dataclass(frozen=True, eq=False)
class Crowded:
    """What a collision policy is given: codes, one key per item, vectors and codebooks (internal)."""

    codes: ItemCodes
    keys: npt.NDArray[np.uint64]
    quantized: Quantized


def crowded_items(
    n_items: int, *, n_levels: int = 3, level_size: int = 256, dim: int = 64, seed: int = 0, copies: float = 0.02
) -> Crowded:
    """Items in groups of very unequal size, quantized by residual k-means that was fitted on a sample (internal).

    The groups' sizes fall like 1 / rank, the dimensions' variances like 1 / number; a share ``copies`` of the
    items repeats the vector of the item before. About a third of the items collide at 1e6 x (3 x 256).
    """
    generator = rng(seed, "crowded items")
    scale_D = (np.arange(1, dim + 1) ** -0.5).astype(np.float32)
    centres = generator.normal(size=(4 * level_size, dim)).astype(np.float32) * scale_D
    share = 1 / np.arange(10, 10 + len(centres))
    group_N = generator.choice(len(centres), size=n_items, p=share / share.sum())
    x_ND = np.empty((n_items, dim), dtype=np.float32)
    for start in range(0, n_items, _BLOCK):
        rows = group_N[start : start + _BLOCK]
        noise = generator.standard_normal(size=(len(rows), dim), dtype=np.float32)
        x_ND[start : start + len(rows)] = centres[rows] + 0.5 * scale_D * noise
    again = 1 + np.flatnonzero(generator.random(n_items - 1) < copies)
    x_ND[again] = x_ND[again - 1]
    sample = x_ND[:: max(n_items // (64 * level_size), 1)].copy()
    books = []
    for level in range(n_levels):
        found = kmeans(sample, level_size, seed=seed + level, max_iterations=5)
        sample -= found.centroids_KD[found.labels]
        books.append(found.centroids_KD)
    codes = ItemCodes(residual_codes(x_ND, books), (level_size,) * n_levels, "crowded")
    return Crowded(codes, generator.permutation(n_items).astype(np.uint64), Quantized(x_ND, tuple(books)))
