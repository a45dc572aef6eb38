"""Settings of the RQ-VAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genrec.errors import ConfigError
from genrec.item_tokenizers.base import check_at_least
from genrec.item_tokenizers.collisions import CollisionPolicy, check_policy
from genrec.item_tokenizers.quantizers.residual import Gradient, ResidualOptions


@dataclass(frozen=True)
class RqVaeSettings:
    """Settings of :class:`genrec.item_tokenizers.rqvae.RqVae`; ConfigError for values out of range (stable).

    n_levels, level_size: L levels of K codes. dim: width of the bottleneck; hidden: widths between input and
    bottleneck (the decoder mirrors them); batch_norm: batch normalisation before each hidden ReLU.
    collisions: suffix | reassign | shared. suffix_limit: largest group the suffix level may hold.
    shared_codebook: one codebook for all levels, whose code k is then one token (unless a suffix follows).

    epochs, batch_size, learning_rate, weight_decay: AdamW; codebooks are not decayed. warmup_epochs: how many
    of the epochs come first and train the plain autoencoder. standardize: scale every dimension to unit
    variance (vectors are always centred). reduction: sum = errors are summed over dimensions and levels; mean
    = averaged over both. commitment: weight of the commitment loss (beta). gradient: how it passes the
    quantizer, straight-through | rotation. sinkhorn_epsilon: while training, assign the last level of each
    batch uniformly with this entropy weight (0 = nearest codeword); sinkhorn_iterations: of it.

    collaborative: weight of the loss that aligns the quantized bottleneck with collaborative vectors of the
    same width (0 = off). diversity: weight of the loss that draws codewords of one cluster together and
    others apart (0 = off); diversity_clusters: clusters per codebook; diversity_every: epochs between two
    clusterings.

    revive_every: every that many epochs move codes no item uses onto residuals drawn at random, during the
    first ``revive_share`` of the epochs (0 = never). device: auto = CUDA where there is one.
    """

    kind: Literal["rqvae"] = "rqvae"
    n_levels: int = 3
    level_size: int = 256
    dim: int = 32
    hidden: tuple[int, ...] = (512, 256, 128)
    batch_norm: bool = False
    collisions: CollisionPolicy = "suffix"
    suffix_limit: int = 256
    shared_codebook: bool = False
    epochs: int = 200
    warmup_epochs: int = 10
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    standardize: bool = True
    reduction: Literal["sum", "mean"] = "sum"
    commitment: float = 0.25
    gradient: Gradient = "straight-through"
    sinkhorn_epsilon: float = 0.0
    sinkhorn_iterations: int = 50
    collaborative: float = 0.0
    diversity: float = 0.0
    diversity_clusters: int = 10
    diversity_every: int = 1
    revive_every: int = 10
    revive_share: float = 0.5
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        check_policy(self.collisions)
        one = ("n_levels", "suffix_limit", "dim", "epochs", "batch_size", "diversity_every")
        zero = ("weight_decay", "commitment", "collaborative", "diversity", "revive_every", "warmup_epochs")
        least = dict.fromkeys(one, 1.0) | dict.fromkeys(zero, 0.0)
        check_at_least(self, {**least, "revive_share": 0.0, "level_size": 2, "diversity_clusters": 2})
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate: expected more than 0, got {self.learning_rate}")
        if self.warmup_epochs >= self.epochs:
            found = self.warmup_epochs
            raise ConfigError(f"warmup_epochs: expected less than epochs ({self.epochs}), got {found}")
        if self.revive_share > 1:
            raise ConfigError(f"revive_share: expected 0..1, got {self.revive_share}")
        if any(width < 1 for width in self.hidden):
            raise ConfigError(f"hidden: expected positive widths, got {list(self.hidden)}")
        if self.reduction not in ("sum", "mean"):
            raise ConfigError(f"reduction: expected sum or mean, got {self.reduction!r}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device: expected auto, cpu or cuda, got {self.device!r}")
        self.quantizer_options()
        self._check_regularisation()

    def _check_regularisation(self) -> None:
        if self.diversity > 0 and 2 * self.diversity_clusters > self.level_size:
            most = self.level_size // 2
            raise ConfigError(
                f"diversity_clusters: expected at most {most} (two codewords each), got {self.diversity_clusters}"
            )
        if self.sinkhorn_epsilon > 0 and self.batch_size < self.level_size:
            raise ConfigError(
                f"batch_size: expected at least level_size ({self.level_size}) for sinkhorn_epsilon above 0, "
                f"got {self.batch_size}",
                hint="with fewer items than codes a uniform assignment means nothing; four times level_size is good",
            )

    def quantizer_options(self) -> ResidualOptions:
        """The part of the settings that the quantizer needs (internal)."""
        return ResidualOptions(
            gradient=self.gradient,
            shared=self.shared_codebook,
            sinkhorn_epsilon=self.sinkhorn_epsilon,
            sinkhorn_iterations=self.sinkhorn_iterations,
        )
