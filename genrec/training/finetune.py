"""Fine-tune a generative recommender: resumable, early-stopped by constrained search, the best weights returned.

This one function is what train/finetune.py (python, torchrun, accelerate launch) and ``genrec run`` call.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from genrec import disk
from genrec.errors import FingerprintMismatch
from genrec.models.backbone import layout_of
from genrec.schedules import fitting_warmup
from genrec.seeding import derive
from genrec.training import checkpoints
from genrec.training.callbacks import Evaluate, Loop, StopRequest
from genrec.training.collate import Collator
from genrec.training.dataset import Plan, TrainingData, prefix_samples, window_samples
from genrec.training.identity import identity_of
from genrec.training.losses import CodeLoss
from genrec.training.module import TrainingModule, checkpointed, trainable
from genrec.training.packing import PackedBatches, check_packing
from genrec.training.progress import Status, TrainState, assign, used_devices
from genrec.training.settings import TrainSettings, decisive
from genrec.training.sharding import ShardedAdamW, gathered, sharded
from genrec.training.trainer import Batches, SafeTrainer, StepBatches, arguments
from genrec.training.validation import validator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What training gave (stable).

    model: the model that was passed in, in evaluation mode, with the weights of the best validation (else the
        averaged, else the last weights).
    status: ``finished``, ``early_stopped``; ``interrupted`` (a signal) and ``out_of_time`` (``max_seconds``)
        mean that the next call goes on from here.
    log: one dict per validation (and at the end): step, epoch, seconds, cpu_seconds, tokens_per_second, loss,
        recall@10, ndcg@10. Tokens that carry a loss, of all processes, per wall second since the line before.
    best, best_step: the best value of ``metric`` and its step; None and 0 without validation.
    steps: optimiser steps so far. seconds, cpu_seconds: wall and process time of all calls together.
    padding_share: padding among the token cells of the first epoch, in [0, 1).
    bf16: whether autocast to bfloat16 was on; float32 otherwise.
    main_process: True in the one process that should write results (False in the others of torchrun).
    """

    model: Any
    status: Status
    log: list[dict[str, float]]
    best: float | None
    best_step: int
    steps: int
    seconds: float
    cpu_seconds: float
    padding_share: float
    bf16: bool
    main_process: bool = True

    @property
    def complete(self) -> bool:
        """False when the next call would go on training."""
        return self.status in ("finished", "early_stopped")


def finetune(
    model: Any,
    data: TrainingData,
    settings: TrainSettings,
    out_dir: str | Path,
    *,
    resume: bool = True,
    evaluate: Evaluate | None = None,
) -> TrainResult:
    """Train a T5 or a Qwen3-type model (stable).

    Encoder-decoders learn every item of a history from the items before it (one sample per item);
    decoder-only models learn every item of a history in one sequence. Only parameters with
    ``requires_grad`` change.

    out_dir: checkpoints go here; with ``resume`` the newest complete one is gone on from, and on a CPU the
    result has the same bits as that of an uninterrupted run. Without, they are deleted first.
    evaluate: gets the model, returns a dict with ``settings.metric``; default: constrained search on
    ``data.valid`` if there is one.

    SIGTERM and SIGINT end training after the current step, with a checkpoint. Raises TrainingDiverged for a
    loss or gradient that is not finite, FingerprintMismatch for a model of another vocabulary, ConfigError if
    out_dir holds a training of other settings, precision, data
    or model (its frozen weights and adapter settings are compared, the initial values of what is trained are not) or is
    in use, DataError for data without samples.
    The global random state is left as it was. Processes started by torchrun share every batch; the returned
    weights are the same in all.
    """
    if evaluate is None and settings.eval_every and data.valid is not None and len(data.valid):
        evaluate = validator(data, settings)
    return run_job(_job(model, data, settings), settings, out_dir, resume=resume, evaluate=evaluate)


@dataclass(frozen=True, eq=False)
class Job:
    """What :func:`run_job` trains (internal).

    module: ``forward(batch, scale) -> loss``, with what is evaluated as its ``model``. plan, collator: the samples of
    every step, and how they become a batch. identity: what a checkpoint must have been trained on to be gone on from,
    beside the settings.
    """

    module: Any
    plan: Plan
    collator: Batches
    identity: dict[str, Any]


def run_job(
    job: Job, settings: TrainSettings, out_dir: str | Path, *, resume: bool, evaluate: Evaluate | None
) -> TrainResult:
    """Train as :func:`finetune` says, whatever the model and its loss are (internal)."""
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    request = StopRequest()
    with _own_random_state(), request.listening(), checkpointed(job.module, settings.gradient_checkpointing):
        trainer = _prepare(job, settings, folder)
        evaluate = evaluate if settings.eval_every else None
        loop = Loop(trainer, job.module, job.plan.steps_per_epoch, evaluate, request)
        trainer.add_callback(loop)
        with disk.claimed(folder, "training") if trainer.is_world_process_zero() else nullcontext():
            _run(trainer, folder, resume)
    return _result(trainer, job)


def bind(model: Any, data: TrainingData) -> None:
    """Check that the model has the vocabulary of the data, and note in it the identifiers it learns (internal)."""
    bound = getattr(model.config, "genrec_vocabulary", data.token_map.fingerprint)
    if bound != data.token_map.fingerprint:
        raise FingerprintMismatch(
            f"the model was built for vocabulary {bound[:8]}, got {data.token_map.fingerprint[:8]}"
        )
    # saved with the model: it understands these identifiers, and those of later versions of the catalog
    model.config.genrec_codes = data.codes.fingerprint
    model.config.genrec_n_items, model.config.genrec_catalog = len(data.codes), data.codes.catalog
    if data.user_index is not None:
        model.config.genrec_users = data.user_index.fingerprint


def _job(model: Any, data: TrainingData, settings: TrainSettings) -> Job:
    bind(model, data)
    layout = layout_of(model)
    cut = prefix_samples if layout == "encoder" else window_samples
    collator = Collator(data, layout, getattr(model.config, "decoder_start_token_id", None) or 0)
    plan = Plan(
        cut(data.histories, settings.max_items, data.told_E),
        collator.item_lengths_N,
        settings,
        tied=data.tied,
        target_apart=collator.target_apart,
        user_drop=0.0 if data.user_index is None else settings.user_drop,
    )
    loss = CodeLoss(data.token_map, settings.softmax, settings.label_smoothing, data.codes)
    if settings.packing:
        check_packing(model)
    batches = PackedBatches(collator) if settings.packing else collator
    return Job(TrainingModule(model, loss), plan, batches, identity_of(model, data))


def _prepare(job: Job, settings: TrainSettings, folder: Path) -> SafeTrainer:
    n_steps = settings.epochs * job.plan.steps_per_epoch
    n_steps = min(n_steps, settings.max_steps) if settings.max_steps else n_steps
    args = arguments(settings, n_steps, folder)
    rated = _short_warmup(settings, n_steps)
    module = sharded(job.module, args.device) if settings.fsdp else job.module.to(args.device)
    trainer = SafeTrainer(module, args, settings, _optimizers(module, rated, n_steps))
    if settings.fsdp:  # else it would be wrapped a second time; autocast it needs
        trainer.accelerator.prepare_model(module, device_placement=False, evaluation_mode=True)
    trainer.batches = StepBatches(
        job.plan, job.collator, n_steps, args.process_index, args.world_size, settings.accumulation_steps
    )
    chosen = decisive(dataclasses.asdict(settings))
    trainer.recipe = {**chosen, "betas": list(settings.betas), "bf16": args.bf16, **job.identity}
    # every process drops other activations
    torch.manual_seed(derive(settings.seed, "dropout", args.process_index))
    return trainer


def _short_warmup(settings: TrainSettings, n_steps: int) -> TrainSettings:
    """The settings for the schedule: a warm-up that training would not outlive ends after a tenth of the steps."""
    short = fitting_warmup(settings.warmup_steps, n_steps)
    if short == settings.warmup_steps:
        return settings
    logger.warning(
        "warmup_steps %d, but the training has %d steps: it would end before it reaches its learning rate, so warm-up "
        "takes %d; set train.warmup_steps below %d, or train longer (train.epochs, or a smaller train.batch_size)",
        *(settings.warmup_steps, n_steps, short, n_steps),
    )
    return dataclasses.replace(settings, warmup_steps=short)


def _optimizers(
    module: nn.Module, settings: TrainSettings, n_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW, which decays matrices only, and the schedule."""
    weights = trainable(module).values()
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    kind = ShardedAdamW if settings.fsdp else torch.optim.AdamW
    optimizer = kind([g for g in groups if g["params"]], lr=settings.learning_rate, betas=settings.betas, fused=True)
    factor = lambda step: settings.rate_factor(step, n_steps)  # noqa: E731
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _run(trainer: SafeTrainer, folder: Path, resume: bool) -> None:
    """Train from the newest checkpoint, or from the start; nothing to do if that one is complete."""
    if not resume and trainer.is_world_process_zero():
        checkpoints.clear(folder)
    if trainer.args.world_size > 1:
        torch.distributed.barrier()
    found = checkpoints.newest(folder, trainer.recipe)
    if found is None:
        trainer.train()
        return
    logger.info("going on from step %d of %d", found.meta["step"], trainer.args.max_steps)
    _compare_processes(int(found.meta.get("processes", trainer.args.world_size)), trainer.args.world_size)
    if found.meta["status"] in ("finished", "early_stopped"):
        trainer._load_from_checkpoint(str(found.path))
        trainer.state.global_step = found.meta["step"]
        return
    trainer.train(resume_from_checkpoint=str(found.path))


def _compare_processes(before: int, now: int) -> None:
    """Say that a training goes on in another number of processes: the batches do not depend on it, dropout does."""
    if before != now:
        logger.warning(
            "the checkpoint was written by %d %s, and it is gone on from with %d: the same batches with the same loss, "
            "but other draws of dropout, and sums in another order; start as before for the same bits",
            *(before, "process" if before == 1 else "processes", now),
        )


def _result(trainer: SafeTrainer, job: Job) -> TrainResult:
    state: TrainState = trainer.train_state
    model = job.module.model.eval()
    values = state.best or gathered(state.average or trainer.weights)
    if state.best or state.average or trainer.settings.fsdp:
        assign(trainable(job.module), values)
    counters = state.counters
    return TrainResult(
        model=model,
        status=counters.status,
        log=counters.log,
        best=counters.best,
        best_step=counters.best_step,
        steps=trainer.state.global_step,
        seconds=counters.seconds,
        cpu_seconds=counters.cpu_seconds,
        padding_share=job.plan.padding_share(),
        bf16=trainer.args.bf16,
        main_process=trainer.is_world_process_zero(),
    )


@contextmanager
def _own_random_state() -> Iterator[None]:
    """The Trainer seeds every global generator; put them back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=used_devices()):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
