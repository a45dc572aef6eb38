"""Vectors of users from the vectors of the items they had: TRAINING histories only.

Legend: N items, U users, E events, D width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, DataError


def user_vectors(
    train: Histories, items: ItemEmbeddings, *, decay: float = 1.0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """One vector per history, float32 ``[U, D]``, and which of them are known, bool ``[U]`` (experimental).

    ::

        age of an event = events of the same history after it
        vector[u] = sum of decay ** age * vector of the item / sum of decay ** age,   over the events with a known item

    With ``decay`` 1 the plain mean: over the vectors of :func:`genrec.embeddings.collaborative.svd`, that is a user's
    row of the factorisation, up to a scale for each direction. Items whose vector is zero are not known and do not
    count; a history without any other has a zero vector and is not known. ``train`` must hold training events only.
    Raises ConfigError for a decay outside (0, 1], DataError for an item number that has no vector.
    """
    import scipy.sparse as sp

    if not 0 < decay <= 1:
        raise ConfigError(f"decay: expected above 0, at most 1, got {decay}")
    events = train.items
    if len(events) and not 0 <= int(events.min()) <= int(events.max()) < items.n_items:
        raise DataError(f"train: expected item numbers 0..{items.n_items - 1}, got {events.min()}..{events.max()}")
    row_E = train.rows()
    age_E = train.offsets[1:][row_E] - 1 - np.arange(len(events))
    weight_E = np.where(items.known[events], decay ** age_E.astype(np.float64), 0.0)
    total_U = np.bincount(row_E, weights=weight_E, minlength=len(train))
    known_U = total_U > 0
    share_E = (weight_E / np.where(known_U, total_U, 1.0)[row_E]).astype(np.float32)
    # in float32 throughout: of a million users and items, each copy in float64 would be gigabytes
    table_UN = sp.csr_matrix((share_E, (row_E, events)), shape=(len(train), items.n_items))
    return np.asarray(table_UN @ items.vectors), known_U
