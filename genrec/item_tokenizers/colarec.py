"""ColaRec's identifiers: nested clusters of limited size over collaborative vectors.

Axes: N items, L levels, K codes of a level, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError
from genrec.item_tokenizers.base import TokenizerSource, check_at_least
from genrec.item_tokenizers.codes import ItemCodes, row_numbers
from genrec.item_tokenizers.fitted import Indexing, nearest_groups, numbers_within
from genrec.item_tokenizers.quantizers.balanced import balanced_kmeans
from genrec.seeding import derive

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class ColaRecSettings:
    """Settings of :class:`ColaRec`; ConfigError for values out of range (stable).

    n_levels, level_size: L codes per item, of K each; at most ``K ** L`` items fit. max_iterations: of each k-means.
    """

    kind: Literal["colarec"] = "colarec"
    n_levels: int = 3
    level_size: int = 32
    max_iterations: int = 20

    def __post_init__(self) -> None:
        check_at_least(self, {"n_levels": 2, "level_size": 2, "max_iterations": 1})


class ColaRec(Indexing):
    """Size-limited hierarchical k-means (the GIDs of ColaRec); recipe: ``tokenizers/colarec.yaml`` (stable).

    ::

        cluster the collaborative vectors into K clusters of at most K^(L-1) items
        cluster each of these into K clusters of at most K^(L-2) items, and so on for L - 1 levels
        last code = running number inside the cluster (at most K items)

    Wang et al. 2024 ("Content-Based Collaborative Generation for Recommender Systems", 2403.18480). Unlike a residual
    quantizer, a code means something only behind its prefix; identifiers are unique by construction. The
    clusters of a level are assigned together at the least total distance within their limits.

    Differences: one start of k-means per cluster instead of ten; running numbers follow the hashes of the item ids,
    not their order. An item without training events (a zero vector) gets the prefix of the nearest
    item by content whose last level has a free code; the paper has no rule for it.
    """

    Settings: ClassVar[type[Any]] = ColaRecSettings
    numbers_last: ClassVar[bool] = True

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """Cluster the collaborative vectors; every item's identifier, all different.

        Raises DataError without collaborative vectors, for more items than identifiers, and where items without
        events have no item vectors to go by or find no room.
        """
        x_ND, keys = source.collaborative_vectors(), source.item_keys
        n_levels, size = self.settings.n_levels, self.settings.level_size
        if len(x_ND) > size**n_levels:
            raise DataError(
                f"{len(x_ND)} items do not fit into {size**n_levels} identifiers ({n_levels} levels of {size} codes)",
                hint="raise n_levels or level_size",
            )
        known: npt.NDArray[np.bool_] = np.asarray(x_ND.any(axis=1))
        if not known.any():
            raise DataError("collaborative vectors: every row is zero, so there is nothing to cluster")
        prefix_NL = np.full((len(x_ND), n_levels - 1), -1, dtype=np.int64)
        self._split(x_ND, keys, np.flatnonzero(known), prefix_NL, derive(seed, "colarec"))
        if not known.all():
            prefix_NL = self._place(prefix_NL, known, source)
        # items that were clustered come first, so that what happens to the others does not move them
        group_N = 2 * row_numbers(prefix_NL).astype(np.int64)
        last = numbers_within(group_N + ~known, keys)
        last[~known] += np.bincount(group_N[known], minlength=int(group_N.max()) + 1)[group_N[~known]]
        codes = ItemCodes(np.column_stack([prefix_NL, last]), (size,) * n_levels, source.catalog)
        return self._done(source, codes, n_cold=int((~known).sum()))

    def _split(self, x_ND: Floats, keys: Keys, items: Ints, prefix_NL: Ints, seed: int) -> None:
        """Write the codes of the levels before the last, from the first one that ``items`` do not have yet."""
        level = int((prefix_NL[items[0]] >= 0).sum())
        if level == prefix_NL.shape[1]:
            return
        size = self.settings.level_size
        most = size ** (self.settings.n_levels - 1 - level)
        found = balanced_kmeans(
            np.ascontiguousarray(x_ND[items]),
            min(size, len(items)),
            seed=seed,
            max_size=min(most, len(items)),
            keys=keys[items],
            max_iterations=self.settings.max_iterations,
        )
        prefix_NL[items, level] = found.labels
        for code in np.unique(found.labels).tolist():
            self._split(x_ND, keys, items[found.labels == code], prefix_NL, derive(seed, code))

    def _place(self, prefix_NL: Ints, known: npt.NDArray[np.bool_], source: TokenizerSource) -> Ints:
        """Prefixes for the items without a collaborative vector, by their content."""
        prefixes, group = np.unique(prefix_NL[known], axis=0, return_inverse=True)
        group_N = np.full(len(known), -1, dtype=np.int64)
        group_N[known] = group.ravel()
        room = self.settings.level_size - np.bincount(group.ravel())
        placed: Ints = prefixes[nearest_groups(source.vectors(), group_N, room, source.item_keys)]
        return placed
