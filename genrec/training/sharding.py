"""A model whose weights, gradients and optimiser state are spread over processes (FSDP2: torch's ``fully_shard``).

The sharded model is a copy. The one that was given stays whole, on the CPU of every process: it is what is validated,
and what is returned. Files hold whole tensors, so they are those of a training that is not sharded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from genrec.errors import ConfigError


def sharded(module: nn.Module, device: torch.device) -> nn.Module:
    """A copy of the module with a share of every weight in every process (internal).

    A layer is gathered when it is computed, everything else (the tables) for the whole step. All processes must call
    this with equal weights. Raises ConfigError in a single process, and for a model that does not name its layers.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        raise ConfigError(
            "fsdp: expected several processes, got one", hint="torchrun --nproc-per-node N …, or leave fsdp out"
        )
    names = {n for each in module.modules() if isinstance(each, PreTrainedModel) for n in each._no_split_modules or ()}
    if not names:
        raise ConfigError("fsdp: the model does not say what its layers are", hint="leave fsdp out")
    split = copy.deepcopy(module)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in [each for each in split.modules() if type(each).__name__ in names]:
        fully_shard(layer, mesh=mesh)
    fully_shard(split, mesh=mesh)
    return split


def whole(value: Tensor) -> Tensor:
    """All of a tensor, in every process; all must ask for it (internal)."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gathered(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors of the same names (internal)."""
    return {name: whole(value.detach()) for name, value in weights.items()}


def like(value: Tensor, weight: Tensor) -> Tensor:
    """This process's share of ``value``, if ``weight`` is a share (internal)."""
    if not isinstance(weight, DTensor):
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)


class ShardedAdamW(torch.optim.AdamW):
    """AdamW whose state is saved and loaded as that of an optimiser of whole weights (internal).

    All processes must call :meth:`state_dict` (or none, within :func:`gathered_state`) and :meth:`load_state_dict`.
    """

    kept: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """With whole tensors."""
        if self.kept is not None:
            return self.kept
        found: dict[str, Any] = super().state_dict()
        return {**found, "state": self._with(found["state"], lambda value, _: whole(value))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From whole tensors."""
        super().load_state_dict({**state_dict, "state": self._with(state_dict["state"], like)})

    def _with(self, state: dict[int, Any], change: Callable[[Tensor, Tensor], Tensor]) -> dict[int, Any]:
        """The state of every parameter with ``change(value, parameter)`` for values of its shape."""
        weights = [weight for group in self.param_groups for weight in group["params"]]

        def changed(number: int, value: Any) -> Any:
            fits = isinstance(value, Tensor) and value.shape == weights[number].shape
            return change(value, weights[number]) if fits else value

        return {n: {name: changed(n, value) for name, value in each.items()} for n, each in state.items()}


@contextmanager
def gathered_state(optimizer: Any) -> Iterator[None]:
    """In this block, which all processes enter, any of them may ask for the optimiser's state (internal)."""
    if not isinstance(optimizer, ShardedAdamW):
        yield
        return
    optimizer.kept = optimizer.state_dict()
    try:
        yield
    finally:
        optimizer.kept = None
