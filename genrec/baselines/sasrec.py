"""SASRec with a full softmax: causal self-attention over item numbers, cross-entropy at every position.

Axes: B rows of a batch, T items of a row, N items, D width, U users.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch

from genrec import artifacts
from genrec.baselines.sasrec_encoder import SasRecEncoder, padded
from genrec.baselines.sasrec_training import Training, as_arrays, as_tensors, training_key
from genrec.data.histories import Histories
from genrec.data.ties import Bools
from genrec.errors import ConfigError, DataError
from genrec.seeding import derive

if TYPE_CHECKING:
    from genrec.data.splits import EvalSet


@dataclass(frozen=True)
class SasRecSettings:
    """Size and training of :class:`SasRec` (stable).

    ``max_items``: longest history seen by the model, older items are cut. ``inner``: width of the
    feed-forward layers (0 = 4 x dim). ``warmup_steps``: linear warm-up (a tenth of a training that is no longer than
    that), then cosine to 5 % over all epochs.
    ``patience``: evaluations without a better validation NDCG@10 before stopping (0 = never stop early).
    ``max_seconds``: end training after the epoch that passes this wall time of all calls, best weights kept.
    ``device``: auto = CUDA where there is one. ``save_seconds``: wall seconds between checkpoints, where training
    is given a place for them (0 = only when it is stopped).
    """

    dim: int = 128
    n_layers: int = 2
    n_heads: int = 2
    inner: int = 0
    dropout: float = 0.5
    max_items: int = 50
    epochs: int = 12
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    warmup_steps: int = 100
    max_grad_norm: float = 5.0
    eval_every: int = 1
    eval_users: int = 2000
    patience: int = 5
    max_seconds: float | None = None
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_seconds: float = 120.0

    def __post_init__(self) -> None:
        positive = (
            "dim",
            "n_layers",
            "n_heads",
            "max_items",
            "epochs",
            "batch_size",
            "eval_every",
            "eval_users",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.dim % self.n_heads:
            raise ConfigError(f"dim: expected a multiple of n_heads={self.n_heads}, got {self.dim}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate: expected above 0, got {self.learning_rate}")
        if not self.save_seconds >= 0:
            raise ConfigError(f"save_seconds: expected 0 or more, got {self.save_seconds}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device: expected auto, cpu or cuda, got {self.device!r}")
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected in [0, 1), got {getattr(self, name)}")


@dataclass
class SasRec:
    """Self-attentive sequential recommendation, trained with cross-entropy over all items (stable).

    Kang & McAuley 2018 (arXiv 1808.09781). We differ in the loss (the paper: binary cross-entropy with one
    sampled negative; here the full softmax at every position, which is what makes it a strong baseline), in
    GELU and pre-norm blocks, and in positions counted from the oldest kept item.

    ``log`` holds one dict per evaluation: ``epoch``, ``step``, ``seconds`` (wall), ``cpu_seconds``, ``loss``
    and, with a validation set, ``ndcg@10`` and ``recall@10``. ``wall_seconds`` and ``cpu_seconds`` are those of the
    whole training, all its calls together; None where an older version did not note them.
    """

    encoder: SasRecEncoder
    settings: SasRecSettings
    n_items: int
    log: list[dict[str, float]] = field(default_factory=list)
    wall_seconds: float | None = None
    cpu_seconds: float | None = None

    @classmethod
    def fit(
        cls,
        train: Histories,
        n_items: int,
        settings: SasRecSettings,
        valid: EvalSet | None = None,
        *,
        tied: Bools | None = None,
        checkpoint: Path | None = None,
        between_steps: Callable[[], None] | None = None,
    ) -> SasRec:
        """Train on ``train``; with ``valid``, keep the weights of the best validation NDCG@10.

        ``tied``: bool, one per event of ``train``; blocks of ties get a new order in every epoch
        (:meth:`genrec.data.splits.Split.train_ties`).

        ``checkpoint``: a folder of its own for the state of the training, written every ``save_seconds``. A training
        of the same inputs and settings on the same kind of device goes on from it, another one replaces it. It stays
        there; delete it when the model is saved. ``between_steps`` is called after every step: what it raises ends
        training, with a checkpoint.

        Reproducible: on a CPU the same inputs, settings and number of threads give the same bits, interrupted or not.
        The global random state of torch is left as it was. Validation uses a seeded sample of ``eval_users`` users,
        ranks the full catalog with seen items excluded, and counts tied items by their expected rank.

        Raises DataError if no history has two items, an item number is outside ``0..n_items-1``, or ``tied`` has
        another length than the events of ``train``.
        """
        _check_items(train, n_items)
        if tied is not None and len(tied) != len(train.items):
            raise DataError(f"tied: expected {len(train.items)} marks, one per event of train, got {len(tied)}")
        cuda = torch.cuda.is_available()
        device = settings.device if settings.device != "auto" else "cuda" if cuda else "cpu"
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else []):
            torch.manual_seed(derive(settings.seed, "sasrec"))
            model = cls(SasRecEncoder(n_items, settings).to(device), settings, n_items)
            key = training_key(train, n_items, settings, valid, tied)
            Training(model, checkpoint, key, between_steps).run(train, valid, tied)
        model.encoder.eval()
        return model

    @property
    def history_cap(self) -> int:
        """How many events of a history the model sees, the newest ones."""
        return self.settings.max_items

    @property
    def device(self) -> torch.device:
        """Where the weights are; a loaded model is on the CPU."""
        return self.encoder.items.weight.device

    @torch.inference_mode()
    def states(self, histories: Histories) -> npt.NDArray[np.float32]:
        """The vector a history is scored with, float32 ``[U, D]``; zero for an empty history."""
        kept = histories.last(self.settings.max_items)
        lengths = kept.lengths
        out_UD = np.zeros((len(kept), self.settings.dim), dtype=np.float32)
        order = np.argsort(lengths, kind="stable")
        order = order[lengths[order] > 0]
        self.encoder.eval()
        for start in range(0, len(order), 512):
            rows = order[start : start + 512]
            h_BTD = self.encoder(padded(kept, rows).to(self.device))
            last_B = torch.from_numpy(lengths[rows] - 1).to(self.device)
            out_UD[rows] = h_BTD[torch.arange(len(rows), device=self.device), last_B].cpu().numpy()
        return out_UD

    def score_all(self, histories: Histories, users: npt.NDArray[np.int32] | None = None) -> npt.NDArray[np.float32]:
        """Score of every item for every history, float32 ``[U, N]``; ``users`` is not used.

        An empty history scores every item 0: all tie, so its expected ranks are honest.
        Rows do not depend on each other up to rounding. Memory is 4 U N bytes: call it in slices of users.
        """
        scores: npt.NDArray[np.float32] = self.states(histories) @ self.item_vectors().T
        return scores

    def item_vectors(self) -> npt.NDArray[np.float32]:
        """The learned item table, float32 ``[N, D]``: usable as item embeddings (collaborative, train only)."""
        return self.encoder.items.weight.detach().cpu().numpy().astype(np.float32, copy=True)

    def save(
        self,
        path: Path | str,
        *,
        catalog: str | None = None,
        parents: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write an artifact of kind ``sasrec``: weights in safetensors, settings, log and seconds in the manifest."""
        meta = {name: getattr(self, name) for name in ("n_items", "log", "wall_seconds", "cpu_seconds")}
        recipe = dataclasses.asdict(self.settings)
        with artifacts.write(
            path, kind="sasrec", recipe=recipe, catalog=catalog, parents=parents, meta=meta, overwrite=overwrite
        ) as draft:
            artifacts.save_arrays(draft.dir / "sasrec.safetensors", as_arrays(self.encoder.state_dict()))

    @classmethod
    def load(cls, path: Path | str) -> SasRec:
        """Read what :meth:`save` wrote. Raises ArtifactError if it is missing or damaged."""

        def loaded(manifest: artifacts.Manifest) -> SasRec:
            settings, meta = SasRecSettings(**manifest.recipe), manifest.meta
            encoder = SasRecEncoder(meta["n_items"], settings)
            encoder.load_state_dict(as_tensors(artifacts.load_arrays(manifest.path / "sasrec.safetensors")))
            encoder.eval()
            seconds = meta.get("wall_seconds"), meta.get("cpu_seconds")
            return cls(encoder, settings, meta["n_items"], meta["log"], *seconds)

        return artifacts.load(path, loaded, kind="sasrec")


def _check_items(train: Histories, n_items: int) -> None:
    if len(train.items) and not 0 <= int(train.items.min()) <= int(train.items.max()) < n_items:
        raise DataError(
            f"train: expected item numbers in 0..{n_items - 1}, got {int(train.items.min())}..{int(train.items.max())}"
        )
    if not (train.lengths >= 2).any():
        raise DataError("train: expected at least one history of two items or more, got none")
