"""The loss of a training on new items: cross-entropy and, on samples of old items, distance to the model before.

Axes: P positions that carry a loss, C children of a node, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.models.backbone import evaluating
from genrec.models.head import output_weight
from genrec.training.alignment import AlignmentCollator
from genrec.training.continual_rows import MixedRows
from genrec.training.losses import CodeLoss
from genrec.training.module import StartWeights, TrainingModule
from genrec.training.precision import attention_kernel


class ContinualCollator:
    """Model inputs of mixed samples (internal).

    of_old: makes those of the old items' samples once more, in an index without new items; None = not wanted.
    """

    def __init__(self, collator: AlignmentCollator) -> None:
        self._collator = collator
        self.of_old: AlignmentCollator | None = None

    def n_targets(self, batch: MixedRows) -> int:
        """Number of tokens that carry a loss."""
        return self._collator.n_targets(batch.rows)

    def __call__(self, batch: MixedRows) -> dict[str, Any]:
        """The arguments of :class:`ContinualModule` but ``scale``."""
        made = self._collator(batch.rows)
        if self.of_old is None or not batch.old.any():
            return made
        return {**made, "distil": self.of_old(batch.rows.take(np.flatnonzero(batch.old)))}


class OldCodes(CodeLoss):
    """Log-probabilities of the codes that lead to old items (internal)."""

    def of_children(self, hidden_PD: Tensor, weight_VD: Tensor, nodes: Tensor, level_counts: list[int]) -> list[Tensor]:
        """For each level, float32 ``[P, C]``: normalised over the children of the node, -inf beside them."""
        found, start = [], 0
        for level, count in enumerate(level_counts[: len(self.symbols)]):  # behind them are words
            part = slice(start, start := start + count)
            symbols_S = cast(Tensor, getattr(self, f"symbols_{level}"))
            child_PC = self._children(level, nodes[part])
            logits_PC = (hidden_PD[part] @ weight_VD[symbols_S].T).float().gather(1, child_PC.clamp(min=0))
            found.append(F.log_softmax(logits_PC.masked_fill(child_PC < 0, float("-inf")), dim=1))
        return found


class ContinualModule(TrainingModule):
    """``forward(batch, scale) -> loss``: the cross-entropy, and the distance to the model before (internal)."""

    def __init__(self, model: Any, loss: CodeLoss) -> None:
        super().__init__(model, loss)
        self.old_codes: OldCodes | None = None
        self._reference: StartWeights | None = None
        self._weight = 0.0

    def keep(self, old_codes: OldCodes, weight: float) -> None:
        """From now on, the distance to the model as it is now counts with this weight."""
        self.old_codes, self._weight, self._reference = old_codes, weight, StartWeights(self.model)

    def forward(
        self,
        *,
        positions: Tensor,
        targets: Tensor,
        nodes: Tensor,
        level_counts: list[int],
        scale: float,
        distil: Any = None,
        **inputs: Tensor,
    ) -> Tensor:
        """Summed loss times ``scale``."""
        batch: dict[str, Any] = {"positions": positions, "targets": targets, "nodes": nodes, **inputs}
        batch |= {"level_counts": level_counts, "scale": scale}
        if distil is None:
            return super().forward(**batch)
        assert self._reference is not None
        # before any pass with gradients: see StartWeights
        with self._reference(), torch.no_grad(), evaluating(self.model):
            before = self._of_old(**distil)
        loss = super().forward(**batch)
        for old_PC, now_PC in zip(before, self._of_old(**distil), strict=True):
            # no share of what is impossible before and now, whose difference is no number
            gap_PC = torch.where(old_PC.isfinite(), old_PC - now_PC, 0.0)
            loss = loss + self._weight * scale * (old_PC.exp() * gap_PC).sum()
        return loss

    def _of_old(
        self, positions: Tensor, targets: Tensor, nodes: Tensor, level_counts: list[int], **inputs: Tensor
    ) -> list[Tensor]:
        assert self.old_codes is not None
        with attention_kernel():
            hidden_PD = self.hidden(**inputs).flatten(0, 1)[positions]
        return self.old_codes.of_children(hidden_PD, output_weight(self.model), nodes, level_counts)
