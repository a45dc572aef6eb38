"""A worked custom item tokenizer: identifiers from random hyperplanes (SimHash).

Copy it to where you run genrec and name it in a pipeline::

    tokenizer: {kind: "my_tokenizer:SimHash", n_levels: 3, bits: 6, collisions: suffix}

Each level asks on which side of ``bits`` random hyperplanes an item lies (Charikar 2002, STOC): nothing is
learned, so it is a floor for tokenizers that learn. Axes: N items, D width, L levels.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from genrec.errors import ConfigError, DataError, NotFitted
from genrec.item_tokenizers.base import TokenizerSource, TokenizerState, load_state, save_state
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.collisions import CollisionPolicy, check_policy, resolve
from genrec.seeding import rng


@dataclass(frozen=True)
class SimHashSettings:
    """``n_levels`` levels of ``2 ** bits`` codes; items with equal codes get a suffix level or share them."""

    kind: str = "my_tokenizer:SimHash"
    n_levels: int = 3
    bits: int = 6
    collisions: CollisionPolicy = "suffix"

    def __post_init__(self) -> None:
        check_policy(self.collisions)
        if self.n_levels < 1 or not 1 <= self.bits <= 16:
            raise ConfigError(
                f"expected n_levels >= 1 and bits in 1..16, got n_levels={self.n_levels}, bits={self.bits}"
            )
        if self.collisions == "reassign":
            raise ConfigError("collisions: hyperplanes have no codebook to reassign in; use suffix or shared")


class SimHash:
    """Sides of random hyperplanes through the mean item."""

    Settings: ClassVar[type[Any]] = SimHashSettings
    can_encode_new: ClassVar[bool] = True

    def __init__(self, settings: SimHashSettings | None = None) -> None:
        self.settings = settings or SimHashSettings()
        self._catalog = ""
        self._arrays: dict[str, np.ndarray] = {}

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """Draw the hyperplanes; the identifiers after the collision policy."""
        x_ND = source.vectors()
        planes = rng(seed, "simhash").normal(size=(x_ND.shape[1], self.settings.n_levels * self.settings.bits))
        self._catalog = source.catalog
        self._arrays = {"mean": x_ND.mean(axis=0), "planes": planes.astype(np.float32)}
        raw = self.encode(source)
        return resolve(self.settings.collisions, raw, source.item_keys, None).codes

    def encode(self, source: TokenizerSource) -> ItemCodes:
        """Raw codes ``[N, L]`` of any items by their vectors."""
        if not self._arrays:
            raise NotFitted("this item tokenizer has not been fitted", hint="call fit, or load a saved one")
        vectors, width = source.vectors(), len(self._arrays["mean"])
        if vectors.ndim != 2 or vectors.shape[1] != width or not np.isfinite(vectors).all():
            raise DataError(f"vectors: expected finite [N, {width}], got {vectors.shape}")
        side = (vectors - self._arrays["mean"]) @ self._arrays["planes"] > 0
        bits_NLb = side.reshape(len(vectors), self.settings.n_levels, self.settings.bits)
        codes_NL = bits_NLb @ (1 << np.arange(self.settings.bits))
        return ItemCodes.from_int(codes_NL, (2**self.settings.bits,) * self.settings.n_levels, source.catalog)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write an ``item_tokenizer`` artifact."""
        if not self._arrays:
            raise NotFitted("this item tokenizer has not been fitted", hint="call fit first")
        state = TokenizerState(asdict(self.settings), self._catalog, self._arrays, {}, [])
        save_state(path, state, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path, *, catalog: str | None = None) -> "SimHash":
        """Read it back."""
        state = load_state(path, kind=SimHashSettings.kind, catalog=catalog)
        tokenizer = cls(SimHashSettings(**state.settings))
        tokenizer._catalog, tokenizer._arrays = state.catalog, state.arrays
        return tokenizer
