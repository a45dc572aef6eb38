"""What layers that were held in 4 or 8 bits compute with, without the package that held them.

An adapter that was trained beside rounded weights belongs to these weights: beside the exact ones it answers otherwise.
The rounding is that of bitsandbytes with the settings of :mod:`genrec.models.pretrained`. Axes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from genrec.errors import ArtifactError

BLOCK = 64
"""Weights that share a scale, in 4 bits."""
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The values of NormalFloat4 (Dettmers et al. 2023, arXiv:2305.14314, appendix E)."""


def rounded_4bit(weight_OI: Tensor) -> Tensor:
    """Weights as NF4 has them, in the type they came in (internal).

    Blocks of 64 of the flattened weights (a last one of what is left), each divided by its largest magnitude; the
    nearest of the 16 values, times that magnitude.
    """
    flat = weight_OI.detach().float().flatten()
    n_blocks = -(-len(flat) // BLOCK)
    blocks = nn.functional.pad(flat, (0, n_blocks * BLOCK - len(flat))).view(n_blocks, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True)
    values = torch.tensor(NF4)
    nearest = torch.bucketize(blocks / _divisor(scale), (values[1:] + values[:-1]) / 2)
    return (values[nearest] * scale).flatten()[: len(flat)].view_as(weight_OI).to(weight_OI.dtype)


def rounded_8bit(weight_OI: Tensor) -> Tensor:
    """Weights as LLM.int8 has them (Dettmers et al. 2022, arXiv:2208.07339), in the type they came in (internal).

    Of each row, in float16: 127 steps up to the largest magnitude.
    """
    half = weight_OI.detach().half().float()
    scale = half.abs().amax(1, keepdim=True)
    steps = torch.round(half * (127.0 / _divisor(scale)))
    return (steps * (scale / 127.0)).to(weight_OI.dtype)


def _divisor(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)


ROUNDED = {"4bit": rounded_4bit, "8bit": rounded_8bit}


def rounded_layers(model: nn.Module) -> list[str]:
    """Names of the layers that bitsandbytes holds in few bits (internal)."""
    kinds = ("Linear4bit", "Linear8bitLt")
    return sorted(name for name, module in model.named_modules() if type(module).__name__ in kinds)


@torch.no_grad()
def round_layers(model: Any, weights: str, names: Iterable[str]) -> None:
    """Round the weights of these layers, in place (internal). Raises ArtifactError for a layer that is not there."""
    for name in names:
        try:
            layer = model.get_submodule(name)
        except AttributeError as error:
            raise ArtifactError(f"{name}: the pretrained model has no such layer, but its adapter needs it") from error
        layer.weight.copy_(ROUNDED[weights](layer.weight))
