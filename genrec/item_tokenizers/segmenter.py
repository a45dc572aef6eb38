"""Tokenizers whose tokens depend on the whole history, not on one item alone: their type, and ragged rows of tokens.

Axes: U rows, E tokens of all rows, T columns of a padded matrix, N items, V tokens of the vocabulary. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.errors import DataError
from genrec.item_tokenizers.base import TokenizerSource

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Ragged rows of a segmenter's tokens; row ``u`` is ``tokens[offsets[u]:offsets[u + 1]]``.

    offsets: int64 ``[U + 1]``, starts at 0, never falls, ends at E. tokens: int32 ``[E]``, ``0 <= token < n_tokens``.
    n_tokens: size V of the vocabulary. These are the segmenter's own numbers: a model puts its special tokens (padding,
    begin, end) elsewhere. Rows may be empty. Raises DataError where arrays do not fit together or a token is out of
    range. Stability: experimental.
    """

    offsets: Int64
    tokens: Int32
    n_tokens: int

    def __post_init__(self) -> None:
        rows = Histories(self.offsets, self.tokens)
        object.__setattr__(self, "offsets", rows.offsets)
        object.__setattr__(self, "tokens", rows.items)
        if len(self.tokens):
            low, high = int(self.tokens.min()), int(self.tokens.max())
            if low < 0 or high >= self.n_tokens:
                raise DataError(f"tokens: expected 0..{self.n_tokens - 1}, got {low} .. {high}")

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[int]], n_tokens: int) -> TokenRows:
        """One row per list.

        >>> TokenRows.from_lists([[4, 5], [], [6]], n_tokens=7).lengths.tolist()
        [2, 0, 1]
        """
        given = list(rows)
        offsets = np.zeros(len(given) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in given], out=offsets[1:])
        flat = [token for row in given for token in row]
        return cls(offsets, np.array(flat, dtype=np.int64), n_tokens)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Int32:
        """Row ``row`` (negative counts from the end), a view."""
        return self._rows()[row]

    def __iter__(self) -> Iterator[Int32]:
        return iter(self._rows())

    @property
    def lengths(self) -> Int64:
        """Number of tokens in each row, int64 ``[U]``."""
        return np.diff(self.offsets)

    def to_lists(self) -> list[list[int]]:
        """The rows as lists of Python integers."""
        return self._rows().to_lists()

    def take(self, rows: npt.ArrayLike) -> TokenRows:
        """The rows at these positions (integers, repeats allowed) or where a bool ``[U]`` mask is true."""
        taken = self._rows().take(rows)
        return TokenRows(taken.offsets, taken.items, self.n_tokens)

    def last(self, n: int) -> TokenRows:
        """Each row cut to its ``n`` newest tokens; a row with fewer stays as it is."""
        kept = self._rows().last(n)
        return TokenRows(kept.offsets, kept.items, self.n_tokens)

    def padded(self, max_len: int | None = None, pad: int = -1, side: Literal["left", "right"] = "left") -> Int32:
        """The rows as one matrix, int32 ``[U, T]``, as :meth:`genrec.data.histories.Histories.padded` does it."""
        return self._rows().padded(max_len, pad, side)

    def _rows(self) -> Histories:
        return Histories(self.offsets, self.tokens)


@runtime_checkable
class HistorySegmenter(Protocol):
    """Cuts whole histories into tokens; see :mod:`genrec.testing.segmenter_contract` for the promises.

    An item has no identifier of its own in a history: its tokens depend on its neighbours, and a token may stand for
    parts of several items. As the target of a prediction an item stands alone and has its own tokens, from which
    :meth:`items_of` finds it again. Whatever reads codes refuses such a tokenizer (``gives = "tokens"``).
    Stability: experimental.
    """

    Settings: ClassVar[type[Any]]
    gives: ClassVar[Literal["tokens"]]

    @property
    def settings(self) -> Any:
        """The settings it was built with."""

    @property
    def n_tokens(self) -> int:
        """Size V of the vocabulary; NotFitted before ``fit``."""

    def fit(self, source: TokenizerSource, *, seed: int) -> TokenRows:
        """Learn from the training histories; the target tokens of every item, no two alike. Never mutates inputs."""

    def segment(self, histories: Histories, *, seed: int | None = None) -> TokenRows:
        """The tokens of every history, oldest first: the one best segmentation, or (with a seed) a random one.

        A row of the segmentation without seed depends on that history alone. The tokens of a row stand for exactly the
        features of its items (:meth:`expand`). DataError for item numbers that are not of the catalog.
        """

    def target_tokens(self, items: npt.ArrayLike) -> TokenRows:
        """The tokens of each of these items (int ``[M]``) alone."""

    def expand(self, rows: TokenRows) -> TokenRows:
        """Each token replaced by the base tokens (features of items) that it stands for."""

    def items_of(self, rows: TokenRows) -> Int32:
        """The item that each row stands for as a target, in whatever order, int32 ``[U]``; -1 = of no item."""

    def target_mask(self) -> npt.NDArray[np.bool_]:
        """Which tokens may occur in a target, bool ``[V]``; all others stand for more than one item."""

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write an ``item_tokenizer`` artifact."""

    @classmethod
    def load(cls, path: str | Path, *, catalog: str | None = None) -> Self:
        """Read it back; FingerprintMismatch unless it was fitted on the catalog ``catalog`` (None = any)."""
