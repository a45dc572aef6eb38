"""Item vectors averaged over the items that the same users have: TRAINING histories only.

Legend: N items, U users, D width.
"""

from __future__ import annotations

import numpy as np

from genrec.data.histories import Histories
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError


def propagate(vectors: ItemEmbeddings, train: Histories, hops: int) -> ItemEmbeddings:
    """The mean of the vectors after 0, 1, … ``hops`` steps from items to users and back (experimental).

    ::

        B[u, i] = 1 if user u has item i;   U, I = diagonal matrices of its row and column sums
        S = I^-1/2 B^T U^-1 B I^-1/2
        vectors = mean of S^k x over k = 0 … hops

    The neighbour aggregation that MMGRec (Liu et al. 2024, 2404.16555) puts before its quantizer, in the form of
    LightGCN (He et al. 2020, 2002.02126): nothing is learned, users start at zero (only paths from item to item
    count), and each hop is one pass over users. An item without events keeps its vector; one of which nothing is known
    gets that of its neighbours. Raises ConfigError for ``hops`` below 0.
    """
    from scipy import sparse

    if hops < 0:
        raise ConfigError(f"neighbours: expected 0 or more, got {hops}")
    if hops == 0 or not len(train.items):
        return vectors
    ones = np.ones(len(train.items))
    has = sparse.csr_matrix((ones, (train.rows(), train.items)), (len(train), vectors.n_items))
    has.data[:] = 1.0  # the constructor has added up repeated events
    of_user, of_item = np.ravel(has.sum(axis=1)), np.ravel(has.sum(axis=0))
    has.data *= (of_user[has.nonzero()[0]] * of_item[has.indices]) ** -0.5
    back, alone = has.T.tocsr(), of_item == 0
    now = vectors.vectors.astype(np.float64)
    total = now.copy()
    for _ in range(hops):
        now = np.asarray(back @ (has @ now))
        total += now
    recipe = {**vectors.recipe, "neighbours": hops}
    made = np.where(alone[:, None], vectors.vectors, total / (hops + 1))
    return ItemEmbeddings(made.astype(np.float32), vectors.catalog, recipe)
