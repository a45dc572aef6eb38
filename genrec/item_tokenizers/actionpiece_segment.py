"""Three ways from features to ActionPiece's tokens: histories as sets, histories in random order, items alone.

Axes: E events, C categories, N items, W rules. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from genrec.item_tokenizers.actionpiece_nodes import (
    BITS,
    EMPTY,
    MAX_TOKENS,
    Nodes,
    Slots,
    merge_at_slot,
    merge_in_node,
    pair_key,
    tidy,
    tokens_of,
)
from genrec.item_tokenizers.actionpiece_vocab import MergeVocabulary

Ints = npt.NDArray[np.int64]
_NONE = 1 << 60


class _Candidate(NamedTuple):
    """The best merge in one place: its score (-1: there is none), the pair, its token, the side of a filled slot."""

    score: int
    pair: tuple[int, int]
    token: int
    right: bool = False


_NO_CANDIDATE = _Candidate(-1, (0, 0), -1)


class SetSegmenter:
    """The deterministic segmentation of one history at a time (internal).

    ::

        while some pair in a node, or across a slot, is a rule:
            merge the one with the highest   count of the rule * present weight   and tidy up
            (ties: leftmost; inside a node before the slot after it; the left side of a filled slot; the older rule)

    Scores are integers. After a merge only the places around it are looked at again.
    """

    def __init__(self, vocabulary: MergeVocabulary) -> None:
        self._rules, self._weights, self._first = vocabulary.rules, vocabulary.weights, vocabulary.n_base
        self._counts: list[int] = vocabulary.counts.tolist()
        self._precedence: list[int] = vocabulary.precedence.tolist()

    def __call__(self, base_tokens: list[list[int]]) -> list[int]:
        """The tokens of the history whose items have these base tokens."""
        nodes, slots = [list(node) for node in base_tokens], [EMPTY] * (len(base_tokens) - 1)
        self.reduce(nodes, slots)
        return tokens_of(nodes, slots)

    def reduce(self, nodes: Nodes, slots: Slots) -> None:
        """Merge in place until no rule applies."""
        inside = [self._in_node(node) for node in nodes]
        across = [self._at_slot(nodes, slots, at) for at in range(len(slots))]
        while nodes:
            at, in_node = _highest(inside, across)
            best = inside[at] if in_node else across[at]
            if best.score < 0:
                return
            span = slice(max(at - 2, 0), at + 3)  # nodes of which anything may change, and their neighbours
            here, gaps = nodes[span], slots[span.start : at + 2]
            between = slice(span.start, span.start + len(gaps))
            if in_node:
                merge_in_node(here, at - span.start, best.pair, best.token)
            else:
                merge_at_slot(here, gaps, at - span.start, best.pair, best.token, right_first=best.right)
                tidy(here, gaps)
            nodes[span], slots[between] = here, gaps
            inside[span] = [self._in_node(node) for node in here]
            across[between] = [self._at_slot(here, gaps, gap) for gap in range(len(gaps))]

    def _in_node(self, node: list[int]) -> _Candidate:
        if len(node) < 2:
            return _NO_CANDIDATE
        return self._best_rule(combinations(node, 2), self._weights.inside[len(node)])

    def _at_slot(self, nodes: Nodes, slots: Slots, at: int) -> _Candidate:
        left, right, slot = nodes[at], nodes[at + 1], slots[at]
        if slot == EMPTY:
            return self._across(left, right)
        one, two = self._across(left, [slot]), self._across(right, [slot])
        return two._replace(right=True) if two.score > one.score else one

    def _across(self, one: list[int], two: list[int]) -> _Candidate:
        if not one or not two:
            return _NO_CANDIDATE
        return self._best_rule(((a, b) for a in one for b in two), self._weights.across[len(one)][len(two)])

    def _best_rule(self, pairs: Iterable[tuple[int, int]], weight: int) -> _Candidate:
        get, precedence = self._rules.get, self._precedence
        best, found = _NONE, (0, 0)
        for a, b in pairs:
            token = get(a << BITS | b if a < b else b << BITS | a)
            if token is not None and precedence[token - self._first] < best:
                best, found = precedence[token - self._first], (a, b)
        if best == _NONE:
            return _NO_CANDIDATE
        token = self._rules[pair_key(*found)]
        return _Candidate(self._counts[token - self._first] * weight, found, token)


def _highest(inside: list[_Candidate], across: list[_Candidate]) -> tuple[int, bool]:
    """Where the highest score is, and whether inside a node; the leftmost of equal ones."""
    scores = [found.score for found in inside]
    highest = max(scores)
    node = scores.index(highest)
    if across:
        scores = [found.score for found in across]
        other = max(scores)
        if other > highest or (other == highest and scores.index(other) < node):
            return scores.index(other), False
    return node, True


def shuffled_features(tokens_EC: Ints, generator: np.random.Generator) -> Ints:
    """The features of every item in an order of its own, int64 ``[E, C]``: what the random segmentation starts from.

    Stability: internal.
    """
    return generator.permuted(tokens_EC, axis=1)


def merge_adjacent(tokens: list[int], rules: dict[int, int]) -> list[int]:
    """Byte-pair encoding of a flat list of tokens, by the oldest rule first, leftmost first; a new list (internal).

    ::

        while two neighbours, in either order, are a rule:  replace the leftmost two of the oldest such rule
    """
    out = list(tokens)
    found = [rules.get(a << BITS | b if a < b else b << BITS | a, _NONE) for a, b in pairwise(out)]
    while found and (token := min(found)) < _NONE:
        at = found.index(token)
        out[at : at + 2] = [token]
        del found[at]
        for pair in (at - 1, at):
            if 0 <= pair < len(found):
                found[pair] = rules.get(pair_key(out[pair], out[pair + 1]), _NONE)
    return out


def merge_items(vocabulary: MergeVocabulary, tokens_NC: Ints) -> Ints:
    """The tokens of items that stand alone: :class:`SetSegmenter` of a history of one item, for all at once (internal).

    int64 ``[N, C]``, from the last merged token on, -1 beyond the last. All pairs of an item have the same weight, so
    the rule of the highest count goes first, in C - 1 rounds at most.
    """
    out_NC = tokens_NC.copy()
    if not len(vocabulary.pairs) or not len(out_NC):
        return out_NC
    keys_W = vocabulary.pairs[:, 0] * MAX_TOKENS + vocabulary.pairs[:, 1]
    order = np.argsort(keys_W)
    keys_W, precedence = keys_W[order], vocabulary.precedence
    pairs = list(combinations(range(out_NC.shape[1]), 2))
    active = np.arange(len(out_NC))
    while len(active):
        rows = out_NC[active]
        best, one, two, rule = (np.full(len(rows), fill) for fill in (_NONE, 0, 0, 0))
        for p, q in pairs:
            low, high = np.minimum(rows[:, p], rows[:, q]), np.maximum(rows[:, p], rows[:, q])
            keys = low * MAX_TOKENS + high
            at = np.minimum(np.searchsorted(keys_W, keys), len(keys_W) - 1)
            first = np.where((keys_W[at] == keys) & (low >= 0), precedence[order[at]], _NONE)
            better = first < best
            best[better], one[better], two[better], rule[better] = first[better], p, q, order[at[better]]
        found = best < _NONE
        active, rows, one, two, rule = active[found], rows[found], one[found], two[found], rule[found]
        out_NC[active] = _replaced(rows, one, two, vocabulary.n_base + rule)
    return out_NC


def _replaced(rows_NC: Ints, one: Ints, two: Ints, token: Ints) -> Ints:
    """Rows without the tokens at ``one`` and ``two``, behind the new token, -1 at the end."""
    at, wide = np.arange(len(rows_NC)), np.column_stack([token, rows_NC])
    wide[at, one + 1] = wide[at, two + 1] = -1
    keep = np.argsort(wide < 0, axis=1, kind="stable")[:, : rows_NC.shape[1]]
    return np.take_along_axis(wide, keep, axis=1)
