"""A history as ActionPiece sees it: a set of tokens for every item, and a slot between neighbours (internal).

``nodes`` is a list of lists of token ids, one per item; ``slots[i]`` is the token between nodes ``i`` and ``i + 1``, or
EMPTY. Plain Python lists: histories are short, and every merge changes only a few nodes of them. The order inside a
node decides nothing but the order in which its tokens are put out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

Nodes = list[list[int]]
Slots = list[int]
EMPTY = -1
BITS = 24
MAX_TOKENS = 1 << BITS


def pair_key(a: int, b: int) -> int:
    """One integer for the unordered pair; its order is that of (smaller id, larger id) (internal)."""
    return a << BITS | b if a < b else b << BITS | a


def pair_of(key: int) -> tuple[int, int]:
    """The inverse of :func:`pair_key`, smaller id first (internal)."""
    return key >> BITS, key & (MAX_TOKENS - 1)


@dataclass(frozen=True)
class Weights:
    """How often a pair meets when every set is put in random order, in exact units of ``1 / unit`` (internal).

    unit: the least common multiple of all denominators. inside[M] = 2/M: of a set of M tokens.
    across[M1][M2] = 1/(M1 M2): of neighbours; index 0 is unused. Sets have ``n_features`` tokens at most.
    """

    unit: int
    inside: tuple[int, ...]
    across: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, n_features: int) -> Weights:
        """The tables for items of ``n_features`` features."""
        unit = math.lcm(*range(1, n_features + 1)) ** 2
        sizes = range(1, n_features + 1)
        across = ((), *((0, *(unit // (one * two) for two in sizes)) for one in sizes))
        return cls(unit, (0, *(2 * unit // size for size in sizes)), across)


def count_pairs(nodes: Nodes, slots: Slots, weights: Weights) -> dict[int, int]:
    """The weight of every pair, by :func:`pair_key` (internal).

    ::

        inside a node of M tokens: 2/M;   between neighbours with an empty slot: 1/(M1 M2);
        with a token in the slot: (left, slot) 1/M1 and (slot, right) 1/M2, and nothing between the two nodes
    """
    out: dict[int, int] = {}
    get = out.get
    for node in nodes:
        if len(node) > 1:
            weight = weights.inside[len(node)]
            for a, b in combinations(node, 2):
                key = a << BITS | b if a < b else b << BITS | a
                out[key] = get(key, 0) + weight
    for at, slot in enumerate(slots):
        left, right = nodes[at], nodes[at + 1]
        sides = ((left, right),) if slot == EMPTY else ((left, [slot]), ([slot], right))
        for one, two in sides:
            if not one or not two:
                continue
            weight = weights.across[len(one)][len(two)]
            for a in one:
                for b in two:
                    key = a << BITS | b if a < b else b << BITS | a
                    out[key] = get(key, 0) + weight
    return out


def merge_in_node(nodes: Nodes, at: int, pair: tuple[int, int], token: int) -> None:
    """Replace both, which node ``at`` holds, by ``token``, put first: from coarse to fine (internal)."""
    nodes[at] = [token, *(other for other in nodes[at] if other not in pair)]


def merge_at_slot(
    nodes: Nodes, slots: Slots, at: int, pair: tuple[int, int], token: int, *, right_first: bool = False
) -> bool:
    """Merge the pair across slot ``at`` where it stands there; whether it did (internal).

    A token in the slot is merged with one of the node before, else of the node after (``right_first``: the other way
    round); the new token stays in the slot.
    """
    a, b = pair
    left, right, slot = nodes[at], nodes[at + 1], slots[at]
    if slot == EMPTY:
        if not (a in left and b in right):
            a, b = b, a
            if not (a in left and b in right):
                return False
        nodes[at], nodes[at + 1] = _without(left, a), _without(right, b)
    elif slot in (a, b):
        other = b if slot == a else a
        sides = [side for side in (at, at + 1) if other in nodes[side]]
        if not sides:
            return False
        side = sides[-1] if right_first else sides[0]
        nodes[side] = _without(nodes[side], other)
    else:
        return False
    slots[at] = token
    return True


def merge_all(nodes: Nodes, slots: Slots, pair: tuple[int, int], token: int) -> bool:
    """Merge the pair wherever it stands: inside nodes, then across slots from left to right (internal).

    Whether there was any. Nodes that became empty stay: :func:`tidy`.
    """
    a, b = pair
    changed = False
    if a != b:
        for at, node in enumerate(nodes):
            if a in node and b in node:
                merge_in_node(nodes, at, pair, token)
                changed = True
    for at in range(len(slots)):
        if merge_at_slot(nodes, slots, at, pair, token):
            changed = True
    return changed


def tidy(nodes: Nodes, slots: Slots) -> None:
    """Give empty nodes the token of the slot before; remove empty nodes that an empty slot follows (internal)."""
    changed = not all(nodes)
    while changed:
        changed = False
        for at in range(1, len(nodes)):
            if not nodes[at] and slots[at - 1] != EMPTY:
                nodes[at], slots[at - 1] = [slots[at - 1]], EMPTY
                changed = True
        for at in reversed(range(len(slots))):
            if not nodes[at] and slots[at] == EMPTY:
                del nodes[at], slots[at]
                changed = True


def tokens_of(nodes: Nodes, slots: Slots) -> list[int]:
    """All tokens in order (internal)."""
    out: list[int] = []
    for at, node in enumerate(nodes):
        out += node
        if at < len(slots) and slots[at] != EMPTY:
            out.append(slots[at])
    return out


def _without(node: list[int], token: int) -> list[int]:
    return [other for other in node if other != token]
