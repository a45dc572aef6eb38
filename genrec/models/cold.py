"""New items in lists of a generative model: drafted by content, scored by the model, in a fixed share of the places.

A generative model almost never writes an identifier that it was not trained on, however well it fits the user.

Axes: U users, B users at a time, N items, C cold items, D width of vectors, M drafts of a user, k places of a list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from genrec.data.histories import Histories
from genrec.decoding.dense import neutral_order
from genrec.decoding.interface import Recommendations, SearchOptions
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, DataError
from genrec.models.recommender import GenerativeRecommender

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
_SIMILARITIES_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class ColdSettings:
    """How cold items are drafted.

    quota: the share of the places that drafts may take. Place p (from 1) is one of theirs where ``floor(p * quota)`` is
    more than ``floor((p - 1) * quota)``: every fifth for 0.2, so each beginning of a list keeps the quota. n_drafts:
    the cold items nearest to the user that the model scores. decay: weight of an event of the history against the one
    behind it. score_weight: of the model's log-probability beside the similarity, both standardised over the user's
    drafts; 0 = by content alone.

    Raises ConfigError for values out of range. Stability: experimental.
    """

    quota: float = 0.2
    n_drafts: int = 50
    decay: float = 0.7
    score_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.quota < 1:
            raise ConfigError(f"quota: expected a share from 0 to below 1, got {self.quota}")
        if self.n_drafts < 1:
            raise ConfigError(f"n_drafts: expected a positive integer, got {self.n_drafts}")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay: expected a number above 0, 1 at most, got {self.decay}")
        if not 0 <= self.score_weight < np.inf:
            raise ConfigError(f"score_weight: expected 0 or more, got {self.score_weight}")


@dataclass(frozen=True)
class DraftedRecommendations(Recommendations):
    """Lists with drafted items among them.

    drafted: bool ``[U, k]``, True = a cold item that was drafted. scores: the model's log-probability of every item,
    which does not fall where a draft stands. ranks: the places, 1, 2, …. Never certified. Stability: experimental.
    """

    drafted: npt.NDArray[np.bool_] | None = None


class ColdDrafting:
    """A generative recommender whose lists hold cold items too; a :class:`~genrec.decoding.interface.Recommender`.

        profile  = mean of the unit vectors of the history, each event weighing decay times the one behind it
        drafts   = the n_drafts cold items nearest to it that are allowed, unseen, and not in the list anyway
        order    = similarity + score_weight * log-probability, standardised over the drafts
        the list = the model's own, with the best drafts at every fifth place (quota 0.2)

    Places for which there is no draft go to the model's next items. A history without a vector has no drafts. The same
    filters, histories and exclusions as of the recommender. embeddings: of all N items, a vector of zeros = nothing
    known. cold_items: item numbers, or bool ``[N]``: the items that training never saw. Items outside the index are
    never drafted, nor are items that a later version of the catalog adds (make another drafter for them). Raises
    DataError where sizes do not fit. Stability: experimental.
    """

    def __init__(
        self,
        recommender: GenerativeRecommender,
        embeddings: ItemEmbeddings | npt.NDArray[np.floating],
        cold_items: npt.ArrayLike,
        settings: ColdSettings | None = None,
    ) -> None:
        vectors = embeddings.vectors if isinstance(embeddings, ItemEmbeddings) else np.asarray(embeddings, np.float32)
        n_items = recommender.n_items
        if vectors.ndim != 2 or len(vectors) != n_items:
            raise DataError(f"embeddings: expected one row for each of {n_items} items, got {list(vectors.shape)}")
        cold_N = _mask(cold_items, n_items)
        self.recommender = recommender
        self.settings = settings or ColdSettings()
        norm_N1 = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._unit_ND = (vectors / np.where(norm_N1 > 0, norm_N1, 1)).astype(np.float32)
        order_N = neutral_order(n_items)  # ties must not be listed by item number
        self._cold_C = order_N[(cold_N & (norm_N1[:, 0] > 0))[order_N]]

    @property
    def n_items(self) -> int:
        """Number of items N of the catalog."""
        return self.recommender.n_items

    @property
    def history_cap(self) -> int:
        """How many events of a history enter the prompt; drafts look at the same."""
        return self.recommender.history_cap

    def recommend(
        self, histories: Histories, options: SearchOptions, users: npt.NDArray[np.int32] | None = None
    ) -> DraftedRecommendations:
        """Lists for all ``histories``, in their order; ``top_k=None``: everything found, and drafts in their places."""
        model = self.recommender.now  # one version of the catalog for all that follows
        plain = model.recommend(histories, options, users)
        width, how = plain.items.shape[1], self.settings
        if options.top_k is None:
            width += int(width * how.quota / (1 - how.quota))
        n_places = _n_places(width, how.quota)
        drafts, similarity = self._drafts(model, histories, options, plain.items[:, : width - n_places])
        if not how.score_weight:  # they stand in the order of similarity already
            drafts, similarity = drafts[:, :n_places], similarity[:, :n_places]
        logp = model.score(histories, drafts, users, normalize=options.normalize)
        real = drafts >= 0
        worth = _standardised(similarity, real) + how.score_weight * _standardised(logp, real)
        order = np.argsort(-np.where(real, worth, -np.inf), axis=1, kind="stable")[:, :n_places]
        best, logp = np.take_along_axis(drafts, order, axis=1), np.take_along_axis(logp, order, axis=1)
        return _merged(plain, best, logp, width, how.quota)

    def _drafts(
        self,
        model: GenerativeRecommender,
        histories: Histories,
        options: SearchOptions,
        taken: npt.NDArray[np.int32],
    ) -> tuple[Int64, Float32]:
        """The cold items nearest to each user, int64 ``[U, M]`` (-1 = padding), and their similarities, falling."""
        shape = (len(histories), min(self.settings.n_drafts, len(self._cold_C)))
        drafts, similarities = np.full(shape, -1, dtype=np.int64), np.full(shape, -np.inf, dtype=np.float32)
        filters = model.allowed(options.filter, len(histories))
        outside_N = model.index.rank_of < 0
        at_once = max(1, _SIMILARITIES_AT_ONCE // len(outside_N))
        for start in range(0, len(histories), at_once):
            rows = slice(start, min(start + at_once, len(histories)))
            part, listed = histories.take(np.arange(rows.start, rows.stop)), np.nonzero(taken[rows] >= 0)
            closed_BN = np.repeat(outside_N[None], len(part), axis=0)
            for row, allowed in enumerate(filters[rows]):
                if allowed is not None:
                    closed_BN[row] |= ~allowed.mask
            if options.exclude_seen:
                closed_BN[part.rows(), part.items] = True
            closed_BN[listed[0], taken[rows][listed]] = True
            profile_BD = self._profiles(part)
            closed_BN |= ~profile_BD.any(axis=1, keepdims=True)  # nothing is known of the history
            near_BC = profile_BD @ self._unit_ND[self._cold_C].T
            near_BC[closed_BN[:, self._cold_C]] = -np.inf
            best = np.argsort(-near_BC, axis=1, kind="stable")[:, : shape[1]]
            similarities[rows] = np.take_along_axis(near_BC, best, axis=1)
            drafts[rows] = np.where(similarities[rows] > -np.inf, self._cold_C[best], -1)
        return drafts, similarities

    def _profiles(self, histories: Histories) -> Float32:
        """Recency-weighted means of the unit vectors of the newest events, float32 ``[B, D]``."""
        recent = histories.last(self.history_cap)
        age = recent.offsets[1:][recent.rows()] - 1 - np.arange(len(recent.items))
        weight = np.float64(self.settings.decay) ** age
        bags = sp.csr_matrix((weight, recent.items, recent.offsets), shape=(len(recent), self.n_items))
        total = np.maximum(np.asarray(bags.sum(axis=1)), np.finfo(np.float64).tiny)
        return np.asarray((bags[:, : len(self._unit_ND)] @ self._unit_ND) / total, dtype=np.float32)


def _mask(items: npt.ArrayLike, n_items: int) -> npt.NDArray[np.bool_]:
    given = np.asarray(items)
    if given.dtype == np.bool_:
        if given.shape != (n_items,):
            raise DataError(f"cold_items: expected {n_items} flags, got {list(given.shape)}")
        return given
    if given.size and not 0 <= int(given.min()) <= int(given.max()) < n_items:
        raise DataError(f"cold_items: expected item numbers 0..{n_items - 1}, got {given.min()} .. {given.max()}")
    out = np.zeros(n_items, dtype=np.bool_)
    out[given.astype(np.int64)] = True
    return out


def _n_places(places: int, quota: float) -> int:
    """Places of drafts among the first ``places``; a rounding error of the product takes none away."""
    return int(np.floor(places * quota + 1e-9))


def _standardised(values: Float32, real: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Zero mean and unit deviation over the real entries of each row; 0 where they are all equal."""
    count = np.maximum(real.sum(axis=1, keepdims=True), 1)
    known = np.where(real, values, 0).astype(np.float64)
    centred = np.where(real, known - known.sum(axis=1, keepdims=True) / count, 0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    return np.asarray(centred / np.where(deviation > 0, deviation, 1))


def _merged(plain: Recommendations, drafts: Int64, logp: Float32, width: int, quota: float) -> DraftedRecommendations:
    """The plain lists with drafts in their places; where a draft is missing, the items behind it move up."""
    n_plain = plain.items.shape[1]
    places = np.arange(1, width + 1)
    drafted = np.array([_n_places(p, quota) > _n_places(p - 1, quota) for p in places.tolist()], dtype=np.bool_)
    later = (plain.items[:, :, None] == drafts[:, None, :]).any(axis=2)  # drafted, and in the plain list further down
    free = np.concatenate([places[~drafted], width + 1 + np.arange(n_plain)])
    key = free[np.maximum(np.cumsum(~later, axis=1) - 1, 0)]
    key = np.concatenate([key, np.broadcast_to(places[drafted][: drafts.shape[1]], drafts.shape)], axis=1)
    items = np.concatenate([np.where(later, -1, plain.items), drafts], axis=1)
    order = np.argsort(np.where(items < 0, key.max(initial=0) + 1, key), axis=1, kind="stable")[:, :width]
    items = np.take_along_axis(items, order, axis=1)
    scores = np.take_along_axis(np.concatenate([plain.scores, logp], axis=1), order, axis=1)
    real = items >= 0
    return DraftedRecommendations(
        items=items.astype(np.int32),
        scores=np.where(real, scores, -np.inf).astype(np.float32),
        ranks=np.where(real, np.arange(1, items.shape[1] + 1), np.inf).astype(np.float32),
        normalize=plain.normalize,
        n_identifiers=plain.n_identifiers,
        version=plain.version,
        drafted=real & (order >= n_plain),
    )
