"""Slow, obvious versions of the metrics of identifiers (``genrec.metrics.codes_*``), for tests.

Identifiers are tuples, counts are dictionaries, pairs are loops. Stability: experimental.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt

Codes = Sequence[Sequence[int]]
Pairs = Iterable[Sequence[int]]


def prefixes(codes: Codes, depth: int) -> list[tuple[int, ...]]:
    """First ``depth`` codes of every item, -1 (ended) included."""
    return [tuple(row[:depth]) for row in codes]


def collision_rates(codes: Codes) -> tuple[Fraction, Fraction, Fraction]:
    """1 - distinct / N, share of items that share, share of item pairs that share."""
    rows = prefixes(codes, len(codes[0]))
    n = len(rows)
    sharing = sum(any(rows[i] == rows[j] for j in range(n) if j != i) for i in range(n))
    equal = sum(rows[i] == rows[j] for i, j in combinations(range(n), 2))
    return 1 - Fraction(len(set(rows)), n), Fraction(sharing, n), Fraction(equal, math.comb(n, 2))


def gini(values: Sequence[float]) -> float:
    """Mean absolute difference of two draws, divided by twice the mean."""
    n = len(values)
    return sum(abs(a - b) for a in values for b in values) / (2 * n * sum(values))


def entropy(weights: Iterable[float]) -> float:
    """Bits."""
    given = [w for w in weights if w > 0]
    return -sum(w / sum(given) * math.log2(w / sum(given)) for w in given)


def prefix_entropy(codes: Codes, depth: int, weights: Sequence[float]) -> float:
    """Bits of the first ``depth`` codes of an item drawn by weight."""
    mass: Counter[tuple[int, ...]] = Counter()
    for prefix, weight in zip(prefixes(codes, depth), weights, strict=True):
        mass[prefix] += weight  # type: ignore[assignment]
    return entropy(mass.values())


def conditional_entropy(codes: Codes, level: int, weights: Sequence[float]) -> float:
    """``sum over prefixes of P(prefix) H(code of the level | prefix)``, level counted from 0."""
    below: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for row, weight in zip(codes, weights, strict=True):
        below[tuple(row[:level])][row[level]] += weight  # type: ignore[assignment]
    return sum(sum(c.values()) * entropy(c.values()) for c in below.values()) / sum(weights)


def pair_rate(codes: Codes, pairs: Pairs, depth: int) -> float:
    """Share of pairs with equal prefix."""
    return float(np.mean([tuple(codes[a][:depth]) == tuple(codes[b][:depth]) for a, b in pairs]))


def membership(vectors: npt.ArrayLike, item: int, k: int) -> list[float]:
    """Chance of every item to be among the k nearest (cosine) of ``item`` when ties are broken at random."""
    x = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(x, axis=1)

    def cosine(a: int, b: int) -> float:
        return round(float(x[a] @ x[b] / (norms[a] * norms[b])), 6) if norms[a] * norms[b] > 0 else 0.0

    others = [j for j in range(len(x)) if j != item]
    near = {j: cosine(item, j) for j in others}
    out = [0.0] * len(x)
    for j in others:
        better = sum(near[i] > near[j] for i in others)
        tied = sum(near[i] == near[j] for i in others)
        out[j] = min(max((k - better) / tied, 0.0), 1.0)
    return out


def neighbours_kept(vectors: npt.ArrayLike, quantised: npt.ArrayLike, k: int) -> float:
    """Expected overlap of the two lists of k neighbours, as a share of k."""
    n = len(np.asarray(vectors))
    total = 0.0
    for i in range(n):
        total += sum(a * b for a, b in zip(membership(vectors, i, k), membership(quantised, i, k), strict=True))
    return total / n / min(k, n - 1)


def hit_rate(vectors: npt.ArrayLike, pairs: Pairs, k: int) -> float:
    """Mean chance that b is among the k nearest of a."""
    return float(np.mean([membership(vectors, a, k)[b] for a, b in pairs if a != b]))


def predictability(
    codes: Codes, counted: Sequence[Sequence[int]], asked: Sequence[Sequence[int]], smoothing: float
) -> tuple[list[float], list[float]]:
    """Mean bits, and mean bits saved by the previous item, of each level; see the fast version."""
    bits, saved = [], []
    for level in range(len(codes[0])):
        here, above = prefixes(codes, level + 1), prefixes(codes, level)
        losses, gains = [], []
        for a, b in asked:
            children = len({h for h, p in zip(here, above, strict=True) if p == above[b]})
            in_x = sum(here[d] == here[b] for _, d in counted)
            in_above = sum(above[d] == above[b] for _, d in counted)
            plain = (in_x + smoothing) / (in_above + smoothing * children)
            joint = sum(here[c] == here[a] and here[d] == here[b] for c, d in counted)
            context = sum(here[c] == here[a] and above[d] == above[b] for c, d in counted)
            p = (joint + smoothing * children * plain) / (context + smoothing * children)
            losses.append(-math.log2(p))
            gains.append(math.log2(p / plain))
        bits.append(sum(losses) / len(asked))
        saved.append(sum(gains) / len(asked))
    return bits, saved


def coherence(codes: Codes, vectors: npt.ArrayLike, level: int, *, across_parents: bool) -> float:
    """Mean cosine, over pairs of items with equal code at ``level``, of their offsets from their parent's mean."""
    x = np.asarray(vectors, dtype=np.float64)
    going_on = [i for i, row in enumerate(codes) if row[level] >= 0]
    offsets = {}
    for i in going_on:
        family = [j for j in going_on if tuple(codes[j][:level]) == tuple(codes[i][:level])]
        offset = x[i] - x[family].mean(axis=0)
        if np.linalg.norm(offset) > 1e-9:
            offsets[i] = offset / np.linalg.norm(offset)
    cosines = [
        float(offsets[i] @ offsets[j])
        for i, j in permutations(offsets, 2)
        if codes[i][level] == codes[j][level]
        and not (across_parents and tuple(codes[i][:level]) == tuple(codes[j][:level]))
    ]
    return float(np.mean(cosines)) if cosines else float("nan")


def history_overlap(codes: Codes, histories: Sequence[Sequence[int]], level: int) -> float:
    """Mean share of the earlier events on other items that have the event's code at ``level`` (counted from 0)."""
    shares = []
    for history in histories:
        for place, target in enumerate(history):
            earlier = [item for item in history[:place] if item != target]
            if earlier and codes[target][level] >= 0:
                shares.append(sum(codes[item][level] == codes[target][level] for item in earlier) / len(earlier))
    return float(np.mean(shares)) if shares else math.nan
