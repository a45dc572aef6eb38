"""Lloyd's k-means in numpy: the core of the residual quantizers.

Axes: N rows, D width, K codes. No torch; one row chunk at a time, so the distance table stays in cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from genrec.errors import ConfigError, DataError
from genrec.seeding import rng

Floats = npt.NDArray[np.float32]
_CHUNK = 4096
# k-means++ looks at this many rows per code at most: its cost is K passes over what it looks at
_INIT_ROWS_PER_CODE = 32


@dataclass(frozen=True, eq=False)
class KMeans:
    """A fitted k-means (internal).

    centroids_KD: float32, all finite. Codes that cannot be used (fewer distinct rows than codes) are copies
    of the first centroid; :func:`nearest` never returns a copy.
    labels: int32 ``[N]``, the nearest centroid of each row. inertia: sum over rows of the squared distance.
    """

    centroids_KD: Floats
    labels: npt.NDArray[np.int32]
    inertia: float
    n_iterations: int


def kmeans(
    x_ND: Floats,
    n_codes: int,
    *,
    seed: int,
    max_iterations: int = 50,
    stop_share: float = 0.001,
    rows_per_code: int | None = None,
) -> KMeans:
    """Cluster rows around ``n_codes`` centroids: greedy k-means++ start, then Lloyd iterations (internal).

    ::

        repeat:  labels[n] = argmin_k |x[n] - c[k]|²;   c[k] = mean of the rows with label k
        until at most ``stop_share`` of the labels change, or ``max_iterations``

    A centroid left without rows moves to the row farthest from its centroid within the cluster of the largest
    total error. With no more distinct rows than codes, the centroids *are* the distinct rows (inertia 0).

    x_ND: float32, finite. rows_per_code: fit on a seeded sample of at most this many rows per code (labels
    are still given for all rows). Same input and seed → same bytes on one machine; the order of rows
    matters to the random draws. Raises DataError for empty or non-finite input.
    """
    x = checked_rows(x_ND)
    if n_codes < 1:
        raise ConfigError(f"n_codes: expected 1 or more, got {n_codes}")
    generator = rng(seed, "kmeans")
    sample = x
    if rows_per_code is not None and len(x) > n_codes * rows_per_code:
        sample = x[np.sort(generator.choice(len(x), size=n_codes * rows_per_code, replace=False))]
    distinct = _distinct_rows(sample, at_most=n_codes)
    if distinct is not None:
        centroids = np.concatenate([distinct, np.repeat(distinct[:1], n_codes - len(distinct), axis=0)])
        n_iterations = 0
    else:
        centroids = start_rows(sample, n_codes, generator)
        centroids, n_iterations = _lloyd(sample, centroids, max_iterations, stop_share)
    labels = nearest(x, centroids)
    return KMeans(centroids, labels, squared_error(x, centroids, labels), n_iterations)


def nearest(x_ND: Floats, centroids_KD: Floats) -> npt.NDArray[np.int32]:
    """Number of the nearest centroid of each row, int32 ``[N]``; of equal centroids always the first (internal)."""
    labels = _assign(x_ND, centroids_KD)[0]
    return first_equal(centroids_KD)[labels]


def squared_error(x_ND: Floats, centroids_KD: Floats, labels: npt.NDArray[np.int32]) -> float:
    """Sum over rows of ``|x[n] - centroids[labels[n]]|²``, from the differences (no cancellation) (internal)."""
    total = 0.0
    for start in range(0, len(x_ND), _CHUNK):
        gap = x_ND[start : start + _CHUNK] - centroids_KD[labels[start : start + _CHUNK]]
        total += float(np.einsum("nd,nd->", gap, gap, dtype=np.float64))
    return total


def checked_rows(x_ND: npt.ArrayLike) -> Floats:
    """Rows as C-contiguous float32 ``[N, D]`` ; DataError if empty or not finite (internal)."""
    x = np.ascontiguousarray(x_ND, dtype=np.float32)
    if x.ndim != 2 or 0 in x.shape:
        raise DataError(f"vectors: expected a non-empty array [N, D], got shape {x.shape}")
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        row = int((~finite).argmax())
        raise DataError(f"vectors: row {row} of {len(x)} is not finite ({int((~finite).sum())} such rows)")
    return x


def first_equal(rows_KD: Floats) -> npt.NDArray[np.int32]:
    """For each row the number of the first row equal to it, int32 ``[K]`` (internal)."""
    _, first, inverse = np.unique(_row_hashes(rows_KD), return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.int32)


def _assign(x: Floats, centroids: Floats) -> tuple[npt.NDArray[np.int32], Floats]:
    """Nearest centroid and squared distance of each row."""
    labels = np.empty(len(x), dtype=np.int32)
    distance = np.empty(len(x), dtype=np.float32)
    minus_two = np.ascontiguousarray(-2 * centroids.T)
    square_K = np.einsum("kd,kd->k", centroids, centroids)
    table = np.empty((min(_CHUNK, len(x)), len(centroids)), dtype=np.float32)
    for start in range(0, len(x), _CHUNK):
        rows = x[start : start + _CHUNK]
        scores = np.matmul(rows, minus_two, out=table[: len(rows)])
        scores += square_K
        best = scores.argmin(axis=1)
        labels[start : start + len(rows)] = best
        distance[start : start + len(rows)] = scores[np.arange(len(rows)), best] + np.einsum("nd,nd->n", rows, rows)
    return labels, np.maximum(distance, 0)


def _lloyd(x: Floats, centroids: Floats, max_iterations: int, stop_share: float) -> tuple[Floats, int]:
    previous = np.full(len(x), -1, dtype=np.int32)
    n_iterations = 0
    while n_iterations < max_iterations:
        n_iterations += 1
        labels, distance = _assign(x, centroids)
        changed = np.count_nonzero(labels != previous)
        counts = np.bincount(labels, minlength=len(centroids))
        centroids = np.where(counts[:, None] > 0, means_of_labels(x, labels, counts), centroids)
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            _refill(x, centroids, empty, labels, distance)
        elif changed <= stop_share * len(x):
            break
        previous = labels
    return centroids, n_iterations


def means_of_labels(
    x: Floats, labels: npt.NDArray[np.int32], counts: npt.NDArray[Any], order: npt.NDArray[Any] | None = None
) -> Floats:
    """Mean of the rows of each label, float32 ``[K, D]``; 0 for a label without rows (internal).

    order: rows in the order in which they are added (None = row order).
    """
    # a sparse one-hot product adds rows in the given order whatever the number of threads
    n, n_codes = len(x), len(counts)
    by_label = np.argsort(labels, kind="stable") if order is None else order[np.argsort(labels[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(counts)])
    members = sparse.csr_matrix((np.ones(n, dtype=np.float32), by_label, starts), shape=(n_codes, n))
    return np.asarray((members @ x) / np.maximum(counts, 1)[:, None].astype(np.float32), dtype=np.float32)


def _refill(
    x: Floats,
    centroids: Floats,
    empty: npt.NDArray[Any],
    labels: npt.NDArray[np.int32],
    distance: Floats,
) -> None:
    """Move each empty centroid onto the farthest row of the cluster with the largest error (in place)."""
    error_K = np.bincount(labels, weights=distance, minlength=len(centroids))
    for code in empty:
        biggest = int(error_K.argmax())
        members = np.flatnonzero(labels == biggest)
        far = members[distance[members].argmax()]
        centroids[code] = x[far]
        # what the new centroid takes away is not known before the next assignment; halving spreads the picks
        error_K[biggest] /= 2
        distance[far] = 0


def start_rows(
    x: Floats, n_codes: int, generator: np.random.Generator, order: npt.NDArray[Any] | None = None
) -> Floats:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): of a few rows drawn by distance keep the best (internal).

    order: the order in which rows are numbered for the draws (None = row order). Returns copies of ``n_codes`` rows.
    """
    at = np.arange(len(x)) if order is None else order
    if len(x) > n_codes * _INIT_ROWS_PER_CODE:
        at = at[np.sort(generator.choice(len(x), size=n_codes * _INIT_ROWS_PER_CODE, replace=False))]
    x = x[at]
    n_trials = 2 + int(np.log(n_codes))
    square_N = np.einsum("nd,nd->n", x, x)
    chosen = [int(generator.integers(len(x)))]
    closest = _distances(x, square_N, np.array(chosen))[0]
    for _ in range(1, n_codes):
        cumulated = np.cumsum(closest, dtype=np.float64)
        draws = generator.random(n_trials) * cumulated[-1]
        candidates = np.minimum(np.searchsorted(cumulated, draws, side="right"), len(x) - 1)
        tried = np.minimum(_distances(x, square_N, candidates), closest)
        best = int(tried.sum(axis=1, dtype=np.float64).argmin())
        chosen.append(int(candidates[best]))
        closest = tried[best]
    return x[chosen]


def _distances(x: Floats, square_N: Floats, rows: npt.NDArray[Any]) -> Floats:
    distance = square_N[rows][:, None] + square_N[None, :] - 2 * (x[rows] @ x.T)
    distance[np.arange(len(rows)), rows] = 0
    return np.asarray(np.maximum(distance, 0))


def _row_hashes(x: Floats) -> npt.NDArray[np.uint64]:
    """Integer hash of each row, equal for equal rows (exact arithmetic, unlike a float projection)."""
    factors = rng(0, "row hash").integers(1, 1 << 63, size=x.shape[1], dtype=np.uint64) | np.uint64(1)
    out = np.empty(len(x), dtype=np.uint64)
    for start in range(0, len(x), _CHUNK):
        bits = (x[start : start + _CHUNK] + np.float32(0)).view(np.uint32)  # + 0: -0.0 equals 0.0
        out[start : start + _CHUNK] = (bits.astype(np.uint64) * factors).sum(axis=1)
    return out


def _distinct_rows(x: Floats, at_most: int) -> Floats | None:
    """The distinct rows in lexicographic order if there are no more than ``at_most``, else None."""
    _, first = np.unique(_row_hashes(x), return_index=True)
    if len(first) > at_most:
        return None
    rows = x[first]
    return np.ascontiguousarray(rows[np.lexsort(rows.T[::-1])])
