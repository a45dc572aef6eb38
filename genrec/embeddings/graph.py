"""Item vectors from content and the graph of users and items: TRAINING histories only.

Legend: N items, U users, E different (user, item) pairs, D width of the content, H inner width, B pairs of a batch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GraphSettings:
    """Settings of :func:`graph_vectors`; raises ConfigError for values outside their range (experimental).

    The defaults need about two CPU-minutes for twelve thousand items and 130,000 pairs.
    The paper's code: ``batch_size`` 3000, ``epochs`` 60 and ``learning_rate`` 1e-3, with many more steps.
    """

    dim: int = 64  # width of the vectors
    inner: int = 128  # width of users, of projected items and after the first layer
    n_negatives: int = 5  # items that the user does not have, per pair and epoch
    epochs: int = 20
    batch_size: int = 16384  # pairs per step; every step looks at the whole graph
    learning_rate: float = 5e-3
    weight_decay: float = 1e-6
    dropout: tuple[float, float] = (0.5, 0.2)  # share of the inputs of the first and of the second layer
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dropout", tuple(self.dropout))
        least = dict.fromkeys(("dim", "inner", "n_negatives", "epochs", "batch_size"), 1) | {"weight_decay": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise ConfigError(f"{name}: expected at least {low}, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate: expected above 0, got {self.learning_rate}")
        if len(self.dropout) != 2 or not all(0 <= share < 1 for share in self.dropout):
            raise ConfigError(f"dropout: expected two shares from 0 to below 1, got {list(self.dropout)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device: expected auto, cpu or cuda, got {self.device!r}")


def graph_vectors(vectors: ItemEmbeddings, train: Histories, settings: GraphSettings) -> ItemEmbeddings:
    """Vectors of a graph network that learns from content which items a user has (experimental).

    ::

        h_i = x_i A (item i of content x),  h_u = a free vector (user u)
        two times, the second without the leaky ReLU:
            h_node = leaky_relu(h_node R + (mean of h over the node's neighbours) M + b)
        minimise the mean of -log sigmoid(h_u . h_i - h_u . h_j) over pairs (u, i) of the training histories and
        n_negatives items j that u does not have;  vectors = h_i

    The graph encoder of MMGRec (Liu et al. 2024, 2404.16555), which stands before its quantizer: items that the same
    users have come together, and content tells where an item belongs that few users have. A pair counts once however
    often it occurs. Departing from its code: negatives are drawn anew every epoch, by rejection (the code draws them
    once, from a table of all users and items); which inputs its two dropout shares belong to is our reading.
    :func:`genrec.embeddings.neighbours.propagate` is the form without anything learned.

    vectors: content, ``[N, D]``; several kinds of content (text, images) are to be put side by side before. train:
    training events only. Result: float32 ``[N, dim]``, of items without events too (by their content alone: they
    have no neighbours); an item with neither content nor events stays all zeros. Such items, and rows behind the
    others, change nothing for the others. Without an event of two different items there is nothing to tell apart: the
    vectors are returned as they are, with a log line. On the CPU equal inputs give equal bytes.
    """
    from genrec.embeddings.graph_training import learn

    events = np.unique(train.items)
    if len(events) < 2:
        import logging

        logging.getLogger(__name__).warning("graph: fewer than two items have events: the vectors stay as they are")
        return vectors
    made = learn(vectors.vectors, train, settings)
    nothing = ~vectors.known
    nothing[events] = False
    made[nothing] = 0
    return ItemEmbeddings(made, vectors.catalog, {**vectors.recipe, "graph": asdict(settings)})
