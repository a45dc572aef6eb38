"""Several kinds of item vectors side by side.

Legend: N items, D width of one block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.linear import principal
from genrec.errors import ConfigError, DataError, FingerprintMismatch


def fuse(
    blocks: Sequence[ItemEmbeddings],
    dims: Sequence[int | None] | None = None,
    weights: Sequence[float] | None = None,
) -> ItemEmbeddings:
    """Put blocks of vectors side by side so that each has its say in squared distances (stable).

    Each block: subtract the mean of its known (non-zero) rows, keep ``dim`` principal directions (None = all,
    not rotated), scale so that the mean squared norm of the known rows is ``weight`` (default 1). Unknown
    rows stay zero, which is then the centre of the block. A single block is allowed. Raises ConfigError for
    options that do not fit, FingerprintMismatch for blocks of different catalogs, DataError for a block whose
    known rows are all equal.
    """
    if not blocks:
        raise ConfigError("blocks: expected at least one, got none")
    dims = [None] * len(blocks) if dims is None else dims
    weights = [1.0] * len(blocks) if weights is None else weights
    if not len(blocks) == len(dims) == len(weights):
        raise ConfigError(
            f"expected one dim and one weight per block, got {len(blocks)} blocks, "
            f"{len(dims)} dims, {len(weights)} weights"
        )
    for number, block in enumerate(blocks):
        if block.catalog != blocks[0].catalog or block.n_items != blocks[0].n_items:
            raise FingerprintMismatch(
                f"block {number} belongs to catalog {block.catalog[:8]} ({block.n_items} items), "
                f"block 0 to {blocks[0].catalog[:8]} ({blocks[0].n_items} items)"
            )
    parts = [_part(n, *each) for n, each in enumerate(zip(blocks, dims, weights, strict=True))]
    recipe = {
        "kind": "fuse",
        "dims": list(dims),
        "weights": list(weights),
        "blocks": [block.recipe for block in blocks],
    }
    return ItemEmbeddings(np.concatenate(parts, axis=1).astype(np.float32), blocks[0].catalog, recipe)


def _part(number: int, block: ItemEmbeddings, dim: int | None, weight: float) -> npt.NDArray[np.float64]:
    if dim is not None and not 1 <= dim <= block.dim:
        raise ConfigError(f"dims[{number}]: expected 1 to {block.dim} or null, got {dim}")
    if not weight > 0:
        raise ConfigError(f"weights[{number}]: expected above 0, got {weight}")
    known = block.known
    rows = block.vectors[known].astype(np.float64)
    rows = rows - rows.mean(axis=0) if len(rows) else rows
    if dim is not None:
        rows = principal(rows, dim)
    scale = float(np.mean(np.sum(rows**2, axis=1))) if len(rows) else 0.0
    if not scale > 1e-12 * float(np.mean(block.vectors.astype(np.float64) ** 2)):
        raise DataError(f"block {number}: all known vectors are equal")
    out = np.zeros((block.n_items, rows.shape[1]))
    out[known] = rows * np.sqrt(weight / scale)
    return out
