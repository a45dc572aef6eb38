"""ActionPiece from its definition: fractions, a recount of everything at every step, nothing kept between steps.

A history is a list that alternates sets of tokens (one per item) and slots: ``[{1, 5}, None, {2, 7}, 9, {4}]``.
Stability: experimental.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

Chain = list[Any]
Pair = tuple[int, int]


def fresh(items: Sequence[Sequence[int]]) -> Chain:
    """The chain of a history whose items have these base tokens."""
    chain: Chain = []
    for item in items:
        chain += [None, set(item)] if chain else [set(item)]
    return chain


def counts_of(chains: Sequence[Chain]) -> Counter[Pair]:
    """The weight of every unordered pair, as fractions."""
    total: Counter[Pair] = Counter()
    for chain in chains:
        for where, weight, one, two in _meetings(chain):
            del where
            total[min(one, two), max(one, two)] += weight  # type: ignore[assignment]
    return total


def _meetings(chain: Chain) -> list[tuple[int, Fraction, int, int]]:
    """Place, weight, and both tokens of every meeting; places from left to right, a set before the slot after it."""
    found = []
    for at in range(0, len(chain), 2):
        here = sorted(chain[at])
        found += [(at, Fraction(2, len(here)), a, b) for a in here for b in here if a < b]
        if at + 2 < len(chain):
            after, slot = sorted(chain[at + 2]), chain[at + 1]
            sides = [(here, after)] if slot is None else [(here, [slot]), (after, [slot])]
            for side in sides:
                found += [(at + 1, Fraction(1, len(side[0]) * len(side[1])), a, b) for a in side[0] for b in side[1]]
    return found


def merge_at(chain: Chain, at: int, pair: Pair, token: int, first: int = -1) -> bool:
    """Merge the pair in the set (even ``at``) or across the slot (odd ``at``); whether it stands there.

    first: which side of a filled slot goes first, -1 the left one, 1 the right one.
    """
    a, b = pair
    if at % 2 == 0:
        if a == b or not {a, b} <= chain[at]:
            return False
        chain[at] = chain[at] - {a, b} | {token}
        return True
    for x, y in ((a, b), (b, a)):
        if chain[at] is None:
            if x in chain[at - 1] and y in chain[at + 1]:
                chain[at - 1 : at + 2] = [chain[at - 1] - {x}, token, chain[at + 1] - {y}]
                return True
        elif chain[at] == x:
            for side in (at + first, at - first):
                if y in chain[side]:
                    chain[side], chain[at] = chain[side] - {y}, token
                    return True
    return False


def tidied(chain: Chain) -> Chain:
    """Empty sets take the token of the slot before; empty sets with an empty slot after them go; until stable."""
    for at in range(2, len(chain), 2):
        if not chain[at] and chain[at - 1] is not None:
            return tidied([*chain[: at - 1], None, {chain[at - 1]}, *chain[at + 1 :]])
    for at in range(0, len(chain) - 1, 2):
        if not chain[at] and chain[at + 1] is None:
            return tidied([*chain[:at], *chain[at + 2 :]])
    return chain


def learn(
    histories: Sequence[Sequence[Sequence[int]]], n_base: int, n_merges: int
) -> tuple[list[tuple[Pair, Fraction]], list[Chain]]:
    """The pairs merged, with their weights then, and the histories as they are left."""
    chains = [fresh(items) for items in histories if len(items)]
    rules: dict[Pair, tuple[int, Fraction]] = {}
    while len(rules) < n_merges:
        counts = counts_of(chains)
        if not counts:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        if pair not in rules:
            rules[pair] = (n_base + len(rules), Fraction(counts[pair]))
        for number, chain in enumerate(chains):
            for at in [*range(0, len(chain), 2), *range(1, len(chain), 2)]:  # inside all sets first
                merge_at(chain, at, pair, rules[pair][0])
            chains[number] = tidied(chain)
    return [(pair, weight) for pair, (_, weight) in rules.items()], chains


def segment(items: Sequence[Sequence[int]], rules: Sequence[tuple[Pair, Fraction]], n_base: int) -> Chain:
    """The deterministic segmentation: the rule of the highest weight times present weight, until none applies."""
    chain = fresh(items)
    token_of = {pair: n_base + number for number, (pair, _) in enumerate(rules)}
    while True:
        scored = []
        for order, (at, weight, one, two) in enumerate(_meetings(chain)):
            pair = (min(one, two), max(one, two))
            if pair in token_of:
                score, right = rules[token_of[pair] - n_base][1] * weight, _is_right(chain, at, order)
                scored.append((-score, at, right, token_of[pair], pair))
        if not scored:
            return chain
        _, at, right, token, pair = min(scored)
        merge_at(chain, at, pair, token, 1 if right else -1)
        chain = tidied(chain)


def _is_right(chain: Chain, at: int, order: int) -> bool:
    """Whether a meeting is one of a filled slot with its right side; those of the left side are listed first."""
    if at % 2 == 0 or chain[at] is None:
        return False
    same = [n for n, meeting in enumerate(_meetings(chain)) if meeting[0] == at]
    return order - same[0] >= len(chain[at - 1])


def adjacent(tokens: Sequence[int], rules: Sequence[tuple[Pair, Any]], n_base: int) -> list[int]:
    """Byte-pair encoding: rule after rule in the order in which they were learned, each as often as it applies."""
    out = list(tokens)
    for number, (pair, _) in enumerate(rules):
        at = 0
        while at < len(out) - 1:
            if sorted(out[at : at + 2]) == sorted(pair):
                out[at : at + 2] = [n_base + number]
            at += 1
    return out


def flattened(chain: Chain) -> list[int]:
    """All tokens, those of a set ascending."""
    out: list[int] = []
    for part in chain:
        out += sorted(part) if isinstance(part, set) else [part] if part is not None else []
    return out
