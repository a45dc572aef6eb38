"""Prices of clusters of limited size: at prices p a row takes argmin_k cost[n, k] + p[k] (numpy only).

Axes: N rows, K clusters. A search without a guarantee; it gives the exact assignment in
:mod:`genrec.item_tokenizers.quantizers.capacity` a start that is nearly right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Costs = npt.NDArray[np.floating[Any]]
Reals = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]
_CELLS = 1 << 20  # of a piece of the cost table that is looked at in one go
_MAX_SWEEPS = 40
_PATIENCE = 5  # sweeps without at least 5 % less excess
_STEP = 0.7  # of the excess that a price step tries to remove: neighbours step at the same time
_MOST = 0.25  # of the rows in view that a price step may move
_COLUMN_ROWS = 4096  # looked at for a cluster that is the second choice of too few rows


@dataclass(frozen=True, eq=False)
class Choice:
    """Of each row at some prices: the best cluster, its cost, the second best, how much dearer that is (internal)."""

    first: Labels
    price: Reals
    second: Labels
    gap: Reals


def choose(cost_NK: Costs, prices_K: Reals) -> Choice:
    """What every row chooses at these prices, in float64 (internal)."""
    n, n_codes = cost_NK.shape
    choice = Choice(np.empty(n, np.int32), np.empty(n), np.empty(n, np.int32), np.empty(n))
    step = max(_CELLS // n_codes, 1)
    for start in range(0, n, step):
        table = cost_NK[start : start + step] + prices_K
        rows = np.arange(len(table))
        first = table.argmin(axis=1)
        least = table[rows, first]
        table[rows, first] = np.inf
        second = table.argmin(axis=1)
        part = slice(start, start + len(table))
        choice.first[part], choice.second[part] = first, second
        choice.price[part], choice.gap[part] = least, table[rows, second] - least
    return choice


def find_prices(cost_NK: Costs, low_K: Ints, high_K: Ints, prices_K: Reals, weight: float) -> Reals:
    """Prices at which nearly every cluster has its size, or the nearest to that which was found (internal).

    All clusters step at once, by as much as moves part of their excess; a cluster whose excess changes sign
    takes smaller steps from then on. weight: rows that each row stands for.
    """
    best_K, best_wrong, since_best = prices_K, np.inf, 0
    step_K, previous_K = np.full(len(low_K), _STEP), np.zeros(len(low_K))
    for _ in range(_MAX_SWEEPS):
        choice = choose(cost_NK, prices_K)
        sizes_K = np.asarray(np.bincount(choice.first, minlength=len(low_K)) * weight, dtype=np.float64)
        free = free_seats(sizes_K, low_K, high_K, prices_K)
        wrong = np.abs(sizes_K - (high_K - free.seats_K)).sum() / weight
        since_best = 0 if wrong < 0.95 * best_wrong else since_best + 1
        if wrong < best_wrong:
            best_K, best_wrong = prices_K, wrong
        if wrong <= 0.5 * len(low_K) or since_best == _PATIENCE:
            break
        excess_K = sizes_K - np.where(prices_K == free.price, np.clip(sizes_K, low_K, high_K), high_K - free.seats_K)
        step_K = np.clip(step_K * np.where(excess_K * previous_K < 0, 0.5, 1.2), 0, _STEP)
        previous_K = excess_K
        stepped_K = prices_K + _price_steps(cost_NK, prices_K, choice, step_K * excess_K / weight)
        # free seats are worth the same everywhere: a price stops where the seats would change hands
        crosses_K = (stepped_K - free.price) * (prices_K - free.price) < 0
        prices_K = np.where(crosses_K, free.price, stepped_K)
    return best_K


@dataclass(frozen=True, eq=False)
class Free:
    """Where the seats that stay free are (the cheapest clusters) and the price of the last of them (internal)."""

    seats_K: Ints
    price: float


def free_seats(sizes_K: npt.NDArray[Any], low_K: Ints, high_K: Ints, prices_K: Reals) -> Free:
    """Free seats stay with the cheapest clusters; of equal prices, first with those that have them (internal)."""
    n_free = int(high_K.sum() - round(float(sizes_K.sum())))
    may_K = high_K - low_K
    wish_K = np.clip(np.floor(high_K - sizes_K), 0, may_K).astype(np.int64)
    amount = np.concatenate([wish_K, may_K - wish_K])
    order = np.lexsort((np.repeat([0, 1], len(low_K)), np.tile(prices_K, 2)))
    upto = np.minimum(np.cumsum(amount[order]), n_free)
    taken = np.empty_like(amount)
    taken[order] = np.diff(upto, prepend=0)
    seats_K = taken[: len(low_K)] + taken[len(low_K) :]
    return Free(seats_K, float(prices_K[seats_K > 0].max()) if n_free else float(-np.inf))


def _price_steps(cost_NK: Costs, prices_K: Reals, choice: Choice, excess_K: Reals) -> Reals:
    """How far each price must move for its cluster to lose (or win) that many rows, the other prices fixed."""
    steps = np.zeros(len(excess_K))
    far: list[int] = []
    for sign, owner in ((1, choice.first), (-1, choice.second)):
        order = np.lexsort((choice.gap, owner))
        ends = np.cumsum(np.bincount(owner, minlength=len(excess_K)))
        starts = np.concatenate([[0], ends[:-1]])
        wanted = np.ceil(sign * excess_K).astype(np.int64)
        # no more than a share of the rows in view: the others' gaps say little about who would follow
        most = np.ceil(_MOST * (ends - starts)).astype(np.int64)
        far = np.flatnonzero(wanted > most).tolist()
        found = np.flatnonzero((wanted > 0) & (ends > starts))
        last = starts[found] + np.minimum(wanted[found], most[found]) - 1
        after = np.minimum(last + 1, ends[found] - 1)
        steps[found] = sign * (choice.gap[order[last]] + choice.gap[order[after]]) / 2
    stride = max(len(cost_NK) // _COLUMN_ROWS, 1)
    for code in far:  # the second choice of too few rows: look at everybody (or at a sample)
        offer = (cost_NK[::stride, code] + prices_K[code] - choice.price[::stride])[choice.first[::stride] != code]
        rank = min(int(-excess_K[code]) // stride, len(offer) - 1)
        steps[code] = -np.partition(offer, rank)[rank]
    return steps
