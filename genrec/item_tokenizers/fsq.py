"""FSQ: identifiers from rounding a few scalars of each piece of an item vector, for catalogs never seen too.

Axes: N items, L codes of an item, C scalars of a code, K codes, D width, H width of the decoder. Importing this
module imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import (
    Scaling,
    TokenizerSource,
    check_at_least,
)
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.collisions import CollisionPolicy, Quantized, check_policy, resolve
from genrec.item_tokenizers.fsq_training import FsqModel, train
from genrec.item_tokenizers.model_arrays import arrays_of, model_of
from genrec.item_tokenizers.quantizers.kmeans import checked_rows
from genrec.item_tokenizers.quantizers.product import in_blocks
from genrec.item_tokenizers.quantizers.scalar import ScalarCodes
from genrec.item_tokenizers.scaled import Arrays, ScaledVectors

Floats = npt.NDArray[np.float32]
_CHUNK = 4096


@dataclass(frozen=True)
class FsqSettings:
    """Settings of :class:`Fsq`; ConfigError for values out of range (stable).

    n_tokens: codes per item; the vector is cut into that many pieces. levels: of each scalar of a code; the codes,
    which all positions share, number their product. collisions: suffix | reassign | shared. suffix_limit: largest
    group the suffix level may hold. standardize: scale every dimension to unit variance (vectors are always
    centred). dim, n_layers, n_heads, hidden: the decoder's width, transformer layers, heads and last hidden width.
    dropout: in the layers; input_dropout: before them. epochs, batch_size, learning_rate: Adam. device: auto = CUDA
    where there is one.
    """

    kind: Literal["fsq"] = "fsq"
    n_tokens: int = 4
    levels: tuple[int, ...] = (4, 4, 4, 4)
    collisions: CollisionPolicy = "shared"
    suffix_limit: int = 256
    standardize: bool = True
    dim: int = 64
    n_layers: int = 1
    n_heads: int = 8
    hidden: int = 512
    dropout: float = 0.0
    input_dropout: float = 0.0
    epochs: int = 50
    batch_size: int = 256
    learning_rate: float = 3e-3
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        check_policy(self.collisions)
        positive = ("n_tokens", "suffix_limit", "dim", "n_layers", "n_heads", "hidden", "epochs", "batch_size")
        check_at_least(self, {**dict.fromkeys(positive, 1.0), "dropout": 0, "input_dropout": 0})
        if not self.levels or min(self.levels) < 2 or prod(self.levels) > 1 << 24:
            raise ConfigError(f"levels: expected 2 or more each, product at most 2**24, got {list(self.levels)}")
        if self.dim % self.n_heads:
            raise ConfigError(f"dim: expected a multiple of n_heads ({self.n_heads}), got {self.dim}")
        for field in ("dropout", "input_dropout"):
            if getattr(self, field) >= 1:
                raise ConfigError(f"{field}: expected less than 1, got {getattr(self, field)}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate: expected more than 0, got {self.learning_rate}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device: expected auto, cpu or cuda, got {self.device!r}")


class Fsq(ScaledVectors):
    """FSQ as in RecGPT (Jiang et al. 2025, 2506.06270); recipe: ``tokenizers/fsq.yaml`` (stable).

    Published sizes: ``tokenizers/fsq-recgpt.yaml``. ::

        pieces = x in n_tokens contiguous parts
        code = round(bounded(linear(piece)))   one shared linear map to a few scalars, and one grid
        x' = decoder(linear(points of the codes));   loss = mean |x - x'|

    There is no codebook to learn or to lose: codes are cells of a fixed grid, the same for every position and every
    catalog. One that was fitted encodes the items of any catalog (zero-shot), and its identifiers there are the raw
    codes; hence the default to let items share them. With ``suffix`` the levels no longer share a vocabulary
    (a suffix means something else). ``reassign`` moves items to the nearest free grid point of the last position.

    Differences: the paper describes a scaled sigmoid, its code the tanh of :class:`ScalarGrid`; the sets of codes are
    the same, and we use tanh. Vectors are standardised per dimension: the projections of unit-norm text vectors start
    in the cell around zero, and on ten thousand items they never leave it. Pieces of a width that ``n_tokens`` does
    not divide differ by one and are filled with a zero. The decoder's width is free, not the width of a piece; the
    defaults are for a small catalog (smaller, no dropout, 256 codes of four scalars: lower error than 8 × 6 × 5). What
    a piece means is what its dimensions mean: pieces of a text vector are arbitrary quarters.

    For zero-shot use fit on vectors of several catalogs together: mean and scale come from what it was fitted on, and
    the items of another domain crowd into part of the grid.

    ``history`` has a row per epoch; compare its ``loss`` with ``floor``, the error of always predicting the mean.
    On the CPU the same source, settings and seed give the same bytes.
    """

    Settings: ClassVar[type[Any]] = FsqSettings
    settings: FsqSettings

    def __init__(self, settings: FsqSettings | None = None) -> None:
        super().__init__(settings)
        self._model: FsqModel | None = None

    def fit(self, source: TokenizerSource, *, seed: int, progress: bool = True) -> ItemCodes:
        """Train, and return the identifiers after the collision policy. ``progress``: a bar where somebody watches.

        Raises DataError for vectors narrower than ``n_tokens``.
        """
        given = checked_rows(source.vectors())
        if given.shape[1] < self.settings.n_tokens:
            raise DataError(
                f"vectors: expected a width of at least n_tokens ({self.settings.n_tokens}), got {given.shape[1]}"
            )
        self._scaling = Scaling.fit(given, standardize=self.settings.standardize)
        self._catalog = source.catalog
        x_ND = self._scaling.apply(given)
        trained = train(x_ND, self.settings, seed=seed, progress=progress)
        self._model, self.history = trained.model, trained.history
        raw = self._raw(x_ND, source.catalog)
        quantized = self._quantized(x_ND) if self.settings.collisions == "reassign" else None
        resolution = resolve(
            self.settings.collisions, raw, source.item_keys, quantized, limit=self.settings.suffix_limit
        )
        self.report = {
            "last_epoch": self.history[-1],
            "raw": raw.report(),
            "collisions": resolution.report,
        }
        return self._with_codebooks(resolution.codes)

    def encode(self, source: TokenizerSource) -> ItemCodes:
        """Raw codes ``[N, L]`` of the items of any catalog by their vectors, before the collision policy."""
        x_ND = self.scaling.apply(checked_rows(source.vectors()))
        return self._with_codebooks(self._raw(x_ND, source.catalog))

    def reconstruct(self, codes: ItemCodes) -> Floats:
        """The decoder's vectors for raw ``codes``, float32 ``[N, D]``, on the scale of the input vectors (stable)."""
        scaling, model, parts = self.scaling, self._model, []
        assert model is not None
        with torch.no_grad():
            for start in range(0, len(codes), _CHUNK):
                rows = codes.codes[start : start + _CHUNK, : self.settings.n_tokens].astype(np.int64)
                parts.append(model.decoder(model.quantizer.lookup(torch.from_numpy(rows).to(self._device()))).cpu())
        return np.asarray(torch.cat(parts).numpy() * scaling.scale + scaling.mean, dtype=np.float32)

    def quantized(self, source: TokenizerSource) -> Quantized:
        """The items in the space that the codes approximate: scalars beside their grid (internal)."""
        return self._quantized(self.scaling.apply(checked_rows(source.vectors())))

    def _arrays(self) -> Arrays:
        assert self._model is not None
        return arrays_of(self._model)

    def _restore(self, arrays: Arrays) -> None:
        self._model = model_of(lambda: FsqModel(len(self.scaling.mean), self.settings), arrays)

    def _device(self) -> torch.device:
        assert self._model is not None
        return next(self._model.parameters()).device

    def _raw(self, x_ND: Floats, catalog: str) -> ItemCodes:
        codes_NL = np.concatenate([found.codes_BL.cpu().numpy() for found in self._pass(x_ND)])
        sizes = (prod(self.settings.levels),) * self.settings.n_tokens
        return ItemCodes(codes_NL, sizes, catalog, shared_vocabulary=True)

    def _quantized(self, x_ND: Floats) -> Quantized:
        """Bounded scalars of all positions side by side, and the grid: positions are blocks, none touches another."""
        assert self._model is not None
        bounded = np.concatenate([found.bounded_BLC.flatten(1).cpu().numpy() for found in self._pass(x_ND)])
        points_KC = self._model.quantizer.grid.points_KC.cpu().numpy()
        return Quantized(bounded, in_blocks((points_KC,) * self.settings.n_tokens))

    def _pass(self, x_ND: Floats) -> Iterator[ScalarCodes]:
        """The quantizer's results, chunk by chunk."""
        assert self._model is not None
        for start in range(0, len(x_ND), _CHUNK):
            with torch.no_grad():
                found: ScalarCodes = self._model.quantizer(
                    torch.from_numpy(x_ND[start : start + _CHUNK]).to(self._device())
                )
            yield found

    def _with_codebooks(self, codes: ItemCodes) -> ItemCodes:
        """The projected grid points as the codebook: one where positions share their tokens, else one for each."""
        assert self._model is not None
        with torch.no_grad():
            every = torch.arange(prod(self.settings.levels), device=self._device())
            book_KH = self._model.quantizer.lookup(every).cpu().numpy()
        shared = codes.n_levels == self.settings.n_tokens  # no suffix; a policy may have dropped the mark
        n_books = 1 if shared else self.settings.n_tokens
        return replace(codes, shared_vocabulary=shared, codebooks=(book_KH,) * n_books)
