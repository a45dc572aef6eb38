"""One training step of the RQ-VAE beside a plain loop of the same architecture and beside its matrix products alone.

Interleaved step by step in one process, one thread, CPU seconds, medians; 12,101 x 384 vectors, batches of 1,024.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from run import Measured, Options
from torch import Tensor, nn

from genrec.item_tokenizers import rqvae_training
from genrec.item_tokenizers.rqvae_codebooks import start_codebooks
from genrec.item_tokenizers.rqvae_settings import RqVaeSettings
from genrec.seeding import rng

N, BATCH, STEPS = 12_101, 1024, 60
WIDTHS = (384, 512, 256, 128, 32)
LEVELS, CODES = 3, 256
BUDGET = f"{N:,} x {WIDTHS[0]}, batch {BATCH}, hidden {WIDTHS[1:-1]}, {LEVELS} x {CODES}, {STEPS} steps, one thread"


class Plain(nn.Module):
    """The same network, quantizer and losses, written down as the paper has them."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.encoder, self.decoder = _mlp(widths), _mlp(widths[::-1])
        self.books = nn.ParameterList(nn.Parameter(torch.zeros(CODES, widths[-1])) for _ in range(LEVELS))

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What the codes of ``z`` stand for, and the codes ``[B, L]``."""
        left, codes = z, []
        for book in self.books:
            codes.append(torch.cdist(left, book).argmin(1))
            left = left - book[codes[-1]]
        return z - left, torch.stack(codes, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """The loss of a batch."""
        z = self.encoder(x)
        left, total, loss = z, torch.zeros_like(z), torch.zeros(())
        for book in self.books:
            word = book[torch.cdist(left, book).argmin(1)]
            loss = loss + (left.detach() - word).square().sum(1).mean()
            loss = loss + 0.25 * (left - word.detach()).square().sum(1).mean()
            left, total = left - word.detach(), total + word
        loss = loss + (x - self.decoder(z + (total - z).detach())).square().sum(1).mean()
        return loss


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _candidates() -> dict[str, Callable[[Tensor], Any]]:
    """One step of each candidate, given the rows of its batch."""
    x = rng(0, "rqvae step").normal(size=(N, WIDTHS[0])).astype(np.float32)
    run = rqvae_training._start(x, RqVaeSettings(hidden=WIDTHS[1:-1], dim=WIDTHS[-1], device="cpu"), None, 0)
    start_codebooks(run.model, run.x[:4096], 0)
    plain = Plain()
    with torch.no_grad():
        for book, ours in zip(plain.books, run.model.quantizer.codebooks, strict=True):
            book.copy_(ours)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=1e-4)

    def our_step(rows: Tensor) -> None:
        parts, _ = rqvae_training._losses(run, rows)
        rqvae_training._step(run.optimizer, parts["loss"])

    def plain_step(rows: Tensor) -> None:
        loss = plain(run.x[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {"ours": our_step, "plain": plain_step, "products": _products()}


def _products() -> Callable[[Tensor], None]:
    """The matrix products of a step, forward and backward, into buffers that are there."""
    shapes = [*pairwise(WIDTHS), *pairwise(WIDTHS[::-1])]
    layers = [
        (
            *(torch.randn(BATCH, a), torch.randn(b, a), torch.randn(BATCH, b)),
            *(torch.empty(b, a), torch.empty(BATCH, a), n > 0),
        )
        for n, (a, b) in enumerate(shapes)
    ]
    left, book, table = torch.randn(BATCH, WIDTHS[-1]), torch.randn(CODES, WIDTHS[-1]), torch.empty(BATCH, CODES)

    def products(rows: Tensor) -> None:
        for given, weight, out, weight_gradient, gradient, needed in layers:
            torch.mm(given, weight.t(), out=out)
            torch.mm(out.t(), given, out=weight_gradient)
            if needed:  # nobody asks for the gradient of the item vectors
                torch.mm(out, weight, out=gradient)
        for _ in range(LEVELS):
            torch.mm(left, book.t(), out=table)

    return products


def _medians(options: Options) -> dict[str, float]:
    """CPU milliseconds of a step of each candidate; kept for the other figure."""
    if "rqvae step" not in options.cache:
        torch.set_num_threads(1)
        candidates = _candidates()
        order, found = torch.randperm(N), {name: [] for name in candidates}
        for step in range(STEPS + 3):
            first = step % (N // BATCH) * BATCH
            for name, run in candidates.items():
                start = time.process_time()
                run(order[first : first + BATCH])
                found[name].append(1e3 * (time.process_time() - start))
        options.cache["rqvae step"] = {name: statistics.median(each[3:]) for name, each in found.items()}
    return options.cache["rqvae step"]  # type: ignore[no-any-return]


def matmul_share(options: Options) -> Measured:
    """Share of a training step that its matrix products would take alone."""
    found = _medians(options)
    return Measured(found["products"] / found["ours"], spread=found, budget=BUDGET)


def ratio_to_plain_loop(options: Options) -> Measured:
    """CPU time of our training step over that of the plain loop."""
    found = _medians(options)
    return Measured(found["ours"] / found["plain"], spread=found, budget=BUDGET)
