"""Truncated SVD and PCA that give the same bytes every time.

Legend: R rows, N columns (items), d kept directions.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.seeding import rng

Float64 = npt.NDArray[np.float64]
_log = logging.getLogger(__name__)
_DENSE = 500  # a side up to this long: the exact dense SVD is fast enough


@dataclass(frozen=True, eq=False)
class LowRank:
    """``left @ diag(values) @ right.T``: float64 ``[R, d]``, ``[d]`` falling, ``[N, d]`` (internal)."""

    left: Float64
    values: Float64
    right: Float64


def truncated_svd(matrix: Any, dim: int, seed: int) -> LowRank:
    """The ``dim`` leading singular triples of a dense or scipy-sparse ``[R, N]`` matrix (internal).

    Directions whose singular value is below 1e-7 of the largest are dropped with a log line, so d <= ``dim``.
    Each direction is signed so that the largest entry of its right vector, by size, is positive. ``seed``
    chooses the start vector of the Lanczos iteration, which converges to the same triples for every seed.
    """
    from scipy.sparse.linalg import svds

    side = min(matrix.shape)
    if side <= max(_DENSE, dim):
        dense: Any = matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)
        left, values, right_t = np.linalg.svd(dense.astype(np.float64), full_matrices=False)
    else:
        start = rng(seed, "svd").uniform(-1, 1, side)
        left, values, right_t = svds(matrix.astype(np.float64), k=dim, v0=start, solver="arpack")
        order = np.argsort(-values, kind="stable")
        left, values, right_t = left[:, order], values[order], right_t[order]
    kept = int((values > 1e-7 * values.max(initial=0.0)).sum())
    if kept < dim:
        _log.warning("only %d of the %d requested directions exist in this data", kept, dim)
    kept = min(kept, dim)
    left, values, right = left[:, :kept], values[:kept], right_t[:kept].T
    peak = np.abs(right).argmax(axis=0)
    sign = np.where(right[peak, np.arange(kept)] < 0, -1.0, 1.0)
    return LowRank(left * sign, values, right * sign)


def principal_axes(centred: Float64, dim: int) -> Float64:
    """The ``dim`` principal directions of centred rows, float64 ``[D, d]``; coordinates are ``rows @ axes`` (internal).

    Signed like :func:`truncated_svd`; exact (eigenvectors of the ``[D, D]`` second moment).
    """
    values, vectors = np.linalg.eigh(centred.T @ centred)
    order = np.argsort(-values, kind="stable")[:dim]
    directions = vectors[:, order]
    peak = np.abs(directions).argmax(axis=0)
    sign = np.where(directions[peak, np.arange(directions.shape[1])] < 0, -1.0, 1.0)
    return np.asarray(directions * sign, np.float64)


def principal(centred: Float64, dim: int) -> Float64:
    """Coordinates of centred rows on their ``dim`` principal directions, float64 ``[R, d]`` (internal)."""
    return np.asarray(centred @ principal_axes(centred, dim), np.float64)


def whitening(centred: Float64) -> Float64:
    """What each column of centred rows is multiplied by to have variance 1, float64 ``[D]`` (internal).

    0 for a column that varies by less than 1e-5 of the one that varies most: float32 vectors tell nothing there.
    """
    deviation = np.sqrt(np.mean(centred**2, axis=0)) if len(centred) else np.zeros(centred.shape[1])
    varies = deviation > 1e-5 * deviation.max(initial=0.0)
    return np.asarray(np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies))


def unit_rows(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Every row scaled to length 1; a zero row (nothing known) stays zero (internal)."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 0))
