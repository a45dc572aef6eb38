"""Product codes: independent codes for blocks of the dimensions of item vectors (PQ, OPQ).

Axes: N items, L levels (blocks), K codes of a level, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import (
    Scaling,
    TokenizerSource,
    check_at_least,
)
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.collisions import CollisionPolicy, Quantized, check_policy, resolve
from genrec.item_tokenizers.quantizers.kmeans import checked_rows
from genrec.item_tokenizers.quantizers.product import ROTATIONS, ProductQuantizer, Rotation, fit_product
from genrec.item_tokenizers.scaled import Arrays, ScaledVectors, numbered, of_numbers
from genrec.seeding import derive

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ProductSettings:
    """Settings of :class:`Product`; ConfigError for values out of range (stable).

    n_levels: blocks of dimensions, one code each. level_size: K codes of a block. collisions: suffix | reassign |
    shared. suffix_limit: largest group the suffix level may hold. rotation: before the vectors are cut into blocks:
    none | pca (principal axes, dealt out in balance) | opq (learned). iterations: of OPQ. standardize: scale every
    dimension to unit variance first (vectors are always centred). rows_per_code: fit on a sample of that many rows
    per code (None = all).
    """

    kind: Literal["product"] = "product"
    n_levels: int = 4
    level_size: int = 256
    collisions: CollisionPolicy = "suffix"
    suffix_limit: int = 256
    rotation: Rotation = "opq"
    iterations: int = 50
    standardize: bool = False
    rows_per_code: int | None = None

    def __post_init__(self) -> None:
        check_policy(self.collisions)
        least = dict.fromkeys(("n_levels", "suffix_limit", "rows_per_code"), 1)
        check_at_least(self, {**least, "level_size": 2, "iterations": 0})
        if self.rotation not in ROTATIONS:
            raise ConfigError(f"rotation: expected one of {', '.join(ROTATIONS)}, got {self.rotation!r}")


class Product(ScaledVectors):
    """Product quantization, plain or optimized; recipe: ``tokenizers/product.yaml`` (stable).

    The sizes of RPG: ``tokenizers/product-rpg.yaml``. ::

        y = (x - mean) R, cut into L blocks;   code l = nearest of K centroids of block l

    Jégou et al. 2011 ("Product quantization for nearest neighbor search", TPAMI; no rotation) and Ge et al. 2013
    ("Optimized Product Quantization", CVPR; R learned). The codes are independent: each describes its own block, and
    none refines the ones before it, so their order means nothing, an identifier needs no prefix, and all codes of an
    item can be predicted at once. That is the base of parallel decoding, as in RPG (Hou et al. 2025, 2506.05781),
    with up to 64 codes per item; RPG whitens the vectors first, which here is a matter of the vectors given.

    Where L does not divide D the first blocks are one dimension wider. ``codebooks`` of the codes are vectors of the
    centred item space (every codeword turned back), and their sum is the reconstruction; ``reassign`` therefore
    works as for residual codes: it moves items to the free code of the last block at the least added distance.
    """

    Settings: ClassVar[type[Any]] = ProductSettings
    settings: ProductSettings

    def __init__(self, settings: ProductSettings | None = None) -> None:
        super().__init__(settings)
        self._quantizer: ProductQuantizer | None = None

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """Learn the rotation and the centroids of each block; the identifiers after the collision policy.

        Raises DataError for vectors narrower than ``n_levels``.
        """
        given = checked_rows(source.vectors())
        if given.shape[1] < self.settings.n_levels:
            raise DataError(
                f"vectors: expected a width of at least n_levels ({self.settings.n_levels}), got {given.shape[1]}"
            )
        self._scaling = Scaling.fit(given, standardize=self.settings.standardize)
        self._catalog = source.catalog
        x_ND = self._scaling.apply(given)
        self._quantizer = fit_product(
            x_ND,
            self.settings.n_levels,
            self.settings.level_size,
            rotation=self.settings.rotation,
            seed=derive(seed, "product"),
            iterations=self.settings.iterations,
            rows_per_code=self.settings.rows_per_code,
        )
        raw = self._raw(x_ND, source.catalog)
        quantized = Quantized(x_ND, self._quantizer.codebooks())
        resolution = resolve(
            self.settings.collisions, raw, source.item_keys, quantized, limit=self.settings.suffix_limit
        )
        before = float(np.einsum("nd,nd->", x_ND, x_ND, dtype=np.float64) / len(x_ND))
        self.report = {
            "mean_square_left": [before, quantized.distortion(raw.codes)],  # of the mean alone, of the codes
            "opq_errors": self._quantizer.errors,
            "raw": raw.report(),
            "collisions": resolution.report,
        }
        return replace(resolution.codes, codebooks=self._scaling.steps(quantized.codebooks))

    def encode(self, source: TokenizerSource) -> ItemCodes:
        """Raw codes ``[N, L]`` of any items by their vectors, before the collision policy."""
        return self._raw(self.scaling.apply(checked_rows(source.vectors())), source.catalog)

    def quantized(self, source: TokenizerSource) -> Quantized:
        """The items in the space that the codes approximate (internal)."""
        scaling = self.scaling
        assert self._quantizer is not None
        return Quantized(checked_rows(source.vectors()), self._quantizer.codebooks(), scaling)

    def _arrays(self) -> Arrays:
        assert self._quantizer is not None
        return {"rotation": self._quantizer.rotation_DD, **numbered("codebook", self._quantizer.books)}

    def _restore(self, arrays: Arrays) -> None:
        books = of_numbers("codebook", arrays)
        self._quantizer = ProductQuantizer(arrays["rotation"], books, self.report["opq_errors"])

    def _raw(self, x_ND: Floats, catalog: str) -> ItemCodes:
        assert self._quantizer is not None
        sizes = (self.settings.level_size,) * self.settings.n_levels
        return ItemCodes(self._quantizer.codes(x_ND), sizes, catalog)
