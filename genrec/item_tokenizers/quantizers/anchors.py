"""Directions that codes stand for, whatever their parent: nearly orthogonal anchors, and who gets which.

Axes: D width, G anchors, M children, P parents.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from genrec.errors import ConfigError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
_CHUNK_ELEMENTS = 1 << 22
_SHARPNESS = 12.0
_STEPS = 200
_NO_DIRECTION = 1e-5


def orthogonal_anchors(n_anchors: int, dim: int, generator: np.random.Generator) -> Floats:
    """``n_anchors`` unit vectors as far from each other as they come, float32 ``[G, D]`` (internal).

    ::

        G <= D:  rows of a random orthogonal matrix: all cosines 0
        G > D:   random unit vectors, then 200 steps of  a_k -= rate * mean of the other anchors, weighted with
                 exp(12 cos(a_k, a_k')): down the gradient of a smooth form of the largest cosine, and back to length 1

    ReSID (2026, 2602.02338) asks for anchors of maximal separation without a routine. Rows of an orthogonal matrix
    have it for G <= D up to the small negative cosines of a simplex. The steps cost O(G^2 D) each.
    """
    if n_anchors < 1 or dim < 1:
        raise ConfigError(f"anchors: expected 1 or more of width 1 or more, got {n_anchors} of width {dim}")
    if n_anchors <= dim:
        q_DG, r_GG = np.linalg.qr(generator.normal(size=(dim, n_anchors)))
        signs = np.where(np.diag(r_GG) < 0, -1.0, 1.0)  # makes the rotation uniform
        return np.ascontiguousarray((q_DG * signs).T, dtype=np.float32)
    a_GD = _unit(generator.normal(size=(n_anchors, dim)))
    for step in range(_STEPS):
        weight_GG = np.exp(_SHARPNESS * (a_GD @ a_GD.T - 1))
        np.fill_diagonal(weight_GG, 0)
        weight_GG /= weight_GG.sum(axis=1, keepdims=True)
        a_GD = _unit(a_GD - 0.3 * (1 - step / _STEPS) * (weight_GG @ a_GD))
    return a_GD.astype(np.float32)


def align(centroids_MD: Floats, parents_PD: Floats, starts: Ints, anchors_GD: Floats) -> npt.NDArray[np.int32]:
    """The code of every child: the anchor it points to from its parent, each at most once a parent, int32 ``[M]``.

    ::

        for each parent p with children j = starts[p] .. starts[p + 1] - 1:
            W[j, k] = cos(centroids[j] - parents[p], anchors[k])
            code = injective j -> k of the largest sum of W[j, code(j)]          (Hungarian method)

    A child in the very place of its parent (an only child, copies) has no direction: its row of W is 0; an only
    child gets code 0. starts: int64 ``[P + 1]``; no parent has more than G children. (internal)
    """
    codes = np.zeros(len(centroids_MD), dtype=np.int32)
    counts = np.diff(starts)
    assert counts.max(initial=0) <= len(anchors_GD)
    parent_M = np.repeat(np.arange(len(parents_PD)), counts)
    smallest = _NO_DIRECTION * max(float(np.abs(centroids_MD).max(initial=0)), 1e-30)
    for first, end in _blocks(starts, len(anchors_GD) + anchors_GD.shape[1]):
        rows = slice(int(starts[first]), int(starts[end]))
        away_MD = centroids_MD[rows] - parents_PD[parent_M[rows]]
        norm_M = np.linalg.norm(away_MD, axis=1, keepdims=True)
        unit_MD = np.where(norm_M > smallest, away_MD / np.maximum(norm_M, 1e-30), np.float32(0))
        cosine_MG = unit_MD @ anchors_GD.T
        for parent in np.flatnonzero(counts[first:end] > 1) + first:
            mine = slice(int(starts[parent]), int(starts[parent + 1]))
            here = cosine_MG[mine.start - rows.start : mine.stop - rows.start]
            codes[mine] = linear_sum_assignment(here, maximize=True)[1]
    return codes


def _blocks(starts: Ints, width: int) -> list[tuple[int, int]]:
    """Runs of whole parents whose table of cosines stays small."""
    most = max(1, _CHUNK_ELEMENTS // width)
    out, first = [], 0
    while first < len(starts) - 1:
        end = max(int(np.searchsorted(starts, starts[first] + most, side="right")) - 1, first + 1)
        out.append((first, end))
        first = end
    return out


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30))
