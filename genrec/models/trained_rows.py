"""The rows of new tokens beside a frozen table, trained without a new table in every step.

PEFT keeps them as a small matrix, and copies the whole table to put them in for every forward pass, once more where the
output layer has one too. Here there is one copy, made once, into which the rows are written. Axes: V rows of the table,
R trained rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn


class _Placed(torch.autograd.Function):
    """The table with the trained rows in their place; its gradient at these rows is theirs.

    ::

        forward:   table[first : first + R] = rows, in place;  the table
        backward:  gradient of rows = gradient of the table at these rows
    """

    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, table_VD: Tensor, first: int) -> Tensor:
        ctx.first, ctx.shape, ctx.dtype = first, len(rows_RD), rows_RD.dtype
        table_VD.data[first : first + len(rows_RD)].copy_(rows_RD)
        return table_VD.data

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        grad_VD: Tensor = grads[0]
        return grad_VD[ctx.first : ctx.first + ctx.shape].to(ctx.dtype), None, None


class RowsInPlace(TrainableTokensLayer):
    """PEFT's layer of trained rows, for one run of consecutive tokens of a frozen table (internal).

    Same values, gradients and files. The table of the wrapped layer stays as it is.
    """

    def get_merged_weights(self, active_adapters: Sequence[str]) -> Tensor:
        """The whole table, ``[V, D]``, which gives the trained rows their gradient."""
        table: Any = self.base_layer.weight
        place: Any = _Placed.apply
        if active_adapters:
            table = _copy_of(table, (self.tied_adapter or self).__dict__.setdefault("_own_table", {}))
        for name in active_adapters:
            table = place(self.trainable_tokens_delta[name], table, self.token_indices[name][0])
        found: Tensor = table
        return found


def _copy_of(weight_VD: Tensor, kept: dict[str, Tensor]) -> Tensor:
    """The copy of a frozen table, made anew where the table has moved to another device or precision."""
    found = kept.get("table")
    if found is None or (found.device, found.dtype) != (weight_VD.device, weight_VD.dtype):
        with torch.inference_mode(False), torch.no_grad():
            found = kept["table"] = weight_VD.detach().clone()
    return found


def place_rows(model: nn.Module) -> None:
    """Let the layers of trained rows of a PEFT model work in place, where their tokens are one run (internal)."""
    for module in model.modules():
        if type(module) is TrainableTokensLayer and not module.base_layer.weight.requires_grad:
            runs = module.token_indices.values()
            if all(list(run) == list(range(run[0], run[0] + len(run))) for run in runs):
                module.__class__ = RowsInPlace
