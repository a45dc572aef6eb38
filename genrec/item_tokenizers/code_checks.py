"""What :class:`genrec.item_tokenizers.codes.ItemCodes` refuses (numpy only, no torch). Internal.

Axes: N items, L levels, K codes of a level.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError


def check_shape(codes: npt.NDArray[Any], sizes: tuple[int, ...], shared: bool) -> None:
    """Integers ``[N, L]`` and sizes that fit together, or DataError (internal)."""
    if codes.ndim != 2 or codes.dtype.kind not in "iu":
        raise DataError(f"codes: expected integers of shape [N, L], got {codes.dtype} {codes.shape}")
    if not sizes or min(sizes) < 1:
        raise DataError(f"level_sizes: expected at least one level of at least one code, got {sizes}")
    if codes.shape[1] != len(sizes):
        raise DataError(f"codes: expected {len(sizes)} levels (level_sizes {sizes}), got {codes.shape[1]}")
    if len(sizes) > 255:
        raise DataError(f"level_sizes: expected at most 255 levels, got {len(sizes)}")
    if shared and len(set(sizes)) > 1:
        raise DataError(f"level_sizes: levels that share a vocabulary must be of equal size, got {sizes}")


def check_range(codes: npt.NDArray[Any], sizes: tuple[int, ...]) -> None:
    """Every code within the size of its level, or DataError (internal)."""
    bad = (codes < 0) | (codes >= np.array(sizes, dtype=np.int64))
    if bad.any():
        row, level = (int(x) for x in np.argwhere(bad)[0])
        raise DataError(
            f"codes: row {row}, level {level}: expected 0..{sizes[level] - 1}, got {int(codes[row, level])}",
            hint="use ItemCodes.from_int for rows padded with -1" if codes[row, level] == -1 else None,
        )


def check_codebooks(codebooks: tuple[npt.NDArray[Any], ...], sizes: tuple[int, ...]) -> None:
    """One finite float32 ``[K, D]`` for each of the first levels, or DataError (internal)."""
    if len(codebooks) > len(sizes):
        raise DataError(f"codebooks: expected at most {len(sizes)}, one per level, got {len(codebooks)}")
    for level, (book, size) in enumerate(zip(codebooks, sizes, strict=False)):
        if book.ndim != 2 or len(book) != size or book.dtype != np.float32 or not np.isfinite(book).all():
            raise DataError(
                f"codebooks: level {level}: expected finite float32 [{size}, D], got {book.dtype} {book.shape}"
            )


def checked_lengths(lengths: npt.ArrayLike, codes: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Lengths 1..L as uint8 ``[N]``, zeros beyond them; or DataError (internal)."""
    given = np.asarray(lengths)
    n, n_levels = codes.shape
    if given.shape != (n,):
        raise DataError(f"lengths: expected shape ({n},), got {given.shape}")
    if n and (given.min() < 1 or given.max() > n_levels):
        row = int(((given < 1) | (given > n_levels)).argmax())
        raise DataError(f"lengths: row {row}: expected 1..{n_levels}, got {given[row]}")
    beyond = np.arange(n_levels)[None, :] >= given[:, None]
    if (codes[beyond] != 0).any():
        row = int(((codes != 0) & beyond).any(axis=1).argmax())
        raise DataError(f"codes: row {row}: expected 0 beyond its length {given[row]}, got {codes[row].tolist()}")
    return given.astype(np.uint8)


def check_pieces(pieces: tuple[str, ...], sizes: tuple[int, ...], shared: bool) -> None:
    """No text, or one text of its own for every code of a shared vocabulary; else DataError (internal)."""
    if not pieces:
        return
    if not shared:
        raise DataError("pieces: expected codes with a shared vocabulary, got a vocabulary for each level")
    if len(pieces) != sizes[0]:
        raise DataError(f"pieces: expected {sizes[0]}, one per code, got {len(pieces)}")
    first: dict[str, int] = {}
    for code, piece in enumerate(pieces):
        if not isinstance(piece, str) or not piece:
            raise DataError(f"pieces: code {code}: expected a text that is not empty, got {piece!r}")
        if first.setdefault(piece, code) != code:
            raise DataError(f"pieces: code {code}: {piece!r} is already the text of code {first[piece]}")
