"""Rows to clusters of limited size at the least total cost, exactly (numpy and scipy only).

Axes: N rows, K clusters. The problem is a transport problem with few sinks. It is solved with one price per
cluster: at prices p a row takes argmin_k cost[n, k] + p[k], and the prices are right when the sizes are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.quantizers.prices import Costs, Ints, Labels, Reals, choose, find_prices, free_seats

Sizes = int | npt.ArrayLike
_SMALL = 1 << 15  # rows x seats up to which one call of scipy is quicker than prices
_SAMPLE_ROWS_PER_CODE = 64  # the first prices are found on this many rows per cluster


@dataclass(frozen=True, eq=False)
class Assignment:
    """Cluster of every row, int32 ``[N]``, and the prices ``[K]`` at which each row chose it (internal).

    prices_K: a good start for a similar problem; None after a small problem, which needs no prices.
    """

    labels: Labels
    prices_K: Reals | None


def capacity_assign(
    cost_NK: Costs,
    min_size: Sizes,
    max_size: Sizes,
    keys: npt.NDArray[np.uint64] | None = None,
) -> Labels:
    """Give every row one cluster, at the least total cost with every cluster's size within its limits (internal).

    ::

        labels = argmin over all labellings with  min_size[k] <= |{n: labels[n] = k}| <= max_size[k]
                 of  sum_n cost[n, labels[n]]

    The minimum is exact (up to the rounding of float64 sums), whatever the size: prices are only where the
    search starts. It ends with shortest augmenting paths over the K clusters (Ahuja, Magnanti & Orlin 1993,
    ch. 9), each moving as many rows as needed from overfull to underfull clusters.

    cost_NK: finite floats ``[N, K]``. min_size, max_size: one number or one per cluster. keys: uint64 ``[N]``; rows
    are looked at in the order of their keys, so which of two alike rows goes where does not depend on the
    order of rows (None = the order of rows). Returns int32 ``[N]``.

    Memory beyond the table: K x K and N small numbers, and a copy of the table when keys are given.

    Raises ConfigError for limits that exclude each other, DataError when N rows cannot keep them or a
    cost is not finite.
    """
    cost = np.asarray(cost_NK)
    if cost.ndim != 2 or cost.shape[1] == 0 or not np.isfinite(cost).all():
        raise DataError(f"cost: expected finite numbers [N, K] with K > 0, got shape {cost.shape}")
    low_K, high_K = size_limits(len(cost), cost.shape[1], min_size, max_size)
    if keys is None:
        return assign(cost, low_K, high_K).labels
    if keys.shape != (len(cost),):
        raise DataError(f"keys: expected one per row, shape ({len(cost)},), got {keys.shape}")
    order = np.argsort(keys, kind="stable")
    labels = np.empty(len(cost), dtype=np.int32)
    labels[order] = assign(cost[order], low_K, high_K).labels
    return labels


def size_limits(n: int, n_codes: int, min_size: Sizes, max_size: Sizes) -> tuple[Ints, Ints]:
    """Checked limits of each cluster, int64 ``[K]`` twice (internal)."""
    low_K = np.array(np.broadcast_to(np.asarray(min_size, dtype=np.int64), (n_codes,)))
    high_K = np.array(np.broadcast_to(np.asarray(max_size, dtype=np.int64), (n_codes,)))
    if (low_K < 0).any() or (low_K > high_K).any():
        raise ConfigError(
            f"min_size: expected 0 .. max_size, got min_size {_short(low_K)} with max_size {_short(high_K)}"
        )
    if not low_K.sum() <= n <= high_K.sum():
        raise DataError(
            f"{n} rows do not fit {n_codes} clusters of {_short(low_K)} .. {_short(high_K)} rows:"
            f" expected {low_K.sum()} .. {high_K.sum()} rows",
            hint="lower min_size, raise max_size, or change the number of clusters",
        )
    high_K = np.minimum(high_K, n - (low_K.sum() - low_K))  # nobody can have more: the others' least is taken
    return low_K, high_K


def assign(cost_NK: Costs, low_K: Ints, high_K: Ints, prices_K: Reals | None = None) -> Assignment:
    """:func:`capacity_assign` for checked limits, from ``prices_K`` where known (internal)."""
    if len(cost_NK) * int(high_K.sum()) <= _SMALL:
        return Assignment(_assign_seats(cost_NK, low_K, high_K), None)
    start_K = np.zeros(len(low_K)) if prices_K is None else prices_K
    sample = _SAMPLE_ROWS_PER_CODE * len(low_K)
    if prices_K is None and len(cost_NK) > 4 * sample:
        at = np.linspace(0, len(cost_NK) - 1, sample).astype(np.int64)
        start_K = find_prices(cost_NK[at], low_K, high_K, start_K, len(cost_NK) / sample)
    prices = find_prices(cost_NK, low_K, high_K, start_K, 1.0)
    return _Repair(cost_NK, low_K, high_K, prices).run()


def _short(sizes_K: Ints) -> str:
    return str(int(sizes_K[0])) if (sizes_K == sizes_K[0]).all() else str(sizes_K.tolist())


def _assign_seats(cost_NK: Costs, low_K: Ints, high_K: Ints) -> Labels:
    """One column per seat: the first ``low`` seats of a cluster must be taken, so they get a bonus."""
    cluster_S = np.repeat(np.arange(len(low_K)), high_K)
    seat_S = np.arange(len(cluster_S)) - np.repeat(np.cumsum(high_K) - high_K, high_K)
    cost = cost_NK.astype(np.float64)
    cost -= cost.min(axis=1, keepdims=True)
    table_NS = cost[:, cluster_S]
    table_NS[:, seat_S < low_K[cluster_S]] -= 2 * (cost.sum(axis=0).max() + 1)
    rows, seats = linear_sum_assignment(table_NS)
    labels = np.empty(len(cost), dtype=np.int32)
    labels[rows] = cluster_S[seats]
    return labels


class _Repair:
    """From nearly right prices to the optimum, by shortest paths between clusters.

    An arc i -> j moves the row of i that minds least (cost ``w[i, j]``), or a free seat of i (cost 0, then a row
    can leave j's side instead). Throughout no row would rather be elsewhere: ``w[i, j] + p[j] - p[i] >= 0``.
    Each round finds all distances from the overfull clusters and shifts the prices by them, after which the
    arcs of the tree cost nothing, so every underfull cluster whose path is still open is filled.
    """

    def __init__(self, cost_NK: Costs, low_K: Ints, high_K: Ints, prices_K: Reals) -> None:
        self.cost, self.may = cost_NK, high_K - low_K
        self.prices = prices_K.astype(np.float64)
        self.labels = choose(cost_NK, self.prices).first
        n_codes = len(low_K)
        sizes = np.bincount(self.labels, minlength=n_codes)
        self.free = free_seats(sizes, low_K, high_K, self.prices).seats_K
        self.excess = sizes + self.free - high_K
        self.members = np.split(np.argsort(self.labels, kind="stable"), np.cumsum(sizes)[:-1])
        self.w = np.full((n_codes, n_codes), np.inf)
        self.row = np.full((n_codes, n_codes), -1, dtype=np.int64)
        if (self.excess > 0).any():
            for code in range(n_codes):
                self._look_again(code, np.arange(n_codes))

    def run(self) -> Assignment:
        """Repair until every cluster has its size."""
        while (self.excess > 0).any():
            distance, parent = self._distances()
            self.prices -= np.minimum(distance, distance[np.isfinite(distance)].max())
            self._move(self._paths(distance, parent))
        return Assignment(self.labels, self.prices)

    def _look_again(self, code: int, targets: Ints) -> None:
        """The cheapest row to move from ``code`` to each target."""
        rows = self.members[code]
        if len(rows) == 0:
            self.w[code, targets], self.row[code, targets] = np.inf, -1
            return
        gap = self.cost[rows[:, None], targets].astype(np.float64)
        gap -= self.cost[rows, code].astype(np.float64)[:, None]
        least = gap.argmin(axis=0)
        self.w[code, targets] = gap[least, np.arange(len(targets))]
        self.row[code, targets] = rows[least]
        self.w[code, code] = np.inf

    def _seat_arcs(self) -> npt.NDArray[np.bool_]:
        return (self.free > 0)[:, None] & (self.free < self.may)[None, :]

    def _distances(self) -> tuple[Reals, Ints]:
        """Distance of every cluster from the overfull ones at the present prices, and its parent (-1: none)."""
        arcs = np.where(self._seat_arcs(), np.minimum(self.w, 0), self.w)
        arcs += self.prices[None, :] - self.prices[:, None]
        np.maximum(arcs, 0, out=arcs)  # rounding
        distance = np.where(self.excess > 0, 0.0, np.inf)
        parent = np.full(len(distance), -1, dtype=np.int64)
        changed = np.flatnonzero(self.excess > 0)
        while len(changed):
            through = distance[changed, None] + arcs[changed]
            via = through.argmin(axis=0)
            found = through[via, np.arange(len(distance))]
            better = found < distance
            distance[better], parent[better] = found[better], changed[via[better]]
            changed = np.flatnonzero(better)
        return distance, parent

    def _paths(self, distance: Reals, parent: Ints) -> list[tuple[int, int, int]]:
        """Moves (row or -1 for a free seat, from, to) along tree paths that share no arc, row or lacking seat."""
        by_seat = self._seat_arcs() & (self.w >= 0)
        up = parent.tolist()
        used_arcs: set[tuple[int, int]] = set()
        used_rows: set[int] = set()
        moves: list[tuple[int, int, int]] = []
        sinks = np.flatnonzero(self.excess < 0)
        for sink in sinks[np.argsort(distance[sinks], kind="stable")].tolist():
            path, at = [], sink
            while up[at] >= 0:
                path.append((up[at], at))
                at = up[at]
            if self.excess[at] <= 0 or any(arc in used_arcs for arc in path):
                continue
            steps = [(-1 if by_seat[i, j] else int(self.row[i, j]), i, j) for i, j in path]
            seats = [i for row, i, _ in steps if row < 0]
            room = [j for row, _, j in steps if row < 0]
            if any(row in used_rows for row, _, _ in steps if row >= 0):
                continue
            if any(self.free[i] < 1 for i in seats) or any(self.free[j] >= self.may[j] for j in room):
                continue
            used_arcs.update(path)
            used_rows.update(row for row, _, _ in steps if row >= 0)
            for i, j in zip(seats, room, strict=True):
                self.free[i] -= 1
                self.free[j] += 1
            self.excess[at] -= 1
            self.excess[sink] += 1
            moves += steps
        return moves

    def _move(self, moves: list[tuple[int, int, int]]) -> None:
        moved = np.array([m for m in moves if m[0] >= 0], dtype=np.int64).reshape(-1, 3)
        rows, _, targets = moved.T
        self.labels[rows] = targets
        for code in np.unique(moved[:, 1]).tolist():
            out = rows[moved[:, 1] == code]
            kept = self.members[code]
            self.members[code] = kept[(kept[:, None] != out).all(axis=1)]
            self._look_again(code, np.flatnonzero((self.row[code][:, None] == out).any(axis=1)))
        for row, code in zip(rows.tolist(), targets.tolist(), strict=True):
            self.members[code] = np.append(self.members[code], row)
            gap = self.cost[row].astype(np.float64) - float(self.cost[row, code])
            better = gap < self.w[code]
            better[code] = False
            self.w[code, better], self.row[code, better] = gap[better], row
