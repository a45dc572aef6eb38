"""Residual k-means: identifiers from item vectors in seconds, without a network.

Axes: N items, L levels, K codes of a level, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from genrec import recipes
from genrec.errors import NotFitted
from genrec.item_tokenizers.base import (
    Scaling,
    TokenizerSource,
    TokenizerState,
    check_at_least,
    load_state,
    save_state,
)
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.collisions import CollisionPolicy, Quantized, check_policy, resolve
from genrec.item_tokenizers.quantizers.kmeans import checked_rows, first_equal, kmeans
from genrec.seeding import derive

Floats = npt.NDArray[np.float32]
_CHUNK = 4096


@dataclass(frozen=True)
class RqKMeansSettings:
    """Settings of :class:`RqKMeans`; ConfigError for values out of range (stable).

    n_levels, level_size: L levels of K codes each. collisions: suffix | reassign | shared.
    suffix_limit: largest group the suffix level may hold. standardize: scale every dimension to unit variance
    first (vectors are always centred). rows_per_code: fit on a sample of that many rows per code (None =
    all). max_iterations: of Lloyd's algorithm, per level.
    """

    kind: Literal["rqkmeans"] = "rqkmeans"
    n_levels: int = 3
    level_size: int = 256
    collisions: CollisionPolicy = "suffix"
    suffix_limit: int = 256
    standardize: bool = False
    rows_per_code: int | None = None
    max_iterations: int = 50

    def __post_init__(self) -> None:
        check_policy(self.collisions)
        least = dict.fromkeys(("n_levels", "suffix_limit", "rows_per_code", "max_iterations"), 1)
        check_at_least(self, {**least, "level_size": 2})


class RqKMeans:
    """Residual k-means; recipe: ``tokenizers/rqkmeans.yaml`` (stable).

    ::

        residual = x - mean
        for each level:  centroids = kmeans(residual);  code = nearest centroid;  residual -= that centroid

    A common replacement of the RQ-VAE (for instance in OneRec, Deng et al. 2025, 2502.18965, which balances
    the clusters; we do not). Fast and without collapse; the price is that nothing is learned about the
    vectors.
    """

    Settings: ClassVar[type[Any]] = RqKMeansSettings
    can_encode_new: ClassVar[bool] = True

    def __init__(self, settings: RqKMeansSettings | None = None) -> None:
        self.settings = settings or RqKMeansSettings()
        self.report: dict[str, Any] = {}
        self._catalog = ""
        self._scaling: Scaling | None = None
        self._codebooks_LKD: Floats | None = None

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """Cluster the item vectors level by level; the identifiers after the collision policy."""
        given = checked_rows(source.vectors())
        self._scaling = Scaling.fit(given, standardize=self.settings.standardize)
        self._catalog = source.catalog
        x_ND = self._scaling.apply(given)
        residual_ND = x_ND.copy()
        books, errors = [], []
        for level in range(self.settings.n_levels):
            errors.append(_mean_square(residual_ND))
            found = kmeans(
                residual_ND,
                self.settings.level_size,
                seed=derive(seed, "rqkmeans", level),
                max_iterations=self.settings.max_iterations,
                rows_per_code=self.settings.rows_per_code,
            )
            residual_ND -= found.centroids_KD[found.labels]
            books.append(found.centroids_KD)
        errors.append(_mean_square(residual_ND))
        self._codebooks_LKD = np.stack(books)
        raw = self._raw(x_ND, source.catalog)
        quantized = Quantized(x_ND, tuple(books))
        resolution = resolve(
            self.settings.collisions, raw, source.item_keys, quantized, limit=self.settings.suffix_limit
        )
        self.report = {
            "mean_square_left": errors,  # before level 0, after level 0, …
            "raw": raw.report(),
            "collisions": resolution.report,
        }
        return replace(resolution.codes, codebooks=tuple(books))

    def encode(self, source: TokenizerSource) -> ItemCodes:
        """Raw codes ``[N, L]`` of any items by their vectors, before the collision policy."""
        if self._scaling is None:
            raise NotFitted("this item tokenizer has not been fitted", hint="call fit, or load a saved one")
        return self._raw(self._scaling.apply(checked_rows(source.vectors())), source.catalog)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write an ``item_tokenizer`` artifact."""
        if self._scaling is None or self._codebooks_LKD is None:
            raise NotFitted("this item tokenizer has not been fitted", hint="call fit first")
        arrays = {"codebooks": self._codebooks_LKD, "mean": self._scaling.mean, "scale": self._scaling.scale}
        state = TokenizerState(recipes.to_json(self.settings), self._catalog, arrays, self.report, [])
        save_state(path, state, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path, *, catalog: str | None = None) -> Self:
        """Read an ``item_tokenizer`` artifact of kind ``rqkmeans``."""
        state = load_state(path, kind=cls.Settings.kind, catalog=catalog)
        tokenizer = cls(recipes.from_dict(cls.Settings, state.settings))
        tokenizer._catalog, tokenizer.report = state.catalog, state.meta
        tokenizer._scaling = Scaling(state.arrays["mean"], state.arrays["scale"])
        tokenizer._codebooks_LKD = state.arrays["codebooks"]
        return tokenizer

    def _raw(self, x_ND: Floats, catalog: str) -> ItemCodes:
        assert self._codebooks_LKD is not None
        codes_NL = residual_codes(x_ND, self._codebooks_LKD)
        return ItemCodes(codes_NL, (self.settings.level_size,) * self.settings.n_levels, catalog)


def residual_codes(x_ND: Floats, codebooks_LKD: Floats) -> npt.NDArray[np.int32]:
    """Greedy residual codes, int32 ``[N, L]`` (internal).

    ::

        for each level:  code = argmin_k |residual - codebook[k]|²;  residual -= codebook[code]

    One product of ``x`` with all L·K codewords and a table of the codewords' products among themselves
    replace the residuals: ``|r - c|² = |r|² + |c|² - 2 x·c + 2 (chosen codewords)·c``. Equal codes except
    where two codewords are equally near up to float32 rounding; of equal codewords the first.
    """
    n_levels, n_codes, _ = codebooks_LKD.shape
    flat = codebooks_LKD.reshape(n_levels * n_codes, -1)
    gram = 2 * (flat @ flat.T)
    square = np.einsum("kd,kd->k", flat, flat)
    minus_two = np.ascontiguousarray(-2 * flat.T)
    first_LK = [first_equal(book) for book in codebooks_LKD]
    out = np.empty((len(x_ND), n_levels), dtype=np.int32)
    for start in range(0, len(x_ND), _CHUNK):
        scores = x_ND[start : start + _CHUNK] @ minus_two
        scores += square
        for level in range(n_levels):
            columns = slice(level * n_codes, (level + 1) * n_codes)
            code = first_LK[level][scores[:, columns].argmin(axis=1)]
            out[start : start + len(scores), level] = code
            scores[:, columns.stop :] += gram[level * n_codes + code, columns.stop :]
    return out


def _mean_square(x_ND: Floats) -> float:
    return float(np.einsum("nd,nd->", x_ND, x_ND, dtype=np.float64) / len(x_ND))
