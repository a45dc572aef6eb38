"""Start values of the embeddings of item tokens.

Axes: V vocabulary, K codes of a level, D width of a codebook, M width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from genrec import seeding
from genrec.errors import DataError
from genrec.vocab.token_map import TokenMap

SHARE = 0.8
"""Share of a start value's variance that comes from the codebook; the rest tells equal vectors apart."""


@torch.no_grad()
def start_from_codebooks(
    weight_VM: torch.Tensor, token_map: TokenMap, codebooks: Sequence[npt.NDArray[np.float32]], *, seed: int
) -> None:
    """Make the embeddings of codes that mean similar things similar, in place (stable).

        for each level l with a codebook C [K, D], rows r [K, M] as they were drawn, random matrix R [D, M]:
            p = (C - mean of C) R, scaled to the standard deviation of r
            rows = sqrt(0.8) p + sqrt(0.2) r

    Random projection keeps inner products (Johnson and Lindenstrauss 1984), so a model starts with the tokens of
    neighbouring clusters side by side and need not learn it from clicks. Levels without a codebook, such as a
    suffix, stay as they are. Raises DataError for a codebook that does not fit its level.

    weight_VM: input embeddings. codebooks: of the first levels, float ``[K, D]`` each.
    """
    if token_map.shared_vocabulary and len(codebooks) > 1:
        raise DataError("codebooks: levels that share their tokens can start from one codebook only, got several")
    if len(codebooks) > len(token_map.level_sizes):
        raise DataError(f"codebooks: expected at most {len(token_map.level_sizes)} levels, got {len(codebooks)}")
    for level, book_KD in enumerate(codebooks):
        size, first = token_map.level_sizes[level], token_map.level_offset[level]
        if book_KD.ndim != 2 or len(book_KD) != size:
            raise DataError(f"codebooks: level {level} has {size} codes, got a codebook of shape {book_KD.shape}")
        rows_KM = weight_VM[first : first + size]
        random = seeding.rng(seed, "codebook projection", level).normal(size=(book_KD.shape[1], rows_KM.shape[1]))
        projected = (book_KD - book_KD.mean(axis=0)) @ random
        spread = projected.std()
        if spread > 0:
            known = torch.from_numpy(projected / spread).to(rows_KM) * rows_KM.std()
            rows_KM.mul_((1 - SHARE) ** 0.5).add_(known, alpha=SHARE**0.5)
