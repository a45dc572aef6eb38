"""RQ-VAE: an autoencoder of item vectors with a residual-quantized bottleneck.

Axes: N items, B batch, L levels, K codes of a level, D width of the bottleneck. Importing this module imports
torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from genrec.errors import DataError
from genrec.item_tokenizers.base import (
    Scaling,
    TokenizerSource,
)
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.collisions import Quantized, resolve
from genrec.item_tokenizers.model_arrays import arrays_of, model_of
from genrec.item_tokenizers.quantizers.kmeans import checked_rows
from genrec.item_tokenizers.rqvae_model import RqVaeModel
from genrec.item_tokenizers.rqvae_settings import RqVaeSettings
from genrec.item_tokenizers.rqvae_training import train
from genrec.item_tokenizers.scaled import Arrays, ScaledVectors

Floats = npt.NDArray[np.float32]
_CHUNK = 4096


class RqVae(ScaledVectors):
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

    Options, all off by default. LC-Rec (Zheng et al. 2023, 2311.09049; ``tokenizers/rqvae-lcrec.yaml``): in training
    the last level of a batch is assigned uniformly by Sinkhorn iterations, so fewer items end with equal
    codes. LETTER (Wang et al. 2024, 2405.07314; ``tokenizers/rqvae-letter.yaml``): a loss that aligns ``z'`` with the
    source's collaborative vectors (of width ``dim``), and one that spreads the codewords. Errors are averaged
    there (``reduction: mean``), as in both official codes; unlike these, commitment pulls on the encoder at
    every level, layers start as torch has them (there Xavier-normal) and codebooks from plain k-means (in LETTER's code
    with clusters of limited size), the optimizer has no schedule and no gradient clipping, and colliding items are
    settled by ``collisions``. The rotation trick (Fifty et al. 2024, 2410.06424): ``gradient: rotation``.

    With ``shared_codebook`` code k has one vector at every level, so it is one token: the codes have a shared
    vocabulary, and one codebook goes with them. With ``collisions: suffix`` they have not: the numbers of the suffix
    are other symbols, of another count.

    On the CPU the same source, settings and seed give the same bytes.
    """

    Settings: ClassVar[type[Any]] = RqVaeSettings
    settings: RqVaeSettings

    def __init__(self, settings: RqVaeSettings | None = None) -> None:
        super().__init__(settings)
        self._model: RqVaeModel | None = None

    def fit(self, source: TokenizerSource, *, seed: int, progress: bool = True) -> ItemCodes:
        """Train, and return the identifiers after the collision policy. ``progress``: a bar where somebody watches.

        Raises DataError without item vectors and, for a collaborative loss, without collaborative vectors of
        width ``dim``.
        """
        given = checked_rows(source.vectors())
        beside_ND = self._collaborative(source)
        self._scaling = Scaling.fit(given, standardize=self.settings.standardize)
        self._catalog = source.catalog
        x_ND = self._scaling.apply(given)
        trained = train(x_ND, self.settings, seed=seed, collaborative_ND=beside_ND, progress=progress)
        self._model, self.history = trained.model, trained.history
        latent_ND, raw = self._encode(x_ND, source.catalog)
        books = self._books()
        quantized = Quantized(latent_ND, books)
        resolution = resolve(
            self.settings.collisions, raw, source.item_keys, quantized, limit=self.settings.suffix_limit
        )
        self.report = {
            "last_epoch": self.history[-1],
            "raw": raw.report(),
            "collisions": resolution.report,
            **trained.report,
        }
        shared = self.settings.shared_codebook and self.settings.collisions != "suffix"
        return replace(resolution.codes, shared_vocabulary=shared, codebooks=books[:1] if shared else books)

    def encode(self, source: TokenizerSource) -> ItemCodes:
        """Raw codes ``[N, L]`` of any items by their vectors, before the collision policy."""
        return self._encode(self.scaling.apply(checked_rows(source.vectors())), source.catalog)[1]

    def quantized(self, source: TokenizerSource) -> Quantized:
        """The items in the space that the codes approximate: outputs of the encoder (internal)."""
        latent_ND, _ = self._encode(self.scaling.apply(checked_rows(source.vectors())), source.catalog)
        return Quantized(latent_ND, self._books())

    def _arrays(self) -> Arrays:
        assert self._model is not None
        return arrays_of(self._model)

    def _restore(self, arrays: Arrays) -> None:
        self._model = model_of(lambda: RqVaeModel(len(self.scaling.mean), self.settings), arrays)

    def _books(self) -> tuple[Floats, ...]:
        assert self._model is not None
        return tuple(book.detach().cpu().numpy() for book in self._model.quantizer.codebooks)

    def _collaborative(self, source: TokenizerSource) -> Floats | None:
        if self.settings.collaborative == 0:
            return None
        found, width = source.collaborative_vectors(), self.settings.dim
        if found.shape[1] != width:
            raise DataError(
                f"collaborative: expected vectors as wide as the bottleneck (dim: {width}), got {found.shape[1]}",
                hint=f"set dim: {width} where the collaborative vectors are made, or dim: {found.shape[1]} here",
            )
        return np.ascontiguousarray(found, dtype=np.float32)

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
        shared = self.settings.shared_codebook
        return np.concatenate(latents), ItemCodes(np.concatenate(codes), sizes, catalog, shared_vocabulary=shared)
