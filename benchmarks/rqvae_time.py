"""CPU time until the RQ-VAE describes the vectors as well as the usual public recipe does at its best.

Both see the same standardised vectors, architecture, batch size and learning rate, one thread; every fifth epoch the
whole catalog is encoded, outside the clock. Public recipe: codebooks from k-means on the outputs of the untrained
encoder, no warm-up, no revival (:class:`rqvae_step.Plain`). Ours: the recipe tokenizers/rqvae.yaml.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from real_data import bring_up_to_date
from rqvae_step import CODES, LEVELS, Plain
from run import Measured, Options
from torch import Tensor

from genrec.embeddings.base import ItemEmbeddings
from genrec.item_tokenizers import rqvae_training
from genrec.item_tokenizers.base import Scaling
from genrec.item_tokenizers.rqvae_codebooks import revive, start_codebooks
from genrec.item_tokenizers.rqvae_settings import RqVaeSettings

EPOCHS, EVERY, BATCH = 200, 5, 1024
Curve = list[dict[str, float]]


def time_to_error(options: Options) -> Measured:
    """Ours over the public recipe: CPU seconds to the least error of the public one, and to its usage there."""
    if options.data is None:
        sys.exit("this needs real data: give --data FOLDER or set GENREC_DATA")
    run = bring_up_to_date(options.data, "beauty.yaml", "amazon-beauty-2014", "table/beauty", "seed=0", until="embed")
    given = ItemEmbeddings.load(run / "embeddings").vectors
    x = torch.from_numpy(Scaling.fit(given, standardize=True).apply(given))
    torch.set_num_threads(1)
    curves = {"public": _public(x), "ours": _ours(x)}
    end = min(curves["public"], key=lambda row: row["error_left"])
    reached = {name: _first(curve, end) for name, curve in curves.items()}
    value = None if None in reached.values() else reached["ours"] / reached["public"]  # type: ignore[operator]
    spread = {"target": end, "cpu_seconds_to_target": reached, "curves": curves}
    return Measured(value, spread=spread, budget=f"Beauty, {x.shape[1]} wide, {LEVELS} x {CODES}, {EPOCHS} epochs")


def _first(curve: Curve, target: dict[str, float]) -> float | None:
    """CPU seconds at the first point of a curve that is as good as the target, in error and in usage."""
    for row in curve:
        if row["error_left"] <= target["error_left"] and row["least_usage"] >= target["least_usage"]:
            return row["cpu_seconds"]
    return None


def _follow(x: Tensor, epoch: Callable[[int], object], look: Callable[[], tuple[Tensor, Tensor]]) -> Curve:
    """Train, and look at the whole catalog every few epochs; ``look`` gives reconstruction and codes ``[N, L]``."""
    curve, spent = [], 0.0
    floor = float((x - x.mean(dim=0)).square().sum())
    for number in range(1, EPOCHS + 1):
        start = time.process_time()
        epoch(number)
        spent += time.process_time() - start
        if number % EVERY == 0:
            with torch.no_grad():
                back, codes = look()
                error = float((x - back).square().sum()) / floor
            used = [len(torch.unique(level)) / CODES for level in codes.T]
            curve.append({"epoch": number, "cpu_seconds": spent, "error_left": error, "least_usage": min(used)})
    return curve


def _public(x: Tensor) -> Curve:
    torch.manual_seed(0)
    model = Plain((x.shape[1], 512, 256, 128, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)

    def epoch(number: int) -> None:
        if number == 1:
            _start_public(model, x[:BATCH])
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = model(x[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def look() -> tuple[Tensor, Tensor]:
        total, codes = model.quantize(model.encoder(x))
        return model.decoder(total), codes

    return _follow(x, epoch, look)


def _start_public(model: Plain, batch: Tensor) -> None:
    """k-means on the first batch, level by level."""
    from sklearn.cluster import KMeans

    with torch.no_grad():
        left = model.encoder(batch)
        for level, book in enumerate(model.books):
            found = KMeans(CODES, n_init=1, random_state=level).fit(left.numpy())
            book.copy_(torch.from_numpy(found.cluster_centers_.astype(np.float32)))
            left = left - book[torch.from_numpy(found.labels_).long()]


def _ours(x: Tensor) -> Curve:
    settings = RqVaeSettings(epochs=EPOCHS, device="cpu")
    run = rqvae_training._start(x.numpy(), settings, None, 0)

    def epoch(number: int) -> Any:
        if number <= settings.warmup_epochs:
            return rqvae_training._warm_up_epoch(run)
        if number == settings.warmup_epochs + 1:
            start_codebooks(run.model, run.x, 0)
        rqvae_training._epoch(run)
        if rqvae_training._revives(number, settings):
            revive(run.model, run.x, run.optimizer, run.revive_rng)
        return None

    def look() -> tuple[Tensor, Tensor]:
        run.model.eval()
        found = run.model.quantizer(run.model.encoder(run.x))
        run.model.train()
        return run.model.decoder(found.quantized_BD), found.codes_BL

    return _follow(x, epoch, look)
