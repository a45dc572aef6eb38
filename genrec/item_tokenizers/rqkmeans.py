"""Residual k-means: identifiers from item vectors in seconds, without a network.

Axes: N items, L levels, K codes of a level, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from genrec.embeddings.stream import VectorTable
from genrec.errors import ConfigError
from genrec.item_tokenizers.base import (
    Scaling,
    TokenizerSource,
    check_at_least,
)
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.collisions import CollisionPolicy, Quantized, check_policy, resolve
from genrec.item_tokenizers.quantizers.balanced import balanced_kmeans, balanced_labels
from genrec.item_tokenizers.quantizers.kmeans import KMeans, checked_rows, first_equal, kmeans
from genrec.item_tokenizers.scaled import Arrays, ScaledVectors, numbered, of_numbers
from genrec.item_tokenizers.streamed import TableQuantized, checked_table
from genrec.seeding import derive, rng

Floats = npt.NDArray[np.float32]
Balance = Literal["none", "last", "all"]
BALANCES: tuple[Balance, ...] = ("none", "last", "all")
_CHUNK = 2048


@dataclass(frozen=True)
class RqKMeansSettings:
    """Settings of :class:`RqKMeans`; ConfigError for values out of range (stable).

    n_levels, level_size: L levels of K codes each; a list of L sizes gives each level its own. balance: which
    levels have clusters of equal size (none | last | all). collisions: suffix | reassign | shared.
    suffix_limit: largest group the suffix level may hold. standardize: scale every dimension to unit variance
    first (vectors are always centred). rows_per_code: fit on one sample of that many rows per code of the largest
    level (None = all). max_iterations: of Lloyd's algorithm, per level.
    """

    kind: Literal["rqkmeans"] = "rqkmeans"
    n_levels: int = 3
    level_size: int | tuple[int, ...] = 256
    balance: Balance = "none"
    collisions: CollisionPolicy = "suffix"
    suffix_limit: int = 256
    standardize: bool = False
    rows_per_code: int | None = None
    max_iterations: int = 50

    def __post_init__(self) -> None:
        check_policy(self.collisions)
        check_at_least(self, dict.fromkeys(("n_levels", "suffix_limit", "rows_per_code", "max_iterations"), 1))
        if self.balance not in BALANCES:
            raise ConfigError(f"balance: expected one of {', '.join(BALANCES)}, got {self.balance!r}")
        if len(self.level_sizes) != self.n_levels or min(self.level_sizes) < 2:
            raise ConfigError(
                f"level_size: expected 2 or more, or {self.n_levels} such numbers (one a level), got {self.level_size}"
            )

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Number of codes K of each level."""
        return (self.level_size,) * self.n_levels if isinstance(self.level_size, int) else tuple(self.level_size)

    def balanced(self, level: int) -> bool:
        """Whether the clusters of ``level`` have equal sizes."""
        return self.balance == "all" or (self.balance == "last" and level == self.n_levels - 1)


class RqKMeans(ScaledVectors):
    """Residual k-means; recipe: ``tokenizers/rqkmeans.yaml`` (stable).

    ::

        residual = x - mean
        for each level:  centroids = kmeans(residual);  code = nearest centroid;  residual -= that centroid

    A common replacement of the RQ-VAE: fast and without collapse; the price is that nothing is learned about the
    vectors.

    On a balanced level every code stands for floor(N / K) or ceil(N / K) items of the catalog: items are assigned
    together at the least total distance, and ``code`` above is the assigned one. OneRec (Deng et al. 2025,
    2502.18965) balances all levels, cluster by cluster in turn, which leaves leftovers to the last
    (``tokenizers/rqkmeans-onerec.yaml``); OneSearch (Chen et al. 2025, 2509.03236) balances the last of three
    levels of decreasing size (``tokenizers/rqkmeans-onesearch.yaml``). Balance is a property of the fitted catalog:
    ``encode`` gives any item its nearest centroids, so it may tell another code than ``fit`` for a catalog item
    that was moved (their share is in the report).
    """

    Settings: ClassVar[type[Any]] = RqKMeansSettings
    settings: RqKMeansSettings

    def __init__(self, settings: RqKMeansSettings | None = None) -> None:
        super().__init__(settings)
        self._codebooks: tuple[Floats, ...] = ()

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """Cluster the item vectors level by level; the identifiers after the collision policy.

        Beside the vectors it holds one more copy of the rows it fits on (see ``rows_per_code``), and for a
        balanced level the distances of these rows to all codes. Vectors on the disk
        (:class:`~genrec.embeddings.stream.StreamedEmbeddings`) are read piece by piece, in three passes (two more
        to ``reassign``), but for a balanced level, which loads them. The result is the same.
        """
        labels = self.learn(source, seed=seed)
        given = checked_table(source)
        raw = self._raw(given, source.catalog)
        meta: dict[str, Any] = {}
        if self.settings.balance != "none":
            near_NL, whole = raw.codes, len(labels[0]) == len(given)
            codes_NL = np.column_stack(labels) if whole else self._balanced_codes(given[:], source.item_keys)
            raw = ItemCodes(codes_NL, self.settings.level_sizes, source.catalog)
            meta["moved_by_balance"] = float((raw.codes != near_NL).any(axis=1).mean())
        in_memory = isinstance(given, np.ndarray)
        quantized = self.quantized(source) if in_memory else TableQuantized.of(given, self)
        resolution = resolve(
            self.settings.collisions, raw, source.item_keys, quantized, limit=self.settings.suffix_limit
        )
        self.report = {
            "mean_square_left": self._errors(given, raw.codes),  # before level 0, after level 0, …
            **meta,
            "raw": raw.report(),
            "collisions": resolution.report,
        }
        return replace(resolution.codes, codebooks=self.scaling.steps(self._codebooks))

    def learn(self, source: TokenizerSource, *, seed: int) -> list[npt.NDArray[np.int32]]:
        """The scaling and the codebooks of ``fit`` alone; no item gets an identifier (internal).

        Returns the labels of the rows that were fitted on, one int32 array per level.
        """
        given = checked_table(source)
        self._scaling = Scaling.fit(given, standardize=self.settings.standardize)
        self._catalog = source.catalog
        return self._train(given, self._sample(len(given), seed), source.item_keys, seed)

    def encode(self, source: TokenizerSource) -> ItemCodes:
        """Raw codes ``[N, L]`` of any items by their vectors, before the collision policy."""
        return self._raw(checked_table(source), source.catalog)

    def quantized(self, source: TokenizerSource) -> Quantized:
        """The items in the space that the codes approximate (internal)."""
        return Quantized(checked_rows(source.vectors()), self._codebooks, self.scaling)

    @property
    def codebooks(self) -> tuple[Floats, ...]:
        """The centroids of each level, L arrays float32 ``[K, D]``; none before ``fit`` (internal)."""
        return self._codebooks

    def _arrays(self) -> Arrays:
        return numbered("codebook", self._codebooks)

    def _restore(self, arrays: Arrays) -> None:
        of_equal_size = arrays.get("codebooks")  # one array, before levels could have sizes of their own
        self._codebooks = of_numbers("codebook", arrays) if of_equal_size is None else tuple(of_equal_size)

    def _sample(self, n: int, seed: int) -> npt.NDArray[np.int64] | None:
        """The rows to fit on, ascending (None = all): one sample for all levels."""
        per_code = self.settings.rows_per_code
        size = n if per_code is None else per_code * max(self.settings.level_sizes)
        if size >= n:
            return None
        return np.sort(rng(seed, "rqkmeans", "sample").choice(n, size=size, replace=False))

    def _train(
        self, given: VectorTable, rows: npt.NDArray[np.int64] | None, keys: npt.NDArray[np.uint64], seed: int
    ) -> list[npt.NDArray[np.int32]]:
        """Fit the codebooks; returns the labels of the rows that were fitted on, one ``[rows]`` per level."""
        residual_ND = self.scaling.apply(given[:] if rows is None else given[rows])
        keys = keys if rows is None else keys[rows]
        books, labels = [], []
        for level in range(self.settings.n_levels):
            found = self._cluster(residual_ND, level, keys, seed)
            _subtract(residual_ND, found.centroids_KD, found.labels)
            books.append(found.centroids_KD)
            labels.append(found.labels)
        self._codebooks = tuple(books)
        return labels

    def _cluster(self, residual_ND: Floats, level: int, keys: npt.NDArray[np.uint64], seed: int) -> KMeans:
        size, seed = self.settings.level_sizes[level], derive(seed, "rqkmeans", level)
        most = self.settings.max_iterations
        if self.settings.balanced(level):
            return balanced_kmeans(residual_ND, size, seed=seed, keys=keys, max_iterations=most)
        return kmeans(residual_ND, size, seed=seed, max_iterations=most)

    def _balanced_codes(self, given: Floats, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """Codes of the whole catalog for codebooks that were fitted on a sample."""
        residual_ND = self.scaling.apply(given)
        codes_NL = np.empty((len(given), self.settings.n_levels), dtype=np.int32)
        for level, book in enumerate(self._codebooks):
            if self.settings.balanced(level):
                codes_NL[:, level] = balanced_labels(residual_ND, book, keys=keys)
            else:
                codes_NL[:, level] = residual_codes(residual_ND, [book])[:, 0]
            _subtract(residual_ND, book, codes_NL[:, level])
        return codes_NL

    def _raw(self, given: VectorTable, catalog: str) -> ItemCodes:
        codes_NL = residual_codes(given, self._codebooks, self.scaling)
        return ItemCodes(codes_NL, self.settings.level_sizes, catalog)

    def _errors(self, given: VectorTable, codes_NL: npt.NDArray[Any]) -> list[float]:
        """Mean squared length of what is left before the first level and after each."""
        totals = np.zeros(self.settings.n_levels + 1)
        for part in _chunks(len(given)):
            left = self.scaling.apply(given[part])
            for level in range(len(totals)):
                if level:
                    left -= self._codebooks[level - 1][codes_NL[part, level - 1]]
                totals[level] += np.einsum("nd,nd->n", left, left).sum(dtype=np.float64)
        return [float(total) / len(given) for total in totals]


def residual_codes(
    x_ND: VectorTable, codebooks: Sequence[Floats] | Floats, scaling: Scaling | None = None
) -> npt.NDArray[np.int32]:
    """Greedy residual codes, int32 ``[N, L]`` (internal).

    ::

        for each level:  code = argmin_k |residual - codebook[k]|²;  residual -= codebook[code]

    One product of ``x`` with all codewords and a table of the codewords' products among themselves
    replace the residuals: ``|r - c|² = |r|² + |c|² - 2 x·c + 2 (chosen codewords)·c``. Equal codes except
    where two codewords are equally near up to float32 rounding; of equal codewords the first.

    codebooks: L arrays float32 ``[K, D]``, K may differ. scaling: applied to ``x`` first, a piece at a time.
    """
    flat = np.concatenate(list(codebooks))
    ends = np.cumsum([len(book) for book in codebooks])
    gram = 2 * (flat @ flat.T)
    square = np.einsum("kd,kd->k", flat, flat)
    minus_two = np.ascontiguousarray(-2 * flat.T)
    first = [first_equal(book) for book in codebooks]
    out = np.empty((len(x_ND), len(first)), dtype=np.int32)
    table = np.empty((min(_CHUNK, len(x_ND)), len(flat)), dtype=np.float32)
    for part in _chunks(len(x_ND)):
        rows = x_ND[part] if scaling is None else scaling.apply(x_ND[part])
        scores = np.matmul(rows, minus_two, out=table[: len(rows)])
        scores += square
        for level, (end, first_K) in enumerate(zip(ends, first, strict=True)):
            start = end - len(first_K)
            code = first_K[scores[:, start:end].argmin(axis=1)]
            out[part, level] = code
            scores[:, end:] += gram[start + code, end:]
    return out


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, n, _CHUNK))


def _subtract(residual_ND: Floats, centroids_KD: Floats, labels: npt.NDArray[np.int32]) -> None:
    """``residual -= centroids[labels]`` in place, without a table of the size of ``residual``."""
    for part in _chunks(len(residual_ND)):
        residual_ND[part] -= centroids_KD[labels[part]]
