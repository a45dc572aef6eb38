"""The vocabulary of ActionPiece: features of items, and tokens merged from two others.

Axes: C categories (features of an item), R rules, V tokens. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError
from genrec.item_tokenizers.actionpiece_nodes import MAX_TOKENS, Weights, pair_key

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MergeVocabulary:
    """Base tokens, one for every value of every category, and the rules that merged two tokens into one (internal).

    ::

        value v of category c is token  category_sizes[0] + ... + category_sizes[c - 1] + v
        rule r makes token  n_base + r  of the tokens  pairs[r, 0] <= pairs[r, 1], both older

    category_sizes: number of values of each category. pairs: int64 ``[R, 2]``. counts: int64 ``[R]``, the weight that
    the pair had in all training histories when it was merged, in units of ``1 / weights.unit``: the rule's priority.
    Raises DataError for rules out of order or learned twice.
    """

    category_sizes: tuple[int, ...]
    pairs: Ints
    counts: Ints

    def __post_init__(self) -> None:
        if len(self.category_sizes) < 1 or min(self.category_sizes) < 1:
            raise DataError(f"category_sizes: expected sizes of 1 or more, got {list(self.category_sizes)}")
        if self.pairs.shape != (len(self.counts), 2):
            raise DataError(f"pairs: expected [{len(self.counts)}, 2] as there are counts, got {self.pairs.shape}")
        if self.n_tokens > MAX_TOKENS:
            raise DataError(f"expected {MAX_TOKENS:,} tokens at most, got {self.n_tokens:,}")
        low, high = self.pairs[:, 0], self.pairs[:, 1]
        made = self.n_base + np.arange(len(self.pairs))
        if not ((low >= 0) & (low <= high) & (high < made)).all():
            raise DataError("pairs: expected every rule to name two older tokens, the smaller first")
        if len(self.rules) != len(self.pairs):
            raise DataError("pairs: a rule is there twice")

    @property
    def n_base(self) -> int:
        """Number of base tokens."""
        return sum(self.category_sizes)

    @property
    def n_tokens(self) -> int:
        """Number of tokens V."""
        return self.n_base + len(self.pairs)

    @cached_property
    def weights(self) -> Weights:
        """The exact weights of items with as many features as there are categories."""
        return Weights.of(len(self.category_sizes))

    @cached_property
    def offsets(self) -> Ints:
        """First token of each category, and n_base: int64 ``[C + 1]``."""
        return np.cumsum([0, *self.category_sizes])

    @cached_property
    def rules(self) -> dict[int, int]:
        """The token of every pair that is merged, by :func:`~.actionpiece_nodes.pair_key`."""
        pairs = self.pairs.tolist()
        return {pair_key(a, b): token for token, (a, b) in enumerate(pairs, start=self.n_base)}

    @cached_property
    def precedence(self) -> Ints:
        """The place of each rule by falling count, ties by age, int64 ``[R]``: which of two in one place goes first."""
        out = np.empty(len(self.counts), dtype=np.int64)
        out[np.argsort(-self.counts, kind="stable")] = np.arange(len(self.counts))
        return out

    @cached_property
    def features(self) -> list[tuple[int, ...]]:
        """The base tokens that each token stands for, in the order of its merges."""
        out: list[tuple[int, ...]] = [(token,) for token in range(self.n_base)]
        for a, b in self.pairs.tolist():
            out.append(out[a] + out[b])
        return out

    @cached_property
    def fits_one_item(self) -> npt.NDArray[np.bool_]:
        """Whether the features of each token can be of one item, bool ``[V]``: no category occurs twice."""
        category = np.repeat(np.arange(len(self.category_sizes)), self.category_sizes).tolist()
        masks: list[int] = [1 << c for c in category]  # 0: not of one item
        for a, b in self.pairs.tolist():
            masks.append(masks[a] | masks[b] if masks[a] and masks[b] and not masks[a] & masks[b] else 0)
        return np.array([mask > 0 for mask in masks], dtype=np.bool_)

    def base_tokens(self, features_NC: npt.NDArray[Any]) -> Ints:
        """The tokens of feature values, int64 ``[N, C]``; DataError for values out of range."""
        given = np.asarray(features_NC, dtype=np.int64)
        if given.ndim != 2 or given.shape[1] != len(self.category_sizes):
            raise DataError(f"features: expected [N, {len(self.category_sizes)}], got {given.shape}")
        wrong = (given < 0) | (given >= np.asarray(self.category_sizes))
        if wrong.any():
            row, at = (int(n) for n in np.argwhere(wrong)[0])
            size = self.category_sizes[at]
            raise DataError(f"features: category {at} has values 0..{size - 1}, got {given[row, at]} in row {row}")
        return given + self.offsets[:-1]
