"""Training of SASRec: epochs, validation, checkpoints. Internal: use :mod:`genrec.baselines.sasrec`."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from genrec import artifacts
from genrec.baselines.sasrec_encoder import batch_loss
from genrec.data.batching import length_batches
from genrec.data.histories import Histories
from genrec.data.ties import Bools, redraw
from genrec.errors import ArtifactError
from genrec.metrics.ranking import RankedTargets, expected_ranks, ndcg, recall
from genrec.progress import ProgressBar
from genrec.schedules import fitting_warmup, warmup_cosine

if TYPE_CHECKING:
    from genrec.baselines.sasrec import SasRec, SasRecSettings
    from genrec.data.splits import EvalSet

logger = logging.getLogger(__name__)

VERSION = 3
"""Raise it when the code trains differently: finished and unfinished trainings are then done again."""
KIND = "sasrec_checkpoint"
MAY_CHANGE = ("device", "save_seconds")
"""Settings of the machine, not of the model: they are no part of what makes a training the same one."""


def training_key(
    train: Histories, n_items: int, settings: SasRecSettings, valid: EvalSet | None, tied: Bools | None
) -> str:
    """Hash of all that decides a training: settings, data and the version of this code (internal)."""
    parts = [train, *((valid.histories, valid.targets) if valid is not None else ())]
    arrays = [array for part in parts for array in (part.offsets.astype("<i8"), part.items.astype("<i4"))]
    arrays += [] if tied is None else [tied]
    chosen = {name: value for name, value in asdict(settings).items() if name not in MAY_CHANGE}
    digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
    return hashlib.sha256(json.dumps([VERSION, chosen, n_items, digests], sort_keys=True).encode()).hexdigest()


@dataclass
class Progress:
    """How far a training is (internal): goes into its checkpoints, as JSON.

    ``epoch`` is the one in progress, counted from 1, ``batch`` how many of its batches are done. The seconds are those
    of all calls up to the last save.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0
    best: float = -1.0
    waited: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    log: list[dict[str, float]] = field(default_factory=list)


class Training:
    """A training in progress: optimiser, progress, and the best weights so far (internal).

    Batches and the order of ties follow from (seed, epoch), so the state after any step is a checkpoint: weights,
    moments, best weights, random state, losses of the epoch. ``between_steps`` is called after every step; what it
    raises ends training, after a checkpoint.
    """

    def __init__(
        self, model: SasRec, checkpoint: Path | None, key: str, between_steps: Callable[[], None] | None
    ) -> None:
        self.model, self.settings, self.device = model, model.settings, model.device
        self.path, self.between_steps = checkpoint, between_steps
        self.identity = {"training": key, "device": self.device.type}
        self.optimizer = torch.optim.AdamW(
            model.encoder.parameters(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            betas=(0.9, 0.98),
        )
        self.progress, self.losses = Progress(), list[Tensor]()
        self.best_weights: dict[str, Tensor] = {}
        self._resume()
        self.start = (
            time.monotonic() - self.progress.wall_seconds,
            time.process_time() - self.progress.cpu_seconds,
        )
        self.saved = time.monotonic()

    def run(self, train: Histories, valid: EvalSet | None, tied: Bools | None) -> None:
        """Train to the end; puts the best weights, the log and the seconds into the model."""
        settings, progress = self.settings, self.progress
        usable = np.flatnonzero(train.lengths >= 2)
        self.n_steps = settings.epochs * -(-len(usable) // settings.batch_size)
        bar = ProgressBar(desc="sasrec", unit="epoch", total=settings.epochs, initial=progress.epoch - 1)
        with bar:
            while progress.epoch <= settings.epochs:
                items = redraw(train.items, tied, seed=settings.seed, epoch=progress.epoch - 1)
                windows = replace(train, items=items).take(usable).last(settings.max_items + 1)
                loss = self._epoch(windows)
                self._count_seconds()
                late = settings.max_seconds is not None and progress.wall_seconds > settings.max_seconds
                if late or progress.epoch == settings.epochs or progress.epoch % settings.eval_every == 0:
                    self._evaluate(loss, valid)
                bar.update()
                if late or (settings.patience and progress.waited >= settings.patience):
                    break
                progress.epoch, progress.batch, self.losses = progress.epoch + 1, 0, []
        if self.best_weights:
            self.model.encoder.load_state_dict(self.best_weights)
        self._count_seconds()
        self.model.log = progress.log
        self.model.wall_seconds, self.model.cpu_seconds = progress.wall_seconds, progress.cpu_seconds

    def _epoch(self, windows: Histories) -> float:
        """What is left of one pass over the windows; returns the mean loss of all its steps."""
        settings, encoder, progress = self.settings, self.model.encoder, self.progress
        encoder.train()
        batches = length_batches(windows.lengths, settings.batch_size, seed=settings.seed, epoch=progress.epoch - 1)
        for rows in batches[progress.batch :]:
            for group in self.optimizer.param_groups:
                warmup = fitting_warmup(settings.warmup_steps, self.n_steps)
                rate = warmup_cosine(progress.step, self.n_steps, warmup)
                group["lr"] = settings.learning_rate * rate
            loss = batch_loss(encoder, windows, rows, settings.label_smoothing)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(encoder.parameters(), settings.max_grad_norm)
            self.optimizer.step()
            self.losses.append(loss.detach())  # read once per epoch: a GPU need not be waited for at every step
            progress.step += 1
            progress.batch += 1
            self._after_step()
        return float(np.mean(torch.stack(self.losses).tolist()))

    def _after_step(self) -> None:
        try:
            if self.between_steps is not None:
                self.between_steps()
        except BaseException:
            self._save()
            raise
        if self.settings.save_seconds and time.monotonic() - self.saved >= self.settings.save_seconds:
            self._save()

    def _evaluate(self, loss: float, valid: EvalSet | None) -> None:
        """One entry of the log; keeps the weights if they are the best so far."""
        progress = self.progress
        entry = {
            "epoch": progress.epoch,
            "step": progress.step,
            "loss": loss,
            "seconds": round(progress.wall_seconds, 3),
            "cpu_seconds": round(progress.cpu_seconds, 3),
        }
        if valid is not None and len(valid):
            entry |= validate(self.model, valid)
            progress.waited += 1
            if entry["ndcg@10"] > progress.best:
                progress.best, progress.waited = entry["ndcg@10"], 0
                weights = self.model.encoder.state_dict()
                self.best_weights = {name: value.clone() for name, value in weights.items()}
        progress.log.append(entry)
        logger.info("sasrec %s", entry)

    def _count_seconds(self) -> None:
        self.progress.wall_seconds = time.monotonic() - self.start[0]
        self.progress.cpu_seconds = time.process_time() - self.start[1]

    # --- checkpoints ---------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.path is None:
            return
        self._count_seconds()
        moments = self.optimizer.state_dict()["state"]
        state = {f"encoder.{name}": value for name, value in self.model.encoder.state_dict().items()}
        state |= {f"best.{name}": value for name, value in self.best_weights.items()}
        state |= {f"optimizer.{n}.{name}": value for n, own in moments.items() for name, value in own.items()}
        state |= {"losses": torch.stack(self.losses), "random.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["random.cuda"] = torch.cuda.get_rng_state(self.device)
        with artifacts.write(
            self.path, kind=KIND, recipe=self.identity, meta=asdict(self.progress), overwrite=True
        ) as draft:
            artifacts.save_arrays(draft.dir / "state.safetensors", as_arrays(state))
        self.saved = time.monotonic()

    def _resume(self) -> None:
        """Take up the state of the checkpoint, if there is a sound one of this training on this kind of device."""
        if self.path is None or not artifacts.exists(self.path, KIND):
            return
        try:
            manifest = artifacts.read(self.path, kind=KIND)
        except ArtifactError as error:
            logger.warning("sasrec begins again: %s", error)
            return
        if manifest.recipe != self.identity:
            logger.info("sasrec begins again: the checkpoint in %s is of another training or device", self.path)
            return
        arrays = artifacts.load_arrays(self.path / "state.safetensors")
        state = as_tensors(arrays)
        self.model.encoder.load_state_dict(_below("encoder", state))
        self.best_weights = {name: value.to(self.device) for name, value in _below("best", state).items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _below("optimizer", state).items():
            number, _, what = name.partition(".")
            moments.setdefault(int(number), {})[what] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.losses = list(state["losses"].to(self.device))
        torch.set_rng_state(state["random.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random.cuda"], self.device)
        self.progress = Progress(**manifest.meta)
        logger.info("sasrec goes on from step %d, in epoch %d", self.progress.step, self.progress.epoch)


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): v for name, v in state.items() if name.startswith(f"{prefix}.")}


def as_arrays(state: dict[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    """Tensors of any device as numpy arrays (internal)."""
    return {name: value.detach().cpu().numpy() for name, value in state.items()}


def as_tensors(arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """Arrays of a file as tensors on the CPU that may be written to (internal)."""
    return {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}


def validate(model: SasRec, valid: EvalSet) -> dict[str, float]:
    """Recall@10 and NDCG@10 of a seeded sample of users, seen items excluded, expected ranks (internal)."""
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
