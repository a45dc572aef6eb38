"""Events at the same moment: which ones have an arbitrary order, and drawing that order anew."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Int32
from genrec.seeding import rng

Bools = npt.NDArray[np.bool_]


def tied_with_previous(user: npt.NDArray[np.integer], time: npt.NDArray[np.integer]) -> Bools:
    """Whether an event has the user and the time of the event before it, bool ``[E]`` (internal)."""
    tied = np.zeros(len(user), np.bool_)
    tied[1:] = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    return tied


def redraw(items: Int32, tied: Bools | None, *, seed: int, epoch: int) -> Int32:
    """The items with every block of ties in a new uniform order, the same for the same (seed, epoch) (internal).

        for each maximal run [a, b) of events with tied[a + 1:b] all true:
            out[a:b] = a random permutation of items[a:b]

    items: int32 ``[E]``. tied: bool ``[E]`` (:func:`tied_with_previous`); None, or none tied, changes nothing.
    """
    if tied is None or not tied.any():
        return items
    at = np.flatnonzero(tied | np.append(tied[1:], False))  # the events of blocks of two and more
    order = np.lexsort((rng(seed, "order of ties", epoch).random(len(at)), np.cumsum(~tied[at])))
    out = items.copy()
    out[at] = items[at[order]]
    return out
