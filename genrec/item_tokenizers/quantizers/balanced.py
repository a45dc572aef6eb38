"""k-means whose clusters have sizes within limits.

Axes: N rows, D width, K codes. The limits are kept exactly; see :mod:`genrec.item_tokenizers.quantizers.capacity`
for the assignment step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.quantizers.capacity import Sizes, assign, capacity_assign, size_limits
from genrec.item_tokenizers.quantizers.kmeans import KMeans, checked_rows, means_of_labels, squared_error, start_rows
from genrec.seeding import rng

__all__ = ["balanced_kmeans", "balanced_labels", "capacity_assign"]

Floats = npt.NDArray[np.float32]
Keys = npt.NDArray[np.uint64]
Labels = npt.NDArray[np.int32]
_CHUNK = 4096
_STOP_SHARE = 0.001


def balanced_kmeans(
    x_ND: Floats,
    n_codes: int,
    *,
    seed: int,
    min_size: Sizes | None = None,
    max_size: Sizes | None = None,
    keys: Keys | None = None,
    max_iterations: int = 20,
) -> KMeans:
    """Cluster rows around ``n_codes`` centroids so that every cluster has ``min_size`` .. ``max_size`` rows (internal).

    ::

        repeat:  labels = the assignment within the limits of least total squared distance (exact)
                 c[k] = mean of the rows with label k
        until at most 0.1 % of the labels change, or ``max_iterations``

    The start is that of plain k-means (k-means++). No step makes the error larger. With neither limit the sizes are
    floor(N / K) and ceil(N / K); with one, the other is 0 or N. With fewer rows than codes, b = N codes
    are used, one row each, unless ``min_size`` forbids it.

    x_ND: float32, finite. min_size, max_size: one number, or one per code. keys: uint64 ``[N]``: rows are
    looked at in this order, so neither the random start nor which of two equal rows goes where depends on
    the order of rows (None = the order of rows). Returns labels within the limits (not the nearest
    centroids), centroids that are the means of their rows, and the inertia of these labels. A code without
    rows keeps its last centroid, or a copy of the first one when it never had any.

    Memory beyond the rows: the table of distances, float32 ``[N, K]``.

    Raises ConfigError for limits that exclude each other, DataError for limits that N rows cannot keep and for
    unusable rows.

    Published uses: balanced residual levels of OneRec (Deng et al. 2025, 2502.18965; there each cluster in turn
    takes its N/K nearest rows of those that are left, so the last ones get leftovers; here all are assigned
    together), the levels of GAOQ in ReSID, size-limited clusters in LETTER (Wang et al. 2024, 2405.07314) and
    ColaRec (Wang et al. 2024, 2403.18480).
    """
    x = checked_rows(x_ND)
    if n_codes < 1:
        raise ConfigError(f"n_codes: expected 1 or more, got {n_codes}")
    order = _key_order(len(x), keys)
    n_used = n_codes
    if min_size is None and np.ndim(1 if max_size is None else max_size) == 0:
        n_used = min(n_codes, len(x))
    low_K, high_K = _limits(len(x), n_used, min_size, max_size)
    used = start_rows(x, n_used, rng(seed, "balanced kmeans"), order)
    labels, prices_K, n_iterations = np.full(len(x), -1, dtype=np.int32), None, 0
    cost_NK = np.empty((len(x), n_used), dtype=np.float32)
    while n_iterations < max(max_iterations, 1):
        n_iterations += 1
        found = assign(_costs(x, used, order, cost_NK), low_K, high_K, prices_K)
        before, labels = labels, np.empty_like(labels)
        labels[order], prices_K = found.labels, found.prices_K
        counts = np.bincount(labels, minlength=n_used)
        used = np.where(counts[:, None] > 0, means_of_labels(x, labels, counts, order), used)
        if np.count_nonzero(labels != before) <= _STOP_SHARE * len(x):
            break
    centroids = np.concatenate([used, np.repeat(used[:1], n_codes - n_used, axis=0)])
    return KMeans(centroids, labels, squared_error(x, centroids, labels), n_iterations)


def balanced_labels(
    x_ND: Floats,
    centroids_KD: Floats,
    *,
    min_size: Sizes | None = None,
    max_size: Sizes | None = None,
    keys: Keys | None = None,
) -> Labels:
    """One assignment step of :func:`balanced_kmeans` for fixed centroids: int32 ``[N]``, same limits (internal)."""
    order = _key_order(len(x_ND), keys)
    low_K, high_K = _limits(len(x_ND), len(centroids_KD), min_size, max_size)
    cost_NK = np.empty((len(x_ND), len(centroids_KD)), dtype=np.float32)
    labels = np.empty(len(x_ND), dtype=np.int32)
    labels[order] = assign(_costs(x_ND, centroids_KD, order, cost_NK), low_K, high_K).labels
    return labels


def _limits(
    n: int, n_codes: int, min_size: Sizes | None, max_size: Sizes | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    if min_size is None and max_size is None:
        return size_limits(n, n_codes, n // n_codes, -(-n // n_codes))
    return size_limits(n, n_codes, 0 if min_size is None else min_size, n if max_size is None else max_size)


def _key_order(n: int, keys: Keys | None) -> npt.NDArray[np.int64]:
    if keys is None:
        return np.arange(n)
    if keys.shape != (n,):
        raise DataError(f"keys: expected one per row, shape ({n},), got {keys.shape}")
    return np.argsort(keys, kind="stable")


def _costs(x: Floats, centroids: Floats, order: npt.NDArray[np.int64], out_NK: Floats) -> Floats:
    """``|c|² - 2 x·c`` of every row in the order ``order`` (without ``|x|²``, the same for every code of a row)."""
    minus_two = np.ascontiguousarray(-2 * centroids.T)
    square_K = np.einsum("kd,kd->k", centroids, centroids)
    for start in range(0, len(x), _CHUNK):
        part = out_NK[start : start + _CHUNK]
        np.matmul(x[order[start : start + _CHUNK]], minus_two, out=part)
        part += square_K
    return out_NK
