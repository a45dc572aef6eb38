"""Item vectors turned so that what is bought together comes together: TRAINING histories only.

Legend: N items, D width, P pairs, B pairs of a batch.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError
from genrec.seeding import rng

Int64 = npt.NDArray[np.int64]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AlignSettings:
    """Settings of :func:`align`; raises ConfigError for values outside their range (experimental)."""

    epochs: int = 5  # passes over the pairs; 0 leaves the vectors as they are
    batch_size: int = 512  # pairs per step: each is told from the others of its batch
    learning_rate: float = 1e-3  # of Adam
    temperature: float = 0.07  # cosines are divided by it
    window: int = 1  # items at most this far apart in a history are a pair
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("batch_size", 2), ("window", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected above 0, got {getattr(self, name)}")


def align(vectors: ItemEmbeddings, train: Histories, settings: AlignSettings) -> ItemEmbeddings:
    """The vectors times a matrix that brings items of one history together (experimental).

    ::

        W = identity;  over batches of pairs (a, p):
        s[b, c] = cos(x[a_b] W, x[p_c] W) / temperature, left out (b != c) where (a_b, p_c) is a pair too or one item
        minimise the mean cross entropy of picking c = b from row b, and b = c from column c
        vectors = x W

    The co-occurrence term of DAS (2025, 2508.10584) for vectors that are quantized afterwards, symmetric; known pairs
    are no negatives. DAS trains it together with the quantizer and a ranking model; here it stands alone, so any item
    tokenizer can have it. A zero row stays zero, and an item that nobody has bought follows from its own vector. Rows
    keep their average length. Items without events, and further rows behind them, change nothing for the others.
    """
    pairs = pairs_of(train, vectors.known, settings.window)
    if settings.epochs == 0 or len(pairs) < 2:
        return vectors
    turn = _fit(vectors.vectors, pairs, settings)
    made = vectors.vectors.astype(np.float64) @ turn
    taught = np.unique(pairs)
    before = float((vectors.vectors[taught].astype(np.float64) ** 2).sum())
    made *= np.sqrt(before / max(float((made[taught] ** 2).sum()), 1e-30))
    recipe = {**vectors.recipe, "align": asdict(settings)}
    return ItemEmbeddings(made.astype(np.float32), vectors.catalog, recipe)


def pairs_of(train: Histories, known: npt.NDArray[np.bool_], window: int) -> Int64:
    """Two different known items at most ``window`` apart in a history, as often as so, int64 ``[P, 2]`` (internal)."""
    rows, items = train.rows(), train.items.astype(np.int64)
    found = [np.empty((0, 2), np.int64)]
    for distance in range(1, min(window, len(items) - 1) + 1):
        a, b = items[:-distance], items[distance:]
        near = (rows[:-distance] == rows[distance:]) & (a != b) & known[a] & known[b]
        found.append(np.stack([a[near], b[near]], axis=1))
    return np.concatenate(found)


def apart(pairs_B2: Int64, keys: Int64, n_items: int) -> npt.NDArray[np.bool_]:
    """Which (b, c) are no negatives, bool ``[B, B]``: known pairs and equal items, but for b = c (internal).

    keys: ascending ``first * n_items + second`` of all known pairs, in both orders.
    """
    asked = pairs_B2[:, :1] * n_items + pairs_B2[None, :, 1]
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    out = (keys[at] == asked) | (pairs_B2[:, :1] == pairs_B2[None, :, 1])
    np.fill_diagonal(out, False)
    return np.asarray(out)


def _fit(vectors: npt.NDArray[np.float32], pairs: Int64, settings: AlignSettings) -> npt.NDArray[np.float64]:
    import torch
    from torch.nn.functional import cross_entropy, normalize

    n_items, n_pairs = len(vectors), len(pairs)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    keys = np.unique(both[:, 0] * n_items + both[:, 1])
    turn = torch.eye(vectors.shape[1], requires_grad=True)
    adam = torch.optim.Adam([turn], lr=settings.learning_rate)
    for epoch in range(settings.epochs):
        order, total, steps = rng(settings.seed, "align", epoch).permutation(n_pairs), 0.0, 0
        for start in range(0, n_pairs, settings.batch_size):
            batch = pairs[order[start : start + settings.batch_size]]
            if len(batch) < 2:
                continue
            a, p = (normalize(torch.from_numpy(vectors[batch[:, side]]) @ turn, dim=1) for side in (0, 1))
            scores = (a @ p.T / settings.temperature).masked_fill(
                torch.from_numpy(apart(batch, keys, n_items)), float("-inf")
            )
            own = torch.arange(len(batch))
            loss = (cross_entropy(scores, own) + cross_entropy(scores.T, own)) / 2
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            total, steps = total + float(loss.detach()), steps + 1
        _log.info("alignment, epoch %d: loss %.4f", epoch + 1, total / max(steps, 1))
    return turn.detach().numpy().astype(np.float64)
