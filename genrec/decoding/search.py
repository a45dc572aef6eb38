"""One batch of requests, from prompts to identifiers: scored or searched, and searched wider until proven.

Axes: B rows of a batch, P identifiers of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.decoding.beam import Found, beam_search
from genrec.decoding.filters import ItemFilter, RankFilter, RowFilters
from genrec.decoding.interface import Normalize, SearchOptions
from genrec.decoding.listing import CERTIFICATE_MARGIN, list_items, widened
from genrec.decoding.scorer import Prompts, Scorer
from genrec.decoding.select import DeviceIndex
from genrec.decoding.small import SMALL_SET, score_allowed

WIDER = 4
"""How many times more beams a search that proved nothing is repeated with."""


def is_small(filters: Sequence[ItemFilter | RankFilter | None]) -> npt.NDArray[np.bool_]:
    """Which rows are allowed so few items that all of them are scored, bool ``[B]`` (internal)."""
    size = {id(each): len(each) for each in filters if each is not None}
    return np.array([each is not None and size[id(each)] <= SMALL_SET for each in filters], dtype=np.bool_)


def search(
    scorer: Scorer,
    index: DeviceIndex,
    prompts: Prompts,
    wanted: SearchOptions,
    *,
    n_beams: int,
    normalize: Normalize,
    deny: Histories | None,
    filters: Sequence[RankFilter | None],
    margin: float = CERTIFICATE_MARGIN,
) -> Found:
    """The identifiers of a batch whose rows are all :func:`is_small`, or none (internal).

    With ``wanted.exact`` rows without a proof are searched again with four times the beams, until the list of
    ``wanted.top_k`` items is proven (see :func:`genrec.decoding.listing.list_items`) or ``wanted.max_beams`` are used.
    """
    small = is_small(filters)
    if small.all() and len(small):
        few = [each for each in filters if each is not None]
        return score_allowed(scorer, index, prompts, few, normalize=normalize)
    found = beam_search(
        scorer, index, prompts, n_beams=n_beams, normalize=normalize, deny=deny, filters=RowFilters.of(filters)
    )
    limit = min(wanted.max_beams, index.host.n_identifiers)
    while wanted.exact and n_beams < limit:
        listed = list_items(
            index.host, found.leaves, found.scores, top_k=wanted.top_k, normalize=normalize, deny=deny,
            filters=RowFilters.of(filters), pruned=found.pruned, margin=margin,
        )  # fmt: skip
        assert listed.certified is not None
        unproven = np.flatnonzero(~listed.certified)
        if not len(unproven):
            break
        n_beams = min(WIDER * n_beams, limit)
        again = beam_search(
            scorer,
            index,
            Prompts(prompts.tokens_BT[unproven], prompts.mask_BT[unproven]),
            n_beams=n_beams,
            normalize=normalize,
            deny=None if deny is None else deny.take(unproven),
            filters=RowFilters.of([filters[row] for row in unproven.tolist()]),
        )
        found = _replaced(found, unproven, again)
    return found


def _replaced(found: Found, rows: npt.NDArray[np.int64], again: Found) -> Found:
    """``found`` with other rows at ``rows``."""
    width = max(found.leaves.shape[1], again.leaves.shape[1])
    leaves, scores, pruned = (
        widened(found.leaves, width, -1),
        widened(found.scores, width, -np.inf),
        found.pruned.copy(),
    )
    leaves[rows] = widened(again.leaves, width, -1)
    scores[rows] = widened(again.scores, width, -np.inf)
    pruned[rows] = again.pruned
    return Found(leaves, scores, pruned)
