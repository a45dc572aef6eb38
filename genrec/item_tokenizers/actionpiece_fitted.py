"""What a fitted ActionPiece keeps: in memory, and as arrays for a file.

Axes: N items, C categories, M items asked for, U rows. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError
from genrec.item_tokenizers.actionpiece_features import FeatureQuantizer
from genrec.item_tokenizers.actionpiece_vocab import MergeVocabulary
from genrec.item_tokenizers.base import Scaling
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.quantizers.product import ProductQuantizer
from genrec.item_tokenizers.scaled import Arrays, numbered, of_numbers
from genrec.item_tokenizers.segmenter import TokenRows

Int32 = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FittedPieces:
    """What was learned: the features of the items, the merges, and how new features are made (None: were given)
    (internal)."""

    features: ItemCodes
    vocabulary: MergeVocabulary
    quantizer: FeatureQuantizer | None

    @cached_property
    def tokens_NC(self) -> Ints:
        """Base tokens of every item."""
        return self.vocabulary.base_tokens(self.features.codes)

    def tokens_of(self, items: npt.NDArray[Any]) -> Ints:
        """Base tokens of these items, int64 ``[M, C]``."""
        if items.ndim != 1 or (items.size and items.dtype.kind not in "iu"):
            raise DataError(f"items: expected integers [M], got {items.dtype} {items.shape}")
        if len(items) and not 0 <= int(items.min()) <= int(items.max()) < len(self.features):
            raise DataError(f"items: expected 0..{len(self.features) - 1}, got {items.min()} .. {items.max()}")
        found: Ints = self.tokens_NC[items.astype(np.int64)]
        return found

    @cached_property
    def _by_features(self) -> tuple[npt.NDArray[Any], Ints]:
        rows_N = _as_bytes(self.tokens_NC)
        order = np.argsort(rows_N)
        return rows_N[order], order

    def items_of(self, rows: TokenRows) -> Int32:
        """See :meth:`ActionPiece.items_of`."""
        bases, width = self.expand(rows), len(self.vocabulary.category_sizes)
        out = np.full(len(rows), -1, dtype=np.int32)
        fits = bases.lengths == width
        if fits.any():
            query = _as_bytes(np.sort(bases.take(fits).tokens.reshape(-1, width), axis=1))
            known, order = self._by_features
            at = np.minimum(np.searchsorted(known, query), len(known) - 1)
            out[fits] = np.where(known[at] == query, order[at], -1)
        return out

    def expand(self, rows: TokenRows) -> TokenRows:
        """See :meth:`ActionPiece.expand`."""
        if rows.n_tokens != self.vocabulary.n_tokens:
            raise DataError(f"rows: expected tokens of a vocabulary of {self.vocabulary.n_tokens}, got {rows.n_tokens}")
        parts = self._parts.take(rows.tokens)
        ends = np.concatenate([[0], np.cumsum(parts.lengths)])
        return TokenRows(ends[rows.offsets], parts.tokens, rows.n_tokens)

    @cached_property
    def _parts(self) -> TokenRows:
        return TokenRows.from_lists(self.vocabulary.features, self.vocabulary.n_tokens)

    def arrays(self) -> Arrays:
        """All that is kept, for a file."""
        out: Arrays = {
            "features": self.features.codes,
            "pairs": self.vocabulary.pairs.astype(np.int32),
            "counts": self.vocabulary.counts,
        }
        if self.quantizer is not None:
            scaling, quantizer = self.quantizer.scaling, self.quantizer.quantizer
            out |= {"mean": scaling.mean, "scale": scaling.scale, "rotation": quantizer.rotation_DD}
            out |= numbered("codebook", quantizer.books)
        return out

    @classmethod
    def of(cls, arrays: Arrays, category_sizes: tuple[int, ...], catalog: str) -> FittedPieces:
        """The inverse of :meth:`arrays`."""
        features = ItemCodes(arrays["features"], category_sizes, catalog)
        vocabulary = MergeVocabulary(category_sizes, arrays["pairs"].astype(np.int64), arrays["counts"])
        if "mean" not in arrays:
            return cls(features, vocabulary, None)
        scaling = Scaling(arrays["mean"], arrays["scale"])
        quantizer = ProductQuantizer(arrays["rotation"], of_numbers("codebook", arrays))
        return cls(features, vocabulary, FeatureQuantizer(scaling, quantizer))


def _as_bytes(rows_NC: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Each row as one comparable value."""
    rows = np.ascontiguousarray(rows_NC, dtype=">i4")
    return rows.view(np.dtype((np.void, 4 * rows.shape[1]))).ravel()
