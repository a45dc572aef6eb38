"""Lists of different things: caps per group, and places divided among a user's interests (numpy only, no torch).

Axes: U users (rows), N items, P prefixes of a row, k list length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.decoding.deny import denied_ranks
from genrec.decoding.filters import RowFilters
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import Recommendations
from genrec.errors import ConfigError, DataError
from genrec.metrics.ranking import tied_ranks

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MaxPer:
    """At most ``most`` items of one group in a list: of one brand, of one category, of one prefix of codes.

        for each item, best first:  list it, unless ``most`` items of its group are listed

    Under one cap no list of as many items has a greater sum of scores, nor a greater n-th score for any n: the lists
    that a cap allows are the independent sets of a partition matroid. Caps per prefix of several depths are nested, and
    keep this. Other combinations of caps are walked in the same way, but a list of greater sum may exist.

    groups: int ``[N]``, the group number of every item, -1 = none (never capped); see
    :meth:`genrec.data.attributes.Attributes.groups`. depth: groups are the prefixes of so many codes; an identifier
    that is shorter is a group of its own. Raises ConfigError unless exactly one of the two is given.
    Stability: experimental.
    """

    most: int
    groups: npt.NDArray[np.integer] | None = None
    depth: int | None = None

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ConfigError(f"most: expected a positive integer, got {self.most}")
        if (self.groups is None) == (self.depth is None):
            raise ConfigError("MaxPer: expected either groups or depth", hint="MaxPer(2, depth=1)")
        _check_depth(self.depth)
        if self.groups is not None and (self.groups.ndim != 1 or self.groups.dtype.kind not in "iu"):
            raise ConfigError(f"groups: expected integers [N], got {self.groups.dtype} {self.groups.shape}")


@dataclass(frozen=True)
class Interests:
    """Divide the list among a user's best prefixes, in proportion to their probability.

        prefixes = the ``n`` of highest log-probability among those of ``depth`` codes with an allowed item
                   (and the next ones, where these hold fewer than top_k allowed items)
        share    = softmax(log-probability / temperature) over the prefixes
        places   = top_k · share, whole numbers by largest remainder, no more than a prefix has allowed items
        list     = of each prefix its best items, as many as it has places

    Places that a prefix cannot fill are divided among the others in the same way. The idea is that of kNN-Embed
    (El-Kishky et al. 2022, 2205.06205), where the groups are clusters of items and a user's shares are smoothed with
    those of similar users; here the model says the shares, and ``temperature`` above 1 makes them more equal.

    Raises ConfigError for values out of range. Stability: experimental.
    """

    n: int = 4
    depth: int = 1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"n: expected a positive integer, got {self.n}")
        if not 0 < self.temperature < np.inf:
            raise ConfigError(f"temperature: expected a positive number, got {self.temperature}")
        _check_depth(self.depth)


Diversity = MaxPer | Sequence[MaxPer] | Interests | None
"""What a list must not be full of; several caps all hold."""


def caps_of(diversity: Diversity) -> list[MaxPer]:
    """The caps as a list; none of :class:`Interests` (internal)."""
    if diversity is None or isinstance(diversity, Interests):
        return []
    return [diversity] if isinstance(diversity, MaxPer) else list(diversity)


def check_diversity(diversity: Diversity, *, n_items: int, depth: int) -> None:
    """Raise unless the groups are of so many items, and the prefixes no longer than ``depth`` (internal)."""
    for each in [diversity] if isinstance(diversity, Interests) else caps_of(diversity):
        if each.depth is not None and each.depth > depth:
            raise ConfigError(f"depth: expected 1..{depth}, the length of the identifiers, got {each.depth}")
        if isinstance(each, MaxPer) and each.groups is not None and len(each.groups) != n_items:
            raise DataError(f"groups: expected {n_items} group numbers, one per item, got {len(each.groups)}")


def groups_at(cap: MaxPer, items_UP: npt.NDArray[np.integer], index: CatalogIndex | None) -> Int64:
    """The group of each item of lists, int64 ``[U, P]``, -1 = none, or padding (internal). index: for prefixes."""
    if cap.groups is not None:
        return np.where(items_UP < 0, -1, cap.groups[items_UP]).astype(np.int64)
    assert index is not None and cap.depth is not None
    return prefix_of(index, items_UP, cap.depth)


def prefix_of(index: CatalogIndex, items_UP: npt.NDArray[np.integer], depth: int) -> Int64:
    """The node of each item at a depth, int64 ``[U, P]``, -1 = padding (internal)."""
    real = items_UP >= 0
    out = np.full(items_UP.shape, -1, dtype=np.int64)
    out[real] = index.nodes_of(index.rank_of[items_UP[real]])[:, depth - 1]
    return out


def within_caps(
    listed: Recommendations, caps: Sequence[MaxPer], index: CatalogIndex | None = None
) -> npt.NDArray[np.bool_]:
    """Which places of the lists are kept when they are walked from the best on, bool ``[U, k]`` (internal).

    An item is kept if of each of its groups fewer items than allowed are kept before it. Every round settles at least
    one more place of a list, for all rows at once; one cap needs two rounds.
    """
    real = listed.items >= 0
    groups = [(groups_at(cap, listed.items, index), cap.most) for cap in caps]
    kept = real
    while True:
        fits = real.copy()
        for group_UP, most in groups:
            fits &= (group_UP < 0) | (_before(group_UP, kept) < most)
        if (fits == kept).all():
            return kept
        kept = fits


def within_places(prefix_UP: Int64, nodes_UQ: Int64, places_UQ: Int64) -> npt.NDArray[np.bool_]:
    """Which places of lists are among the first so many of their prefix, bool ``[U, P]`` (internal).

    prefix_UP: the prefix of each item, -1 = none. nodes_UQ: prefixes of each row, ascending; places_UQ: how many items.
    """
    rows, size = np.arange(len(prefix_UP))[:, None], int(max(prefix_UP.max(initial=0), nodes_UQ.max(initial=0))) + 1
    given = nodes_UQ >= 0
    known = np.append((rows * size + nodes_UQ)[given], np.iinfo(np.int64).max)
    places = np.append(places_UQ[given], 0)
    wanted = rows * size + prefix_UP
    at = np.searchsorted(known, wanted)
    there = (prefix_UP >= 0) & (known[at] == wanted)
    return np.asarray(there & (_before(prefix_UP, there) < places[at]))


def only(listed: Recommendations, kept: npt.NDArray[np.bool_], top_k: int | None) -> Recommendations:
    """The lists without the places that are not kept, cut at ``top_k``; ranks count what is kept (internal)."""
    width = int(kept.sum(axis=1).max(initial=0))
    order = np.argsort(~kept, axis=1, kind="stable")[:, :width]
    there = np.take_along_axis(kept, order, axis=1)
    items = np.where(there, np.take_along_axis(listed.items, order, axis=1), np.int32(-1))
    scores = np.where(there, np.take_along_axis(listed.scores, order, axis=1), np.float32(-np.inf))
    ranks = tied_ranks(scores).astype(np.float32)
    size = width if top_k is None else top_k
    cut = [
        np.pad(values[:, :size], ((0, 0), (0, max(size - width, 0))), constant_values=padding)
        for values, padding in ((items, -1), (scores, -np.inf), (ranks, np.inf))
    ]
    return replace(listed, items=cut[0], scores=cut[1], ranks=cut[2])


def available(
    index: CatalogIndex, depth: int, nodes_UP: Int64, deny: Histories | None, filters: RowFilters | None
) -> Int64:
    """Number of items below each node that its row may get, int64 ``[U, P]``; 0 for node -1 (internal)."""
    rows = np.broadcast_to(np.arange(len(nodes_UP))[:, None], nodes_UP.shape)
    low, high = (x.reshape(nodes_UP.shape) for x in index.rank_range(depth, np.maximum(nodes_UP, 0).ravel()))
    there = high - low if filters is None else filters.count(rows.ravel(), low.ravel(), high.ravel()).reshape(low.shape)
    if deny is not None:
        denied_rows, denied = denied_ranks(index, deny)
        if filters is not None:
            counted = filters.allows(denied_rows, denied)
            denied_rows, denied = denied_rows[counted], denied[counted]
        pairs, size = denied_rows * len(index.items) + denied, len(index.items)
        there = there - (np.searchsorted(pairs, rows * size + high) - np.searchsorted(pairs, rows * size + low))
    return np.where(nodes_UP < 0, 0, there)


def divided(scores_UP: npt.NDArray[np.float64], available_UP: Int64, interests: Interests, top_k: int) -> Int64:
    """Places of each prefix, int64 ``[U, P]``; prefixes come best first (internal). See :class:`Interests`."""
    before = np.cumsum(available_UP, axis=1) - available_UP
    open_UP = (available_UP > 0) & ((np.arange(scores_UP.shape[1]) < interests.n) | (before < top_k))
    logits = np.where(open_UP, scores_UP / interests.temperature, -np.inf)
    with np.errstate(invalid="ignore"):
        weight = np.where(open_UP, np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf)), 0.0)
    weight = np.where(open_UP, np.maximum(weight, np.finfo(np.float64).tiny), 0.0)
    places = np.zeros_like(available_UP)
    while True:  # a round without a prefix that is too small is the last one
        left = top_k - places.sum(axis=1)
        share = _largest_remainder(left, np.where(open_UP, weight, 0.0))
        small = open_UP & (share > available_UP)
        if not small.any():
            return places + share
        # rows without a small prefix come to the same shares in the next round
        places = np.where(small, available_UP, places)
        open_UP &= ~small


def _largest_remainder(total_U: Int64, weight_UP: npt.NDArray[np.float64]) -> Int64:
    """Whole numbers in proportion to the weights, of sum ``total_U`` where a row has a weight.

    What rounding down leaves goes one by one to the largest remainders, the earlier prefix first.
    """
    whole = weight_UP.sum(axis=1, keepdims=True)
    exact = total_U[:, None] * weight_UP / np.where(whole > 0, whole, 1.0)
    down = np.floor(exact).astype(np.int64)
    rest = np.where(whole[:, 0] > 0, total_U - down.sum(axis=1), 0)
    order = np.argsort(np.where(weight_UP > 0, down - exact, np.inf), axis=1, kind="stable")
    extra = np.zeros_like(down)
    np.put_along_axis(extra, order, (np.arange(down.shape[1]) < rest[:, None]).astype(np.int64), axis=1)
    return down + extra


def _before(group_UP: Int64, counted: npt.NDArray[np.bool_]) -> Int64:
    """How many counted places of the same group come before each place of its row."""
    n_rows, width = group_UP.shape
    rows = np.repeat(np.arange(n_rows), width)
    order = np.lexsort((group_UP.ravel(), rows))  # stable: places stay in order
    flat, ones = group_UP.ravel()[order], counted.ravel()[order].astype(np.int64)
    total = np.cumsum(ones) - ones
    fresh = np.ones(len(flat), dtype=bool)
    fresh[1:] = (flat[1:] != flat[:-1]) | (rows[1:] != rows[:-1])
    out = np.empty(len(flat), dtype=np.int64)
    out[order] = total - total[fresh][np.cumsum(fresh) - 1] if len(flat) else total
    return out.reshape(n_rows, width)


def _check_depth(depth: int | None) -> None:
    if depth is not None and depth < 1:
        raise ConfigError(f"depth: expected a positive integer, got {depth}")
