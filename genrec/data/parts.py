"""Which part of a split each event belongs to, where the rule is more than a comparison. Internal.

A part is an int8: 0 train, 1 valid, 2 test, -1 left out. Axis letter: E events.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from genrec.data.interactions import Interactions
from genrec.errors import DataError

DROP, TRAIN, VALID, TEST = -1, 0, 1, 2
Int8 = npt.NDArray[np.int8]


def predefined_parts(interactions: Interactions, column: str) -> Int8:
    """The parts that a column with "train", "valid" or "test" names, int8 ``[E]``.

    Raises :class:`DataError` if the column is missing or has another value. The order is not checked.
    """
    if column not in interactions.columns:
        found = ", ".join(sorted(interactions.columns)) or "none"
        raise DataError(f"column {column!r} with the part of each event is missing; columns found: {found}")
    values = interactions.columns[column]
    part = np.full(len(values), DROP, np.int8)
    for code, name in enumerate(("train", "valid", "test")):
        part[values == name] = code
    if len(wrong := np.flatnonzero(part == DROP)):
        row = int(wrong[0])
        user = interactions.user_ids[interactions.user[row]]
        raise DataError(f"column {column!r}: expected 'train', 'valid' or 'test', got {values[row]!r} (user {user!r})")
    return part


def held_out_parts(interactions: Interactions, is_cold: npt.NDArray[np.bool_]) -> Int8:
    """The parts of :func:`genrec.data.splits.held_out_items`, int8 ``[E]``; ``is_cold``: bool ``[N]``."""
    cold = is_cold[interactions.item]
    n, user, at = len(cold), interactions.user, np.arange(len(cold))
    first_warm = np.full(interactions.n_users, n)
    np.minimum.at(first_warm, user[~cold], at[~cold])
    eligible = cold & (at > first_warm[user])
    target = np.full(interactions.n_users, -1)
    np.maximum.at(target, user[eligible], at[eligible])

    part = np.full(n, DROP, np.int8)
    limit = np.where(target >= 0, target, n)
    part[~cold & (at < limit[user])] = TRAIN
    part[target[target >= 0]] = TEST
    kept = part != DROP
    n_kept = np.bincount(user[kept], minlength=interactions.n_users)
    last_warm = np.full(interactions.n_users, -1)
    np.maximum.at(last_warm, user[part == TRAIN], at[part == TRAIN])
    part[last_warm[n_kept >= 3]] = VALID
    return part
