"""Free identifiers beside published ones, for items that cannot have the one they would like. Internal.

Axes: N published items, M new items (in key order), T taken codes, P prefixes, L levels, K codes of a level.
Identifiers are int64 rows with -1 behind short ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError
from genrec.item_tokenizers.codes import ItemCodes, row_numbers
from genrec.item_tokenizers.fitted import nearest_groups

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
_CELLS = 1 << 22  # of a table of prefixes x codes that is held at a time


def free_codes(prefix_M: npt.NDArray[Any], taken_prefix_T: npt.NDArray[Any], taken_T: Ints, allowed_K: Flags) -> Ints:
    """The next free code under the prefix of each row, int64 ``[M]``, -1 where all are taken (internal).

    ::

        for row in 0 .. M-1:
            code = smallest k with allowed[k] that neither `taken` nor an earlier row has under prefix[row]
    """
    out = np.full(len(prefix_M), -1, dtype=np.int64)
    order = np.argsort(prefix_M, kind="stable")
    prefixes, first = np.unique(prefix_M[order], return_index=True)
    rank_M = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    near = np.isin(taken_prefix_T, prefixes)
    taken_p, taken = np.searchsorted(prefixes, taken_prefix_T[near]), taken_T[near]
    size, ends = len(allowed_K), np.append(first, len(order))
    step = max(_CELLS // size, 1)
    for start in range(0, len(prefixes), step):
        stop = min(start + step, len(prefixes))
        free_PK = np.tile(allowed_K, (stop - start, 1))
        here = (taken_p >= start) & (taken_p < stop)
        free_PK[taken_p[here] - start, taken[here]] = False
        codes_PK = np.argsort(~free_PK, axis=1, kind="stable")
        rows = slice(ends[start], ends[stop])
        p = np.searchsorted(prefixes, prefix_M[order[rows]]) - start
        rank = np.minimum(rank_M[rows], size - 1)
        found = rank_M[rows] < free_PK.sum(axis=1)[p]
        out[order[rows]] = np.where(found, codes_PK[p, rank], -1)
    return out


def last_codes(codes: ItemCodes) -> list[Flags]:
    """Which codes may end an identifier of each length, one bool ``[K]`` per level (internal).

    All of them where identifiers have equal lengths. Of ragged ones those that do end one (of any length, where
    levels share a vocabulary): in a tree whose inner nodes have names of their own, such a name ends nothing.
    """
    if codes.lengths is None:
        return [np.ones(size, dtype=bool) for size in codes.level_sizes]
    ends = [np.zeros(size, dtype=bool) for size in codes.level_sizes]
    for level, flags in enumerate(ends):
        flags[codes.codes[codes.lengths == level + 1, level]] = True
    return [np.any(ends, axis=0)] * len(ends) if codes.shared_vocabulary else ends


def renumber(codes_ML: Ints, held_NL: Ints, allowed: list[Flags]) -> Flags:
    """A free last code for each row, its prefix and length kept, in place; False where there is none (internal).

    A code is taken when any identifier of ``held_NL`` continues with it behind the prefix, be it its end or not.
    """
    lengths_M, done = (codes_ML >= 0).sum(axis=1), np.ones(len(codes_ML), dtype=bool)
    for length in np.unique(lengths_M).tolist():
        rows = np.flatnonzero(lengths_M == length)
        beyond = held_NL[:, length - 1] >= 0
        both = np.concatenate([codes_ML[rows, : length - 1], held_NL[beyond, : length - 1]])
        numbers = row_numbers(both)
        taken = held_NL[beyond, length - 1]
        last = free_codes(numbers[: len(rows)], numbers[len(rows) :], taken, allowed[length - 1])
        done[rows] = last >= 0
        codes_ML[rows[last >= 0], length - 1] = last[last >= 0]
        held_NL = np.concatenate([held_NL, codes_ML[rows[last >= 0]]])
    return done


def first_of_kind(codes_ML: Ints, held_NL: Ints) -> Flags:
    """Rows that nobody in ``held_NL`` and no earlier row equals, bool ``[M]`` (internal)."""
    numbers = row_numbers(np.concatenate([held_NL, codes_ML]))
    first = np.full(int(numbers.max(initial=-1)) + 1, len(numbers))
    np.minimum.at(first, numbers, np.arange(len(numbers)))
    own = np.arange(len(held_NL), len(numbers))
    return np.asarray(first[numbers[own]] == own)


@dataclass(frozen=True, eq=False)
class Numbered:
    """Identifiers ``[M, L]``; which rows have one (else there was no number left); whose raw one somebody else has."""

    codes_ML: Ints
    done_M: Flags
    alike_M: Flags


def number_behind(raw_ML: Ints, held_NL: Ints, numbers_K: Flags, *, always: bool) -> Numbered:
    """Identifiers of one vocabulary with a number behind those that need one; and which rows got theirs (internal).

    ::

        row needs a number:  always, or if its raw identifier is held, is that of another row, or is numbered in `held`
        identifier = raw identifier, cut to L codes;  or cut to L - 1 codes, then the next free number

    raw_ML: as wide as ``held_NL`` or not. numbers_K: which codes are numbers.
    """
    width = held_NL.shape[1]
    filled = np.full((len(raw_ML), max(width - raw_ML.shape[1], 0)), -1, dtype=np.int64)
    raw_ML = np.column_stack([raw_ML[:, :width], filled])
    ends_N = (held_NL >= 0).sum(axis=1) - 1
    numbered_N = numbers_K[held_NL[np.arange(len(held_NL)), ends_N]]
    stems_NL = held_NL.copy()
    stems_NL[numbered_N, ends_N[numbered_N]] = -1  # a number's stem, or an identifier without number
    groups = row_numbers(np.concatenate([stems_NL, raw_ML]))
    alike = np.bincount(groups)[groups[len(held_NL) :]] > 1
    rows = np.arange(len(raw_ML)) if always else np.flatnonzero(alike)
    stems_ML = raw_ML[rows]
    stems_ML[:, -1] = -1
    stems_ML[np.arange(len(rows)), (stems_ML >= 0).sum(axis=1)] = 0
    codes_ML, done = raw_ML.copy(), np.ones(len(raw_ML), dtype=bool)
    others = np.concatenate([held_NL, np.delete(raw_ML, rows, axis=0)])
    done[rows] = renumber(stems_ML, others, [numbers_K] * width)
    codes_ML[rows] = stems_ML
    return Numbered(codes_ML, done, alike)


def by_neighbour(
    published: ItemCodes, content_ND: npt.NDArray[np.float32], keys: npt.NDArray[np.uint64]
) -> tuple[Ints, Flags]:
    """Identifiers of new items from those of similar published ones; and which got their first choice (internal).

    ::

        for item in key order:
            near   = the published item of most similar content (cosine) under whose prefix a last code is free
            code   = prefix of near, free last code

    content_ND, keys: published items, then the new ones in key order.
    """
    held_NL = published.as_int().astype(np.int64)
    n, allowed = len(held_NL), last_codes(published)
    lengths_N = (held_NL >= 0).sum(axis=1)
    prefix_NL = held_NL.copy()
    prefix_NL[np.arange(n), lengths_N - 1] = -1
    group_N = row_numbers(prefix_NL)
    _, first_G = np.unique(group_N, return_index=True)
    room_G = np.array([flags.sum() for flags in allowed])[lengths_N[first_G] - 1]
    for length in np.unique(lengths_N).tolist():
        of_length = first_G[lengths_N[first_G] == length]
        room_G[group_N[of_length]] -= _taken_below(prefix_NL[of_length], held_NL, length, allowed[length - 1])
    if room_G.sum() < len(content_ND) - n:
        raise DataError(
            f"{len(content_ND) - n} new items, but all prefixes together have room for {int(room_G.sum())}",
            hint="fit a new version of the item tokenizer on the grown catalog and train the model again",
        )
    groups = np.append(group_N, np.full(len(content_ND) - n, -1)).astype(np.int64)
    placed = nearest_groups(content_ND, groups, room_G, keys)[n:]
    wished = nearest_groups(content_ND, groups, np.full_like(room_G, len(groups)), keys)[n:]
    codes_ML = held_NL[first_G[placed]]
    done = renumber(codes_ML, held_NL, allowed)
    assert done.all(), "a prefix was chosen that has no room"
    return codes_ML, placed == wished


def _taken_below(prefix_PL: Ints, held_NL: Ints, length: int, allowed_K: Flags) -> Ints:
    """How many of the allowed codes are taken below each prefix of ``length - 1`` codes, int64 ``[P]``."""
    held_NL = held_NL[held_NL[:, length - 1] >= 0]
    numbers = row_numbers(np.concatenate([prefix_PL[:, : length - 1], held_NL[:, : length - 1]]))
    below, last = numbers[len(prefix_PL) :].astype(np.int64), held_NL[:, length - 1]
    keep = allowed_K[last]
    pairs = np.unique(np.column_stack([below[keep], last[keep]]), axis=0)
    return np.bincount(pairs[:, 0], minlength=int(numbers.max()) + 1)[numbers[: len(prefix_PL)]]
