"""Where the codebooks of the RQ-VAE start, and what becomes of unused codes.

Axes: N items, L levels, K codes of a level, D width of the bottleneck.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.optim import Optimizer

from genrec.item_tokenizers.quantizers.kmeans import kmeans
from genrec.item_tokenizers.quantizers.residual import nearest_codeword
from genrec.item_tokenizers.rqvae_model import RqVaeModel
from genrec.seeding import derive

# k-means starts from, and unused codes are looked for among, this many rows per code at most
_ROWS_PER_CODE = 64


def start_codebooks(model: RqVaeModel, x: torch.Tensor, seed: int) -> None:
    """Set each codebook to the k-means centroids of the residuals the levels before it leave (internal).

    A codebook that all levels share starts from the centroids of all these residuals, the encoder's outputs among
    them: L·N rows in one clustering.
    """
    books = model.quantizer.codebooks
    with torch.no_grad():
        residual = encoded(model, x).cpu().numpy()
        levels = []
        for level, book in enumerate(books):
            levels.append(residual)
            found = kmeans(
                residual, len(book), seed=derive(seed, "rqvae", "start", level), rows_per_code=_ROWS_PER_CODE
            )
            if not model.quantizer.options.shared:
                book.copy_(torch.from_numpy(found.centroids_KD))
            residual = residual - found.centroids_KD[found.labels]
        if model.quantizer.options.shared:
            together = kmeans(
                np.concatenate(levels),
                len(books[0]),
                seed=derive(seed, "rqvae", "start", "shared"),
                rows_per_code=_ROWS_PER_CODE * len(books),
            )
            books[0].copy_(torch.from_numpy(together.centroids_KD))


def revive(model: RqVaeModel, x: torch.Tensor, optimizer: Optimizer, generator: torch.Generator) -> int:
    """Move every code that no item uses onto a residual drawn at random; returns how many moved (internal).

    Of a catalog of more than 64 items per code, a random sample of that size is looked at. Levels go in
    order, because a moved code changes the residuals of the levels after it; a code of a shared codebook is
    unused when no level uses it. The optimizer forgets its moments for the moved rows.
    """
    books = model.quantizer.codebooks
    with torch.no_grad():
        n_rows = min(len(x), _ROWS_PER_CODE * max(len(book) for book in books))
        rows = torch.randperm(len(x), generator=generator)[:n_rows].to(x.device)
        residual = encoded(model, x[rows])
        if model.quantizer.options.shared:
            levels, used = [], []
            for book in books:
                levels.append(residual)
                used.append(nearest_codeword(residual, book))
                residual = residual - book[used[-1]]
            return _move_unused(books[0], torch.cat(used), torch.cat(levels), optimizer, generator)
        n_moved = 0
        for book in books:
            n_moved += _move_unused(book, nearest_codeword(residual, book), residual, optimizer, generator)
            residual = residual - book[nearest_codeword(residual, book)]
    return n_moved


def encoded(model: RqVaeModel, x: torch.Tensor) -> torch.Tensor:
    """Encoder outputs in eval mode; the model's mode is as before afterwards (internal)."""
    training = model.training
    model.eval()
    z: torch.Tensor = model.encoder(x)
    model.train(training)
    return z


def _move_unused(
    book: torch.Tensor, codes: torch.Tensor, residual: torch.Tensor, optimizer: Optimizer, generator: torch.Generator
) -> int:
    used = torch.bincount(codes, minlength=len(book)) > 0
    dead = torch.nonzero(~used)[:, 0]
    if len(dead):
        picks = torch.randint(len(residual), (len(dead),), generator=generator).to(residual.device)
        book[dead] = residual[picks]
        for moment in optimizer.state[book].values():
            if moment.shape == book.shape:
                moment[dead] = 0
    return len(dead)
