"""Training of the RQ-VAE: k-means start, AdamW, revival of unused codes.

Axes: N items, B batch, L levels, K codes of a level, D width of the bottleneck.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

from genrec.item_tokenizers.quantizers.kmeans import kmeans
from genrec.item_tokenizers.quantizers.residual import ResidualQuantizer, nearest_codeword
from genrec.seeding import derive, torch_rng

if TYPE_CHECKING:
    from genrec.item_tokenizers.rqvae import RqVaeSettings

Floats = npt.NDArray[np.float32]
_LOG = logging.getLogger(__name__)
# k-means starts from, and unused codes are looked for among, this many rows per code at most
_ROWS_PER_CODE = 64


class RqVaeModel(nn.Module):
    """Encoder, residual quantizer, decoder: ``[B, n_inputs] → [B, n_inputs]`` (internal)."""

    def __init__(self, n_inputs: int, settings: RqVaeSettings) -> None:
        super().__init__()
        widths = (n_inputs, *settings.hidden, settings.dim)
        self.encoder = _mlp(widths)
        self.quantizer = ResidualQuantizer(settings.n_levels, settings.level_size, settings.dim)
        self.decoder = _mlp(widths[::-1])


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model in eval mode, and one row of numbers per epoch (internal)."""

    model: RqVaeModel
    history: list[dict[str, Any]]


def train(x_ND: Floats, settings: RqVaeSettings, *, seed: int, progress: bool = True) -> Trained:
    """Train on scaled item vectors float32 ``[N, width]``; see :class:`genrec.item_tokenizers.rqvae.RqVae` (internal).

    No global random state is touched. Rows of the history: epoch, loss, reconstruction (sum over dimensions,
    mean over items), floor (the same for predicting the mean), commitment, usage and perplexity per level
    (empty while warming up), revived (codes moved after this epoch).
    """
    device = torch.device(settings.device if settings.device != "auto" else _best_device())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "rqvae", "weights"))
        model = RqVaeModel(x_ND.shape[1], settings)
    model.to(device)
    x = torch.from_numpy(x_ND).to(device)
    floor = float((x - x.mean(dim=0)).square().sum(dim=1).mean())
    order_rng, revive_rng = torch_rng(seed, "rqvae", "order"), torch_rng(seed, "rqvae", "revive")
    optimizer = _optimizer(model, settings)
    history: list[dict[str, Any]] = []
    for epoch in tqdm(range(1, settings.epochs + 1), desc="rqvae", unit="epoch", disable=None if progress else True):
        if epoch <= settings.warmup_epochs:
            row = _warm_up_epoch(model, x, settings.batch_size, optimizer, order_rng)
        else:
            if epoch == settings.warmup_epochs + 1:
                start_codebooks(model, x, seed)
            row = _epoch(model, x, settings, optimizer, order_rng)
        row = {"epoch": epoch, **row, "floor": floor, "revived": 0}
        if _revives(epoch, settings):
            row["revived"] = revive(model, x, optimizer, revive_rng)
        history.append({k: _rounded(v) for k, v in row.items()})
        if epoch % max(1, settings.epochs // 10) == 0:
            _LOG.info("rqvae %s", history[-1])
    if history[-1]["reconstruction"] > 0.99 * floor:
        _LOG.warning("the RQ-VAE reconstructs no better than predicting the mean: its codes carry no information")
    return Trained(model.eval(), history)


def start_codebooks(model: RqVaeModel, x: torch.Tensor, seed: int) -> None:
    """Set each codebook to the k-means centroids of the residuals the levels before it leave (internal)."""
    with torch.no_grad():
        residual = model.encoder(x).cpu().numpy()
        for level, book in enumerate(model.quantizer.codebooks):
            found = kmeans(
                residual, len(book), seed=derive(seed, "rqvae", "start", level), rows_per_code=_ROWS_PER_CODE
            )
            book.copy_(torch.from_numpy(found.centroids_KD))
            residual = residual - found.centroids_KD[found.labels]


def revive(model: RqVaeModel, x: torch.Tensor, optimizer: Optimizer, generator: torch.Generator) -> int:
    """Move every code that no item uses onto a residual drawn at random; returns how many moved (internal).

    Of a catalog of more than 64 items per code, a random sample of that size is looked at. Levels go in
    order, because a moved code changes the residuals of the levels after it. The optimizer forgets its
    moments for the moved rows.
    """
    n_moved = 0
    with torch.no_grad():
        n_rows = min(len(x), _ROWS_PER_CODE * max(len(book) for book in model.quantizer.codebooks))
        rows = torch.randperm(len(x), generator=generator)[:n_rows].to(x.device)
        residual = model.encoder(x[rows])
        for book in model.quantizer.codebooks:
            used = torch.bincount(nearest_codeword(residual, book), minlength=len(book)) > 0
            dead = torch.nonzero(~used)[:, 0]
            if len(dead):
                picks = torch.randint(len(residual), (len(dead),), generator=generator).to(x.device)
                book[dead] = residual[picks]
                for moment in optimizer.state[book].values():
                    if moment.shape == book.shape:
                        moment[dead] = 0
                n_moved += len(dead)
            residual = residual - book[nearest_codeword(residual, book)]
    return n_moved


def _warm_up_epoch(
    model: RqVaeModel, x: torch.Tensor, batch_size: int, optimizer: Optimizer, generator: torch.Generator
) -> dict[str, Any]:
    """One epoch of the plain autoencoder."""
    total = torch.zeros((), device=x.device)
    for batch in _batches(x, batch_size, generator):
        reconstruction = _sum_square(batch - model.decoder(model.encoder(batch)))
        _step(optimizer, reconstruction)
        total += reconstruction.detach() * (len(batch) / len(x))
    return {
        "loss": float(total),
        "reconstruction": float(total),
        "commitment": [],
        "usage": [],
        "perplexity": [],
    }


def _epoch(
    model: RqVaeModel,
    x: torch.Tensor,
    settings: RqVaeSettings,
    optimizer: Optimizer,
    generator: torch.Generator,
) -> dict[str, Any]:
    counts_LK = torch.zeros(settings.n_levels, settings.level_size, dtype=torch.int64, device=x.device)
    total = torch.zeros(2 + settings.n_levels, device=x.device)  # loss, reconstruction, commitment per level
    for batch in _batches(x, settings.batch_size, generator):
        found = model.quantizer(model.encoder(batch))
        reconstruction = _sum_square(batch - model.decoder(found.quantized_BD))
        loss = reconstruction + found.codebook_L.sum() + settings.commitment * found.commitment_L.sum()
        _step(optimizer, loss)
        parts = torch.cat([torch.stack([loss, reconstruction]), found.commitment_L])
        total += parts.detach() * (len(batch) / len(x))
        for level in range(settings.n_levels):
            counts_LK[level] += torch.bincount(found.codes_BL[:, level], minlength=settings.level_size)
    share = counts_LK.double() / counts_LK.sum(dim=1, keepdim=True)
    entropy = -torch.special.xlogy(share, share).sum(dim=1)
    return {
        "loss": float(total[0]),
        "reconstruction": float(total[1]),
        "commitment": total[2:].tolist(),
        "usage": (counts_LK > 0).double().mean(dim=1).tolist(),
        "perplexity": entropy.exp().tolist(),
    }


def _batches(x: torch.Tensor, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    order = torch.randperm(len(x), generator=generator).to(x.device)
    for start in range(0, len(x), batch_size):
        yield x[order[start : start + batch_size]]


def _step(optimizer: Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _sum_square(gap_BD: torch.Tensor) -> torch.Tensor:
    return gap_BD.square().sum(dim=1).mean()


def _optimizer(model: RqVaeModel, settings: RqVaeSettings) -> Optimizer:
    networks = [*model.encoder.parameters(), *model.decoder.parameters()]
    groups = [
        {"params": networks, "weight_decay": settings.weight_decay},
        # decay would pull codewords away from the residuals they stand for
        {"params": list(model.quantizer.parameters()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, foreach=True)


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _revives(epoch: int, settings: RqVaeSettings) -> bool:
    every = settings.revive_every
    return (
        every > 0 and epoch % every == 0 and settings.warmup_epochs < epoch <= settings.revive_share * settings.epochs
    )


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
