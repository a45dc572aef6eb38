"""Set identifiers: one collaborative slot, and semantic slots from an autoencoder of the item vectors.

Axes: N items, n slots, D width of a slot, X width of the item vectors, C of the collaborative ones, K codes of a slot.
Importing this module imports torch.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from genrec import recipes
from genrec.errors import ConfigError, DataError, NotFitted
from genrec.item_tokenizers.base import (
    Scaling,
    TokenizerSource,
    TokenizerState,
    check_at_least,
    load_state,
    save_state,
)
from genrec.item_tokenizers.model_arrays import arrays_of, model_of
from genrec.item_tokenizers.quantizers.kmeans import checked_rows, kmeans, nearest
from genrec.item_tokenizers.scaled import numbered, of_numbers
from genrec.item_tokenizers.sets_training import SlotAutoencoder, SlotEncoder, make_model, train
from genrec.item_tokenizers.slots import COLLABORATIVE, ItemSlots, semantic_name
from genrec.seeding import derive

Floats = npt.NDArray[np.float32]
_LOG = logging.getLogger(__name__)
_CHUNK = 4096


@dataclass(frozen=True)
class SetRecSettings:
    """Settings of :class:`SetRec`; ConfigError for values out of range (experimental).

    n_semantic: semantic slots, beside the collaborative one. dim: width D of every slot, at least that of the
    collaborative vectors. level_size: 0 = continuous; K = every slot is one of K codes, the last of which means
    unknown. hidden: widths of the encoder's hidden layers; the decoder mirrors them. separate: an autoencoder for each
    semantic slot. standardize: scale every dimension of the item vectors to unit variance (they are always centred).
    epochs, batch_size, learning_rate: Adam. max_iterations: of k-means, for codes. device: auto = CUDA where there is
    one.
    """

    kind: Literal["setrec"] = "setrec"
    n_semantic: int = 4
    dim: int = 128
    level_size: int = 0
    hidden: tuple[int, ...] = (512, 256, 128)
    separate: bool = False
    standardize: bool = True
    epochs: int = 40
    batch_size: int = 256
    learning_rate: float = 1e-3
    max_iterations: int = 50
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        check_at_least(self, dict.fromkeys(("n_semantic", "dim", "epochs", "batch_size", "max_iterations"), 1))
        if self.level_size != 0 and self.level_size < 2:
            raise ConfigError(f"level_size: expected 0 (continuous), or 2 or more, got {self.level_size}")
        if any(width < 1 for width in self.hidden):
            raise ConfigError(f"hidden: expected widths of 1 or more, got {list(self.hidden)}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate: expected more than 0, got {self.learning_rate}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device: expected auto, cpu or cuda, got {self.device!r}")

    @property
    def networks(self) -> tuple[int, int]:
        """Number of autoencoders, and the width of what each encodes to."""
        return (self.n_semantic, self.dim) if self.separate else (1, self.n_semantic * self.dim)


class SetRec:
    """Set identifiers of SETRec (Lin et al. 2025, 2502.10833); recipe: ``tokenizers/setrec.yaml`` (experimental).

    ::

        collaborative = [h, 0, …, 0]                               h: the item's collaborative vector, width C <= D
        semantic 1 … n = encoder((x - mean) / scale) in n pieces   x: the item's vector;  loss = mean (x - decoder(…))²

    Collaborative vectors are kept as they are, so lengths and products survive, and a linear map D → d of a model
    does what the paper's map C → d does. ``separate`` trains an autoencoder per semantic slot, as the paper's text has
    it; its code cuts the output of one, as we do by default: then all semantic slots of an item are linear maps
    of one hidden layer, and only a recommender's loss makes them differ (the report warns where they are alike).
    In SETRec the autoencoder learns together with the recommender. Here it learns to reconstruct; a model goes on
    from :meth:`encoder` or :meth:`autoencoder`.

    An item whose collaborative vector is all zeros, or whose source has none (new items), has zeros in that slot, and
    likewise an item without item vector in its semantic slots; it is not trained on: ``ItemSlots.known`` tells.
    With ``level_size`` K (not in the paper) the vectors of each slot are clustered by k-means into K - 1 codes, and
    code K - 1, with a codeword of zeros, means unknown; ``encode`` takes the nearest codeword.

    Nothing is done about items with equal vectors: they share a set. ``history`` has a row per epoch; compare its
    ``reconstruction`` with ``floor``, the error of always predicting the mean. On the CPU the same source, settings
    and seed give the same bytes.
    """

    Settings: ClassVar[type[Any]] = SetRecSettings
    can_encode_new: ClassVar[bool] = True
    gives: ClassVar[Literal["slots"]] = "slots"

    def __init__(self, settings: SetRecSettings | None = None) -> None:
        self.settings = settings or SetRecSettings()
        self.report: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self._catalog = ""
        self._width = 0  # C
        self._model: SlotAutoencoder | None = None
        self._codebooks: tuple[Floats, ...] = ()

    @property
    def slot_names(self) -> tuple[str, ...]:
        """``collaborative``, ``semantic 1``, …: as :class:`ItemSlots` sorts them."""
        return (COLLABORATIVE, *(semantic_name(k + 1) for k in range(self.settings.n_semantic)))

    def fit(self, source: TokenizerSource, *, seed: int, progress: bool = True) -> ItemSlots:
        """Train the autoencoder, and return the slots. ``progress``: a bar where somebody watches.

        Raises DataError without item vectors or collaborative vectors, where all of either are zeros, and for
        collaborative vectors wider than ``dim``.
        """
        given, beside = checked_rows(source.vectors()), source.collaborative_vectors()
        self._check_collaborative(beside)
        known = given.any(axis=1)
        if not known.any():
            raise DataError("embeddings: all item vectors are zeros: there is nothing to learn semantic slots from")
        self._catalog, self._width, self._codebooks = source.catalog, beside.shape[1], ()
        x_NX = given if known.all() else given[known]
        scaling = Scaling.fit(x_NX, standardize=self.settings.standardize)
        trained = train(x_NX, scaling.mean, scaling.scale, self.settings, seed=seed, progress=progress)
        self._model, self.history = trained.model, trained.history
        vectors = self._vectors(given, beside)
        self.report = {"last_epoch": self.history[-1], "reconstruction": self._error(x_NX)}
        if self.settings.level_size:
            self._codebooks = tuple(self._codebook(vectors[:, at], at, seed) for at in range(vectors.shape[1]))
        slots = self._slots(vectors, source.catalog)
        if slots.discrete:
            self.report["quantization"] = _quantization(vectors, slots)
        self.report["slots"] = slots.report()
        if self.report["slots"]["semantic_alike"]:
            _LOG.warning(
                "setrec: the semantic slots of an item are nearly parallel (mean |cos| %.3f): they say the same thing",
                self.report["slots"]["semantic_cosine"],
            )
        return slots

    def encode(self, source: TokenizerSource) -> ItemSlots:
        """Slots of any items: semantic ones by their item vectors, the collaborative one where the source has it.

        Raises DataError for vectors of another width than it was fitted on.
        """
        self._fitted()
        given, beside = checked_rows(source.vectors()), None
        if source.collaborative is not None:
            beside = source.collaborative_vectors()
            if beside.shape[1] != self._width:
                raise DataError(f"collaborative: expected vectors [N, {self._width}], got {list(beside.shape)}")
        return self._slots(self._vectors(given, beside), source.catalog)

    def encoder(self) -> SlotEncoder:
        """A copy of the encoder, raw item vectors ``[B, X]`` to semantic slots ``[B, n, D]``: training it further does
        not change this item tokenizer. NotFitted before ``fit``.
        """
        return self.autoencoder().encoder

    def autoencoder(self) -> SlotAutoencoder:
        """A copy of encoder and decoder, with the reconstruction loss that SETRec adds to the recommender's.

        NotFitted before ``fit``.
        """
        return copy.deepcopy(self._fitted())

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write an ``item_tokenizer`` artifact; the history goes into ``history.json``."""
        model = self._fitted()
        arrays = {**arrays_of(model), **numbered("codebook", self._codebooks)}
        meta = {"report": self.report, "collaborative_width": self._width}
        save_state(
            path,
            TokenizerState(recipes.to_json(self.settings), self._catalog, arrays, meta, self.history),
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, path: str | Path, *, catalog: str | None = None) -> Self:
        """Read an ``item_tokenizer`` artifact of kind ``setrec``; the model is put on the CPU."""
        state = load_state(path, kind=cls.Settings.kind, catalog=catalog)
        tokenizer = cls(recipes.from_dict(cls.Settings, state.settings))
        tokenizer._catalog, tokenizer.history = state.catalog, state.history
        tokenizer.report, tokenizer._width = state.meta["report"], state.meta["collaborative_width"]
        width = len(state.arrays["model.encoder.mean"])
        tokenizer._model = model_of(lambda: make_model(width, tokenizer.settings, seed=0), state.arrays)
        tokenizer._codebooks = of_numbers("codebook", state.arrays)
        return tokenizer

    def _fitted(self) -> SlotAutoencoder:
        if self._model is None:
            raise NotFitted("this item tokenizer has not been fitted", hint="call fit, or load a saved one")
        return self._model

    def _check_collaborative(self, beside: Floats) -> None:
        if beside.shape[1] > self.settings.dim:
            raise DataError(
                f"collaborative: expected vectors of width {self.settings.dim} (dim) at most, got {beside.shape[1]}",
                hint=f"set dim: {beside.shape[1]} here, or a smaller dim where the collaborative vectors are made",
            )
        if not beside.any():
            raise DataError("collaborative: all vectors are zeros: no item has a collaborative slot")

    def _vectors(self, given: Floats, beside: Floats | None) -> Floats:
        """Continuous slots ``[N, n, D]``, the collaborative one first; zeros where nothing is known."""
        model = self._fitted()
        device = model.encoder.mean.device
        if given.shape[1] != len(model.encoder.mean):
            raise DataError(f"vectors: expected [N, {len(model.encoder.mean)}], got {given.shape}")
        out = np.zeros((len(given), len(self.slot_names), self.settings.dim), dtype=np.float32)
        if beside is not None:
            out[:, 0, : beside.shape[1]] = beside
        with torch.no_grad():
            for start in range(0, len(given), _CHUNK):
                rows = given[start : start + _CHUNK]
                found = model.encoder(torch.from_numpy(rows).to(device)).cpu().numpy()
                found[~rows.any(axis=1)] = 0
                out[start : start + _CHUNK, 1:] = found
        return out

    def _codebook(self, x_ND: Floats, at: int, seed: int) -> Floats:
        """K - 1 centroids of the known vectors of one slot, and zeros for unknown: float32 ``[K, D]``."""
        known = np.ascontiguousarray(x_ND[x_ND.any(axis=1)])
        if not len(known):  # items that are all alike: scaled, and so encoded, to zeros
            return np.zeros((self.settings.level_size, x_ND.shape[1]), dtype=np.float32)
        found = kmeans(
            known,
            self.settings.level_size - 1,
            seed=derive(seed, "setrec", self.slot_names[at]),
            max_iterations=self.settings.max_iterations,
        )
        return np.concatenate([found.centroids_KD, np.zeros((1, x_ND.shape[1]), dtype=np.float32)])

    def _slots(self, vectors: Floats, catalog: str) -> ItemSlots:
        if not self._codebooks:
            return ItemSlots(vectors, self.slot_names, catalog)
        codes = np.empty(vectors.shape[:2], dtype=np.int64)
        for at, book in enumerate(self._codebooks):
            x_ND = np.ascontiguousarray(vectors[:, at])
            codes[:, at] = np.where(x_ND.any(axis=1), nearest(x_ND, book[:-1]), len(book) - 1)
        return ItemSlots.of_codes(codes, self._codebooks, self.slot_names, catalog)

    def _error(self, x_NX: Floats) -> float:
        """Mean squared error a dimension of all reconstructions, by the model as it is now."""
        model, total = self._fitted(), 0.0
        with torch.no_grad():
            for start in range(0, len(x_NX), _CHUNK):
                rows = torch.from_numpy(x_NX[start : start + _CHUNK]).to(model.encoder.mean.device)
                total += float(model.loss(rows)) * len(rows)
        return total / len(x_NX)


def _quantization(vectors: Floats, slots: ItemSlots) -> dict[str, float]:
    """For each slot, the squared error of the codewords as a share of the variance, over known items."""
    found = {}
    for at, name in enumerate(slots.names):
        known = vectors[:, at].any(axis=1)
        x_ND = vectors[known, at].astype(np.float64)
        left = float(((x_ND - slots.vectors[known, at]) ** 2).sum())
        spread = float(((x_ND - x_ND.sum(axis=0) / max(len(x_ND), 1)) ** 2).sum())
        found[name] = left / spread if spread > 0 else 0.0
    return found
