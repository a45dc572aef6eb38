"""The two steps of the ``reassign`` policy, for a million items in seconds.

Axes: N items, M items that are looked at, L levels, K codes of a level, P prefixes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from genrec.item_tokenizers.codes import row_numbers

if TYPE_CHECKING:
    from genrec.item_tokenizers.collisions import Quantized

Keys = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
_CELLS = 1 << 20  # of a table of items x codes that is held at a time


def capacity_below(level_sizes: tuple[int, ...]) -> list[int]:
    """Identifiers below a prefix of length 0, 1, … L (python integers: they may be huge) (internal)."""
    sizes = [1]
    for size in reversed(level_sizes):
        sizes.append(sizes[-1] * size)
    return sizes[::-1]


def place_overflow(
    codes_NL: npt.NDArray[Any],
    sizes: tuple[int, ...],
    keys: Keys,
    quantized: Quantized,
    fixed_N: Flags | None = None,
) -> int:
    """Step 1 of ``reassign``, in place; returns the number of items that left their prefix (internal).

    ::

        for each item that has to leave, in key order:
            for each level:  code = nearest one with room below (prefix, code)

    All items choose their code of a level at the same time, which gives the same codes: what an item finds at a
    level depends on the earlier items' choices at that level (and above) only.

    fixed_N: items that never leave; ``quantized`` need not know them.
    """
    leaving_M = _leaving(codes_NL, sizes[-1], keys, quantized, fixed_N)
    if len(leaving_M):
        choose_prefixes(codes_NL, sizes, leaving_M, quantized)
        # the last code is spread afterwards, with everyone who is under the prefix by then
        costs = _costs_of(quantized, leaving_M, codes_NL, len(sizes) - 1)
        room_1K = np.full((1, sizes[-1]), len(codes_NL))
        codes_NL[leaving_M, -1] = choose_in_turn(costs, np.zeros(len(leaving_M), dtype=np.int64), room_1K)
    return len(leaving_M)


def choose_prefixes(codes_NL: npt.NDArray[Any], sizes: tuple[int, ...], leaving_M: Ints, quantized: Quantized) -> None:
    """The first L-1 codes of items that must find a new prefix, in place; earlier rows of ``leaving_M`` choose first.

    Each level: the nearest code below which there is still an identifier for one more item. There must be room for all
    of them. The last code is left as it is. (internal)
    """
    stays_N = np.ones(len(codes_NL), dtype=bool)
    stays_N[leaving_M] = False
    capacity = capacity_below(sizes)
    node_N = np.zeros(len(codes_NL), dtype=np.int64)
    for level, size in enumerate(sizes[:-1]):
        costs = _costs_of(quantized, leaving_M, codes_NL, level)
        parents, p_M = np.unique(node_N[leaving_M], return_inverse=True)
        there = np.flatnonzero(stays_N & np.isin(node_N, parents))
        slots = np.searchsorted(parents, node_N[there]) * size + codes_NL[there, level]
        held_PK = np.bincount(slots, minlength=len(parents) * size).reshape(-1, size)
        room_PK = min(capacity[level + 1], len(codes_NL)) - held_PK
        codes_NL[leaving_M, level] = choose_in_turn(costs, p_M, room_PK)
        node_N = np.unique(node_N * size + codes_NL[:, level], return_inverse=True)[1]


def choose_in_turn(costs: Callable[[Ints], Reals], p_M: Ints, room_PK: Ints) -> Ints:
    """The code each row takes when all choose one after the other, int64 ``[M]`` (internal).

    ::

        for row in 0 .. M-1:
            code = argmin over codes k with room[p[row], k] > 0 of cost[row, k];   room[p[row], code] -= 1

    Computed by deferred acceptance (Gale & Shapley 1962) with the row number as everyone's priority, which ends in
    the same, unique, stable matching: all rows ask for their best code, those beyond its room ask again.

    costs: gives the rows of the cost table that it is asked for, float64 ``[rows, K]``. p_M: parent of each row.
    """
    n, size = len(p_M), room_PK.shape[1]
    room = room_PK.ravel()
    closes_PK = np.where(room_PK > 0, n, 0)  # only rows below this number may ask for the code
    slot_M = np.zeros(n, dtype=np.int64)
    asking = np.arange(n)
    while len(asking):
        for start in range(0, len(asking), max(_CELLS // size, 1)):
            rows = asking[start : start + max(_CELLS // size, 1)]
            table = costs(rows)
            table[closes_PK[p_M[rows]] <= rows[:, None]] = np.inf
            slot_M[rows] = p_M[rows] * size + table.argmin(axis=1)
        order = np.argsort(slot_M, kind="stable")
        slots = slot_M[order]
        rank = np.arange(n) - np.searchsorted(slots, slots, side="left")
        beyond = rank >= room[slots]
        full = np.unique(slots[beyond])
        last = (rank == room[slots] - 1) & np.isin(slots, full)
        closes_PK.ravel()[slots[last]] = order[last]
        asking = np.sort(order[beyond])
    return np.asarray(slot_M % size)


def spread_last_level(
    codes_NL: npt.NDArray[Any], size: int, keys: Keys, quantized: Quantized, fixed_N: Flags | None = None
) -> None:
    """Step 2 of ``reassign``, in place: every prefix has at most ``size`` items by now (internal).

    A prefix where every mover's nearest free code is another one is done at once (nothing can cost less); the other
    prefixes are assignment problems, solved one by one.

    fixed_N: items that keep their codes, so whoever shares one with them must move; ``quantized`` need not know them.
    """
    group_N = row_numbers(codes_NL)
    prefix_N = row_numbers(codes_NL[:, :-1])
    movers_M = _movers(codes_NL, group_N, keys, quantized, fixed_N)
    movers_M = movers_M[np.lexsort((movers_M, keys[movers_M], prefix_N[movers_M]))]
    _, first_G = np.unique(group_N, return_index=True)  # identifiers in use, ascending, so their prefixes ascend too
    used_prefix_G, used_last_G = prefix_N[first_G], codes_NL[first_G, -1]
    costs = _costs_of(quantized, movers_M, codes_NL, codes_NL.shape[1] - 1)
    for part in _whole_groups(prefix_N[movers_M], max(_CELLS // size, 1)):
        prefixes, p_M = np.unique(prefix_N[movers_M[part]], return_inverse=True)
        near = slice(*np.searchsorted(used_prefix_G, [prefixes[0], prefixes[-1] + 1]))
        at = np.searchsorted(prefixes, used_prefix_G[near])
        here = prefixes[at] == used_prefix_G[near]
        taken_PK = np.zeros((len(prefixes), size), dtype=bool)
        taken_PK[at[here], used_last_G[near][here]] = True
        codes_NL[movers_M[part], -1] = _assign_free(costs(np.arange(part.start, part.stop)), p_M, taken_PK)


def _leaving(codes_NL: npt.NDArray[Any], size: int, keys: Keys, quantized: Quantized, fixed_N: Flags | None) -> Ints:
    """Items beyond the ``size`` nearest of their prefix, in key order; the fixed ones of a prefix come first."""
    prefix_N = row_numbers(codes_NL[:, :-1])
    items = np.flatnonzero(np.bincount(prefix_N)[prefix_N] > size)
    order = _nearest_first(codes_NL[:, :-1], prefix_N, items, keys, quantized, fixed_N)
    prefixes = prefix_N[order]
    rank = np.arange(len(items)) - np.searchsorted(prefixes, prefixes, side="left")
    leaving = _without(order[rank >= size], fixed_N)
    return leaving[np.lexsort((leaving, keys[leaving]))]


def _movers(
    codes_NL: npt.NDArray[Any], group_N: npt.NDArray[Any], keys: Keys, quantized: Quantized, fixed_N: Flags | None
) -> Ints:
    """All items of a group but the nearest one, or but the fixed ones where there are any."""
    items = np.flatnonzero(np.bincount(group_N)[group_N] > 1)
    order = _nearest_first(codes_NL, group_N, items, keys, quantized, fixed_N)
    groups = group_N[order]
    return _without(order[1:][groups[1:] == groups[:-1]], fixed_N)


def _nearest_first(
    codes_NL: npt.NDArray[Any],
    group_N: npt.NDArray[Any],
    items: Ints,
    keys: Keys,
    quantized: Quantized,
    fixed_N: Flags | None,
) -> Ints:
    """``items`` by group; in it the fixed ones, then by distance from what their codes say, then by key."""
    error = np.full(len(items), -1.0)
    free = np.ones(len(items), dtype=bool) if fixed_N is None else ~fixed_N[items]
    error[free] = quantized.squared_error(codes_NL, items[free])
    return np.asarray(items[np.lexsort((items, keys[items], error, group_N[items]))])


def _without(items: Ints, fixed_N: Flags | None) -> Ints:
    return items if fixed_N is None else items[~fixed_N[items]]


def _costs_of(quantized: Quantized, items_M: Ints, codes_NL: npt.NDArray[Any], level: int) -> Callable[[Ints], Reals]:
    """Squared distance of what the levels before left over to each code of ``level``, but for a constant per item."""
    book = quantized.codebooks[level].astype(np.float64)
    square_K = np.einsum("kd,kd->k", book, book)

    def costs(rows: Ints) -> Reals:
        items = items_M[rows]
        left = quantized.residuals(codes_NL[items, :level], items)
        table = left @ (-2 * book.T)
        table += square_K
        return np.asarray(table)

    return costs


def _whole_groups(sorted_M: npt.NDArray[Any], rows: int) -> Iterator[slice]:
    """Parts of about ``rows`` rows that cut no run of equal values."""
    ends = np.append(np.flatnonzero(sorted_M[1:] != sorted_M[:-1]) + 1, len(sorted_M))
    start = 0
    while start < len(sorted_M):
        stop = int(ends[max(int(np.searchsorted(ends, start + rows, side="right")) - 1, 0)])
        if stop <= start:
            stop = int(ends[np.searchsorted(ends, start, side="right")])
        yield slice(start, stop)
        start = stop


def _assign_free(cost_MK: Reals, p_M: Ints, taken_PK: npt.NDArray[np.bool_]) -> Ints:
    """A free code for every row, different ones under one prefix, at the least total cost; ``p_M`` ascends."""
    n_prefixes, size = taken_PK.shape
    cost_MK[taken_PK[p_M]] = np.inf
    code_M: Ints = cost_MK.argmin(axis=1)
    wanted = np.bincount(p_M * size + code_M, minlength=n_prefixes * size).reshape(n_prefixes, size)
    starts = np.searchsorted(p_M, np.arange(n_prefixes + 1))
    for p in np.flatnonzero((wanted > 1).any(axis=1)).tolist():
        rows = slice(starts[p], starts[p + 1])
        free = np.flatnonzero(~taken_PK[p])
        code_M[rows] = free[linear_sum_assignment(cost_MK[rows][:, free])[1]]
    return code_M
