"""Policies for items that share one identifier; all deterministic, none looks at the order of items.

Axes: N items, L levels, K codes of a level, D width. Order inside a group comes from seeded hashes of the
item ids, because the order of a catalog file often follows time or id, and a suffix code would leak it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import Scaling
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.placement import capacity_below, place_overflow, spread_last_level

Floats = npt.NDArray[np.float32]
Reals = npt.NDArray[np.float64]
Keys = npt.NDArray[np.uint64]
CollisionPolicy = Literal["suffix", "reassign", "shared"]
"""suffix: one more level that numbers the items of a group. reassign: move items to the nearest free
identifier. shared: items may share an identifier."""
_CHUNK = 4096
POLICIES: tuple[CollisionPolicy, ...] = ("suffix", "reassign", "shared")


@dataclass(frozen=True, eq=False)
class Quantized:
    """What a residual quantizer knows: item n is approximated by ``sum_l codebooks[l][codes[n, l]]`` (internal).

    vectors_ND: float32, the vectors that were quantized. codebooks: L arrays float32 ``[K, D]``. scaling: how the
    vectors must be scaled first (None = not at all); so nobody need hold a scaled copy of a large table.
    """

    vectors_ND: Floats
    codebooks: tuple[Floats, ...]
    scaling: Scaling | None = None

    def residuals(self, codes_ML: npt.NDArray[Any], items: npt.NDArray[Any] | None = None) -> Floats:
        """What the given codes (the first levels of an identifier suffice) leave over, float32 ``[M, D]``.

        items: the item of each row (None = all, in their order).
        """
        given = self.vectors_ND if items is None else self.vectors_ND[items]
        left = given.copy() if self.scaling is None else self.scaling.apply(given)
        for level in range(codes_ML.shape[1]):
            left -= self.codebooks[level][codes_ML[:, level]]
        return left

    def squared_error(self, codes_NL: npt.NDArray[Any], items: npt.NDArray[Any] | None = None) -> Reals:
        """Squared distance of each item (None = all) from what its codes say, float64 ``[M]``."""
        at = np.arange(len(codes_NL)) if items is None else items
        out = np.empty(len(at))
        for start in range(0, len(at), _CHUNK):
            rows = at[start : start + _CHUNK]
            left = self.residuals(codes_NL[rows], rows)
            out[start : start + _CHUNK] = np.einsum("nd,nd->n", left, left, dtype=np.float64)
        return out

    def distortion(self, codes_NL: npt.NDArray[Any]) -> float:
        """Mean over items of the squared distance between vector and approximation."""
        return float(self.squared_error(codes_NL).sum() / max(len(codes_NL), 1))


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
            hint="look at level_usage in the report: collapsed codes? else raise suffix_limit (encode: --suffix-limit)",
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
           free last codes by minimum total cost (linear assignment), cost = squared distance

    Ends always when the catalog fits into the identifiers. Afterwards no two items collide. Step 2 is exact for
    groups of every size. A million items take seconds, and about a hundred bytes an item beside the vectors. The
    report counts moved items and the added mean squared distance. Raises DataError when N exceeds the number
    of identifiers.
    """
    _check_fixed(codes, keys)
    capacity = capacity_below(codes.level_sizes)
    if len(codes) > capacity[0]:
        raise DataError(
            f"{len(codes)} items do not fit into {capacity[0]} identifiers ({codes.level_sizes})",
            hint="raise n_levels or level_size",
        )
    before_NL = codes.codes.astype(np.int64)
    after_NL = before_NL.copy()
    n_overflow = place_overflow(after_NL, codes.level_sizes, keys, quantized)
    spread_last_level(after_NL, codes.level_sizes[-1], keys, quantized)
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
