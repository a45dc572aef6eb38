"""The vectors that identifiers stand for: given, by codebooks, or by the codebooks that the identifiers imply.

Axes: N items, L levels, K codes of a level, D vector width.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.metrics.codes_vectors import additive_reconstruction, implied_codebooks, relative_error

Vectors = npt.NDArray[np.floating]
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Quantised:
    """What identifiers stand for in the space of the item vectors (experimental).

    how: ``given``, ``codebooks`` (``shift + sum_l codebook_l[c_l]``, the shift making the mean error 0: codebooks of
    centred vectors say nothing about the mean), ``implied`` (the same with the codebooks of
    :func:`genrec.metrics.codes_vectors.implied_codebooks`) or ``none``. vectors_ND: float32, None for ``none``.
    codebooks, shift_D: to apply to other codes; empty when ``given``.
    """

    how: Literal["given", "codebooks", "implied", "none"]
    vectors_ND: npt.NDArray[np.float32] | None
    codebooks: tuple[npt.NDArray[np.float32], ...] = ()
    shift_D: npt.NDArray[np.float32] | None = None

    def apply(self, codes: ItemCodes) -> npt.NDArray[np.float32] | None:
        """What these codebooks make of other codes; None if there are none."""
        if self.shift_D is None:
            return None
        return additive_reconstruction(codes.as_int(), self.codebooks) + self.shift_D


def quantise(codes: ItemCodes, vectors: Vectors, reconstruction: Vectors | None = None, *, how: str) -> Quantised:
    """The quantised vectors of ``codes`` (experimental).

    how: ``codebooks``, ``implied``, ``none``, or ``auto``: the codebooks of the codes if they have the width of the
    vectors and do better than predicting the mean, else the implied ones (codebooks of a network's inner space, of
    scaled vectors, or none at all); the result says which. A given reconstruction goes before all. Raises DataError
    for a reconstruction of another shape, and for ``codebooks`` where there are none of that width.
    """
    if reconstruction is not None:
        if reconstruction.shape != vectors.shape:
            raise DataError(f"reconstruction: expected shape {vectors.shape}, got {reconstruction.shape}")
        return Quantised("given", np.asarray(reconstruction, dtype=np.float32))
    if how == "none" or len(codes) == 0:
        return Quantised("none", None)
    fitting = bool(codes.codebooks) and all(book.shape[1] == vectors.shape[1] for book in codes.codebooks)
    if how == "codebooks" and not fitting:
        raise DataError(
            f"codebooks: expected vectors of width {vectors.shape[1]} behind the codes, there are none",
            hint="pass reconstruction=..., or quantised='implied'",
        )
    if fitting and how in ("auto", "codebooks"):
        own = _additive("codebooks", codes, codes.codebooks, vectors)
        assert own.vectors_ND is not None
        if how == "codebooks" or relative_error(vectors, own.vectors_ND) < 1:
            return own
        log.warning("the codebooks do worse than the mean of the vectors: another space? using implied ones instead")
    return _additive("implied", codes, implied_codebooks(codes.as_int(), codes.level_sizes, vectors), vectors)


def _additive(
    how: Literal["codebooks", "implied"],
    codes: ItemCodes,
    codebooks: tuple[npt.NDArray[np.float32], ...],
    vectors: Vectors,
) -> Quantised:
    sums = additive_reconstruction(codes.as_int(), codebooks)
    shift = (vectors.mean(axis=0, dtype=np.float64) - sums.mean(axis=0, dtype=np.float64)).astype(np.float32)
    return replace(Quantised(how, sums + shift), codebooks=codebooks, shift_D=shift)
