"""From hidden states to log-probabilities of the codes of one level.

Axes: B batch, W beams, D width, V vocabulary, S symbols of a level.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import StepScores
from genrec.errors import ConfigError, FingerprintMismatch
from genrec.vocab.token_map import TokenMap

LOGITS_AT_ONCE = {"cpu": 2**17}
LEAST_ROWS = 2048


def output_scale(model: Any) -> float:
    """What hidden states are multiplied by before the output layer: D ** -0.5 in a T5 that says so, else 1.

    T5 1.1 and mT5 do not scale, although their configs call the layer tied (internal).
    """
    config = model.config
    return float(config.d_model**-0.5) if getattr(config, "scale_decoder_outputs", False) else 1.0


def output_weight(model: Any) -> Tensor:
    """Rows of the output layer, ``[V, D]``: what the loss and the search multiply hidden states with (internal).

    Where rows are trained apart from the layer, they are those, with their gradients.
    """
    layer = model.get_output_embeddings()
    if hasattr(layer, "get_merged_weights"):  # what PEFT wraps a table in: its own weight has the rows of the base
        trained: Tensor = layer.get_merged_weights(layer.active_adapters)
        return trained
    weight: Tensor = layer.weight
    return weight


def check_output(model: Any) -> None:
    """Raise ConfigError where the output layer is more than its rows: a bias, or an adapter on it (internal)."""
    layer = model.get_output_embeddings()
    if getattr(layer, "bias", None) is not None:
        raise ConfigError("the model's output layer has a bias, which is not supported")
    adapters = sorted({name.split(".")[0] for name, _ in layer.named_parameters() if name.startswith("lora_")})
    if adapters:
        raise ConfigError(
            f"the model's output layer carries an adapter ({', '.join(adapters)}), which would be ignored",
            hint="leave it out of target_modules; its rows are trained by trainable_token_indices or modules_to_save",
        )


class OutputHead:
    """The rows of a model's output layer that belong to each level.

    Raises FingerprintMismatch if the model has too few rows or was built for another vocabulary. Internal.
    """

    def __init__(self, model: nn.Module, token_map: TokenMap) -> None:
        check_output(model)
        n_rows = len(output_weight(model))
        if n_rows < token_map.vocab_size:
            raise FingerprintMismatch(
                f"expected {token_map.vocab_size} output rows or more (the tokens of the vocabulary), "
                f"the model has {n_rows}"
            )
        bound = getattr(model.config, "genrec_vocabulary", None)
        if bound is not None and bound != token_map.fingerprint:
            raise FingerprintMismatch(
                f"the model was built for vocabulary {bound[:8]}, got {token_map.fingerprint[:8]}"
            )
        self._model: Any = model
        self._token_map = token_map
        self._scale = output_scale(model)

    @property
    def n_steps(self) -> int:
        """Number of scored levels: L, or L + 1 when identifiers are ragged."""
        return self._token_map.n_tokens_per_item

    def tokens(self, level: int, codes: Tensor) -> Tensor:
        """Token ids of codes of a level."""
        return codes + self._token_map.level_offset[level]

    def scores(self, hidden_BWD: Tensor, level: int, normalize: Normalize) -> StepScores:
        """What :meth:`genrec.decoding.scorer.Scorer.step` promises.

        Only "vocab" computes all V rows; the others need the S rows of the level.
        """
        hidden = hidden_BWD * self._scale if self._scale != 1.0 else hidden_BWD
        weight = output_weight(self._model)
        if normalize != "vocab":
            return StepScores(F.linear(hidden, self._take(weight, level, dim=0)).float())
        n_rows = _rows_at_once(hidden)
        if len(weight) <= n_rows:
            logits = F.linear(hidden, weight).float()
            return StepScores(self._take(logits, level, dim=-1), logits.logsumexp(-1))
        parts = [F.linear(hidden, rows).float().logsumexp(-1) for rows in torch.split(weight, n_rows)]
        values = F.linear(hidden, self._take(weight, level, dim=0)).float()
        return StepScores(values, torch.stack(parts, -1).logsumexp(-1))

    def _take(self, values: Tensor, level: int, dim: int) -> Tensor:
        """The codes of the level, and the end when ragged, along one axis."""
        tokens = self._token_map
        parts = []
        if level < tokens.n_levels:
            parts.append(values.narrow(dim, tokens.level_offset[level], tokens.level_sizes[level]))
        if tokens.ragged:
            parts.append(values.narrow(dim, tokens.eos_id, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _rows_at_once(hidden_BWD: Tensor) -> int:
    """Rows of the output layer per piece, so that its logits stay in a cache and take no memory of B·W·V."""
    n_logits = LOGITS_AT_ONCE.get(hidden_BWD.device.type, 2**26)
    return max(LEAST_ROWS, n_logits // max(hidden_BWD.shape[0] * hidden_BWD.shape[1], 1))
