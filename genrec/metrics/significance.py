"""How sure a mean, or a difference of two runs, is (numpy only).

All random draws come from the given seed; the same values and seed give the same interval and p-value.
Axes: Q queries, M metrics, R resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_CHUNK_ELEMENTS = 1 << 22  # draws made at a time: bounds memory to some 50 MB


@dataclass(frozen=True)
class Interval:
    """A mean with a confidence interval. n: values behind it; level: e.g. 0.95. Stability: stable."""

    mean: float
    low: float
    high: float
    n: int
    level: float


@dataclass(frozen=True)
class PairedTest:
    """Result of a two-sided test that the mean paired difference is zero.

    name: which test. difference: mean of ``a - b``. statistic: t, or the mean difference for the
    randomization test. p_value: in [0, 1], nan where there is nothing to test. n: pairs. Stability: stable.
    """

    name: str
    difference: float
    statistic: float
    p_value: float
    n: int


def bootstrap_means(
    values_QM: npt.NDArray[np.float64], *, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> list[Interval]:
    """Percentile bootstrap intervals for the mean of each column (Efron 1979) (stable).

    Queries are resampled with replacement, the same draw for all columns; nan values are left out of every
    mean. A column without a value gets nan throughout. n_resamples = 0: no interval (nan), only means.
    """
    valid_QM = ~np.isnan(values_QM)
    filled_QM = np.where(valid_QM, values_QM, 0.0)
    n_M = valid_QM.sum(axis=0)
    means_M = _safe_ratio(filled_QM.sum(axis=0), n_M)
    low_M = high_M = np.full(len(n_M), np.nan)
    if n_resamples and len(values_QM):
        stacked = np.concatenate([filled_QM, valid_QM.astype(np.float64)], axis=1)
        sums = _resampled_sums(stacked, n_resamples, seed)
        means_RM = _safe_ratio(sums[:, : len(n_M)], sums[:, len(n_M) :])
        tail = (1 - level) / 2
        found = n_M > 0
        low_M = low_M.copy()
        high_M = low_M.copy()
        if found.any():
            low_M[found], high_M[found] = np.nanquantile(means_RM[:, found], [tail, 1 - tail], axis=0)
    return [
        Interval(float(m), float(lo), float(hi), int(n), level)
        for m, lo, hi, n in zip(means_M, low_M, high_M, n_M, strict=True)
    ]


def bootstrap_mean(
    values: npt.NDArray[np.float64], *, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """:func:`bootstrap_means` of one vector of values, float64 ``[Q]`` (stable).

    >>> interval = bootstrap_mean(np.array([0.0, 1.0] * 200))
    >>> interval.mean, 0.44 < interval.low < interval.mean < interval.high < 0.56
    (0.5, True)
    """
    return bootstrap_means(values[:, None], n_resamples=n_resamples, level=level, seed=seed)[0]


def _resampled_sums(values_QC: npt.NDArray[np.float64], n_resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """Column sums of ``n_resamples`` resamples with replacement, float64 ``[R, C]``."""
    generator = np.random.Generator(np.random.PCG64(seed))
    n = len(values_QC)
    step = max(1, _CHUNK_ELEMENTS // n)
    sums = np.empty((n_resamples, values_QC.shape[1]))
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        draws = generator.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(draws.ravel(), minlength=size * n).reshape(size, n)
        sums[start : start + size] = times.astype(np.float64) @ values_QC
    return sums


def _safe_ratio(
    numerator: npt.NDArray[np.float64], denominator: npt.NDArray[np.floating] | npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """``numerator / denominator``, nan where the denominator is 0."""
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def _paired(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``a - b`` where both are numbers; a query without a value in either run says nothing."""
    if a.shape != b.shape:
        raise ValueError(f"paired values: expected equal lengths, got {a.shape} and {b.shape}")
    difference = a - b
    return difference[~np.isnan(difference)]


def paired_t_test(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> PairedTest:
    """Student's paired t-test, two-sided, of values float64 ``[Q]`` from the same queries (stable).

    All differences equal: p = 1 if they are zero, else 0. Fewer than two pairs: nan. Raises ValueError for
    unequal lengths.

    >>> test = paired_t_test(np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.5, 2.0]))
    >>> round(test.statistic, 4), round(test.p_value, 4)
    (2.6458, 0.1181)
    """
    d = _paired(a, b)
    n = len(d)
    mean = float(d.mean()) if n else float("nan")
    if n < 2:
        return PairedTest("paired t", mean, float("nan"), float("nan"), n)
    error = float(d.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-12 * abs(mean) or error == 0:
        t = 0.0 if mean == 0 else math.copysign(math.inf, mean)
        return PairedTest("paired t", mean, t, 1.0 if mean == 0 else 0.0, n)
    t = mean / error
    freedom = n - 1
    return PairedTest("paired t", mean, t, _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5), n)


def paired_randomization_test(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], *, n_resamples: int = 10_000, seed: int = 0
) -> PairedTest:
    """Fisher's paired randomization test: how often random signs give a mean difference at least as large (stable).

    Exact over all sign patterns when there are no more than ``n_resamples`` of them, else
    p = (1 + #at least as large) / (1 + n_resamples) (Smucker, Allan, Carterette 2007 recommend this test for
    retrieval metrics). Raises ValueError for unequal lengths.

    >>> paired_randomization_test(np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.5, 2.0])).p_value
    0.25
    """
    all_pairs = _paired(a, b)
    n = len(all_pairs)
    mean = float(all_pairs.mean()) if n else float("nan")
    d = all_pairs[all_pairs != 0]  # pairs without difference change no sum
    if len(d) == 0:
        return PairedTest("paired randomization", mean, mean, 1.0 if n else float("nan"), n)
    observed = abs(d.sum()) * (1 - 1e-12)  # the same sum in another order must count as equal
    if len(d) < 40 and 2 ** len(d) <= n_resamples:
        patterns = (np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1
        p = float((np.abs((2.0 * patterns - 1) @ d) >= observed).mean())
        return PairedTest("paired randomization", mean, mean, p, n)
    generator = np.random.Generator(np.random.PCG64(seed))
    larger = 0
    step = max(1, _CHUNK_ELEMENTS // len(d))
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        bits = np.frombuffer(generator.bytes((size * len(d) + 7) // 8), dtype=np.uint8)
        signs = np.unpackbits(bits, count=size * len(d)).reshape(size, len(d))
        larger += int((np.abs(2.0 * (signs @ d) - d.sum()) >= observed).sum())
    return PairedTest("paired randomization", mean, mean, (1 + larger) / (1 + n_resamples), n)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction (Numerical Recipes 6.4).

    Here because numpy has none; it is the tail of Student's t.
    """
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on one side only
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    tiny = 1e-300
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1), tiny)
    total = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d, tiny)
            c = _away_from_zero(1 + term / c, tiny)
            total *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * total / a


def _away_from_zero(x: float, tiny: float) -> float:
    return x if abs(x) > tiny else tiny
