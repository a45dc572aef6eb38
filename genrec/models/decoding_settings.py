"""How a model is decoded unless a request says otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import check_normalize
from genrec.errors import ConfigError


@dataclass(frozen=True)
class DecodingSettings:
    """How a model is decoded unless a request says otherwise; stored with it (``decoding.json``).

    n_beams: identifiers kept per step. normalize: None = as in training (``loss``). loss: the softmax of the
    training loss, over the vocabulary, the level's codes or the children. max_items: newest items of a history
    that enter the prompt (all items count as seen). batch_size: users searched at once.

    Raises ConfigError for values out of range. Stability: stable.
    """

    n_beams: int = 50
    normalize: Normalize | None = None
    loss: Normalize = "vocab"
    max_items: int = 20
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("n_beams", "max_items", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected a positive integer, got {getattr(self, name)}")
        if self.loss not in ("vocab", "level", "children"):
            raise ConfigError(f"loss: expected 'vocab', 'level' or 'children', got {self.loss!r}")
        if self.normalize is not None:
            check_normalize(self.normalize)

    def beams(self, n_beams: int | None, top_k: int | None) -> int:
        """Beams of a request: its own, or the model's, or as many as items are asked for if that is more (internal)."""
        return n_beams or max(self.n_beams, top_k or 0)

    def softmax(self, asked: Normalize | None) -> Normalize:
        """The softmax of a request: its own, or the model's. Raises ConfigError for none of ours (internal)."""
        return check_normalize(asked or self.normalize or self.loss)
