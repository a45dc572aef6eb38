"""The network of the RQ-VAE.

Axes: B batch.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from genrec.item_tokenizers.quantizers.residual import ResidualQuantizer
from genrec.item_tokenizers.rqvae_settings import RqVaeSettings


class RqVaeModel(nn.Module):
    """Encoder, residual quantizer, decoder: ``[B, n_inputs] → [B, n_inputs]`` (internal)."""

    def __init__(self, n_inputs: int, settings: RqVaeSettings) -> None:
        super().__init__()
        widths = (n_inputs, *settings.hidden, settings.dim)
        self.encoder = _mlp(widths, settings.batch_norm)
        self.quantizer = ResidualQuantizer(
            settings.n_levels, settings.level_size, settings.dim, settings.quantizer_options()
        )
        self.decoder = _mlp(widths[::-1], settings.batch_norm)


def _mlp(widths: tuple[int, ...], batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        hidden = [nn.BatchNorm1d(n_out), nn.ReLU(inplace=True)] if batch_norm else [nn.ReLU(inplace=True)]
        layers += [nn.Linear(n_in, n_out), *hidden]
    return nn.Sequential(*layers[: -2 if batch_norm else -1])
