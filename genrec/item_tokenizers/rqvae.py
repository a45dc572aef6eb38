"""RQ-VAE: an autoencoder of item vectors with a residual-quantized bottleneck.

Axes: N items, B batch, L levels, K codes of a level, D width of the bottleneck. Importing this module imports
torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from genrec import recipes
from genrec.errors import ConfigError, NotFitted
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
from genrec.item_tokenizers.quantizers.kmeans import checked_rows
from genrec.item_tokenizers.rqvae_training import RqVaeModel, train

Floats = npt.NDArray[np.float32]
_CHUNK = 4096


@dataclass(frozen=True)
class RqVaeSettings:
    """Settings of :class:`RqVae`; ConfigError for values out of range (stable).

    n_levels, level_size: L levels of K codes. dim: width of the bottleneck; hidden: widths between input and
    bottleneck (the decoder mirrors them). collisions: suffix | reassign | shared. suffix_limit: largest group
    the suffix level may hold. epochs, batch_size, learning_rate, weight_decay: AdamW; codebooks are not
    decayed. warmup_epochs: how many of the epochs come first and train the plain autoencoder. commitment:
    weight of the commitment loss (beta). standardize: scale every dimension to unit variance (vectors are
    always centred). revive_every: every that many epochs move codes no item uses onto residuals drawn at
    random, during the first ``revive_share`` of the epochs (0 = never). device: auto = CUDA where there is
    one.
    """

    kind: Literal["rqvae"] = "rqvae"
    n_levels: int = 3
    level_size: int = 256
    dim: int = 32
    hidden: tuple[int, ...] = (512, 256, 128)
    collisions: CollisionPolicy = "suffix"
    suffix_limit: int = 256
    epochs: int = 200
    warmup_epochs: int = 10
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    commitment: float = 0.25
    standardize: bool = True
    revive_every: int = 10
    revive_share: float = 0.5
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        check_policy(self.collisions)
        positive = dict.fromkeys(("n_levels", "suffix_limit", "dim", "epochs", "batch_size"), 1.0)
        zero = dict.fromkeys(("weight_decay", "commitment", "revive_every", "revive_share", "warmup_epochs"), 0.0)
        check_at_least(self, {**positive, **zero, "level_size": 2})
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate: expected more than 0, got {self.learning_rate}")
        if self.warmup_epochs >= self.epochs:
            found = self.warmup_epochs
            raise ConfigError(f"warmup_epochs: expected less than epochs ({self.epochs}), got {found}")
        if self.revive_share > 1:
            raise ConfigError(f"revive_share: expected 0..1, got {self.revive_share}")
        if any(width < 1 for width in self.hidden):
            raise ConfigError(f"hidden: expected positive widths, got {list(self.hidden)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device: expected auto, cpu or cuda, got {self.device!r}")


class RqVae:
    """RQ-VAE of TIGER (Rajput et al. 2023, 2305.05065); recipe: ``tokenizers/rqvae.yaml`` (stable).

    ::

        z = encoder(x);   codes, z' = residual quantizer(z);   x' = decoder(z')
        loss = |x - x'|² + sum over levels ( |sg(r) - e|² + beta |r - sg(e)|² )

    Every ``|.|²`` is a sum over dimensions and a mean over the batch. Codebooks start from k-means on the
    residuals of the encoder's outputs, level by level, after some epochs of the plain autoencoder (the
    outputs of an untrained encoder grow tenfold in the first epochs and leave the codebooks behind).
    Differences from the paper: that warm-up; inputs standardised per dimension (text vectors of unit norm
    otherwise give so small a reconstruction loss that all items end in one code); AdamW in place of Adagrad
    at 0.4; revival of unused codes. ``history`` has a row per epoch; compare its ``reconstruction`` with
    ``floor``, the error of always predicting the mean.

    On the CPU the same source, settings and seed give the same bytes.
    """

    Settings: ClassVar[type[Any]] = RqVaeSettings
    can_encode_new: ClassVar[bool] = True

    def __init__(self, settings: RqVaeSettings | None = None) -> None:
        self.settings = settings or RqVaeSettings()
        self.report: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self._catalog = ""
        self._scaling: Scaling | None = None
        self._model: RqVaeModel | None = None

    def fit(self, source: TokenizerSource, *, seed: int, progress: bool = True) -> ItemCodes:
        """Train, and return the identifiers after the collision policy. ``progress``: a bar where somebody watches."""
        given = checked_rows(source.vectors())
        self._scaling = Scaling.fit(given, standardize=self.settings.standardize)
        self._catalog = source.catalog
        x_ND = self._scaling.apply(given)
        trained = train(x_ND, self.settings, seed=seed, progress=progress)
        self._model, self.history = trained.model, trained.history
        latent_ND, raw = self._encode(x_ND, source.catalog)
        books = tuple(book.detach().cpu().numpy() for book in self._model.quantizer.codebooks)
        quantized = Quantized(latent_ND, books)
        resolution = resolve(
            self.settings.collisions, raw, source.item_keys, quantized, limit=self.settings.suffix_limit
        )
        self.report = {
            "last_epoch": self.history[-1],
            "raw": raw.report(),
            "collisions": resolution.report,
        }
        return replace(resolution.codes, codebooks=books)

    def encode(self, source: TokenizerSource) -> ItemCodes:
        """Raw codes ``[N, L]`` of any items by their vectors, before the collision policy."""
        if self._scaling is None:
            raise NotFitted("this item tokenizer has not been fitted", hint="call fit, or load a saved one")
        return self._encode(self._scaling.apply(checked_rows(source.vectors())), source.catalog)[1]

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write an ``item_tokenizer`` artifact; the history goes into ``history.json``."""
        if self._scaling is None or self._model is None:
            raise NotFitted("this item tokenizer has not been fitted", hint="call fit first")
        weights = {f"model.{k}": v.cpu().numpy() for k, v in self._model.state_dict().items()}
        arrays = {**weights, "mean": self._scaling.mean, "scale": self._scaling.scale}
        state = TokenizerState(recipes.to_json(self.settings), self._catalog, arrays, self.report, self.history)
        save_state(path, state, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path, *, catalog: str | None = None) -> Self:
        """Read an ``item_tokenizer`` artifact of kind ``rqvae``; the model is put on the CPU."""
        state = load_state(path, kind=cls.Settings.kind, catalog=catalog)
        tokenizer = cls(recipes.from_dict(cls.Settings, state.settings))
        tokenizer._catalog, tokenizer.report, tokenizer.history = state.catalog, state.meta, state.history
        tokenizer._scaling = Scaling(state.arrays["mean"], state.arrays["scale"])
        model = RqVaeModel(len(state.arrays["mean"]), tokenizer.settings)
        weights = {k.removeprefix("model."): v for k, v in state.arrays.items() if k.startswith("model.")}
        model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()})
        tokenizer._model = model.eval()
        return tokenizer

    def _encode(self, x_ND: Floats, catalog: str) -> tuple[Floats, ItemCodes]:
        """Encoder outputs and raw codes."""
        assert self._model is not None
        device = next(self._model.parameters()).device
        latents, codes = [], []
        with torch.no_grad():
            for rows in np.array_split(x_ND, -(-len(x_ND) // _CHUNK)):
                z_BD = self._model.encoder(torch.from_numpy(rows).to(device))
                latents.append(z_BD.cpu().numpy())
                codes.append(self._model.quantizer(z_BD).codes_BL.cpu().numpy())
        sizes = (self.settings.level_size,) * self.settings.n_levels
        return np.concatenate(latents), ItemCodes(np.concatenate(codes), sizes, catalog)
