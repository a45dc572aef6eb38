"""Policies for items that share one identifier; all deterministic, none looks at the order of items.

Axes: N items, L levels, K codes of a level, D width. Order inside a group comes from seeded hashes of the
item ids, because the order of a catalog file often follows time or id, and a suffix code would leak it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes, row_numbers

Floats = npt.NDArray[np.float32]
Keys = npt.NDArray[np.uint64]
CollisionPolicy = Literal["suffix", "reassign", "shared"]
"""suffix: one more level that numbers the items of a group. reassign: move items to the nearest free
identifier. shared: items may share an identifier."""
POLICIES: tuple[CollisionPolicy, ...] = ("suffix", "reassign", "shared")


@dataclass(frozen=True, eq=False)
class Quantized:
    """What a residual quantizer knows: item n is approximated by ``sum_l codebooks[l][codes[n, l]]`` (internal).

    vectors_ND: float32, the vectors that were quantized. codebooks: L arrays float32 ``[K, D]``.
    """

    vectors_ND: Floats
    codebooks: tuple[Floats, ...]

    def residuals(self, codes_NL: npt.NDArray[Any]) -> Floats:
        """What the given codes (the first levels of an identifier suffice) leave over, float32 ``[N, D]``."""
        left = self.vectors_ND.copy()
        for level in range(codes_NL.shape[1]):
            left -= self.codebooks[level][codes_NL[:, level]]
        return left

    def distortion(self, codes_NL: npt.NDArray[Any]) -> float:
        """Mean over items of the squared distance between vector and approximation."""
        left = self.residuals(codes_NL)
        return float(np.einsum("nd,nd->", left, left, dtype=np.float64) / max(len(left), 1))


@dataclass(frozen=True, eq=False)
class Resolution:
    """Codes after a policy, and what it cost (``report``: numbers for the manifest) (internal)."""

    codes: ItemCodes
    report: dict[str, Any]


def suffix(codes: ItemCodes, keys: Keys, *, limit: int = 256) -> Resolution:
    """Append a level that numbers the items of each group 0, 1, 2, … (TIGER; Rajput et al. 2023, 2305.05065) (stable).

    Always appended, so identifiers have L + 1 levels; a lone item gets 0. The level's size is the largest
    group.

    keys: uint64 ``[N]``, seeded hashes of the item ids: the order inside a group. Raises DataError when a
    group exceeds ``limit``: the codes have collapsed, or the limit must be raised.
    """
    _check_fixed(codes, keys)
    group_N = codes.collision_ids()
    largest = int(np.bincount(group_N).max())
    if largest > limit:
        raise DataError(
            f"{largest} items share one identifier, but the suffix level holds {limit}",
            hint="look at level_usage in the report: collapsed codes? otherwise raise suffix_limit",
        )
    order = np.lexsort((np.arange(len(codes)), keys, group_N))
    ordered = group_N[order]
    number = np.empty(len(codes), dtype=np.int64)
    number[order] = np.arange(len(codes)) - np.searchsorted(ordered, ordered, side="left")
    resolved = ItemCodes(
        codes=np.column_stack([codes.codes.astype(np.int64), number]),
        level_sizes=(*codes.level_sizes, largest),
        catalog=codes.catalog,
    )
    return Resolution(resolved, {"policy": "suffix", "n_suffixed": int(np.count_nonzero(number))})


def reassign(codes: ItemCodes, keys: Keys, quantized: Quantized) -> Resolution:
    """Give every item its own identifier of L levels by moving as few and as near as possible (stable).

    ::

        1. a prefix (first L-1 codes) with more items than last codes keeps its K nearest items; the others,
           in key order, are encoded again level by level, each time to the nearest code with room below it
        2. under each prefix, of the items that share a last code the nearest keeps it; the others get the
        free
           last codes by minimum total cost (linear assignment), cost = squared distance

    Ends always when the catalog fits into the identifiers. Afterwards no two items collide. The report counts
    moved items and the added mean squared distance. Raises DataError when N exceeds the number of
    identifiers.
    """
    _check_fixed(codes, keys)
    capacity = _capacity(codes.level_sizes)
    if len(codes) > capacity[0]:
        raise DataError(
            f"{len(codes)} items do not fit into {capacity[0]} identifiers ({codes.level_sizes})",
            hint="raise n_levels or level_size",
        )
    before_NL = codes.codes.astype(np.int64)
    after_NL = before_NL.copy()
    n_overflow = _place_overflow(after_NL, codes.level_sizes, keys, quantized)
    _spread_last_level(after_NL, codes.level_sizes[-1], keys, quantized)
    before, after = quantized.distortion(before_NL), quantized.distortion(after_NL)
    report = {
        "policy": "reassign",
        "n_moved": int((before_NL != after_NL).any(axis=1).sum()),
        "n_moved_to_another_prefix": n_overflow,
        "distortion_before": before,
        "distortion_after": after,
    }
    return Resolution(ItemCodes(after_NL, codes.level_sizes, codes.catalog), report)


def resolve(
    policy: CollisionPolicy, codes: ItemCodes, keys: Keys, quantized: Quantized | None, *, limit: int = 256
) -> Resolution:
    """Apply the policy called ``policy``; ``shared`` changes nothing (stable)."""
    if policy == "suffix":
        return suffix(codes, keys, limit=limit)
    if policy == "reassign":
        if quantized is None:
            raise ConfigError("collisions: 'reassign' needs codebooks, and this item tokenizer has none")
        return reassign(codes, keys, quantized)
    check_policy(policy)
    return Resolution(codes, {"policy": "shared"})


def check_policy(policy: str) -> None:
    """Raise ConfigError unless ``policy`` is one of :data:`POLICIES` (internal)."""
    if policy not in POLICIES:
        raise ConfigError(f"collisions: expected one of {', '.join(POLICIES)}, got {policy!r}")


def _check_fixed(codes: ItemCodes, keys: Keys) -> None:
    if codes.ragged:
        raise DataError("this collision policy needs identifiers of equal length; these are ragged")
    if len(codes) == 0:
        raise DataError("expected at least one item, got codes of none")
    if keys.shape != (len(codes),):
        raise DataError(f"keys: expected one per item, shape ({len(codes)},), got {keys.shape}")


def _capacity(level_sizes: tuple[int, ...]) -> list[int]:
    """Identifiers below a prefix of length 0, 1, … L (python integers: they may be huge)."""
    sizes = [1]
    for size in reversed(level_sizes):
        sizes.append(sizes[-1] * size)
    return sizes[::-1]


def _groups(group_N: npt.NDArray[Any], keys: Keys, larger_than: int) -> list[npt.NDArray[Any]]:
    """Item numbers of every group with more than ``larger_than`` members, each in key order."""
    order = np.lexsort((np.arange(len(group_N)), keys, group_N))
    counts = np.bincount(group_N)
    ends = np.cumsum(counts)
    return [order[ends[g] - counts[g] : ends[g]] for g in np.flatnonzero(counts > larger_than)]


def _place_overflow(codes_NL: npt.NDArray[Any], sizes: tuple[int, ...], keys: Keys, quantized: Quantized) -> int:
    """Step 1 of :func:`reassign`, in place; returns the number of items that left their prefix."""
    n_levels = len(sizes)
    prefix_N = row_numbers(codes_NL[:, :-1])
    leaving: list[int] = []
    for members in _groups(prefix_N, keys, larger_than=sizes[-1]):
        left = Quantized(quantized.vectors_ND[members], quantized.codebooks).residuals(codes_NL[members, :-1])
        nearest_first = np.argsort(np.einsum("nd,nd->n", left, left), kind="stable")
        leaving.extend(members[nearest_first[sizes[-1] :]].tolist())
    if not leaving:
        return 0
    staying = np.ones(len(codes_NL), dtype=bool)
    staying[leaving] = False
    used: Counter[tuple[int, ...]] = Counter()
    for depth in range(1, n_levels):
        rows, counts = np.unique(codes_NL[staying, :depth], axis=0, return_counts=True)
        used.update({tuple(row): int(count) for row, count in zip(rows.tolist(), counts, strict=True)})
    capacity = _capacity(sizes)
    start: tuple[int, ...] = ()
    for item in sorted(leaving, key=lambda n: (int(keys[n]), n)):
        left, prefix = quantized.vectors_ND[item], start
        for level in range(n_levels):
            book = quantized.codebooks[level]
            gap = left - book
            order = np.argsort(np.einsum("kd,kd->k", gap, gap), kind="stable")
            # the last level is spread afterwards, with everyone who is under the prefix by then
            has_room = (k for k in order.tolist() if used[(*prefix, k)] < capacity[level + 1])
            code = int(order[0]) if level == n_levels - 1 else next(has_room)
            prefix = (*prefix, code)
            left = left - book[code]
            if level < n_levels - 1:
                used[prefix] += 1
        codes_NL[item] = prefix
    return len(leaving)


def _spread_last_level(codes_NL: npt.NDArray[Any], size: int, keys: Keys, quantized: Quantized) -> None:
    """Step 2 of :func:`reassign`, in place: every prefix has at most ``size`` items by now."""
    group_N = row_numbers(codes_NL)
    prefix_N = row_numbers(codes_NL[:, :-1])
    crowded = np.zeros(int(prefix_N.max()) + 1, dtype=bool)
    crowded[prefix_N[np.bincount(group_N)[group_N] > 1]] = True
    book = quantized.codebooks[-1].astype(np.float64)
    square_K = np.einsum("kd,kd->k", book, book)
    for members in _groups(prefix_N, keys, larger_than=1):
        if not crowded[prefix_N[members[0]]]:
            continue
        left = Quantized(quantized.vectors_ND[members], quantized.codebooks).residuals(codes_NL[members, :-1])
        cost_MK = square_K - 2 * (left @ book.T)  # without |left|²: the same for every code of an item
        last_M = codes_NL[members, -1]
        own_M = cost_MK[np.arange(len(members)), last_M] + np.einsum("nd,nd->n", left, left, dtype=np.float64)
        nearest_first = np.argsort(own_M, kind="stable")
        _, first = np.unique(last_M[nearest_first], return_index=True)
        moving = np.ones(len(members), dtype=bool)
        moving[nearest_first[first]] = False
        free = np.setdiff1d(np.arange(size), last_M)
        rows, columns = linear_sum_assignment(cost_MK[moving][:, free])
        codes_NL[members[moving][rows], -1] = free[columns]
