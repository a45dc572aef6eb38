"""Learning ActionPiece's merges from training histories, with exact counts.

Axes: E events (items of all histories), C categories, P pairs. No torch.
"""

from __future__ import annotations

import heapq
from itertools import combinations, pairwise, product

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError
from genrec.item_tokenizers.actionpiece_nodes import (
    EMPTY,
    MAX_TOKENS,
    Nodes,
    Slots,
    Weights,
    count_pairs,
    merge_all,
    pair_of,
    tidy,
)
from genrec.item_tokenizers.actionpiece_vocab import MergeVocabulary
from genrec.progress import ProgressBar

Ints = npt.NDArray[np.int64]
_LOWER = 0.7  # of the largest count: what is in the heap
_NEAR = 2  # nodes before a changed one with pairs that may change: its neighbour, and the next where that one vanishes


class MergeLearner:
    """Training histories in their present state, and the exact weight of every pair in them (internal).

    ::

        repeat:  pair = the heaviest one (ties: smaller ids);  token = a new one, or the one the pair already has
                 merge it wherever it stands, tidy up

    A pair whose occurrences were all merged can come together again when nodes between its tokens vanish; it is then
    merged into the token it has, and no rule is learned twice.

    Weights are integers (:class:`~.actionpiece_nodes.Weights`), so a count is the same whatever the order of updates.
    ``where`` tells for a pair all histories that hold it, and perhaps some that no longer do; in those, only the
    nodes around an occurrence are counted again. The work is bounded by the number of tokens in the histories, not by
    the number of rules. The heap holds the pairs above a falling bound: most are far too light to be looked at.
    """

    def __init__(self, tokens_EC: Ints, offsets: Ints, category_sizes: tuple[int, ...]) -> None:
        self.weights = Weights.of(len(category_sizes))
        if self.weights.unit * len(category_sizes) * len(tokens_EC) >= 1 << 63:
            raise DataError(
                f"{len(tokens_EC):,} events of {len(category_sizes)} features: exact counts do not fit into 64 bits",
                hint="use fewer features",
            )
        self.category_sizes = category_sizes
        rows = tokens_EC.tolist()
        ends = list(pairwise(offsets.tolist()))
        self.nodes: list[Nodes] = [rows[start:end] for start, end in ends]
        self.slots: list[Slots] = [[EMPTY] * max(end - start - 1, 0) for start, end in ends]
        self.rules: dict[int, int] = {}
        self.pairs: list[tuple[int, int]] = []
        self.priorities: list[int] = []
        self.counts, self._where = _first_counts(tokens_EC, offsets, self.weights)
        self._later: dict[int, int | list[int]] = {}  # pair -> histories where it came up later
        self._heap: list[tuple[int, int]] = []
        self._bound = 0

    def learn(self, n_tokens: int, *, progress: bool = False) -> MergeVocabulary:
        """Merge until there are ``n_tokens`` tokens, or no two left to merge."""
        n_base = sum(self.category_sizes)
        if not n_base <= n_tokens <= MAX_TOKENS:
            raise DataError(f"expected {n_base} (the features) to {MAX_TOKENS:,} tokens, got {n_tokens}")
        total = n_tokens - n_base
        bar = ProgressBar(total=total, desc="actionpiece", unit="merge", show=progress)
        with bar:
            while len(self.pairs) < total and (key := self._heaviest()) is not None:
                token = self.rules.get(key)
                if token is None:
                    token = self.rules[key] = n_base + len(self.pairs)
                    self.pairs.append(pair_of(key))
                    self.priorities.append(self.counts[key])
                    bar.update()
                self._merge(key, token)
        pairs = np.array(self.pairs, dtype=np.int64).reshape(-1, 2)
        return MergeVocabulary(self.category_sizes, pairs, np.array(self.priorities, dtype=np.int64))

    @property
    def n_left(self) -> int:
        """Number of tokens in all histories as they are now."""
        in_nodes = sum(len(node) for nodes in self.nodes for node in nodes)
        return in_nodes + sum(len(slots) - slots.count(EMPTY) for slots in self.slots)

    def holders(self, key: int) -> list[int]:
        """The histories that hold the pair, ascending; some may hold it no longer."""
        later = self._later.get(key, [])
        return sorted({*self._where.of(key), *([later] if isinstance(later, int) else later)})

    def _heaviest(self) -> int | None:
        """The key of the heaviest pair, taken from the heap; None when there is no pair."""
        while True:
            while self._heap:
                negative, key = heapq.heappop(self._heap)
                now = self.counts.get(key, 0)
                if now == -negative:
                    return key
                if self._bound <= now < -negative:
                    heapq.heappush(self._heap, (-now, key))
            if not self.counts:
                return None
            self._bound = max(int(max(self.counts.values()) * _LOWER), 1)
            self._heap = [(-count, key) for key, count in self.counts.items() if count >= self._bound]
            heapq.heapify(self._heap)

    def _merge(self, key: int, token: int) -> None:
        pair, heavier = pair_of(key), {key}
        for history in self.holders(key):
            nodes, slots = self.nodes[history], self.slots[history]
            for first, last in reversed(_clusters(nodes, slots, pair)):
                span = slice(max(first - _NEAR, 0), last + 2)
                old_nodes, old_slots = nodes[span], slots[span.start : min(last + 1, len(slots))]
                new_nodes, new_slots = old_nodes.copy(), old_slots.copy()
                if merge_all(new_nodes, new_slots, pair, token):
                    tidy(new_nodes, new_slots)
                    nodes[span], slots[span.start : span.start + len(old_slots)] = new_nodes, new_slots
                    before = count_pairs(old_nodes, old_slots, self.weights)
                    self._recount(history, before, count_pairs(new_nodes, new_slots, self.weights), heavier)
        for other in heavier:
            if self.counts.get(other, 0) >= self._bound:
                heapq.heappush(self._heap, (-self.counts[other], other))

    def _recount(self, history: int, before: dict[int, int], after: dict[int, int], heavier: set[int]) -> None:
        """Take the weights ``before`` out of the counts and put those ``after`` in."""
        counts, bound = self.counts, self._bound
        for key, weight in after.items():
            was = before.pop(key, 0)
            if weight == was:
                continue
            if not was:
                self._note(key, history)
            counts[key] = now = counts.get(key, 0) + weight - was
            if weight > was and now >= bound:
                heavier.add(key)
        for key, weight in before.items():
            left = counts[key] - weight
            if left:
                counts[key] = left
            else:
                del counts[key]

    def _note(self, key: int, history: int) -> None:
        known = self._later.get(key)
        if known is None:
            self._later[key] = history
        elif isinstance(known, list):
            known.append(history)
        elif known != history:
            self._later[key] = [known, history]


class _Holders:
    """Which histories hold each pair at the start: sorted keys, and rows of history numbers."""

    def __init__(self, keys_P: Ints, starts: Ints, histories: npt.NDArray[np.int32]) -> None:
        self._keys_P, self._starts, self._histories = keys_P, starts, histories

    def of(self, key: int) -> list[int]:
        at = int(np.searchsorted(self._keys_P, key))
        if at == len(self._keys_P) or self._keys_P[at] != key:
            return []
        found: list[int] = self._histories[self._starts[at] : self._starts[at + 1]].tolist()
        return found


def _clusters(nodes: Nodes, slots: Slots, pair: tuple[int, int]) -> list[tuple[int, int]]:
    """First and last of the nodes that hold a token of the pair, themselves or in the slot after.

    In groups so far apart that the nodes counted again around one hold no token of another.
    """
    a, b = pair
    out: list[tuple[int, int]] = []
    hits = [at for at, node in enumerate(nodes) if a in node or b in node]
    if a in slots or b in slots:
        hits = sorted({*hits, *(at for at, slot in enumerate(slots) if slot in pair)})
    for at in hits:
        if out and at <= out[-1][1] + _NEAR:
            out[-1] = (out[-1][0], at)
        else:
            out.append((at, at))
    return out


def _first_counts(tokens_EC: Ints, offsets: Ints, weights: Weights) -> tuple[dict[int, int], _Holders]:
    """Weights of all pairs of fresh items, and the histories that hold them."""
    n_events, n_features = tokens_EC.shape
    owner_E = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    near = np.flatnonzero(owner_E[1:] == owner_E[:-1])  # events with a next one
    shift = MAX_TOKENS
    inside = [tokens_EC[:, p] * shift + tokens_EC[:, q] for p, q in combinations(range(n_features), 2)]
    across = []
    for p, q in product(range(n_features), repeat=2):
        one, two = tokens_EC[near, p], tokens_EC[near + 1, q]
        across.append(np.minimum(one, two) * shift + np.maximum(one, two))
    keys = np.concatenate([*inside, *across]) if n_events else np.empty(0, dtype=np.int64)
    owners = np.concatenate([*[owner_E] * len(inside), *[owner_E[near]] * len(across)])
    keys_P, group = np.unique(keys, return_inverse=True)
    n_inside = len(inside) * n_events
    many = [np.bincount(part, minlength=len(keys_P)).tolist() for part in (group[:n_inside], group[n_inside:])]
    of_inside, of_across = weights.inside[n_features], weights.across[n_features][n_features]
    counts = {key: i * of_inside + x * of_across for key, i, x in zip(keys_P.tolist(), many[0], many[1], strict=True)}
    held = np.unique(group * len(offsets) + owners)
    starts = np.searchsorted(held, np.arange(len(keys_P) + 1) * len(offsets))
    return counts, _Holders(keys_P, starts, (held % len(offsets)).astype(np.int32))
