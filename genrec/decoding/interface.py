"""What a recommender is asked and what it answers (numpy only).

Axes: U users, k list length, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

from genrec.errors import ConfigError

if TYPE_CHECKING:
    from genrec.data.catalog import ItemCatalog
    from genrec.data.histories import Histories
    from genrec.decoding.diversity import Diversity
    from genrec.decoding.filters import Filters

Normalize = Literal["vocab", "level", "children"]
"""How log-probabilities of codes are normalised: over the whole vocabulary, over the codes of the level, or
over the children that the index has. The three rank differently, so results carry the name. What a request
excludes keeps its share of the probability: excluding changes no score of what is left."""


@dataclass(frozen=True)
class SearchOptions:
    """What is asked of a recommender.

    top_k: length of the list; None = everything that was found (every item, for a dense recommender).
    n_beams: identifiers kept per step of a beam search, None = the model's own number; dense recommenders ignore it.
    exclude_seen: never list an item of the history.
    normalize: see :data:`Normalize`; None = the model's own choice. filter: the only items that may be listed, an
    :class:`~genrec.decoding.filters.ItemFilter`, or one (or None) for each history; where the recommender has a
    :class:`~genrec.decoding.snapshot.CatalogSnapshot`, also names of its filters, as "in_stock & ~adult".
    exact: search with more and more beams, up to max_beams, until the list is proven to be the best of all allowed
    items (:attr:`Recommendations.certified` says for whom it was); the cost differs from user to user.
    diversity: caps per group (:class:`~genrec.decoding.diversity.MaxPer`, one or several) or places for each of a
    user's interests (:class:`~genrec.decoding.diversity.Interests`); such lists are never certified.

    Raises ConfigError for a value out of range. Stability: stable.
    """

    top_k: int | None = 10
    n_beams: int | None = None
    exclude_seen: bool = True
    normalize: Normalize | None = None
    filter: Filters = None
    exact: bool = False
    max_beams: int = 4096
    diversity: Diversity = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k: expected a positive integer or None, got {self.top_k}")
        if self.n_beams is not None and self.n_beams < 1:
            raise ConfigError(f"n_beams: expected a positive integer, got {self.n_beams}")
        if self.max_beams < 1:
            raise ConfigError(f"max_beams: expected a positive integer, got {self.max_beams}")
        if self.normalize is not None and self.normalize not in get_args(Normalize):
            raise ConfigError(f"normalize: expected one of {get_args(Normalize)} or None, got {self.normalize!r}")
        if self.exact and self.diversity is not None:
            raise ConfigError(
                "exact: a list under caps or quotas is never certified", hint="leave exact or diversity out"
            )


@dataclass(frozen=True)
class Recommendations:
    """One list of items per user, best first.

    items: int32 ``[U, k]`` item numbers, -1 = no more items.
    scores: float32 ``[U, k]``, higher is better, -inf where items is -1.
    ranks: float32 ``[U, k]`` expected 1-based rank: items tied in score all get the mean rank of their block,
        where the block counts every item found, listed or not; inf where items is -1.
    normalize: how scores were normalised, None for scores that are no log-probabilities.
    n_identifiers: int32 ``[U]`` identifiers found before the list was cut; None where nothing was searched.
    certified: bool ``[U]``, True where the list is proven to be the exact top-k; None where not examined.
    version: of the catalog snapshot that the lists are from; None where the catalog does not change.

    Stability: stable.
    """

    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    ranks: npt.NDArray[np.float32]
    normalize: str | None = None
    n_identifiers: npt.NDArray[np.int32] | None = None
    certified: npt.NDArray[np.bool_] | None = None
    version: int | None = None

    def __post_init__(self) -> None:
        assert self.items.ndim == 2 and self.items.shape == self.scores.shape == self.ranks.shape

    def __len__(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of items really listed for each user, int64 ``[U]``."""
        return np.asarray((self.items >= 0).sum(axis=1), dtype=np.int64)

    def to_ids(self, catalog: ItemCatalog) -> list[list[str]]:
        """The lists as item ids, without the padding."""
        return [catalog.ids_of(row[row >= 0]) for row in self.items]


@runtime_checkable
class Recommender(Protocol):
    """Lists items for histories; the answer for a batch equals the answers one by one.

    ``users`` (int32 ``[U]``) names the users of the histories, for models that know them; others ignore it.
    A model that can look only at the newest events says at how many with an attribute ``history_cap`` (int; None or
    no such attribute = at all of them): reports name it. Stability: stable.
    """

    @property
    def n_items(self) -> int:
        """Number of items N of the catalog."""

    def recommend(
        self, histories: Histories, options: SearchOptions, users: npt.NDArray[np.int32] | None = None
    ) -> Recommendations:
        """Lists for all ``histories``, in their order."""


@runtime_checkable
class DenseRecommender(Protocol):
    """Scores every item of the catalog: counting baselines, SASRec.

    ``users`` and ``history_cap`` as in :class:`Recommender`. Stability: stable.
    """

    @property
    def n_items(self) -> int:
        """Number of items N of the catalog."""

    def score_all(self, histories: Histories, users: npt.NDArray[np.int32] | None = None) -> npt.NDArray[np.float32]:
        """Scores float32 ``[U, N]``, higher is better, -inf = never recommended; seen items are scored."""
