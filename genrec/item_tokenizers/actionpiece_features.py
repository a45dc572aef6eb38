"""The features of items that ActionPiece starts from: product codes, and a bucket that tells equal ones apart.

Axes: N items, C categories, D width. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError
from genrec.item_tokenizers.base import Scaling
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.quantizers.product import ProductQuantizer
from genrec.seeding import derive

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FeatureQuantizer:
    """How item vectors become feature values: scaled, then product-quantized (internal)."""

    scaling: Scaling
    quantizer: ProductQuantizer

    def codes(self, x_ND: Floats, level_size: int, catalog: str) -> ItemCodes:
        """The product codes of any item vectors."""
        codes_NL = self.quantizer.codes(self.scaling.apply(x_ND))
        return ItemCodes(codes_NL, (level_size,) * codes_NL.shape[1], catalog)


def with_buckets(codes: ItemCodes, keys: Keys, n_buckets: int, *, seed: int) -> ItemCodes:
    """The codes and one more feature, below ``n_buckets``, so that no two items agree in all of them (internal).

    ``n_buckets`` 0 adds nothing. Raises DataError for ragged codes, and where more items share their codes than there
    are buckets (0: where any do).
    """
    if codes.ragged:
        raise DataError("features: expected codes of equal length for all items, got ragged ones")
    groups_N = codes.collision_ids()
    largest = int(np.bincount(groups_N).max(initial=0))
    if largest > max(n_buckets, 1):
        raise DataError(
            f"{largest} items share all their features, but there are {n_buckets} buckets to tell them apart",
            hint=f"set n_buckets: {largest} or more, or use more or larger levels",
        )
    if n_buckets == 0:
        return codes
    columns = [codes.codes.astype(np.int64), bucket_numbers(groups_N, keys, n_buckets, seed=seed)]
    return ItemCodes(np.column_stack(columns), (*codes.level_sizes, n_buckets), codes.catalog)


def bucket_numbers(groups_N: npt.NDArray[np.integer], keys: Keys, n_buckets: int, *, seed: int) -> Ints:
    """A bucket for every item, no two of a group alike, int64 ``[N]`` (internal).

    ::

        for item of a group, in key order in every round:
            bucket = hash(key, seed) mod n_buckets; while taken in this group: the next one

    So buckets say nothing about the order of the catalog, and are spread evenly over items that share nothing. The
    largest group has ``n_buckets`` items at most.
    """
    bucket_N = (_hashed(keys, derive(seed, "actionpiece", "buckets")) % np.uint64(n_buckets)).astype(np.int64)
    pending = np.argsort(keys, kind="stable")
    taken = np.empty(0, dtype=np.int64)
    while len(pending):
        cell = groups_N[pending].astype(np.int64) * n_buckets + bucket_N[pending]
        first = np.zeros(len(pending), dtype=np.bool_)
        first[np.unique(cell, return_index=True)[1]] = True
        first &= ~np.isin(cell, taken)
        taken = np.concatenate([taken, cell[first]])
        pending = pending[~first]
        bucket_N[pending] = (bucket_N[pending] + 1) % n_buckets
    return bucket_N


def _hashed(keys: Keys, salt: int) -> Keys:
    """Well mixed 64 bits of each key (the finaliser of splitmix64)."""
    mixed = keys ^ np.uint64(salt)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
