"""What a sequence of trainings on batches of new items kept, lost and learned, after DSI++ (Mehta et al. 2022,
arXiv 2212.09744).

``P[n, o]`` is a recall after step ``n`` on users whose next item lies in batch ``o``; batch 0 are the items of the
first training, step ``n`` brings batch ``n``. What stands above the diagonal (items that are not there yet) is not
read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DEFINITIONS = {
    "average": "A_n: mean over all batches up to n of the value after step n",
    "forgetting": "F_n: mean over the batches before n of the best value after an earlier step minus that after step n",
    "learning": "LA_n: mean over all batches up to n of the value right after the batch was learned",
}
"""Each figure in one sentence, as printed in reports."""


def average(values_SS: npt.ArrayLike, step: int = -1) -> float:
    """A_n, the mean over batches ``o <= n`` of ``P[n, o]`` (stable).

    >>> average([[0.4, 0], [0.2, 0.6]])
    0.4
    """
    found, n = _checked(values_SS, step)
    return float(found[n, : n + 1].mean())


def forgetting(values_SS: npt.ArrayLike, step: int = -1) -> float:
    """F_n, the mean over batches ``o < n`` of ``max over o <= m < n of P[m, o] - P[n, o]`` (stable).

    Below 0 where the old items gained. 0 at step 0, which has nothing to forget.

    >>> forgetting([[0.5, 0], [0.25, 0.6]])
    0.25
    """
    found, n = _checked(values_SS, step)
    if n == 0:
        return 0.0
    return float(np.mean([found[o:n, o].max() - found[n, o] for o in range(n)]))


def learning(values_SS: npt.ArrayLike, step: int = -1) -> float:
    """LA_n, the mean over batches ``o <= n`` of ``P[o, o]`` (stable).

    >>> learning([[0.5, 0], [0.2, 0.75]])
    0.625
    """
    found, n = _checked(values_SS, step)
    return float(np.diagonal(found)[: n + 1].mean())


def _checked(values_SS: npt.ArrayLike, step: int) -> tuple[npt.NDArray[np.float64], int]:
    found = np.asarray(values_SS, dtype=np.float64)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or not len(found):
        raise ValueError(f"values: expected a square matrix, one row for each step, got shape {list(found.shape)}")
    if not -len(found) <= step < len(found):
        raise ValueError(f"step: expected 0..{len(found) - 1}, got {step}")
    n = step % len(found)
    if not np.isfinite(found[: n + 1][np.tri(n + 1, len(found), dtype=np.bool_)]).all():
        raise ValueError(f"values: expected numbers on and below the diagonal up to step {n}, got nan or infinity")
    return found, n
