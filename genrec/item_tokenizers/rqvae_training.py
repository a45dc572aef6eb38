"""Training of the RQ-VAE: warm-up, k-means start, AdamW, revival of unused codes, regularisers.

Axes: N items, B batch, L levels, K codes of a level, D width of the bottleneck.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.optim import Optimizer

from genrec.item_tokenizers.rqvae_codebooks import encoded, revive, start_codebooks
from genrec.item_tokenizers.rqvae_losses import (
    CodewordClusters,
    cluster_codewords,
    collaborative_loss,
    diversity_loss,
    squared_error,
)
from genrec.item_tokenizers.rqvae_model import RqVaeModel
from genrec.item_tokenizers.rqvae_settings import RqVaeSettings
from genrec.progress import ProgressBar, epoch_line
from genrec.seeding import derive, torch_rng

Floats = npt.NDArray[np.float32]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model in eval mode, one row of numbers per epoch, and facts found on the way (internal)."""

    model: RqVaeModel
    history: list[dict[str, Any]]
    report: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Run:
    """What an epoch needs. ``h``: collaborative vectors or None. ``clusters``: of each level, refreshed in place."""

    model: RqVaeModel
    settings: RqVaeSettings
    x: torch.Tensor
    h: torch.Tensor | None
    optimizer: Optimizer
    seed: int
    order_rng: torch.Generator
    revive_rng: torch.Generator
    positives_rng: torch.Generator
    clusters: list[CodewordClusters] = field(default_factory=list)


def train(
    x_ND: Floats,
    settings: RqVaeSettings,
    *,
    seed: int,
    collaborative_ND: Floats | None = None,
    progress: bool = True,
) -> Trained:
    """Train on scaled item vectors float32 ``[N, width]``; see :class:`genrec.item_tokenizers.rqvae.RqVae` (internal).

    collaborative_ND: float32 ``[N, dim]``, needed when ``settings.collaborative`` is above 0. No global random
    state is touched. Rows of the history: epoch, loss, reconstruction (sum over dimensions, mean over
    items), floor (the same for predicting the mean), commitment, usage and perplexity per level (empty while
    warming up), revived (codes moved after this epoch); with the regularisers on also collaborative, and
    diversity per level.
    """
    run = _start(x_ND, settings, collaborative_ND, seed)
    floor = float((run.x - run.x.mean(dim=0)).square().sum(dim=1).mean())
    history: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    for epoch in ProgressBar(range(1, settings.epochs + 1), desc="rqvae", unit="epoch", show=progress):
        since = epoch - settings.warmup_epochs - 1  # epochs with a quantizer before this one
        if since < 0:
            row = _warm_up_epoch(run)
        else:
            if since == 0:
                start_codebooks(run.model, run.x, seed)
                report = _collaborative_start(run)
            if settings.diversity > 0 and since % settings.diversity_every == 0:
                _cluster(run, epoch)
            row = _epoch(run)
        row = {"epoch": epoch, **row, "floor": floor, "revived": 0}
        if _revives(epoch, settings):
            row["revived"] = revive(run.model, run.x, run.optimizer, run.revive_rng)
        history.append({k: _rounded(v) for k, v in row.items()})
        if epoch % max(1, settings.epochs // 10) == 0:
            _LOG.info("%s", epoch_line("rqvae", history[-1], settings.epochs))
    if history[-1]["reconstruction"] > 0.99 * floor:
        _LOG.warning("the RQ-VAE reconstructs no better than predicting the mean: its codes carry no information")
    return Trained(run.model.eval(), history, report)


def make_optimizer(model: RqVaeModel, settings: RqVaeSettings) -> Optimizer:
    """AdamW over networks and codebooks (internal)."""
    networks = [*model.encoder.parameters(), *model.decoder.parameters()]
    groups = [
        {"params": networks, "weight_decay": settings.weight_decay},
        # decay would pull codewords away from the residuals they stand for
        {"params": list(model.quantizer.parameters()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, foreach=True)


def _start(x_ND: Floats, settings: RqVaeSettings, collaborative_ND: Floats | None, seed: int) -> _Run:
    device = torch.device(settings.device if settings.device != "auto" else _best_device())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "rqvae", "weights"))
        model = RqVaeModel(x_ND.shape[1], settings)
    model.to(device)
    assert settings.collaborative == 0 or collaborative_ND is not None
    return _Run(
        model=model,
        settings=settings,
        x=torch.from_numpy(x_ND).to(device),
        h=None if collaborative_ND is None else torch.from_numpy(collaborative_ND).to(device),
        optimizer=make_optimizer(model, settings),
        seed=seed,
        order_rng=torch_rng(seed, "rqvae", "order"),
        revive_rng=torch_rng(seed, "rqvae", "revive"),
        positives_rng=torch_rng(seed, "rqvae", "positives"),
    )


def _warm_up_epoch(run: _Run) -> dict[str, Any]:
    """One epoch of the plain autoencoder."""
    total = torch.zeros((), device=run.x.device)
    for rows in _batches(run):
        batch = run.x.index_select(0, rows)
        reconstruction = squared_error(run.model.decoder(run.model.encoder(batch)), batch)
        _step(run.optimizer, reconstruction)
        total += reconstruction.detach() * (len(batch) / len(run.x))
    return {
        "loss": float(total),
        "reconstruction": float(total),
        "commitment": [],
        "usage": [],
        "perplexity": [],
    }


def _epoch(run: _Run) -> dict[str, Any]:
    """One epoch with the quantizer."""
    settings, n_items = run.settings, len(run.x)
    total: dict[str, torch.Tensor] = {}
    codes = []
    for rows in _batches(run):
        parts, codes_BL = _losses(run, rows)
        _step(run.optimizer, parts["loss"])
        codes.append(codes_BL)
        for name, part in parts.items():
            share = part.detach() * (len(rows) / n_items)
            total[name] = total[name] + share if name in total else share
    codes_LN = torch.cat(codes).T
    counts_LK = torch.stack([torch.bincount(codes_N, minlength=settings.level_size) for codes_N in codes_LN])
    share = counts_LK.double() / counts_LK.sum(dim=1, keepdim=True)
    entropy = -torch.special.xlogy(share, share).sum(dim=1)
    return {
        **{name: part.tolist() for name, part in total.items()},
        "usage": (counts_LK > 0).double().mean(dim=1).tolist(),
        "perplexity": entropy.exp().tolist(),
    }


def _losses(run: _Run, rows: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The loss of a batch and its parts (unweighted), and the codes ``[B, L]``."""
    settings, model = run.settings, run.model
    batch = run.x.index_select(0, rows)
    found = model.quantizer(model.encoder(batch))
    reconstruction = squared_error(model.decoder(found.quantized_BD), batch)
    mean = settings.reduction == "mean"
    per_input = 1 / batch.shape[1] if mean else 1.0
    per_code = 1 / (settings.n_levels * settings.dim) if mean else 1.0
    loss = (
        per_input * reconstruction
        + per_code * found.codebook_L.sum()
        + per_code * settings.commitment * found.commitment_L.sum()
    )
    parts = {"loss": loss, "reconstruction": reconstruction, "commitment": found.commitment_L}
    if settings.collaborative > 0:
        assert run.h is not None
        parts["collaborative"] = collaborative_loss(found.quantized_BD, run.h[rows])
        parts["loss"] = parts["loss"] + settings.collaborative * parts["collaborative"]
    if settings.diversity > 0:
        levels = []
        for level, (book_KD, clusters) in enumerate(zip(model.quantizer.codebooks, run.clusters, strict=True)):
            codes_B = found.codes_BL[:, level]
            levels.append(diversity_loss(book_KD, codes_B, clusters.draw(codes_B, run.positives_rng)))
        parts["diversity"] = torch.stack(levels)
        total = parts["diversity"].mean() if mean else parts["diversity"].sum()
        parts["loss"] = parts["loss"] + settings.diversity * total
    return parts, found.codes_BL


def _cluster(run: _Run, epoch: int) -> None:
    """Cluster the codewords of every level anew."""
    books = list(run.model.quantizer.codebooks)
    distinct = books[:1] if run.settings.shared_codebook else books
    found = [
        cluster_codewords(
            book, run.settings.diversity_clusters, seed=derive(run.seed, "rqvae", "clusters", epoch, level)
        )
        for level, book in enumerate(distinct)
    ]
    run.clusters[:] = found * (len(books) // len(distinct))


def _collaborative_start(run: _Run) -> dict[str, Any]:
    """How the collaborative loss starts: long vectors dominate it, short ones cannot be told apart."""
    if run.settings.collaborative == 0 or run.h is None:
        return {}
    n_rows = min(run.settings.batch_size, len(run.x))
    run.model.eval()
    with torch.no_grad():
        rows = torch.linspace(0, len(run.x) - 1, n_rows, device=run.x.device).long()
        quantized_BD = run.model.quantizer(encoded(run.model, run.x[rows])).quantized_BD
        first = float(collaborative_loss(quantized_BD, run.h[rows]))
    run.model.train()
    known = run.h.any(dim=1)
    found = {
        "known_share": float(known.double().mean()),
        "mean_norm": float(run.h[known].norm(dim=1).mean()) if bool(known.any()) else 0.0,
        "first_loss": first,
        "log_batch": math.log(n_rows),
    }
    _LOG.info("rqvae: collaborative vectors: %s", ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    if first > 2 * max(found["log_batch"], 1.0):
        _LOG.warning(
            "the collaborative loss starts at %.3g, far above log(batch) = %.3g: shorten the vectors (their mean "
            "norm is %.3g)",
            *(first, found["log_batch"], found["mean_norm"]),
        )
    return {"collaborative": {name: _rounded(value) for name, value in found.items()}}


def _batches(run: _Run) -> Iterator[torch.Tensor]:
    """Row numbers, batch by batch, in random order."""
    order = torch.randperm(len(run.x), generator=run.order_rng).to(run.x.device)
    for start in range(0, len(order), run.settings.batch_size):
        rows = order[start : start + run.settings.batch_size]
        if run.settings.batch_norm:
            run.model.train(len(rows) > 1)  # one row has no variance
        yield rows
    run.model.train()


def _step(optimizer: Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


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
