"""What identifiers say about what users do next: do neighbours in time share prefixes, is the next code predictable?

numpy only. ``codes_NL`` is as in ``codes_usage``; ``pairs_P2`` (int ``[P, 2]``) holds item numbers (a, b): a user who
did a did b next. Pairs must come from training wherever a number helps to choose a tokenizer.
Axes: N items, L levels, P pairs, E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.metrics.codes_usage import prefix_numbers

Ints = npt.NDArray[np.integer]
Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
NAN = float("nan")


@dataclass(frozen=True, eq=False)
class AdjacentPairs:
    """Items that follow each other in a history: int64 ``[P, 2]``, and the row (user) of each, ``[P]`` (stable)."""

    pairs_P2: Ids
    row_P: Ids

    def __len__(self) -> int:
        return len(self.row_P)


@dataclass(frozen=True, eq=False)
class Predictability:
    """How well counts foretell the next identifier, on pairs that were not counted (stable).

    perplexity: float64 ``[L]``, 2 ** (mean bits) of the next item's code given its prefix and the previous item.
    information: float64 ``[L]``, bits that knowing the previous item saves at each level (negative = counts too
    sparse to help): an estimate of I(c_l(b); prefix_l(a) | c_<l(b)). identifier_bits: sum over levels. item_bits: with
    the bits to pick one of the items that share the identifier; compare with ``log2 N``.
    """

    perplexity: Floats
    information: Floats
    identifier_bits: float
    item_bits: float


def adjacent_pairs(offsets: Ints, items: Ints) -> AdjacentPairs:
    """Pairs (a, b) of adjacent events with a != b, in order, of ragged histories (stable).

    Row u is ``items[offsets[u]:offsets[u + 1]]``, oldest first.

    >>> adjacent_pairs(np.array([0, 3, 5]), np.array([4, 4, 7, 1, 0])).pairs_P2.tolist()
    [[4, 7], [1, 0]]
    """
    row_E = np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))
    kept = (row_E[1:] == row_E[:-1]) & (items[1:] != items[:-1])
    pairs = np.stack([items[:-1][kept], items[1:][kept]], axis=1).astype(np.int64)
    return AdjacentPairs(pairs, row_E[1:][kept])


def pair_prefix_rate(codes_NL: Ints, pairs_P2: Ints) -> Floats:
    """``P(equal prefix of length l | pair)``, float64 ``[L]``; nan without pairs (stable).

    >>> pair_prefix_rate(np.array([[0, 0], [0, 1], [1, 0]]), np.array([[0, 1], [0, 2]]))
    array([0.5, 0. ])
    """
    if len(pairs_P2) == 0:
        return np.full(codes_NL.shape[1], NAN)
    number_NL = prefix_numbers(codes_NL)
    return np.asarray((number_NL[pairs_P2[:, 0]] == number_NL[pairs_P2[:, 1]]).mean(axis=0))


def random_prefix_rate(codes_NL: Ints) -> Floats:
    """``P(equal prefix of length l | two different random items)``, exact, float64 ``[L]`` (stable).

    ``sum_s s (s - 1) / (N (N - 1))`` over the groups of size s with equal prefix; nan for fewer than two items.

    >>> random_prefix_rate(np.array([[0, 0], [0, 1], [1, 0]]))
    array([0.33333333, 0.        ])
    """
    n = len(codes_NL)
    if n < 2:
        return np.full(codes_NL.shape[1], NAN)
    sizes = [np.bincount(number_N) for number_N in prefix_numbers(codes_NL).T]
    return np.array([float((s * (s - 1)).sum()) / (n * (n - 1)) for s in sizes])


def history_overlap(codes_NL: Ints, offsets: Ints, items: Ints) -> Floats:
    """Share of a history that has the next item's code at level l, mean over next items: float64 ``[L]`` (stable).

    ::

        for every event t of a history that has a code c at level l:
            earlier = the events of the history before t, without those on the item of t itself
            share   = |events of earlier whose code at level l is c| / |earlier|
        overlap = mean of share over the events with an earlier one;  nan where there is none

    The overlap ratio of ReSID (2026, 2602.02338): the code alone, whatever stands before it, so below the first level
    it says whether codes mean the same thing under every prefix (:func:`pair_prefix_rate` asks for whole prefixes).
    Departing from it every event counts as a target once, not only the last ones of sliding windows, and
    a repeated item, which has equal codes by definition, is no evidence. Row u is ``items[offsets[u]:offsets[u + 1]]``,
    oldest first.

    >>> history_overlap(np.array([[0, 0], [0, 1], [1, 1]]), np.array([0, 3]), np.array([0, 1, 2]))
    array([0.5 , 0.25])
    """
    row_E = np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))
    place_E = np.arange(len(items), dtype=np.int64) - np.asarray(offsets, dtype=np.int64)[row_E]
    again_E = _earlier_equal(row_E * len(codes_NL) + items)
    earlier_E = place_E - again_E
    out = np.full(codes_NL.shape[1], NAN)
    for level in range(codes_NL.shape[1]):
        code_E = codes_NL[items, level].astype(np.int64)
        asked_E = (earlier_E > 0) & (code_E >= 0)
        if asked_E.any():
            alike_E = _earlier_equal(row_E * (int(code_E.max()) + 2) + code_E + 1) - again_E
            out[level] = (alike_E[asked_E] / earlier_E[asked_E]).mean()
    return out


def _earlier_equal(key_E: Ids) -> Ids:
    """How many elements before each one are equal to it."""
    order = np.argsort(key_E, kind="stable")
    new = np.concatenate([[True], np.diff(key_E[order]) != 0])[: len(order)]
    first = np.flatnonzero(new)
    out = np.empty(len(order), dtype=np.int64)
    out[order] = np.arange(len(order)) - first[np.cumsum(new) - 1]
    return out


def predictability(codes_NL: Ints, counted_P2: Ints, asked_Q2: Ints, *, smoothing: float = 0.5) -> Predictability:
    """Perplexity of the next item's codes under a first-order count model with additive smoothing (stable).

    ::

        x = first l codes of b, x' = first l - 1 codes of b, y = first l codes of a; n() counts pairs in counted_P2
        extra    = smoothing * (children of x' that some item has)
        plain(x) = (n(b in x) + smoothing) / (n(b in x') + extra)
        p(x | y) = (n(a in y, b in x) + extra * plain(x)) / (n(a in y, b in x') + extra)
        bits of level l = mean of -log2 p over asked_Q2;  information = mean of log2 p - log2 plain

    Additive smoothing twice, the second time spread like ``plain`` instead of evenly. Both are distributions over the
    children that exist, as in constrained decoding; the end of a short identifier is a child. Lower bits are better,
    at equal N. Our definition: the y of a level is the whole prefix of a, so a renumbering below a parent changes
    nothing. smoothing is above 0. nan without asked pairs.
    """
    n, n_levels = codes_NL.shape
    if len(asked_Q2) == 0:
        return Predictability(np.full(n_levels, NAN), np.full(n_levels, NAN), NAN, NAN)
    number_NL = prefix_numbers(codes_NL)
    bits, saved = np.zeros(n_levels), np.zeros(n_levels)
    above_N = np.zeros(n, dtype=np.int64)
    for level in range(n_levels):
        node_N = number_NL[:, level]
        first = np.unique(node_N, return_index=True)[1]
        children = np.bincount(above_N[first])
        (y, x), above = (node_N[asked_Q2[:, side]] for side in (0, 1)), above_N[asked_Q2[:, 1]]
        in_x = np.bincount(node_N[counted_P2[:, 1]], minlength=len(first))
        in_above = np.bincount(above_N[counted_P2[:, 1]], minlength=len(children))
        extra = smoothing * children[above]
        plain = (in_x[x] + smoothing) / (in_above[above] + extra)
        from_y = node_N[counted_P2[:, 0]] * n
        joint = _counts_of(y * n + x, from_y + node_N[counted_P2[:, 1]])
        context = _counts_of(y * n + above, from_y + above_N[counted_P2[:, 1]])
        p = (joint + extra * plain) / (context + extra)
        bits[level] = -np.log2(p).mean()
        saved[level] = np.log2(p / plain).mean()
        above_N = node_N
    shared = np.log2(np.bincount(above_N)[above_N[asked_Q2[:, 1]]]).mean()
    return Predictability(2.0**bits, saved, float(bits.sum()), float(bits.sum() + shared))


def _counts_of(asked: Ids, seen: Ids) -> Ids:
    """How often each asked key was seen."""
    keys, counts = np.unique(seen, return_counts=True)
    if len(keys) == 0:
        return np.zeros(len(asked), dtype=np.int64)
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, counts[at], 0)
