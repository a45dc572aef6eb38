"""Several samples in one row of a decoder-only model, none of which sees another.

The positions of every sample begin at 0. A Hugging Face model that is given such positions, and no attention mask,
attends within samples only: with ``sdpa``, ``eager`` and ``flex_attention`` through the mask that it makes of them.
(Its flash attention reads them in batches of one row only, so it is refused.)

Axes: B samples of a batch, T token columns, R packed rows of C columns, P positions that carry a loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from genrec.data.batching import pack
from genrec.errors import ConfigError
from genrec.training.dataset import Samples
from genrec.training.trainer import Batches

ATTENTION = ("sdpa", "eager", "flex_attention")


class PackedBatches:
    """The batches of a collator for decoder-only models, packed (internal)."""

    def __init__(self, collator: Batches) -> None:
        self._collator = collator

    def n_targets(self, samples: Samples) -> int:
        """Number of targets, whose losses are summed."""
        return self._collator.n_targets(samples)

    def __call__(self, samples: Samples) -> dict[str, Any]:
        """The batch of the collator, as :func:`packed` says."""
        return packed(self._collator(samples))


def packed(batch: dict[str, Any]) -> dict[str, Any]:
    """The same samples with the same targets, in fewer rows (internal).

    batch: input_ids int64 ``[B, T]``, padded on the right, and positions int64 ``[P]`` into its flattened cells. What
    stands in a row behind its last position carries no loss and is seen by nothing that does; it is left out.
    Returns input_ids and position_ids int64 ``[R, C]`` and positions int64 ``[P]`` into their cells; the rest as it is.
    """
    ids_BT, position_P = batch["input_ids"].numpy(), batch["positions"].numpy()
    n_rows, width = ids_BT.shape
    sample_P, column_P = np.divmod(position_P, width)
    length_B = np.ones(n_rows, np.int64)
    np.maximum.at(length_B, sample_P, column_P + 1)
    layout = pack(length_B)
    start_B = layout.row * layout.width + layout.first
    column_T = np.arange(width)
    real_BT = column_T < length_B[:, None]
    cell_BT = start_B[:, None] + column_T
    # a padding cell stands at position 0: a sample of its own
    ids, place = (np.zeros(layout.n_rows * layout.width, np.int64) for _ in range(2))
    ids[cell_BT[real_BT]] = ids_BT[real_BT]
    place[cell_BT[real_BT]] = np.broadcast_to(column_T, real_BT.shape)[real_BT]
    shape = layout.n_rows, layout.width
    return {
        **batch,
        "input_ids": torch.from_numpy(ids.reshape(shape)),
        "position_ids": torch.from_numpy(place.reshape(shape)),
        "positions": torch.from_numpy(start_B[sample_P] + column_P),
    }


def check_packs(is_encoder_decoder: bool) -> None:
    """Raise ConfigError for a kind of model whose samples cannot share a row (internal)."""
    if is_encoder_decoder:
        raise ConfigError(
            "packing: an encoder-decoder cannot have several samples in a row",
            hint="leave packing out; its batches are of like length, with little padding",
        )


def check_packing(model: Any) -> None:
    """Raise ConfigError for a model whose samples cannot share a row (internal)."""
    check_packs(model.config.is_encoder_decoder)
    used = model.config._attn_implementation
    if used not in ATTENTION:
        raise ConfigError(
            f"packing: expected attention by one of {', '.join(ATTENTION)}, the model has {used!r}",
            hint='model.set_attn_implementation("sdpa")',
        )
