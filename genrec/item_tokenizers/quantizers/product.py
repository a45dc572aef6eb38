"""Product quantization: independent codes for blocks of (rotated) dimensions.

Axes: N rows, D width, L blocks (one code each), K codes of a block, M width of a block. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from genrec.item_tokenizers.quantizers.kmeans import kmeans, nearest
from genrec.seeding import derive, rng

Floats = npt.NDArray[np.float32]
Rotation = Literal["none", "pca", "opq"]
ROTATIONS: tuple[Rotation, ...] = ("none", "pca", "opq")
_CHUNK = 65536


@dataclass(frozen=True, eq=False)
class ProductQuantizer:
    """``x R`` cut into L blocks, and a codebook for each block (internal).

    rotation_DD: float32, orthonormal. books: L arrays float32 ``[K, M]``, block widths as :func:`blocks` says.
    errors: mean squared error of the rows it was fitted on after the start and after each iteration of OPQ
    (empty for the other rotations).
    """

    rotation_DD: Floats
    books: tuple[Floats, ...]
    errors: list[float] = field(default_factory=list)

    def codes(self, x_ND: Floats) -> npt.NDArray[np.int32]:
        """The nearest codeword of every block, int32 ``[N, L]``: together the nearest of all K ** L sums."""
        parts = [
            block_codes(x_ND[start : start + _CHUNK] @ self.rotation_DD, self.books)
            for start in range(0, len(x_ND), _CHUNK)
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(self.books)), dtype=np.int32)

    def codebooks(self) -> tuple[Floats, ...]:
        """The codewords as vectors of the space of ``x``, L arrays float32 ``[K, D]``: ``x ≈ sum_l book_l[code_l]``."""
        spans = blocks(len(self.rotation_DD), len(self.books))
        return tuple(
            np.ascontiguousarray(book @ self.rotation_DD[:, span].T)
            for book, span in zip(self.books, spans, strict=True)
        )


def fit_product(
    x_ND: Floats,
    n_levels: int,
    level_size: int,
    *,
    rotation: Rotation,
    seed: int,
    iterations: int = 30,
    rows_per_code: int | None = None,
) -> ProductQuantizer:
    """Fit a rotation and the codebooks on centred rows (internal).

    ``none``: no rotation; k-means in each block. ``pca``: principal axes, dealt out so that the blocks have equal
    products of variances (:func:`balanced_axes`), then k-means. ``opq``: from there, ``iterations`` times
    :func:`alternate`. rows_per_code: fit on a seeded sample of that many rows per code.
    """
    x = x_ND
    if rows_per_code is not None and len(x) > level_size * rows_per_code:
        draw = rng(seed, "product", "sample").choice(len(x), size=level_size * rows_per_code, replace=False)
        x = x[np.sort(draw)]
    width = x.shape[1]
    turn = np.eye(width, dtype=np.float32) if rotation == "none" else balanced_axes(x, n_levels)
    y = x @ turn
    books = tuple(
        kmeans(np.ascontiguousarray(y[:, span]), level_size, seed=derive(seed, "product", level)).centroids_KD
        for level, span in enumerate(blocks(width, n_levels))
    )
    start = ProductQuantizer(turn, books)
    return alternate(x, start, iterations) if rotation == "opq" else start


def alternate(x_ND: Floats, start: ProductQuantizer, iterations: int) -> ProductQuantizer:
    """Learn the rotation and the codebooks in turn (internal).

    The non-parametric form of "Optimized Product Quantization" (Ge et al., CVPR 2013)::

        repeat:  codes = nearest codewords of the blocks of x R;   books = means of the rows of each code
                 U S V^T = svd(x^T [codewords]);                   R = U V^T

    Each half step lowers the error |x R - codewords|² or leaves it, so the error falls from iteration to iteration.
    A codeword without rows stays where it is. Ends with a last update of the books under the last R.
    """
    turn, books = start.rotation_DD, start.books
    errors: list[float] = []
    for step in range(iterations + 1):
        y = x_ND @ turn
        codes = block_codes(y, books)
        books = _means(y, codes, books)
        approx = block_words(codes, books)
        gap = y - approx
        errors.append(float(np.einsum("nd,nd->", gap, gap, dtype=np.float64) / len(gap)))
        if step < iterations:
            turn = procrustes(x_ND, approx)
    return ProductQuantizer(turn, books, errors)


def procrustes(x_ND: Floats, y_ND: Floats) -> Floats:
    """The orthonormal R, float32 ``[D, D]``, that makes ``|x R - y|²`` least (Schönemann 1966) (internal)."""
    u, _, vt = np.linalg.svd((x_ND.T @ y_ND).astype(np.float64))
    return np.asarray(u @ vt, dtype=np.float32)


def balanced_axes(x_ND: Floats, n_blocks: int) -> Floats:
    """Principal axes of centred rows, columns of a float32 ``[D, D]``, dealt out to balance the blocks (internal).

    The parametric solution of Ge et al. 2013: for Gaussian data the error is least when the blocks are independent
    and have equal products of variances. Axes by falling variance go each to the block with room whose product is
    smallest so far (variances in units of the smallest, so that no factor is below 1).
    """
    variance_D, axes_DD = np.linalg.eigh((x_ND.T @ x_ND).astype(np.float64))
    variance_D, axes_DD = variance_D[::-1], axes_DD[:, ::-1]
    logs = np.log(np.maximum(variance_D, max(float(variance_D[0]), 1e-30) * 1e-9))
    logs -= logs[-1]
    room = [span.stop - span.start for span in blocks(x_ND.shape[1], n_blocks)]
    members: list[list[int]] = [[] for _ in room]
    product = np.zeros(n_blocks)
    for axis, log in enumerate(logs):
        open_blocks = [b for b in range(n_blocks) if len(members[b]) < room[b]]
        block = min(open_blocks, key=lambda b: (product[b], len(members[b]), b))
        members[block].append(axis)
        product[block] += log
    return np.ascontiguousarray(axes_DD[:, [axis for block in members for axis in block]], dtype=np.float32)


def blocks(width: int, n_blocks: int) -> list[slice]:
    """Contiguous spans of ``width`` dimensions, as equal as can be: the first ``width % n_blocks`` are one wider.

    Stability: internal.

    >>> [(span.start, span.stop) for span in blocks(7, 3)]
    [(0, 3), (3, 5), (5, 7)]
    """
    size, rest = divmod(width, n_blocks)
    ends = [size * (n + 1) + min(n + 1, rest) for n in range(n_blocks)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def in_blocks(books: tuple[Floats, ...]) -> tuple[Floats, ...]:
    """Codebooks of single blocks as codebooks of the whole width, zero outside their block, ``[K, D]`` each (internal).

    Blocks are orthogonal, so what remains after one code does not change the distances of another: sums of such
    codewords are the codes of a residual quantizer, and :class:`~genrec.item_tokenizers.collisions.Quantized` is
    exact for them.
    """
    spans = blocks(sum(book.shape[1] for book in books), len(books))
    wide = []
    for book, span in zip(books, spans, strict=True):
        out = np.zeros((len(book), spans[-1].stop), dtype=np.float32)
        out[:, span] = book
        wide.append(out)
    return tuple(wide)


def block_codes(y_ND: Floats, books: tuple[Floats, ...]) -> npt.NDArray[np.int32]:
    """Nearest codeword of each block of rotated rows, int32 ``[N, L]`` (internal)."""
    spans = blocks(y_ND.shape[1], len(books))
    found = [nearest(np.ascontiguousarray(y_ND[:, span]), book) for span, book in zip(spans, books, strict=True)]
    return np.stack(found, axis=1)


def block_words(codes_NL: npt.NDArray[np.int32], books: tuple[Floats, ...]) -> Floats:
    """The codewords of all blocks side by side, float32 ``[N, D]`` (internal)."""
    return np.concatenate([book[codes_NL[:, level]] for level, book in enumerate(books)], axis=1)


def _means(y_ND: Floats, codes_NL: npt.NDArray[np.int32], books: tuple[Floats, ...]) -> tuple[Floats, ...]:
    """The mean of the rows of each code, in each block; a codeword without rows stays."""
    out = []
    for level, (span, book) in enumerate(zip(blocks(y_ND.shape[1], len(books)), books, strict=True)):
        counts = np.bincount(codes_NL[:, level], minlength=len(book))
        order = np.argsort(codes_NL[:, level], kind="stable")
        starts = np.concatenate([[0], np.cumsum(counts)])
        # a sparse one-hot product adds rows in row order whatever the number of threads
        members = sparse.csr_matrix((np.ones(len(order), dtype=np.float32), order, starts), (len(book), len(y_ND)))
        sums = members @ np.ascontiguousarray(y_ND[:, span])
        mean = sums / np.maximum(counts, 1)[:, None].astype(np.float32)
        out.append(np.where(counts[:, None] > 0, mean, book).astype(np.float32))
    return tuple(out)
