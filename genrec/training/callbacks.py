"""What happens after every optimiser step: averaging, validation, early stopping, saving, stopping on request."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from genrec.errors import ConfigError
from genrec.progress import ProgressBar
from genrec.training.module import trainable
from genrec.training.progress import Status, replaced, snapshot, used_devices
from genrec.training.settings import TrainSettings
from genrec.training.sharding import gathered
from genrec.training.trainer import SafeTrainer

logger = logging.getLogger(__name__)

_SAVES_APART = 20  # times as long as a checkpoint took: large ones cost at most 5 % of the time
Evaluate = Callable[[torch.nn.Module], dict[str, float]]


class StopRequest:
    """Set by SIGTERM or SIGINT (internal); a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the two signals in this block; threads other than the main one cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        old = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True
        logger.warning("%s: stopping after this step, with a checkpoint", signal.Signals(number).name)


class Loop(TrainerCallback):  # type: ignore[misc]
    """Runs after every step (internal).

    Order: count into the average, validate, decide whether to stop, ask for a checkpoint. A checkpoint
    therefore holds the validation of its own step, and a resumed run never repeats or skips one.
    """

    def __init__(
        self, trainer: SafeTrainer, module: Any, steps_per_epoch: int, evaluate: Evaluate | None, request: StopRequest
    ) -> None:
        """``module``: the one whose ``model`` is validated; the trainer's own, or what that is a sharded copy of."""
        self.trainer, self.module, self.settings = trainer, module, trainer.settings
        self.steps_per_epoch, self.evaluate, self.request = steps_per_epoch, evaluate, request
        self.bar: ProgressBar | None = None
        self.shown: dict[str, str] = {}
        self.since = time.monotonic(), 0  # the last line of the log: when, and tokens until then
        self.saved = self.asked = self.took = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the bar, in one process."""
        self.saved = time.monotonic()
        self.since = self.saved, self.trainer.n_tokens
        if state.is_world_process_zero:
            self.bar = ProgressBar(total=state.max_steps, initial=state.global_step, desc="train", unit="step")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the seconds to the next checkpoint from here; note how long this one took."""
        self.saved = time.monotonic()
        self.took = self.saved - self.asked

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See the class."""
        trainer, settings, step = self.trainer, self.settings, state.global_step
        counters = trainer.train_state.counters
        if settings.ema_decay is not None:
            trainer.train_state.update_average(trainer.weights, settings.ema_decay, step)
        last = step >= state.max_steps
        if last or _due(settings, step, self.steps_per_epoch):
            self._log(step)
        counters.status, old = self._status(last)
        control.should_training_stop = counters.status != "running"
        many = settings.save_every > 0 and step % settings.save_every == 0
        control.should_save = control.should_training_stop or many or old
        if self.bar is not None:
            self.bar.set_postfix({**self.shown, "tokens/s": f"{self._tokens_per_second():,.0f}"}, refresh=False)
            self.bar.update(1)
        self.asked = time.monotonic()

    def _status(self, last: bool) -> tuple[Status, bool]:
        """Whether to go on, and whether the last checkpoint is old; all processes agree on the answer."""
        counters, settings = self.trainer.train_state.counters, self.settings
        if last:
            return "finished", False
        if settings.patience and counters.waited >= settings.patience:
            return "early_stopped", False
        late = settings.max_seconds is not None and self.trainer.clock.this_call >= settings.max_seconds
        wait = max(settings.save_seconds, _SAVES_APART * self.took)
        old = settings.save_seconds > 0 and time.monotonic() - self.saved >= wait
        wishes = torch.tensor([int(self.request.received), int(late), int(old)])
        if self.trainer.args.world_size > 1:
            wishes = wishes.to(self.trainer.args.device)
            dist.all_reduce(wishes, op=dist.ReduceOp.MAX)
        interrupted, late, old = wishes.bool().tolist()
        return "interrupted" if interrupted else "out_of_time" if late else "running", old

    def _tokens_per_second(self) -> float:
        """Since the last line of the log."""
        then, tokens = self.since
        return (self.trainer.n_tokens - tokens) / max(time.monotonic() - then, 1e-9)

    def _log(self, step: int) -> None:
        """One entry of the log, with the validation if there is one; keeps the best weights."""
        state, counters = self.trainer.train_state, self.trainer.train_state.counters
        speed = self._tokens_per_second()
        metrics = self._metrics()
        self.trainer.clock.stamp(counters)
        loss = self._mean_over_processes(counters.losses / max(counters.n_losses, 1))
        entry = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "seconds": round(counters.seconds, 3),
            "cpu_seconds": round(counters.cpu_seconds, 3),
            "tokens_per_second": round(speed, 1),
            "loss": loss,
            **metrics,
        }
        counters.log.append(entry)
        counters.losses, counters.n_losses = 0.0, 0
        logger.info("%s", "  ".join(f"{k} {v:.4g}" for k, v in entry.items()))
        # to the trackers of report_to; the Trainer's own log would call the share of all steps an epoch
        self.trainer.callback_handler.on_log(self.trainer.args, self.trainer.state, self.trainer.control, dict(entry))
        self.shown = {"loss": f"{loss:.3f}", **{k: f"{v:.4f}" for k, v in metrics.items()}}
        self.since = time.monotonic(), self.trainer.n_tokens
        if metrics:
            counters.waited += 1
            value = metrics[self.settings.metric]
            if counters.best is None or value > counters.best:
                counters.best, counters.best_step, counters.waited = value, step, 0
                state.best = snapshot(state.average or self.trainer.weights)

    def _mean_over_processes(self, value: float) -> float:
        args = self.trainer.args
        if args.world_size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float32, device=args.device)
        dist.all_reduce(total)
        return total.item() / int(args.world_size)

    def _metrics(self) -> dict[str, float]:
        """Validation by the first process, told to the others; draws from no random stream of the training."""
        if self.evaluate is None:
            return {}
        trainer = self.trainer
        answer: list[dict[str, float]] = [{}]
        values, weights = trainer.train_state.average, trainable(self.module)
        if self.settings.fsdp:
            values = gathered(values or trainer.weights)
        if trainer.is_world_process_zero():
            # a sharded training leaves the whole model on the CPU
            model = self.module.model.to(trainer.args.device)
            with torch.random.fork_rng(devices=used_devices()), replaced(weights, values):
                model.eval()
                answer = [dict(self.evaluate(model))]
                model.train()
            if self.settings.fsdp:
                model.cpu()
        if trainer.args.world_size > 1:
            dist.broadcast_object_list(answer, src=0)
        if self.settings.metric not in answer[0]:
            raise ConfigError(f"metric: expected one of {sorted(answer[0])}, got {self.settings.metric!r}")
        return answer[0]


def _due(settings: TrainSettings, step: int, steps_per_epoch: int) -> bool:
    every = settings.eval_every * (steps_per_epoch if settings.eval_unit == "epochs" else 1)
    return every > 0 and step % every == 0
