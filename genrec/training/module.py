"""The model and its loss as one module: what an optimiser step runs.

Axes: B samples, T token columns, P positions that carry a loss, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from genrec.errors import ConfigError
from genrec.models.head import check_output, output_scale, output_weight
from genrec.training.losses import CodeLoss
from genrec.training.precision import attention_kernel


class TrainingModule(nn.Module):
    """``forward(batch of the collator) -> loss``, a scalar (internal).

    Being one module, data-parallel wrappers see the forward pass that the gradients belong to. The output
    layer is applied by the loss, to the positions and rows it needs only.
    """

    def __init__(self, model: nn.Module, loss: CodeLoss) -> None:
        super().__init__()
        check_output(model)
        self.model: Any = model
        self.loss = loss

    def forward(
        self,
        *,
        positions: Tensor,
        targets: Tensor,
        nodes: Tensor,
        level_counts: list[int],
        scale: float,
        **inputs: Tensor,
    ) -> Tensor:
        """Summed loss times ``scale``; the other arguments are those of :class:`genrec.training.collate.Collator`."""
        with attention_kernel():
            hidden_BTD = self.hidden(**inputs)
        hidden_PD = hidden_BTD.flatten(0, 1)[positions]
        weight_VD = output_weight(self.model)  # anew: data-parallel wrappers replace modules
        loss: Tensor = self.loss(hidden_PD, weight_VD, targets, nodes, level_counts) * scale
        return loss

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """What the output layer would be given, ``[B, T, D]``.

        Scaled as the model's own forward does (:func:`genrec.models.head.output_scale`). position_ids: of packed rows
        (:mod:`genrec.training.packing`).
        """
        model = self.model
        if not model.config.is_encoder_decoder:
            decoded = model.get_decoder()(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
            )
            return _tensor(decoded)
        encoded = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
        decoded = model.get_decoder()(
            input_ids=decoder_input_ids,
            encoder_hidden_states=_tensor(encoded),
            encoder_attention_mask=attention_mask,
            use_cache=False,
        )
        return _tensor(decoded) * output_scale(model)


class StartWeights:
    """The trained weights as they are now: a context in which the model has them again (internal).

    Nothing is copied for it but the weights themselves, once. What the block computes must not be mixed with a backward
    pass through what was computed before it: rows of item tokens are written into one table.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.start = {name: weight.detach().clone() for name, weight in trainable(model).items()}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The weights that training started from, for a while."""
        weights = trainable(self._model)
        now = {name: weight.data for name, weight in weights.items()}
        for name, weight in weights.items():
            self.start[name] = self.start[name].to(weight.device)
            weight.data = self.start[name]
        torch.clear_autocast_cache()
        try:
            yield
        finally:
            for name, weight in weights.items():
                weight.data = now[name]
            torch.clear_autocast_cache()


@contextmanager
def checkpointed(module: nn.Module, enabled: bool) -> Iterator[None]:
    """With gradient checkpointing in the Hugging Face model inside, for a while (internal).

    Raises ConfigError where there is none, or one that cannot.
    """
    if not enabled:
        yield
        return
    inner = next((each for each in module.modules() if isinstance(each, PreTrainedModel)), None)
    if inner is None or not inner.supports_gradient_checkpointing:
        raise ConfigError(f"gradient_checkpointing: {type(inner or module).__name__} does not support it")
    name = "activation" if hasattr(inner, "activation_checkpointing_enable") else "gradient"  # before 5.23
    # of the two ways of torch, the one that also finds the parameters of adapters
    getattr(inner, f"{name}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(inner, f"{name}_checkpointing_disable")()


def trainable(module: nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name; tied ones once."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def _tensor(output: Any) -> Tensor:
    found: Tensor = output.last_hidden_state
    return found
