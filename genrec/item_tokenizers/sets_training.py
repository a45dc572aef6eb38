"""The autoencoder behind the semantic slots of set identifiers, and its training.

Axes: N items, B batch, n semantic slots, D width of a slot, X width of the item vectors, A autoencoders.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from genrec.progress import ProgressBar, epoch_line
from genrec.seeding import derive, torch_rng

if TYPE_CHECKING:
    from genrec.item_tokenizers.sets import SetRecSettings

Floats = npt.NDArray[np.float32]
_LOG = logging.getLogger(__name__)


class SlotEncoder(nn.Module):
    """From item vectors as they are to the semantic slots in turn: ``[B, X] → [B, n, D]`` (experimental).

    The shift and scale of the inputs are buffers, so a model that goes on training this module needs nothing beside it.
    ``networks``: one perceptron whose output is cut into n pieces, or one per slot.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, n_inputs: int, settings: SetRecSettings) -> None:
        super().__init__()
        self.n_slots, self.dim = settings.n_semantic, settings.dim
        self.register_buffer("mean", torch.zeros(n_inputs))
        self.register_buffer("scale", torch.ones(n_inputs))
        n_networks, n_outputs = settings.networks
        self.networks = nn.ModuleList(_mlp((n_inputs, *settings.hidden, n_outputs)) for _ in range(n_networks))

    def scaled(self, x_BX: torch.Tensor) -> torch.Tensor:
        """The vectors as the networks see and reconstruct them, ``[B, X]``."""
        return (x_BX - self.mean) / self.scale

    def forward(self, x_BX: torch.Tensor) -> torch.Tensor:
        """Semantic slots ``[B, n, D]``."""
        scaled_BX = self.scaled(x_BX)
        pieces = torch.cat([network(scaled_BX) for network in self.networks], dim=1)
        return pieces.reshape(len(x_BX), self.n_slots, self.dim)


class SlotAutoencoder(nn.Module):
    """Encoder and mirrored decoder; ``loss`` is the reconstruction term of SETRec's objective (experimental)."""

    def __init__(self, n_inputs: int, settings: SetRecSettings) -> None:
        super().__init__()
        self.encoder = SlotEncoder(n_inputs, settings)
        n_networks, n_outputs = settings.networks
        widths = (n_outputs, *settings.hidden[::-1], n_inputs)
        self.decoders = nn.ModuleList(_mlp(widths) for _ in range(n_networks))

    def decode(self, slots_BnD: torch.Tensor) -> torch.Tensor:
        """Reconstructions of the *scaled* vectors, one per decoder: ``[A, B, X]`` with A = 1 or n."""
        pieces = slots_BnD.flatten(1).chunk(len(self.decoders), dim=1)
        return torch.stack([decoder(piece) for decoder, piece in zip(self.decoders, pieces, strict=True)])

    def loss(self, x_BX: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the reconstructions, over decoders, items and dimensions of the scaled vectors."""
        found = self.decode(self.encoder(x_BX))
        return F.mse_loss(found, self.encoder.scaled(x_BX).expand_as(found))


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model in eval mode, and one row of numbers per epoch (internal)."""

    model: SlotAutoencoder
    history: list[dict[str, Any]]


def make_model(n_inputs: int, settings: SetRecSettings, seed: int) -> SlotAutoencoder:
    """An untrained autoencoder with Xavier-normal weights and zero biases (internal)."""
    generator = torch_rng(seed, "setrec", "weights")
    with torch.random.fork_rng(devices=[]):  # torch's own start of a layer draws from the global generator
        model = SlotAutoencoder(n_inputs, settings)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    return model


def train(
    x_NX: Floats, mean_X: Floats, scale_X: Floats, settings: SetRecSettings, *, seed: int, progress: bool = True
) -> Trained:
    """Train on item vectors float32 ``[N, X]``; see :class:`genrec.item_tokenizers.sets.SetRec` (internal).

    mean_X, scale_X: what the encoder subtracts and divides by. Rows of the history: epoch; reconstruction (mean squared
    error a dimension while training); floor (the same for predicting the mean). No global random state is touched.
    """
    device = torch.device(settings.device if settings.device != "auto" else _best_device())
    model = make_model(x_NX.shape[1], settings, seed)
    model.encoder.mean.copy_(torch.from_numpy(mean_X))
    model.encoder.scale.copy_(torch.from_numpy(scale_X))
    model.to(device)
    x = torch.from_numpy(x_NX).to(device)
    floor = float(model.encoder.scaled(x).var(dim=0, correction=0).mean())
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, foreach=True)
    order_rng = torch_rng(derive(seed, "setrec"), "order")
    history: list[dict[str, Any]] = []
    for epoch in ProgressBar(range(1, settings.epochs + 1), desc="setrec", unit="epoch", show=progress):
        found = _epoch(model, x, settings.batch_size, optimizer, order_rng)
        row = {"epoch": epoch, "reconstruction": found, "floor": floor}
        history.append({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()})
        if epoch % max(1, settings.epochs // 10) == 0:
            _LOG.info("%s", epoch_line("setrec", history[-1], settings.epochs))
    if floor > 0 and history[-1]["reconstruction"] > 0.99 * floor:
        _LOG.warning("setrec reconstructs no better than the mean: its semantic slots carry no information")
    return Trained(model.eval(), history)


def _epoch(
    model: SlotAutoencoder, x: torch.Tensor, batch_size: int, optimizer: torch.optim.Optimizer, order: torch.Generator
) -> float:
    total = torch.zeros((), device=x.device)
    rows_N = torch.randperm(len(x), generator=order).to(x.device)
    for start in range(0, len(x), batch_size):
        rows = rows_N[start : start + batch_size]
        loss = model.loss(x[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach() * (len(rows) / len(x))
    return float(total)


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
