"""One batch of requests for lists of different things: caps and interests inside the search.

Axes: B batch, C candidates, P picked (or prefixes of a row).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.decoding.diversity import (
    Interests,
    MaxPer,
    available,
    caps_of,
    check_diversity,
    divided,
    only,
    prefix_of,
    within_caps,
    within_places,
)
from genrec.decoding.filters import RowFilters
from genrec.decoding.guided import Beams, Walked, guided_search, widen
from genrec.decoding.interface import Recommendations
from genrec.decoding.listing import joined_lists, list_items
from genrec.decoding.search import Batch, Search
from genrec.decoding.select import NEG_INF, Candidates, DeviceIndex, best
from genrec.errors import ConfigError

Int64 = npt.NDArray[np.int64]


def diverse_lists(search: Search, batch: Batch) -> Recommendations:
    """The lists of a batch under ``search.wanted.diversity`` (internal).

    Caps: rows with shorter lists than asked for are searched again with four times the beams, until the list is full,
    nothing is left or ``max_beams`` are used. Such a list is no proven top, so ``certified`` is None.
    """
    host, wanted = search.index.host, search.wanted
    check_diversity(wanted.diversity, n_items=host.n_items, depth=host.depth)
    once = _interests if isinstance(wanted.diversity, Interests) else _capped
    join = partial(joined_lists, width=wanted.top_k or 0, normalize=search.normalize)

    def unfinished(lists: Recommendations) -> npt.NDArray[np.bool_]:
        assert lists.certified is not None
        return (lists.lengths < (wanted.top_k or 0)) & ~lists.certified

    found = widen(lambda rows, n: once(replace(search, n_beams=n), batch.take(rows)), unfinished, join, search, batch)
    return replace(found, certified=None)


def _capped(search: Search, batch: Batch) -> Recommendations:
    """Lists under caps; ``certified``: nothing else could be found."""
    caps, top_k = caps_of(search.wanted.diversity), search.wanted.top_k
    prefixes = [cap for cap in caps if cap.depth is not None]
    if prefixes:
        rule = PerPrefix(search.index, min(prefixes, key=lambda cap: cap.most), n_beams=search.n_beams, top_k=top_k)
        every = _everything(search, batch, _walked(search, batch, rule))
    else:
        every = replace(search, wanted=replace(search.wanted, diversity=None, top_k=None))(batch)
    return only(every, within_caps(every, caps, search.index.host), top_k)


def _interests(search: Search, batch: Batch) -> Recommendations:
    """Lists divided among interests, which are as full as they can be; ``certified`` is true throughout."""
    interests, top_k = search.wanted.diversity, search.wanted.top_k
    assert isinstance(interests, Interests)
    if top_k is None:
        raise ConfigError("top_k: expected a number of items, got None", hint="interests divide a list of given length")
    rule = PerInterest(search.index, batch, interests, top_k=top_k)
    # fewer beams than places could not fill them
    wide = replace(search, n_beams=max(search.n_beams, top_k))
    every = _everything(search, batch, _walked(wide, batch, rule))
    lists = only(every, rule.within(prefix_of(search.index.host, every.items, interests.depth)), top_k)
    return replace(lists, certified=np.ones(len(lists), dtype=np.bool_))


def _walked(search: Search, batch: Batch, rule: PerPrefix | PerInterest) -> Walked:
    root = torch.zeros((len(batch), 1), device=search.index.device)
    return guided_search(search, batch, rule, root, n_beams=search.n_beams)


def _everything(search: Search, batch: Batch, found: Walked) -> Recommendations:
    return list_items(
        search.index.host,
        found.leaves,
        found.scores,
        top_k=None,
        normalize=search.normalize,
        deny=batch.deny,
        filters=RowFilters.of(batch.filters),
        pruned=found.pruned.astype(np.float32),
    )


class _ByScore:
    """Beams are chosen by their scores."""

    def keys(self, level: int, beams: Beams, found: Candidates) -> Tensor:
        """The scores."""
        return found.score_BC


class PerPrefix(_ByScore):
    """Below the depth of a cap, so many beams inside one prefix; the others fill what is left (internal).

    ``most`` beams inside a prefix are enough to find as many items, but not its best ones: the best prefixes need not
    lead to the best items. So a prefix may have its part of all beams, ``n_beams · most / top_k``, if that is more:
    then ``top_k / most`` prefixes or more have a beam, and the list is full wherever the cap allows it. Beams that are
    left over go to the best of the others, so that with enough beams nothing is ever dropped.
    """

    def __init__(self, index: DeviceIndex, cap: MaxPer, *, n_beams: int, top_k: int | None) -> None:
        assert cap.depth is not None
        self._index, self._depth = index, cap.depth
        self._limit = max(cap.most, n_beams * cap.most // top_k) if top_k is not None else n_beams
        self._starts = starts_below(index, cap.depth)

    def choose(self, level: int, node_BC: Tensor, key_BC: Tensor, n: int) -> Tensor:
        """The best of every prefix first."""
        if level < self._depth:
            return best(key_BC, n)[0]
        group_BC = _prefix(self._starts[level + 1], node_BC)
        return best_in_groups(
            key_BC, group_BC, torch.full_like(group_BC, self._limit), n, self._index.host.branching[level]
        )


class PerInterest(_ByScore):
    """Beams of each prefix in proportion to its places in the list; all other prefixes are left (internal).

    A prefix has no fewer beams than places. The places are divided at the depth of the prefixes, on the host: the one
    time that the search waits for the device.
    """

    def __init__(self, index: DeviceIndex, batch: Batch, interests: Interests, *, top_k: int) -> None:
        self._index, self._batch, self._interests, self._top_k = index, batch, interests, top_k
        self._starts = starts_below(index, interests.depth)
        self._nodes_BP: Int64 = np.zeros((len(batch), 0), dtype=np.int64)  # ascending
        self._places_BP: Int64 = np.zeros((len(batch), 0), dtype=np.int64)

    def choose(self, level: int, node_BC: Tensor, key_BC: Tensor, n: int) -> Tensor:
        """The prefixes that have places, then as many beams for each as is its due."""
        depth = level + 1
        if depth < self._interests.depth:
            return best(key_BC, n)[0]
        if depth == self._interests.depth:
            return self._divide(node_BC, key_BC, n)
        group_BC = _prefix(self._starts[depth], node_BC).contiguous()
        nodes, places = (torch.from_numpy(x).to(self._index.device) for x in (self._nodes_BP, self._places_BP))
        column = torch.searchsorted(nodes, group_BC).clamp_(max=nodes.shape[1] - 1)
        due = places.gather(1, column)
        return best_in_groups(
            key_BC, group_BC, torch.maximum(due, due * n // self._top_k), n, self._index.host.branching[level]
        )

    def within(self, prefix_UP: Int64) -> npt.NDArray[np.bool_]:
        """Which items of lists, best first, have a place; prefix_UP: the prefix of each, -1 = padding."""
        return within_places(prefix_UP, self._nodes_BP, self._places_BP)

    def _divide(self, node_BC: Tensor, key_BC: Tensor, n: int) -> Tensor:
        columns = best(key_BC, n)[0]
        score_BP = key_BC.gather(1, columns).double().cpu().numpy()
        nodes_BP = np.where(score_BP > -np.inf, node_BC.gather(1, columns).cpu().numpy(), -1)
        depth, deny, filters = self._interests.depth, self._batch.deny, RowFilters.of(self._batch.filters)
        there = available(self._index.host, depth, nodes_BP, deny, filters)
        places = divided(score_BP, there, self._interests, self._top_k)
        order = np.argsort(nodes_BP, axis=1, kind="stable")
        self._nodes_BP, self._places_BP = (np.take_along_axis(x, order, axis=1) for x in (nodes_BP, places))
        return torch.where(torch.from_numpy(places > 0).to(columns.device), columns, -1)


def starts_below(index: DeviceIndex, depth: int) -> dict[int, Tensor]:
    """For every depth from ``depth`` on the first node there of each node of ``depth``, and the end (internal)."""
    out = {depth: torch.arange(index.host.n_nodes(depth) + 1, device=index.device)}
    for level in range(depth, index.host.depth):
        out[level + 1] = index.pointers[level][out[level]].long()
    return out


def best_in_groups(key_BC: Tensor, group_BC: Tensor, limit_BC: Tensor, n: int, width: int) -> Tensor:
    """Columns of ``n`` candidates: first those among the best ``limit`` of their group, then the others (internal).

    Each part is ordered by key, equal keys by column. limit_BC: int, the same for all candidates of a group. width:
    candidates of one beam, which are of one group, so that none is chosen before a better one of its beam.
    """
    if width > n:  # sorting is what costs
        first = best(key_BC.reshape(-1, width), n)[0].sort(1).values.view(len(key_BC), -1, n)
        beam = torch.arange(first.shape[1], device=key_BC.device)
        columns = (first + width * beam[:, None]).flatten(1)
        key, group, limit = (x.gather(1, columns) for x in (key_BC, group_BC, limit_BC))
        return columns.gather(1, best_in_groups(key, group, limit, n, n))
    n_columns = key_BC.shape[1]
    place = torch.arange(n_columns, device=key_BC.device).expand(key_BC.shape)
    order = key_BC.argsort(stable=True, dim=1, descending=True)
    grouped = group_BC.gather(1, order)
    together = grouped.argsort(stable=True, dim=1)
    sorted_groups = grouped.gather(1, together)
    fresh = torch.ones_like(sorted_groups, dtype=torch.bool)
    fresh[:, 1:] = sorted_groups[:, 1:] != sorted_groups[:, :-1]
    number = place - torch.where(fresh, place, 0).cummax(1).values
    number = torch.empty_like(number).scatter_(1, together, number)  # of each candidate inside its group, in key order
    late = (number >= limit_BC.gather(1, order)).long()
    dead = (key_BC.gather(1, order) == NEG_INF).long()
    first = (place + n_columns * (late + 2 * dead)).topk(min(n, n_columns), dim=1, largest=False).indices
    return order.gather(1, first)


def _prefix(starts: Tensor, node_BC: Tensor) -> Tensor:
    """The prefix that each node is below."""
    found: Tensor = torch.bucketize(node_BC, starts, right=True)
    return found - 1
