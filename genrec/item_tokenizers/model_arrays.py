"""Weights of the networks of item tokenizers as arrays, and back. Importing this module imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy.typing as npt
import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def arrays_of(model: nn.Module) -> dict[str, npt.NDArray[Any]]:
    """All weights and buffers on the CPU, under the names ``model.…`` (internal)."""
    return {f"model.{name}": value.cpu().numpy() for name, value in model.state_dict().items()}


def model_of(make: Callable[[], Model], arrays: dict[str, npt.NDArray[Any]]) -> Model:
    """The network that ``make`` builds, with the weights of :func:`arrays_of`, in eval mode on the CPU (internal)."""
    with torch.random.fork_rng(devices=[]):  # building draws weights that are thrown away
        model = make()
    found = {name.removeprefix("model."): value for name, value in arrays.items() if name.startswith("model.")}
    model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in found.items()})
    return model.eval()
