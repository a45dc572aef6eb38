"""Training of the FSQ autoencoder: mean absolute error, Adam.

Axes: N items, B batch, L codes of an item, K codes, D width of the vectors, H width of the decoder.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from genrec.item_tokenizers.quantizers.scalar import ScalarQuantizer
from genrec.progress import ProgressBar, epoch_line
from genrec.seeding import derive, torch_rng

if TYPE_CHECKING:
    from genrec.item_tokenizers.fsq import FsqSettings

Floats = npt.NDArray[np.float32]
_LOG = logging.getLogger(__name__)


class FsqDecoder(nn.Module):
    """From the quantized pieces of an item back to its vector: ``[B, L, H] → [B, D]`` (internal).

    Learned positions, pre-norm transformer layers that see all pieces, and a perceptron on the last position.
    """

    def __init__(self, n_outputs: int, settings: FsqSettings) -> None:
        super().__init__()
        self.position_LH = nn.Parameter(torch.empty(settings.n_tokens, settings.dim))
        self.dropout = nn.Dropout(settings.input_dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                settings.dim, settings.n_heads, 4 * settings.dim, settings.dropout, batch_first=True, norm_first=True
            )
            for _ in range(settings.n_layers)
        )
        self.head = nn.Sequential(
            nn.Linear(settings.dim, settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, n_outputs)
        )
        nn.init.normal_(self.position_LH, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, pieces_BLH: torch.Tensor) -> torch.Tensor:
        """Reconstructions ``[B, D]``."""
        h_BLH = self.dropout(pieces_BLH + self.position_LH)
        for layer in self.layers:
            h_BLH = layer(h_BLH)
        out: torch.Tensor = self.head(h_BLH[:, -1])
        return out


class FsqModel(nn.Module):
    """Quantizer and decoder: ``[B, D] → [B, D]`` (internal)."""

    def __init__(self, width: int, settings: FsqSettings) -> None:
        super().__init__()
        self.quantizer = ScalarQuantizer(settings.levels, settings.n_tokens, width, settings.dim)
        self.decoder = FsqDecoder(width, settings)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model in eval mode, and one row of numbers per epoch (internal)."""

    model: FsqModel
    history: list[dict[str, Any]]


def train(x_ND: Floats, settings: FsqSettings, *, seed: int, progress: bool = True) -> Trained:
    """Train on scaled item vectors float32 ``[N, D]``; see :class:`genrec.item_tokenizers.fsq.Fsq` (internal).

    No global random state is touched. Rows of the history: epoch; loss (mean absolute error, with dropout); floor
    (the same for predicting the mean); usage and perplexity of the K codes, all positions together; ends (share of
    the scalars in the first or last of their levels: near 1 the projection has saturated, near 0 it is too small).
    """
    device = torch.device(settings.device if settings.device != "auto" else _best_device())
    cuda = [device.index or 0] if device.type == "cuda" else []
    order_rng = torch_rng(seed, "fsq", "order")
    history: list[dict[str, Any]] = []
    with torch.random.fork_rng(devices=cuda):  # the weights' start and dropout draw from the global generator
        torch.manual_seed(derive(seed, "fsq", "weights"))
        model = FsqModel(x_ND.shape[1], settings).to(device)
        x = torch.from_numpy(x_ND).to(device)
        floor = float((x - x.mean(dim=0)).abs().mean())
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, foreach=True)
        for epoch in ProgressBar(range(1, settings.epochs + 1), desc="fsq", unit="epoch", show=progress):
            row = {"epoch": epoch, **_epoch(model, x, settings.batch_size, optimizer, order_rng), "floor": floor}
            history.append({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()})
            if epoch % max(1, settings.epochs // 10) == 0:
                _LOG.info("%s", epoch_line("fsq", history[-1], settings.epochs))
    if history[-1]["loss"] > 0.99 * floor:
        _LOG.warning("the FSQ autoencoder reconstructs no better than the mean: its codes carry no information")
    return Trained(model.eval(), history)


def _epoch(
    model: FsqModel, x: torch.Tensor, batch_size: int, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> dict[str, Any]:
    grid = model.quantizer.grid
    counts_K = torch.zeros(grid.n_codes, dtype=torch.int64, device=x.device)
    total = torch.zeros((), device=x.device)
    order = torch.randperm(len(x), generator=generator).to(x.device)
    for start in range(0, len(x), batch_size):
        rows = order[start : start + batch_size]
        found = model.quantizer(x[rows])
        loss = F.l1_loss(model.decoder(found.quantized_BLH), x[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach() * (len(rows) / len(x))
        counts_K += torch.bincount(found.codes_BL.flatten(), minlength=grid.n_codes)
    share = counts_K.double() / counts_K.sum()
    digits_KC = torch.arange(grid.n_codes, device=x.device)[:, None] // grid.basis_C % grid.levels_C
    at_end_K = ((digits_KC == 0) | (digits_KC == grid.levels_C - 1)).double().mean(dim=1)
    return {
        "loss": float(total),
        "usage": float((counts_K > 0).double().mean()),
        "perplexity": float((-torch.special.xlogy(share, share).sum()).exp()),
        "ends": float((share * at_end_K).sum()),
    }


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
