"""SASRec with a full softmax: causal self-attention over item numbers, cross-entropy at every position.

Axes: B rows of a batch, T items of a row, N items, D width, U users.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from genrec import artifacts
from genrec.baselines.sasrec_encoder import SasRecEncoder, batch_loss, padded
from genrec.data.batching import length_batches
from genrec.data.histories import Histories
from genrec.data.ties import Bools, redraw
from genrec.errors import ConfigError, DataError
from genrec.metrics.ranking import RankedTargets, expected_ranks, ndcg, recall
from genrec.schedules import warmup_cosine
from genrec.seeding import derive

if TYPE_CHECKING:
    from genrec.data.splits import EvalSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SasRecSettings:
    """Size and training of :class:`SasRec` (stable).

    ``max_items``: longest history seen by the model, older items are cut. ``inner``: width of the
    feed-forward layers (0 = 4 x dim). ``warmup_steps``: linear warm-up, then cosine to 5 % over all epochs.
    ``patience``: evaluations without a better validation NDCG@10 before stopping (0 = never stop early).
    ``max_seconds``: stop after the epoch that passes this wall time, best weights kept.
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
    and, with a validation set, ``ndcg@10`` and ``recall@10``.
    """

    encoder: SasRecEncoder
    settings: SasRecSettings
    n_items: int
    log: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def fit(
        cls,
        train: Histories,
        n_items: int,
        settings: SasRecSettings,
        valid: EvalSet | None = None,
        *,
        tied: Bools | None = None,
    ) -> SasRec:
        """Train on ``train``; with ``valid``, keep the weights of the best validation NDCG@10.

        ``tied``: bool, one per event of ``train``; blocks of ties get a new order in every epoch
        (:meth:`genrec.data.splits.Split.train_ties`).

        Reproducible: the same inputs, settings and number of threads give the same bits. The global random
        state of torch is left as it was. Validation uses a seeded sample of ``eval_users`` users, ranks the
        full catalog with seen items excluded, and counts tied items by their expected rank.

        Raises DataError if no history has two items, an item number is outside ``0..n_items-1``, or ``tied`` has
        another length than the events of ``train``.
        """
        _check_items(train, n_items)
        if tied is not None and len(tied) != len(train.items):
            raise DataError(f"tied: expected {len(train.items)} marks, one per event of train, got {len(tied)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(settings.seed, "sasrec"))
            model = cls(SasRecEncoder(n_items, settings), settings, n_items)
            _train(model, train, valid, tied)
        model.encoder.eval()
        return model

    @property
    def history_cap(self) -> int:
        """How many events of a history the model sees, the newest ones."""
        return self.settings.max_items

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
            h_BTD = self.encoder(padded(kept, rows))
            last = torch.from_numpy(lengths[rows] - 1)
            out_UD[rows] = h_BTD[torch.arange(len(rows)), last].numpy()
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
        return self.encoder.items.weight.detach().numpy().astype(np.float32, copy=True)

    def save(self, path: Path | str, *, catalog: str | None = None, overwrite: bool = False) -> None:
        """Write an artifact of kind ``sasrec``: weights in safetensors, settings and log in the manifest."""
        meta = {"n_items": self.n_items, "log": self.log}
        recipe = dataclasses.asdict(self.settings)
        state = {name: value.detach().numpy() for name, value in self.encoder.state_dict().items()}
        with artifacts.write(
            path, kind="sasrec", recipe=recipe, catalog=catalog, meta=meta, overwrite=overwrite
        ) as draft:
            artifacts.save_arrays(draft.dir / "sasrec.safetensors", state)

    @classmethod
    def load(cls, path: Path | str) -> SasRec:
        """Read what :meth:`save` wrote. Raises ArtifactError if it is missing or damaged."""
        manifest = artifacts.read(path, kind="sasrec")
        settings = SasRecSettings(**manifest.recipe)
        encoder = SasRecEncoder(manifest.meta["n_items"], settings)
        arrays = artifacts.load_arrays(Path(path) / "sasrec.safetensors")
        encoder.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in arrays.items()})
        encoder.eval()
        return cls(encoder, settings, manifest.meta["n_items"], manifest.meta["log"])


def _check_items(train: Histories, n_items: int) -> None:
    if len(train.items) and not 0 <= int(train.items.min()) <= int(train.items.max()) < n_items:
        raise DataError(
            f"train: expected item numbers in 0..{n_items - 1}, got {int(train.items.min())}..{int(train.items.max())}"
        )
    if not (train.lengths >= 2).any():
        raise DataError("train: expected at least one history of two items or more, got none")


@dataclass
class _Fit:
    """A training in progress: optimiser, step counter, and the best weights so far."""

    model: SasRec
    optimizer: torch.optim.Optimizer
    n_steps: int
    step: int = 0
    best: float = -1.0
    best_weights: dict[str, Tensor] | None = None
    waited: int = 0
    start: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), time.process_time()))

    def epoch(self, windows: Histories, epoch: int) -> float:
        """One pass over the windows; returns the mean loss of its steps."""
        settings, encoder = self.model.settings, self.model.encoder
        encoder.train()
        losses = []
        for rows in length_batches(windows.lengths, settings.batch_size, seed=settings.seed, epoch=epoch):
            for group in self.optimizer.param_groups:
                group["lr"] = settings.learning_rate * warmup_cosine(self.step, self.n_steps, settings.warmup_steps)
            loss = batch_loss(encoder, windows, rows, settings.label_smoothing)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(encoder.parameters(), settings.max_grad_norm)
            self.optimizer.step()
            losses.append(loss.item())
            self.step += 1
        return float(np.mean(losses))

    def evaluate(self, epoch: int, loss: float, valid: EvalSet | None) -> None:
        """One entry of the log; keeps the weights if they are the best so far."""
        entry = {
            "epoch": epoch,
            "step": self.step,
            "loss": loss,
            "seconds": round(time.monotonic() - self.start[0], 3),
            "cpu_seconds": round(time.process_time() - self.start[1], 3),
        }
        if valid is not None and len(valid):
            entry |= _validate(self.model, valid)
            self.waited += 1
            if entry["ndcg@10"] > self.best:
                self.best, self.waited = entry["ndcg@10"], 0
                weights = self.model.encoder.state_dict()
                self.best_weights = {name: value.clone() for name, value in weights.items()}
        self.model.log.append(entry)
        logger.info("sasrec %s", entry)


def _train(model: SasRec, train: Histories, valid: EvalSet | None, tied: Bools | None) -> None:
    settings, encoder = model.settings, model.encoder
    usable = np.flatnonzero(train.lengths >= 2)
    optimizer = torch.optim.AdamW(
        encoder.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    fit = _Fit(model, optimizer, settings.epochs * -(-len(usable) // settings.batch_size))
    for epoch in tqdm(range(1, settings.epochs + 1), desc="sasrec", unit="epoch", disable=None):
        items = redraw(train.items, tied, seed=settings.seed, epoch=epoch - 1)
        windows = replace(train, items=items).take(usable).last(settings.max_items + 1)
        loss = fit.epoch(windows, epoch - 1)
        late = settings.max_seconds is not None and time.monotonic() - fit.start[0] > settings.max_seconds
        if late or epoch == settings.epochs or epoch % settings.eval_every == 0:
            fit.evaluate(epoch, loss, valid)
        if late or (settings.patience and fit.waited >= settings.patience):
            break
    if fit.best_weights is not None:
        encoder.load_state_dict(fit.best_weights)


def _validate(model: SasRec, valid: EvalSet) -> dict[str, float]:
    """Recall@10 and NDCG@10 of a seeded sample of users, seen items excluded, expected ranks."""
    sample = valid.sample(model.settings.eval_users, model.settings.seed)
    size = len(sample)
    ranks = []
    for start in range(0, size, 256):
        part = sample.take(np.arange(start, min(start + 256, size)))
        scores = model.score_all(part.histories)
        scores[part.histories.rows(), part.histories.items] = -np.inf
        ranks.append(expected_ranks(scores, part.targets.rows(), part.targets.items))
    ranked = RankedTargets(np.concatenate(ranks), sample.targets.rows(), size)
    return {"recall@10": float(recall(ranked, 10).mean()), "ndcg@10": float(ndcg(ranked, 10).mean())}
