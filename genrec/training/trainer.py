"""A Hugging Face Trainer whose batches, checkpoints and stopping are ours.

What is kept: the loop, the devices, data parallelism and autocast. The
data loader counts optimiser steps over all epochs as one pass, so that skipping to step s is all a resume needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from genrec import artifacts
from genrec.errors import ConfigError, GenrecError
from genrec.models.adapters import ROWS
from genrec.seeding import derive
from genrec.training import checkpoints
from genrec.training.dataset import Plan, Samples
from genrec.training.module import trainable
from genrec.training.precision import has_bf16
from genrec.training.progress import Clock, TrainState, assign, load_weights, save_weights
from genrec.training.reporting import reporters
from genrec.training.sam import ascended
from genrec.training.settings import TrainSettings
from genrec.training.sharding import gathered, gathered_state, like, whole
from genrec.training.state_files import load_optimizer, random_file, random_state, save_optimizer, set_random_state

if TYPE_CHECKING:
    from genrec.training.callbacks import Loop

WEIGHTS = "weights.safetensors"
HELD = "held.safetensors"
"""What a module keeps from one step to the next beside its weights: its attribute ``held``, where it has one."""


class TrainingDiverged(GenrecError, ArithmeticError):
    """The loss or its gradient is not finite; the last checkpoint is untouched (stable)."""


class Batches(Protocol):
    """Makes the batch of a loss that sums over targets (internal)."""

    def n_targets(self, samples: Samples) -> int:
        """Number of targets, whose losses are summed."""

    def __call__(self, samples: Samples) -> dict[str, Any]:
        """The arguments of the module's ``forward`` but ``scale``."""


class StepBatches(Dataset[list[dict[str, Any]]]):
    """Item s is this process's share of the batch of step s, in parts to be computed one after the other (internal).

    Of ``world`` processes, process ``rank`` takes every world-th sample; of its ``n_parts`` parts (fewer where the
    batch has fewer samples), each takes every n_parts-th of those. The losses are scaled so that their sum over the
    parts, averaged over the processes, is the mean over all symbols of the whole batch. A part that would be left
    with nothing repeats one sample at weight zero: all processes compute equally many. Where the collator has a
    method ``of_whole(batch)``, what it says replaces what the collator says of a part.
    """

    def __init__(
        self, plan: Plan, collator: Batches, n_steps: int, rank: int = 0, world: int = 1, n_parts: int = 1
    ) -> None:
        self.plan, self.collator, self.n_steps = plan, collator, n_steps
        self.rank, self.world, self.n_parts = rank, world, n_parts

    def __len__(self) -> int:
        return self.n_steps

    def __getitem__(self, step: int) -> list[dict[str, Any]]:
        whole = self.plan.batch(step)
        scale = self.world / self.collator.n_targets(whole)
        n_parts = min(self.n_parts, -(-len(whole) // self.world))
        of_whole = getattr(self.collator, "of_whole", None)
        shared = {"scale": scale, **(of_whole(whole) if of_whole else {})}
        firsts = [self.rank + self.world * part for part in range(n_parts)]
        return [self._part(whole, first, self.world * n_parts, shared) for first in firsts]

    def _part(self, whole: Samples, first: int, step: int, shared: dict[str, Any]) -> dict[str, Any]:
        part = _strided(whole, first, step)
        if not len(part):
            part, shared = _strided(whole, 0, len(whole)), {**shared, "scale": 0.0}
        return {**self.collator(part), **shared}

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return (self[step] for step in range(len(self)))


def _strided(samples: Samples, first: int, step: int) -> Samples:
    return samples.take(np.arange(first, len(samples), step))


def _only(batch: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """One step, as the dict that the Trainer expects."""
    return {"parts": batch[0]}


def arguments(settings: TrainSettings, n_steps: int, folder: Path) -> TrainingArguments:
    """Arguments of the Trainer (internal): everything that it would do on its own is off."""
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=n_steps,
        per_device_train_batch_size=1,  # a loader item is a whole batch already
        seed=derive(settings.seed, "finetune") % 2**32,
        bf16=has_bf16() if settings.bf16 is None else settings.bf16,
        use_cpu=not cuda,
        max_grad_norm=0.0,  # clipped in training_step, where a bad gradient is noticed
        dataloader_num_workers=settings.n_workers,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def later_weights(weights: Mapping[str, Tensor], rows_first: int) -> list[Tensor]:
    """What ``rows_first`` keeps back (internal): the adapters; ConfigError for a model that has not both."""
    late = [weight for name, weight in weights.items() if ROWS not in name]
    if rows_first and not 0 < len(late) < len(weights):
        raise ConfigError(
            "rows_first: expected a model with adapters and trained rows of item tokens", hint="add a lora block"
        )
    return late if rows_first else []


class SafeTrainer(Trainer):  # type: ignore[misc]
    """One optimiser step at a time, with checkpoints that are complete or absent (internal)."""

    def __init__(
        self,
        module: nn.Module,
        args: TrainingArguments,
        settings: TrainSettings,
        optimizers: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR],
    ) -> None:
        super().__init__(model=module, args=args, optimizers=optimizers, callbacks=reporters(settings.report_to))
        self.remove_callback(PrinterCallback)
        # several visible devices in one process would mean nn.DataParallel, which cannot split our batches
        args._n_gpu = min(args.n_gpu, 1)
        self.settings = settings
        self.weights = trainable(module)
        self.late = later_weights(self.weights, settings.rows_first)
        self.batches: StepBatches | None = None
        self.loop: Loop | None = None
        self.train_state = TrainState()
        self.clock = Clock(self.train_state.counters)
        self.recipe: Mapping[str, Any] = {}
        self.n_tokens = 0
        """Tokens that carried a loss in this call, of all processes; counted in the first."""

    # --- batches and steps ---------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches in step order."""
        assert self.batches is not None
        return DataLoader(
            self.batches,
            batch_size=1,
            collate_fn=_only,
            num_workers=self.args.dataloader_num_workers,
            generator=torch.Generator(),  # so that starting an epoch draws nothing from the global stream
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The module's own loss."""
        loss: Tensor = model(**inputs)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: at the end the Trainer would tell the trackers figures that take a step for a sample."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of every part, gradient clipping; raises TrainingDiverged before a bad step is taken.

        With ``sam_rho`` twice: the loss is that of the first pass, the gradient that of the second.
        """
        parts, rho = inputs["parts"], self.settings.sam_rho
        if rho:
            # all climb by the gradient of the whole batch: the step is that of one process, and a size that is not
            # finite is seen by all of them, so that none waits for the others
            loss = self._losses_of(model, parts)
            with ascended(self.weights, rho) as size:
                if not math.isfinite(size):
                    raise self._diverged(float(loss), size)
                self._losses_of(model, parts)
        else:
            loss = self._losses_of(model, parts)
        norm = whole(nn.utils.clip_grad_norm_(self.weights.values(), self.settings.max_grad_norm))
        value, size = torch.stack([loss.detach().float(), norm.float()]).tolist()
        if not (math.isfinite(value) and math.isfinite(size)):
            raise self._diverged(value, size)
        self.train_state.counters.losses += value
        self.train_state.counters.n_losses += 1
        if scale := parts[0]["scale"]:  # of the first process never 0
            self.n_tokens += round(self.args.world_size / scale)
        return loss

    def _losses_of(self, model: nn.Module, parts: list[dict[str, Any]]) -> Tensor:
        """The loss of all parts; their gradients are added up, and with the last one over the processes."""
        losses = []
        for place, part in enumerate(parts, start=1):
            joined = place == len(parts)
            with model.no_sync() if isinstance(model, DistributedDataParallel) and not joined else nullcontext():
                losses.append(super().training_step(model, part))
        if self.state.global_step < self.settings.rows_first:
            for weight in self.late:
                weight.grad = None  # the optimizer passes over it
        return torch.stack(losses).sum()

    def _diverged(self, loss: float, norm: float) -> TrainingDiverged:
        step = self.state.global_step + 1
        told = getattr(self.batches and self.batches.plan, "told", None)
        batch = f" on {told(step - 1)}" if told else ""
        return TrainingDiverged(
            f"step {step}{batch}: loss {loss}, gradient norm {norm}; the weights of step {step - 1} were not changed",
            hint="start again, in another folder, with a lower learning_rate or more warmup_steps; the checkpoints in "
            f"{self.args.output_dir}, if any, are complete",
        )

    # --- checkpoints ---------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        random_states, weights = self._random_states(), gathered(self.weights)
        average = self.train_state.average and gathered(self.train_state.average)
        with gathered_state(getattr(self.optimizer, "optimizer", self.optimizer)):
            if self.args.should_save:
                self.clock.stamp(self.train_state.counters)

                def write(folder: Path) -> None:
                    save_weights(weights, folder / WEIGHTS)
                    save_optimizer(self.optimizer.state_dict(), self.lr_scheduler.state_dict(), folder)
                    self.state.save_to_json(str(folder / "trainer_state.json"))
                    self.train_state.save(folder, average)
                    if held := getattr(self.model, "held", None):
                        save_weights(held, folder / HELD)
                    for rank, state in enumerate(random_states):
                        artifacts.save_json(folder / random_file(rank), state)

                meta = {
                    "step": self.state.global_step,
                    "status": self.train_state.counters.status,
                    "processes": self.args.world_size,
                }
                folder = Path(self.args.output_dir)
                checkpoints.save(folder, self.state.global_step, write, recipe=self.recipe, meta=meta)
        if self.args.world_size > 1:
            dist.barrier()

    def _random_states(self) -> list[dict[str, Any]]:
        """The random state of every process."""
        parts = [random_state()]
        if self.args.world_size > 1:
            parts *= self.args.world_size
            dist.all_gather_object(parts, parts[0])
        return parts

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            optimizer, schedule = load_optimizer(Path(checkpoint))
            self.optimizer.load_state_dict(optimizer)
            self.lr_scheduler.load_state_dict(schedule)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # where there are more processes than before, the new ones keep the state they begin with
        file = Path(checkpoint or "") / random_file(self.args.process_index)
        if checkpoint is not None and file.exists():
            set_random_state(artifacts.load_json(file), file)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        assign(self.weights, load_file(Path(resume_from_checkpoint) / WEIGHTS))
        if (held := Path(resume_from_checkpoint) / HELD).exists():
            self.model.held = load_weights(held, self.args.device)
        self.train_state = TrainState.load(Path(resume_from_checkpoint), self.args.device)
        if (average := self.train_state.average) is not None:
            self.train_state.average = {name: like(average[name], weight) for name, weight in self.weights.items()}
        self.clock = Clock(self.train_state.counters)
