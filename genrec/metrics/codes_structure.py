"""Identifiers as nested partitions of the items: against categories, other levels, other tables (numpy only).

``codes_NL`` is as in ``codes_usage``: int ``[N, L]``, -1 beyond the end of a short identifier. A partition is an
integer ``[N]``, equal where items are together. Axes: N items, L levels, D vector width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.metrics.codes_usage import prefix_numbers
from genrec.metrics.identifiers import group_sizes

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Contingency:
    """How two partitions of the same items meet: only the occupied cells (internal).

    row_C, column_C, count_C: int64 ``[C]``, cells sorted by row then column. rows, columns: sizes of the parts.
    """

    row_C: npt.NDArray[np.int64]
    column_C: npt.NDArray[np.int64]
    count_C: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]

    @classmethod
    def of(cls, a_N: npt.ArrayLike, b_N: npt.ArrayLike) -> Contingency:
        """Count the items of every pair of parts."""
        _, a = np.unique(np.asarray(a_N), return_inverse=True)
        _, b = np.unique(np.asarray(b_N), return_inverse=True)
        width = int(b.max(initial=0)) + 1
        cells, counts = np.unique(a.astype(np.int64) * width + b, return_counts=True)
        return cls(cells // width, cells % width, counts, np.bincount(a), np.bincount(b))

    def information(self) -> float:
        """Mutual information in nats."""
        n = int(self.count_C.sum())
        outer = np.log(self.rows[self.row_C]) + np.log(self.columns[self.column_C])
        return float((self.count_C * (np.log(self.count_C) + np.log(n) - outer)).sum() / n) if n else NAN


@dataclass(frozen=True)
class Purity:
    """Weighted purity, and that of a shuffle that keeps all sizes; only their difference means something (stable)."""

    value: float
    shuffled: float

    @property
    def lift(self) -> float:
        """``value - shuffled``: 0 = chance."""
        return self.value - self.shuffled


@dataclass(frozen=True, eq=False)
class Stability:
    """How alike two tables for the same items are, by prefix length; float64 ``[L]`` each (stable).

    adjusted_rand: 1 = the same partition, 0 = chance (Hubert and Arabie 1985). kept: of the pairs of items that share
    the prefix in the first table, the share that do in the second; nan if there is no such pair.
    """

    adjusted_rand: Floats
    kept: Floats


@dataclass(frozen=True, eq=False)
class ColdCoverage:
    """Where the identifiers of new items land among those of known ones (stable).

    occupied: float64 ``[L]``, share of new items whose prefix of each length some known item has. new_identifier:
    share whose whole identifier no known item has. warm_collision: share whose identifier a known item has
    (``1 - new_identifier``). cold_collision: share who have it in common with another new item.
    """

    occupied: Floats
    new_identifier: float
    warm_collision: float
    cold_collision: float


def normalized_information(a_N: npt.ArrayLike, b_N: npt.ArrayLike) -> float:
    """NMI: mutual information divided by the mean of the two entropies, 0..1; 1 if both have one part (stable)."""
    table = Contingency.of(a_N, b_N)
    mean = (_entropy(table.rows) + _entropy(table.columns)) / 2
    return max(table.information(), 0.0) / mean if mean > 0 else 1.0


def adjusted_information(a_N: npt.ArrayLike, b_N: npt.ArrayLike) -> float:
    """AMI: mutual information corrected for chance, 1 = the same partition, about 0 = independent (stable).

    ``(I - E[I]) / ((H_a + H_b) / 2 - E[I])``, the expectation over all pairs of partitions with these sizes (Vinh,
    Epps and Bailey 2010). E[I] needs each pair of *distinct* part sizes once, so thousands of parts cost little.
    Two partitions of one part each: 1.
    """
    table = Contingency.of(a_N, b_N)
    if len(table.rows) <= 1 and len(table.columns) <= 1:
        return 1.0
    expected = _expected_information(table.rows, table.columns)
    gap = (_entropy(table.rows) + _entropy(table.columns)) / 2 - expected
    tiny = np.finfo(np.float64).eps
    above = table.information() - expected
    if abs(gap) < 1e-12 and abs(above) < 1e-12:  # nothing to learn beyond chance: both are all singletons, or one part
        return 1.0 if len(table.rows) == len(table.columns) else 0.0
    return float(above / (max(gap, tiny) if gap > 0 else min(gap, -tiny)))


def adjusted_rand(a_N: npt.ArrayLike, b_N: npt.ArrayLike) -> float:
    """Adjusted Rand index of two partitions; 1 where no disagreement is possible (stable)."""
    table = Contingency.of(a_N, b_N)
    both, a, b = _pairs(table.count_C), _pairs(table.rows), _pairs(table.columns)
    n = float(table.count_C.sum())
    chance = a * b / (n * (n - 1) / 2) if n > 1 else 0.0
    gap = (a + b) / 2 - chance
    return (both - chance) / gap if gap else 1.0


def purity(groups_N: npt.ArrayLike, labels_N: npt.ArrayLike) -> float:
    """Share of items that have the most frequent label of their group (stable).

    Rises to 1 as groups shrink to one item, whatever the labels: see :func:`purity_lift`.
    """
    table = Contingency.of(groups_N, labels_N)
    if len(table.count_C) == 0:
        return NAN
    starts = np.flatnonzero(np.concatenate([[True], table.row_C[1:] != table.row_C[:-1]]))
    return float(np.maximum.reduceat(table.count_C, starts).sum() / table.count_C.sum())


def purity_lift(
    groups_N: npt.ArrayLike, labels_N: npt.ArrayLike, generator: np.random.Generator, *, n_shuffles: int = 3
) -> Purity:
    """Purity beside the mean purity of ``n_shuffles`` random deals of the items to groups of equal sizes (stable)."""
    labels = np.asarray(labels_N)
    shuffled = [purity(groups_N, generator.permutation(labels)) for _ in range(n_shuffles)]
    return Purity(purity(groups_N, labels), float(np.mean(shuffled)))


def level_information(codes_NL: Ints) -> Floats:
    """NMI of the codes of every two levels, float64 ``[L, L]``, 1 on the diagonal (stable).

    Low means that levels say different things: wanted of residual codes, meaningless where the numbers of a level
    mean something else below every parent.
    """
    n_levels = codes_NL.shape[1]
    out = np.ones((n_levels, n_levels))
    for a in range(n_levels):
        for b in range(a):
            out[a, b] = out[b, a] = normalized_information(codes_NL[:, a], codes_NL[:, b])
    return out


def stability(before_NL: Ints, after_NL: Ints) -> Stability:
    """Compare two tables of the same items (row n is the same item), up to the shorter one's levels (stable).

    Codes are never compared as numbers: another seed may call the same group another name.
    """
    n_levels = min(before_NL.shape[1], after_NL.shape[1])
    a_NL, b_NL = prefix_numbers(before_NL), prefix_numbers(after_NL)
    rand, kept = np.full(n_levels, NAN), np.full(n_levels, NAN)
    for level in range(n_levels):
        rand[level] = adjusted_rand(a_NL[:, level], b_NL[:, level])
        table = Contingency.of(a_NL[:, level], b_NL[:, level])
        together = _pairs(table.rows)
        kept[level] = _pairs(table.count_C) / together if together else NAN
    return Stability(rand, kept)


def cold_coverage(warm_NL: Ints, cold_NL: Ints) -> ColdCoverage:
    """Where new items land: ``cold_NL`` are their codes by a tokenizer that was fitted on the known items (stable)."""
    n_levels = warm_NL.shape[1]
    if len(cold_NL) == 0:
        return ColdCoverage(np.full(n_levels, NAN), NAN, NAN, NAN)
    number_NL = prefix_numbers(np.concatenate([warm_NL, cold_NL]))
    warm, cold = number_NL[: len(warm_NL)], number_NL[len(warm_NL) :]
    occupied = np.empty(n_levels)
    for level in range(n_levels):
        known = np.zeros(int(number_NL[:, level].max()) + 1, dtype=bool)
        known[warm[:, level]] = True
        occupied[level] = known[cold[:, level]].mean()
    among = float((group_sizes(cold[:, -1]) > 1).mean())
    return ColdCoverage(occupied, float(1 - occupied[-1]), float(occupied[-1]), among)


def direction_coherence(
    codes_NL: Ints, vectors_ND: npt.NDArray[np.floating], level: int, *, across_parents: bool
) -> float:
    """Does a code mean the same direction below every parent?  Mean cosine over pairs of items, -1..1 (stable).

    ::

        d_i = z_i - mean of z over the items that go on below i's parent, its prefix of length `level`
        mean of cos(d_i, d_j) over all pairs i != j with equal code at `level` (counted from 0, at least 1)

    ReSID (2026, 2602.02338), table 10, takes all such pairs; items below one parent are alike by construction, so
    ``across_parents`` keeps only pairs with different parents. An item alone below its parent has no direction and is
    left out, nan without a pair. Cost O(N D): ``sum of cosines = |sum of unit vectors|^2 - n``.
    """
    parent_N = prefix_numbers(codes_NL)[:, level - 1]
    kept = (codes_NL[:, level] >= 0) & (group_sizes(parent_N) > 1)
    order = np.flatnonzero(kept)[np.lexsort((codes_NL[kept, level], parent_N[kept]))]
    if len(order) == 0:
        return NAN
    parent, code = parent_N[order], codes_NL[order, level]
    x_ND = np.asarray(vectors_ND, dtype=np.float64)[order]
    starts = _starts(parent)
    sizes = np.diff(np.append(starts, len(parent)))
    x_ND -= np.repeat(np.add.reduceat(x_ND, starts, axis=0) / sizes[:, None], sizes, axis=0)
    norms = np.sqrt(np.einsum("nd,nd->n", x_ND, x_ND))
    moved = norms > 1e-9 * max(float(norms.max()), 1e-300)
    if not moved.any():
        return NAN
    unit, parent, code = x_ND[moved] / norms[moved, None], parent[moved], code[moved]
    cells = _starts(parent, code)
    cell_sums, cell_sizes = np.add.reduceat(unit, cells, axis=0), np.diff(np.append(cells, len(unit)))
    by_code = np.argsort(code[cells], kind="stable")
    groups = _starts(code[cells][by_code])
    code_sums = np.add.reduceat(cell_sums[by_code], groups, axis=0)
    code_sizes = np.add.reduceat(cell_sizes[by_code], groups)
    own = float((cell_sums**2).sum()) if across_parents else float(len(unit))
    own_pairs = float((cell_sizes.astype(np.float64) ** 2).sum()) if across_parents else float(len(unit))
    pairs = float((code_sizes.astype(np.float64) ** 2).sum()) - own_pairs
    return (float((code_sums**2).sum()) - own) / pairs if pairs else NAN


def _starts(*keys: Ints) -> npt.NDArray[np.int64]:
    """Where a new combination of keys begins in sorted arrays."""
    new = np.ones(len(keys[0]), dtype=bool)
    new[1:] = False
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(new)


def _pairs(sizes: npt.NDArray[np.int64]) -> float:
    return float((sizes * (sizes - 1)).sum()) / 2


def _entropy(sizes: npt.NDArray[np.int64]) -> float:
    """Of a partition, in nats."""
    p = sizes / sizes.sum()
    return float(-(p * np.log(p)).sum()) if len(p) else 0.0


def _expected_information(rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> float:
    """Mean mutual information (nats) of random partitions with these sizes: a hypergeometric sum per pair of sizes."""
    n = int(rows.sum())
    (a_sizes, a_counts), (b_sizes, b_counts) = (np.unique(s, return_counts=True) for s in (rows, columns))
    if len(a_sizes) > len(b_sizes):
        a_sizes, a_counts, b_sizes, b_counts = b_sizes, b_counts, a_sizes, a_counts
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    total = 0.0
    for a, times in zip(a_sizes.tolist(), a_counts.tolist(), strict=True):
        low = np.maximum(1, a + b_sizes - n)
        lengths = np.minimum(a, b_sizes) - low + 1
        at = np.repeat(np.arange(len(b_sizes)), lengths)
        cell = np.arange(len(at)) - np.repeat(np.cumsum(lengths) - lengths - low, lengths)
        b = b_sizes[at]
        log_p = log_factorial[a] + log_factorial[n - a] - log_factorial[n]
        log_p = log_p + log_factorial[b] + log_factorial[n - b] - log_factorial[cell]
        log_p -= log_factorial[a - cell] + log_factorial[b - cell] + log_factorial[n - a - b + cell]
        gain = cell / n * (np.log(n) + np.log(cell) - np.log(a) - np.log(b))
        total += times * float((b_counts[at] * gain * np.exp(log_p)).sum())
    return total
