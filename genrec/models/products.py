"""Linear layers and norms of Hugging Face modules in as few kernels as possible.

A step of a small model on a CPU is mostly the cost of calling kernels: a linear layer on three axes is a dozen calls,
a matrix product on two is one.

Axes: R rows, D width of the input, I width of the output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Product:
    """A linear layer as a matrix product on two axes (internal).

    A layer that is more than its weight and bias (an adapter, a hook) is called.
    """

    def __init__(self, layer: Any) -> None:
        plain = type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks
        self._layer, self._bias_I = layer, layer.bias if plain else None
        self._weight_DI: Tensor | None = layer.weight.t() if plain else None

    def __call__(self, x_RD: Tensor) -> Tensor:
        """The output ``[R, I]``."""
        if self._weight_DI is None:
            return self._layer(x_RD)  # type: ignore[no-any-return]
        if self._bias_I is not None:
            return torch.addmm(self._bias_I, x_RD, self._weight_DI)
        return torch.mm(x_RD, self._weight_DI)

    def added_to(self, rest_RI: Tensor, x_RD: Tensor) -> Tensor:
        """The output plus ``rest_RI``, in place where that is possible."""
        if self._weight_DI is None or self._bias_I is not None:
            return rest_RI + self(x_RD)
        return rest_RI.addmm_(x_RD, self._weight_DI)


def rms_norm(layer: Any, x: Tensor) -> Tensor:
    """What a root-mean-square norm of Hugging Face returns, in few kernels where it is a plain one."""
    # the layer's own attribute: a wrapper around it (an adapter) only passes it on
    epsilon = vars(layer).get("variance_epsilon")
    if epsilon is None or layer.weight.dtype != x.dtype:
        return layer(x)  # type: ignore[no-any-return]
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return F.rms_norm(x, x.shape[-1:], layer.weight, epsilon)
    # torch's own is a dozen kernels on a CPU
    scale = torch.linalg.vecdot(x, x).mul_(1 / x.shape[-1]).add_(epsilon).rsqrt_()
    return (x * scale[..., None]).mul_(layer.weight)  # type: ignore[no-any-return]
