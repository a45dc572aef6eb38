"""Few allowed items: score every one of them instead of searching.

A beam search follows the prefixes of high probability; under a narrow filter most of that probability belongs to items
that are not allowed, and the best allowed ones are lost on the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec.decoding.beam import Found
from genrec.decoding.exact import score_items
from genrec.decoding.filters import RankFilter
from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import Prompts, Scorer
from genrec.decoding.select import DeviceIndex

SMALL_SET = 256
"""Filters that allow at most so many items are scored, not searched."""


def score_allowed(
    scorer: Scorer,
    index: DeviceIndex,
    prompts: Prompts,
    filters: Sequence[RankFilter],
    *,
    normalize: Normalize,
) -> Found:
    """All identifiers of the items that each row's filter allows, best first; nothing is pruned (internal).

    Memory grows with the largest filter. Raises DataError if the model returns NaN.
    """
    host = index.host
    below = {id(each): np.unique(host.nodes_of(each.ranks)[:, -1]) for each in filters}
    width = max([len(leaves) for leaves in below.values()] + [1])
    leaves = np.full((len(filters), width), -1, dtype=np.int64)
    for row, each in enumerate(filters):
        leaves[row, : len(below[id(each)])] = below[id(each)]
    first = host.items[host.first_rank(np.maximum(leaves, 0))]
    scores = score_items(scorer, index, prompts, np.where(leaves < 0, -1, first), normalize=normalize)
    order = np.argsort(-scores, axis=1, kind="stable")
    return Found(
        leaves=np.take_along_axis(leaves, order, axis=1),
        scores=np.take_along_axis(scores, order, axis=1),
        pruned=np.full(len(filters), -np.inf, dtype=np.float32),
    )
