"""Residual k-means, then a product quantizer of what it leaves over (OneSearch's RQ-OPQ).

Axes: N items, L codes of an item (residual levels first, blocks last), K codes of a level, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError
from genrec.item_tokenizers.base import (
    TokenizerSource,
    check_at_least,
)
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.collisions import CollisionPolicy, Quantized, check_policy, resolve
from genrec.item_tokenizers.quantizers.kmeans import checked_rows
from genrec.item_tokenizers.quantizers.product import fit_product
from genrec.item_tokenizers.rqkmeans import Balance, RqKMeans, RqKMeansSettings, residual_codes
from genrec.item_tokenizers.scaled import Arrays, ScaledVectors, numbered, of_numbers
from genrec.seeding import derive, rng

Floats = npt.NDArray[np.float32]
_CHUNK = 8192


@dataclass(frozen=True)
class RqOpqSettings:
    """Settings of :class:`RqOpq`; ConfigError for values out of range (experimental).

    n_levels, level_size: residual levels of K codes each; a list of sizes gives each level its own. n_blocks,
    block_size: codes of what these levels leave over, one a block of its rotated dimensions, and their number.
    balance: which residual levels have clusters of equal size (none | last | all). collisions: reassign | suffix |
    shared. suffix_limit: largest group the suffix level may hold. iterations: of learning the rotation. standardize:
    scale every dimension to unit variance first (vectors are always centred). rows_per_code: fit the residual levels
    on one sample of that many rows per code of the largest of them, and the blocks on one of that many per
    ``block_size`` (None = all). max_iterations: of Lloyd's algorithm, per residual level.
    """

    kind: Literal["rqopq"] = "rqopq"
    n_levels: int = 3
    level_size: int | tuple[int, ...] = 256
    n_blocks: int = 2
    block_size: int = 256
    balance: Balance = "none"
    collisions: CollisionPolicy = "reassign"
    suffix_limit: int = 256
    iterations: int = 50
    standardize: bool = False
    rows_per_code: int | None = None
    max_iterations: int = 50

    def __post_init__(self) -> None:
        check_policy(self.collisions)
        check_at_least(self, {"n_blocks": 1, "block_size": 2, "suffix_limit": 1, "iterations": 0})
        self.residual_levels()  # checks its fields

    def residual_levels(self) -> RqKMeansSettings:
        """The settings of the residual levels alone, items with equal codes left as they are."""
        return RqKMeansSettings(
            n_levels=self.n_levels,
            level_size=self.level_size,
            balance=self.balance,
            collisions="shared",
            standardize=self.standardize,
            rows_per_code=self.rows_per_code,
            max_iterations=self.max_iterations,
        )

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Number of codes K of each of the ``n_levels + n_blocks`` levels."""
        return (*self.residual_levels().level_sizes, *(self.block_size,) * self.n_blocks)


class RqOpq(ScaledVectors):
    """Residual k-means and OPQ codes of its residual; recipe: ``tokenizers/rqopq.yaml`` (experimental).

    ::

        codes 1 … n_levels = residual k-means of x;            residual = x - their centroids
        y = residual R, cut into n_blocks;  one more code a block = its nearest codeword

    The quantizer of OneSearch's KHQE (Chen et al. 2025, 2509.03236; sizes: ``tokenizers/rqopq-onesearch.yaml``): the
    first codes are shared by like items, the last ones tell these apart. The rotation R and the codewords of the
    blocks are learned in turn, as in :class:`~genrec.item_tokenizers.product.Product` (Ge et al., CVPR 2013). Codes of
    blocks have no order among themselves, which is why they stand last. A block more costs a code like a
    residual level more, so compare with RQ-k-means of as many levels: on text vectors of Amazon Beauty five residual
    levels leave a little less (31.4 % of the variance, 32.5 % here), and 3.5 % of the items collide, 4.3 % here.

    The codewords of the blocks, turned back, are vectors of the item space that are orthogonal from block to block.
    So the ``codebooks`` of the codes add up to the reconstruction over all levels, block codes are what a greedy
    residual quantizer would choose, and ``reassign`` (the default: OneSearch has no further code) moves items to the
    free code of the last block at the least added distance. Balance is a property of the fitted catalog, as for
    :class:`~genrec.item_tokenizers.rqkmeans.RqKMeans`.
    """

    Settings: ClassVar[type[Any]] = RqOpqSettings
    settings: RqOpqSettings

    def __init__(self, settings: RqOpqSettings | None = None) -> None:
        super().__init__(settings)
        self._codebooks: tuple[Floats, ...] = ()

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """Cluster level by level, then quantize what is left; the identifiers after the collision policy.

        Raises DataError for vectors narrower than ``n_blocks``.
        """
        given, settings = checked_rows(source.vectors()), self.settings
        if given.shape[1] < settings.n_blocks:
            raise DataError(
                f"vectors: expected a width of at least n_blocks ({settings.n_blocks}), got {given.shape[1]}"
            )
        levels = RqKMeans(settings.residual_levels())
        near = levels.fit(source, seed=seed)
        scaling, books = levels.scaling, levels.codebooks
        first_NL = near.as_int()
        rows = self._sample(len(given), seed)
        left = Quantized(given, books, scaling).residuals(first_NL if rows is None else first_NL[rows], rows)
        blocks = fit_product(
            left,
            settings.n_blocks,
            settings.block_size,
            rotation="opq",
            seed=derive(seed, "rqopq"),
            iterations=settings.iterations,
        )
        del left
        self._scaling, self._codebooks, self._catalog = scaling, (*books, *blocks.codebooks()), source.catalog
        raw = self._with_blocks(given, first_NL, source.catalog)
        quantized = Quantized(given, self._codebooks, scaling)
        resolution = resolve(settings.collisions, raw, source.item_keys, quantized, limit=settings.suffix_limit)
        more = [quantized.distortion(raw.codes[:, : settings.n_levels + n + 1]) for n in range(settings.n_blocks)]
        self.report = {
            **levels.report,
            "mean_square_left": [*levels.report["mean_square_left"], *more],  # before level 0, after level 0, …
            "residual_levels": levels.report["raw"],
            "opq_errors": blocks.errors,
            "raw": raw.report(),
            "collisions": resolution.report,
        }
        return replace(resolution.codes, codebooks=scaling.steps(self._codebooks))

    def encode(self, source: TokenizerSource) -> ItemCodes:
        """Raw codes ``[N, L]`` of any items by their vectors, before the collision policy."""
        given, scaling = checked_rows(source.vectors()), self.scaling
        first_NL = residual_codes(given, self._codebooks[: self.settings.n_levels], scaling)
        return self._with_blocks(given, first_NL, source.catalog)

    def quantized(self, source: TokenizerSource) -> Quantized:
        """What the codes say about the vectors of ``source``: for the price of a move (internal)."""
        return Quantized(checked_rows(source.vectors()), self._codebooks, self.scaling)

    def _arrays(self) -> Arrays:
        return numbered("codebook", self._codebooks)

    def _restore(self, arrays: Arrays) -> None:
        self._codebooks = of_numbers("codebook", arrays)

    def _sample(self, n: int, seed: int) -> npt.NDArray[np.int64] | None:
        """The rows to fit the blocks on, ascending (None = all)."""
        per_code = self.settings.rows_per_code
        size = n if per_code is None else per_code * self.settings.block_size
        if size >= n:
            return None
        return np.sort(rng(seed, "rqopq", "sample").choice(n, size=size, replace=False))

    def _with_blocks(self, given: Floats, first_NL: npt.NDArray[Any], catalog: str) -> ItemCodes:
        """The codes of the residual levels, and after them those of the blocks of what they leave over."""
        n_levels = self.settings.n_levels
        quantized = Quantized(given, self._codebooks, self.scaling)
        codes_NL = np.empty((len(given), len(self._codebooks)), dtype=np.int32)
        codes_NL[:, :n_levels] = first_NL
        for start in range(0, len(given), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(given)))
            left = quantized.residuals(first_NL[rows], rows)
            codes_NL[rows, n_levels:] = residual_codes(left, self._codebooks[n_levels:])
        return ItemCodes(codes_NL, self.settings.level_sizes, catalog)
