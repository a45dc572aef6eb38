"""Few allowed items: score every one of them instead of searching.

A beam search follows the prefixes of high probability; under a narrow filter most of that probability belongs to items
that are not allowed, and the best allowed ones are lost on the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from genrec.decoding.beam import Found
from genrec.decoding.exact import score_leaves
from genrec.decoding.filters import RankFilter
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import Prompts, Scorer
from genrec.decoding.select import DeviceIndex
from genrec.decoding.walk import leaves_at, n_prefixes

SMALL_SET = 256
"""Filters whose items have at most so many prefixes are scored, not searched: one step of the scorer per level."""
MOST_ITEMS = 64 * SMALL_SET
"""Filters of more items are searched without counting their prefixes."""


def is_small(index: CatalogIndex, filters: Sequence[RankFilter | None]) -> npt.NDArray[np.bool_]:
    """Which rows are allowed so few items that all of them are scored, bool ``[B]`` (internal)."""
    small = {id(each): _is_small(index, each) for each in filters if each is not None}
    return np.array([each is not None and small[id(each)] for each in filters], dtype=np.bool_)


def _is_small(index: CatalogIndex, allowed: RankFilter) -> bool:
    size = len(allowed)
    return size <= SMALL_SET or (size <= MOST_ITEMS and n_prefixes(index, allowed.ranks) <= SMALL_SET)


def score_allowed(
    scorer: Scorer,
    index: DeviceIndex,
    prompts: Prompts,
    filters: Sequence[RankFilter],
    *,
    normalize: Normalize,
) -> Found:
    """All identifiers of the items that each row's filter allows, best first; nothing is pruned (internal).

    Those that the model rules out (score -inf) are left out, as by a search.

    Raises DataError if the model returns NaN.
    """
    below = {id(each): np.unique(leaves_at(index.host, each.ranks)) for each in filters}
    counts = np.array([len(below[id(each)]) for each in filters])
    row, column = np.nonzero(np.arange(max(counts.max(initial=0), 1)) < counts[:, None])
    leaves = np.full((len(filters), max(int(counts.max(initial=0)), 1)), -1, dtype=np.int64)
    scores = np.full(leaves.shape, -np.inf, dtype=np.float32)
    leaves[row, column] = np.concatenate([np.zeros(0, np.int64), *(below[id(each)] for each in filters)])
    if len(below) == 1:
        scores[:, : counts[0]] = score_leaves(scorer, index, prompts, None, leaves[0, : counts[0]], normalize=normalize)
    else:
        scores[row, column] = score_leaves(scorer, index, prompts, row, leaves[row, column], normalize=normalize)
    leaves[np.isneginf(scores)] = -1
    order = np.argsort(-scores, axis=1, kind="stable")
    return Found(
        leaves=np.take_along_axis(leaves, order, axis=1),
        scores=np.take_along_axis(scores, order, axis=1),
        pruned=np.full(len(filters), -np.inf, dtype=np.float32),
    )
