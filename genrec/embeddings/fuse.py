"""Several kinds of item vectors side by side.

Legend: N items, D width of one block.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.linear import principal_axes, unit_rows, whitening
from genrec.errors import ConfigError, DataError, FingerprintMismatch
from genrec.seeding import rng

_log = logging.getLogger(__name__)
_TAUGHT = 100_000  # rows that a regression learns from
_CHUNK = 65_536  # rows that are predicted at a time


def fuse(
    blocks: Sequence[ItemEmbeddings],
    dims: Sequence[int | None] | None = None,
    weights: Sequence[float] | None = None,
    *,
    whiten: Sequence[bool] | None = None,
    predict_unknown: bool = False,
    n_fit: int | None = None,
) -> ItemEmbeddings:
    """Put blocks of vectors side by side so that each has its say in squared distances (stable).

    Each block: subtract the mean of its known (non-zero) rows, keep ``dim`` principal directions (None = all, not
    rotated; a block with fewer keeps all it has, with a log line), where ``whiten`` says so divide each of these
    principal directions by its standard deviation (so that all count alike, whatever share of the variance they have;
    directions in which nothing varies stay zero), scale so that the mean squared norm of the known
    rows is ``weight`` (default 1). Unknown rows stay zero, which is then the centre of the block; with
    ``predict_unknown`` they are predicted from the other blocks (:func:`predicted`), so that a new item, which
    nobody has bought yet, gets a place among the items like it and not among the items that nobody buys. A single
    block is allowed. With ``n_fit`` everything (means, directions, scales, predictions) is learned from the first
    so many rows, whose vectors are those that they get alone; the others are placed among them. Raises ConfigError
    for options that do not fit, FingerprintMismatch for blocks of different catalogs, DataError for a block whose
    known rows are all equal.
    """
    if not blocks:
        raise ConfigError("blocks: expected at least one, got none")
    dims = [None] * len(blocks) if dims is None else dims
    weights = [1.0] * len(blocks) if weights is None else weights
    whiten = [False] * len(blocks) if whiten is None else whiten
    if not len(blocks) == len(dims) == len(weights) == len(whiten):
        raise ConfigError(
            f"expected one dim and one weight per block, got {len(blocks)} blocks, "
            f"{len(dims)} dims, {len(weights)} weights, {len(whiten)} of whiten"
        )
    for number, block in enumerate(blocks):
        if block.catalog != blocks[0].catalog or block.n_items != blocks[0].n_items:
            raise FingerprintMismatch(
                f"block {number} belongs to catalog {block.catalog[:8]} ({block.n_items} items), "
                f"block 0 to {blocks[0].catalog[:8]} ({blocks[0].n_items} items)"
            )
    if n_fit is not None and not 0 < n_fit <= blocks[0].n_items:
        raise ConfigError(f"n_fit: expected 1 to {blocks[0].n_items} (the number of items), got {n_fit}")
    n_fit = blocks[0].n_items if n_fit is None else n_fit
    parts = [_part(n, *each, n_fit) for n, each in enumerate(zip(blocks, dims, weights, whiten, strict=True))]
    known = [block.known for block in blocks]
    if predict_unknown:
        parts = [predicted(parts, known, number, weight, n_fit) for number, weight in enumerate(weights)]
    recipe = {
        "kind": "fuse",
        "predict_unknown": predict_unknown,
        "dims": list(dims),
        "weights": list(weights),
        **({"whiten": list(whiten)} if any(whiten) else {}),
        "blocks": [block.recipe for block in blocks],
    }
    return ItemEmbeddings(np.concatenate(parts, axis=1).astype(np.float32), blocks[0].catalog, recipe)


def _part(
    number: int, block: ItemEmbeddings, dim: int | None, weight: float, whiten: bool, n_fit: int
) -> npt.NDArray[np.float64]:
    if dim is not None and dim < 1:
        raise ConfigError(f"dims[{number}]: expected at least 1 or null, got {dim}")
    if dim is not None and dim > block.dim:
        _log.warning("block %d: dim %d, but the vectors have %d directions: all are kept", number, dim, block.dim)
    if not weight > 0:
        raise ConfigError(f"weights[{number}]: expected above 0, got {weight}")
    known = np.flatnonzero(block.known)
    known, later = known[known < n_fit], known[known >= n_fit]
    rows = block.vectors[known].astype(np.float64)
    mean = rows.mean(axis=0) if len(rows) else 0.0
    rows, others = rows - mean, block.vectors[later].astype(np.float64) - mean
    if dim is not None or whiten:
        axes = principal_axes(rows, block.dim if dim is None else dim)
        rows, others = rows @ axes, others @ axes
    if whiten:
        factor = whitening(rows)
        rows, others = rows * factor, others * factor
    scale = float(np.mean(np.sum(rows**2, axis=1))) if len(rows) else 0.0
    if not scale > 1e-12 * float(np.mean(block.vectors.astype(np.float64) ** 2)):
        raise DataError(f"block {number}: all known vectors are equal")
    out = np.zeros((block.n_items, rows.shape[1]))
    out[known], out[later] = rows * np.sqrt(weight / scale), others * np.sqrt(weight / scale)
    return out


def predicted(
    parts: Sequence[npt.NDArray[np.float64]],
    known: Sequence[npt.NDArray[np.bool_]],
    number: int,
    weight: float,
    n_fit: int,
) -> npt.NDArray[np.float64]:
    """Block ``number`` with its unknown rows predicted from the other blocks, float64 ``[N, d]`` (internal).

    Ridge regression on those of the first ``n_fit`` rows that this block and another one know (at most 100,000 of them,
    drawn), its penalty chosen by leave-one-out error. Every prediction gets squared norm ``weight * R2``, with R2
    the share of the variance that is predicted when left out: the length of the block's own rows where the others
    tell everything, the centre where they tell nothing. Rows that no block knows stay zero, and so does everything
    where fewer than two rows could be learned from.
    """
    from sklearn.linear_model import RidgeCV

    others = [n for n in range(len(parts)) if n != number]
    elsewhere = np.any([known[n] for n in others], axis=0) if others else np.zeros(len(parts[number]), np.bool_)
    wanted, taught = np.flatnonzero(elsewhere & ~known[number]), np.flatnonzero((elsewhere & known[number])[:n_fit])
    if not len(wanted) or len(taught) < 2:
        return parts[number]
    if len(taught) > _TAUGHT:
        taught = np.sort(rng(0, "fuse", number).choice(taught, _TAUGHT, replace=False))

    def inputs(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.concatenate([parts[n][rows] for n in others], axis=1)

    targets = parts[number][taught]
    ridge = RidgeCV(alphas=np.logspace(-2, 3, 6)).fit(inputs(taught), targets)
    # best_score_ is minus the mean squared error left out; to be compared with the mean of the other rows
    apart = (targets - targets.mean(axis=0)) * len(taught) / (len(taught) - 1)
    explained = max(0.0, 1 + float(ridge.best_score_) / max(float(np.mean(apart**2)), 1e-12))
    _log.info("block %d: %d unknown rows predicted, R2 %.3f left out", number, len(wanted), explained)
    out = parts[number].copy()
    first = int(np.searchsorted(wanted, n_fit))
    for rows in (*_chunks(wanted[:first]), *_chunks(wanted[first:])):  # not mixed: the last bits depend on neighbours
        out[rows] = unit_rows(ridge.predict(inputs(rows))) * np.sqrt(weight * explained)
    return out


def _chunks(rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
