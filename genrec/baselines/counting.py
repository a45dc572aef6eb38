"""Baselines that only count: popularity, copy-last, Markov, item-kNN, content-kNN.

They cost seconds and, on the usual benchmarks, exceed published generative models: no result without them.
All statistics come from the training histories given to ``fit``; queries may show newer events. Scores are
dense, float32 ``[B, N]``, and a batch gives what its rows give one by one (content-kNN: up to rounding).

Ties: integer counts tie massively, so results depend on the rule. genrec ranks by *expected* rank; figures
computed with sort order ("optimistic" ties: the target before all it is tied with) are higher. Recall@10 on
Amazon Beauty 2014, leave-one-out, seen items excluded, expected / optimistic: popularity .0110 / .0120,
Markov .0666 / .0670, item-kNN with shrink 10 and decay .7 .0723 / .0730.

Axes: U users, B users at a time, N items, D width of vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from genrec.data.histories import Histories
from genrec.decoding.dense import neutral_order, recommend_dense
from genrec.decoding.interface import Recommendations, SearchOptions
from genrec.errors import ConfigError, DataError, NotFitted

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Users = npt.NDArray[np.int32]


@runtime_checkable
class Counting(Protocol):
    """What every baseline here has besides ``score_all`` and ``recommend``. Stability: stable."""

    def fit(self, train: Histories, n_items: int) -> Self:
        """Count the training events of ``n_items`` items; returns itself."""


class DenseLists:
    """``recommend`` and the fitted check for classes with ``score_all`` (internal)."""

    _n_items: int = -1

    @property
    def n_items(self) -> int:
        """Number of items N."""
        if self._n_items < 0:
            raise NotFitted(f"{type(self).__name__} has seen no training data", hint="call fit(train, n_items)")
        return self._n_items

    def score_all(self, histories: Histories, users: Users | None = None) -> Float32:
        """Scores float32 ``[B, N]``."""
        raise NotImplementedError

    def recommend(self, histories: Histories, options: SearchOptions, users: Users | None = None) -> Recommendations:
        """Lists of the best items, ties in a fixed shuffled order."""
        return recommend_dense(self, histories, options, users)


def counts(train: Histories, n_items: int) -> npt.NDArray[np.int64]:
    """Training events of each item, int64 ``[N]``. Raises DataError for an item number out of range (internal)."""
    if len(train.items) and (train.items.min() < 0 or train.items.max() >= n_items):
        raise DataError(f"item numbers: expected 0..{n_items - 1}, got {train.items.min()}..{train.items.max()}")
    return np.bincount(train.items, minlength=n_items).astype(np.int64)


def ages(histories: Histories) -> npt.NDArray[np.int64]:
    """How many events ago each item of each history was, int64 ``[E]``; 0 = the last one (internal)."""
    return histories.offsets[1:][histories.rows()] - 1 - np.arange(len(histories.items))


def query_matrix(histories: Histories, n_items: int, decay: float) -> Any:
    """Each history as a weighted bag of items: sparse float64 ``[B, N]`` with the sum of ``decay ** age``.

    Stability: internal.
    """
    weights = np.float64(decay) ** ages(histories)
    return sp.csr_matrix((weights, histories.items, histories.offsets), shape=(len(histories), n_items))


def _tiny_popularity(popularity_N: npt.NDArray[np.int64]) -> Float64:
    """Popularity scaled into [0, 1/2]: orders ties of whole-number scores and nothing else.

    The published rule adds 1e-6 times the count. Scaling gives the same order and survives float32.
    """
    return popularity_N / (2 * max(1, int(popularity_N.max(initial=0))))


@dataclass
class Popularity(DenseLists):
    """Score of an item = its number of training events, for everyone. Stability: stable."""

    popularity: npt.NDArray[np.int64] = field(init=False, repr=False)

    def fit(self, train: Histories, n_items: int) -> Self:
        """Count training events."""
        self.popularity, self._n_items = counts(train, n_items), n_items
        return self

    def score_all(self, histories: Histories, users: Users | None = None) -> Float32:
        """Scores float32 ``[B, N]``: the same row for every history."""
        row = np.zeros(self.n_items, np.float32) + self.popularity.astype(np.float32)
        return np.repeat(row[None], len(histories), axis=0)


@dataclass
class CopyLast(DenseLists):
    """Repeats the history, newest item first; then all other items by popularity.

    A check of the protocol more than a model: where people do not repeat, it shows what excluding seen items
    is worth (with ``exclude_seen`` only popularity is left). Stability: stable.
    """

    popularity: npt.NDArray[np.int64] = field(init=False, repr=False)

    def fit(self, train: Histories, n_items: int) -> Self:
        """Count training events (for the items outside the history)."""
        self.popularity, self._n_items = counts(train, n_items), n_items
        return self

    def score_all(self, histories: Histories, users: Users | None = None) -> Float32:
        """Scores float32 ``[B, N]``: ``2**23 - age`` of the newest occurrence, else popularity <= 1/2."""
        row = np.zeros(self.n_items, np.float32) + _tiny_popularity(self.popularity).astype(np.float32)
        scores = np.repeat(row[None], len(histories), axis=0)
        # float32 holds every whole number up to 2**24; events are oldest first, so the newest is written last
        scores[histories.rows(), histories.items] = 2.0**23 - ages(histories)
        return scores


@dataclass
class Markov1(DenseLists):
    """Score of item j after last item i = how often j directly follows i in a training history.

    Ties go by popularity; an empty history gives popularity alone. Stability: stable.
    """

    follows: Any = field(init=False, repr=False)
    popularity: npt.NDArray[np.int64] = field(init=False, repr=False)

    def fit(self, train: Histories, n_items: int) -> Self:
        """Count directed pairs of neighbouring training events."""
        self.popularity, self._n_items = counts(train, n_items), n_items
        rows = train.rows()
        same = rows[1:] == rows[:-1]
        pairs = (train.items[:-1][same], train.items[1:][same])
        shape = (n_items, n_items)
        self.follows = sp.csr_matrix((np.ones(len(pairs[0])), pairs), shape=shape)  # sums equal pairs
        return self

    def score_all(self, histories: Histories, users: Users | None = None) -> Float32:
        """Scores float32 ``[B, N]``: count of the pair plus popularity in [0, 1/2]."""
        n_items = self.n_items
        followers = (query_matrix(histories.last(1), n_items, 1.0) @ self.follows).toarray()
        return np.asarray(followers + _tiny_popularity(self.popularity), dtype=np.float32)


@dataclass
class ItemKnn(DenseLists):
    """Score of item j = sum over the history of ``decay ** age`` times the cosine-like similarity to j.

    With R the binary user-item matrix of the training part and C = R'R without its diagonal::

        similarity(i, j) = C_ij / (sqrt(C_ii) sqrt(C_jj) + shrink)
        score(j)         = sum over events t of the history: decay ** age_t * similarity(item_t, j)

    shrink: pulls similarities that rest on few users towards 0; without it, one shared user of two rare items
    is as much as can be. decay: weight of each step into the past; 1 = no order, 0 = the last item only.
    neighbours: keep only this many highest similarities of each item i (None = all).
    Sarwar et al. 2001; shrinkage as in Bell and Koren 2007. Stability: stable.
    """

    shrink: float = 10.0
    decay: float = 0.7
    neighbours: int | None = None
    similarity: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.shrink < 0:
            raise ConfigError(f"shrink: expected 0 or more, got {self.shrink}")
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"decay: expected a number from 0 to 1, got {self.decay}")
        if self.neighbours is not None and self.neighbours < 1:
            raise ConfigError(f"neighbours: expected a positive integer or None, got {self.neighbours}")

    def fit(self, train: Histories, n_items: int) -> Self:
        """Compute the similarities, sparse float64 ``[N, N]``."""
        counts(train, n_items)  # checks the range
        self._n_items = n_items
        bought = sp.csr_matrix(
            (np.ones(len(train.items)), train.items, train.offsets), shape=(len(train), n_items), copy=True
        )  # a copy, because the next line would sort the histories themselves
        bought.sum_duplicates()
        bought.data[:] = 1  # binary: a repeated purchase is one user
        common = (bought.T @ bought).tocoo()
        norm_N = np.sqrt(np.asarray(bought.sum(axis=0)).ravel())
        off = common.row != common.col
        i, j, shared = common.row[off], common.col[off], common.data[off]
        values = shared / (norm_N[i] * norm_N[j] + self.shrink)
        self.similarity = sp.csr_matrix((values, (i, j)), shape=(n_items, n_items))
        if self.neighbours is not None:
            self.similarity = keep_largest(self.similarity, self.neighbours)
        return self

    def score_all(self, histories: Histories, users: Users | None = None) -> Float32:
        """Scores float32 ``[B, N]``; 0 = no training user connects the item to the history."""
        queries = query_matrix(histories, self.n_items, self.decay)
        return np.asarray((queries @ self.similarity).toarray(), dtype=np.float32)


def keep_largest(matrix: Any, k: int) -> Any:
    """The ``k`` largest entries of each row of a sparse CSR matrix; of equal ones at the cut a random few (internal).

    The choice is fixed. It moves recall@10 on small data by up to .0003, and taking the smallest columns
    would let the order of the catalog file decide.
    """
    key = neutral_order(matrix.shape[1])
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((key[matrix.indices], -matrix.data, row))
    place = np.arange(len(order)) - matrix.indptr[row]  # row is sorted already, so order keeps rows in place
    kept = order[place < k]
    return sp.csr_matrix((matrix.data[kept], (row[kept], matrix.indices[kept])), shape=matrix.shape)


@dataclass
class ContentKnn(DenseLists):
    """Score of item j = mean cosine between j and the history's items, newer items weighted more.

    The weights are ``decay ** age``. vectors: float ``[N, D]``, any item embeddings; a zero vector scores 0.
    candidates: "all", or "unseen" = only items without any training event (everything else is -inf): the
    reference point for cold-start results, since it needs no training on behaviour at all.
    Stability: stable.
    """

    vectors: npt.NDArray[np.floating] = field(repr=False)
    decay: float = 0.7
    candidates: Literal["all", "unseen"] = "all"
    unit_ND: Float32 = field(init=False, repr=False)
    allowed: npt.NDArray[np.bool_] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.candidates not in ("all", "unseen"):
            raise ConfigError(f"candidates: expected 'all' or 'unseen', got {self.candidates!r}")
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"decay: expected a number from 0 to 1, got {self.decay}")
        if self.vectors.ndim != 2 or not np.isfinite(self.vectors).all():
            raise DataError(f"vectors: expected finite numbers [N, D], got shape {self.vectors.shape}")

    def fit(self, train: Histories, n_items: int) -> Self:
        """Note which items training has seen, and normalise the vectors."""
        if len(self.vectors) != n_items:
            raise DataError(f"vectors: expected one row for each of {n_items} items, got {len(self.vectors)}")
        seen = counts(train, n_items) > 0
        self.allowed = ~seen if self.candidates == "unseen" else np.ones(n_items, dtype=bool)
        norms = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        self.unit_ND = (self.vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
        self._n_items = n_items
        return self

    def score_all(self, histories: Histories, users: Users | None = None) -> Float32:
        """Scores float32 ``[B, N]`` in [-1, 1] up to rounding; -inf for items that are not candidates."""
        queries = query_matrix(histories, self.n_items, self.decay)
        weights = np.maximum(np.asarray(queries.sum(axis=1)), np.finfo(np.float64).tiny)
        profile_BD = ((queries @ self.unit_ND) / weights).astype(np.float32)
        scores = np.full((len(histories), self.n_items), -np.inf, np.float32)
        scores[:, self.allowed] = profile_BD @ self.unit_ND[self.allowed].T
        return scores
