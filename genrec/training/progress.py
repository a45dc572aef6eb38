"""What a training run knows besides the model's weights and the optimiser: saved in every checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec import artifacts
from genrec.training.sharding import like, whole

Status = Literal["running", "finished", "early_stopped", "interrupted", "out_of_time"]
Weights = dict[str, Tensor]


@dataclass
class Counters:
    """Numbers that must survive an interruption (internal).

    ``seconds`` and ``cpu_seconds`` are those of all calls up to the last save; ``losses`` sums the loss since
    the last log entry over ``n_losses`` steps.
    """

    log: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    losses: float = 0.0
    n_losses: int = 0
    status: Status = "running"


class Clock:
    """Wall and CPU seconds, counted on from where an earlier call stopped (internal)."""

    def __init__(self, counters: Counters) -> None:
        self._before = counters.seconds, counters.cpu_seconds
        self._start = time.monotonic(), time.process_time()

    @property
    def this_call(self) -> float:
        """Wall seconds since this call began."""
        return time.monotonic() - self._start[0]

    def stamp(self, counters: Counters) -> None:
        """Write the totals so far into ``counters``."""
        counters.seconds = self._before[0] + self.this_call
        counters.cpu_seconds = self._before[1] + time.process_time() - self._start[1]


@dataclass
class TrainState:
    """Counters, the weights' average and the best weights so far (internal).

    ``average``: updated after every step, ``a = d a + (1 - d) w`` with d = min(decay, (1 + step) / (10 + step)),
    so the start is forgotten quickly. ``best``: weights (or their average) of the best validation, on the CPU.
    """

    counters: Counters = field(default_factory=Counters)
    average: Weights | None = None
    best: Weights | None = None

    @torch.no_grad()
    def update_average(self, weights: Mapping[str, Tensor], decay: float, step: int) -> None:
        """Count in the weights after ``step`` steps."""
        if self.average is None:
            self.average = {name: value.detach().clone() for name, value in weights.items()}
            return
        share = 1 - min(decay, (1 + step) / (10 + step))
        for name, value in weights.items():
            self.average[name].lerp_(value.detach(), share)

    def save(self, folder: Path, average: Weights | None) -> None:
        """Write into a checkpoint; ``average`` is the whole of the state's own."""
        artifacts.save_json(folder / "progress.json", asdict(self.counters))
        for name, weights in (("average", average), ("best", self.best)):
            if weights is not None:
                save_weights(weights, folder / f"{name}.safetensors")

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> TrainState:
        """Read what :meth:`save` wrote."""
        found: dict[str, Any] = {}
        for name, where in (("average", device), ("best", torch.device("cpu"))):
            file = folder / f"{name}.safetensors"
            found[name] = load_weights(file, where) if file.exists() else None
        return cls(Counters(**artifacts.load_json(folder / "progress.json")), **found)


def used_devices() -> list[int]:
    """The GPU whose random state training changes, if there is one (internal)."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def save_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Write named tensors (no two of them the same memory) to a safetensors file (internal)."""
    save_file({name: value.detach().contiguous() for name, value in weights.items()}, file)


def load_weights(file: Path, device: torch.device) -> Weights:
    """Read what :func:`save_weights` wrote (internal); safetensors does not know every name of a device (cpu:0)."""
    return {name: value.to(device) for name, value in load_file(file).items()}


@torch.no_grad()
def assign(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy whole ``values`` into the parameters of the same names, or into the shares they are (internal)."""
    for name, weight in weights.items():
        weight.copy_(like(values[name], weight))


def snapshot(weights: Mapping[str, Tensor]) -> Weights:
    """A whole copy on the CPU; of shares, all processes must ask for it (internal)."""
    return {name: whole(value.detach()).to("cpu", copy=True) for name, value in weights.items()}


@contextmanager
def replaced(weights: Mapping[str, Tensor], values: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Put ``values`` in place of the weights for a while; None changes nothing (internal)."""
    if values is None:
        yield
        return
    own = {name: value.detach().clone() for name, value in weights.items()}
    assign(weights, values)
    try:
        yield
    finally:
        assign(weights, own)
