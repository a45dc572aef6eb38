"""What a parallel model reads: the parts of every item, and sequences with their positions and attention mask.

Axes: N items, n parts of an item, X width of given vectors, B rows, H items of a history, Q places to predict at,
T positions of a sequence, P positions of an item.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.errors import DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.slots import COLLABORATIVE, ItemSlots
from genrec.models.parallel_settings import ParallelSettings

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ParallelItems:
    """The items of one catalog as a parallel model sees them (experimental).

    identifiers: codes of one length (``target: codes``), or slots (``target: vectors``; discrete ones by their
    codewords). content: float32 ``[N, X]``, the item vectors, for ``content`` and ``joint``.
    Raises DataError for ragged codes and for another number of rows.
    """

    identifiers: ItemCodes | ItemSlots
    content: Floats | None = None

    def __post_init__(self) -> None:
        if isinstance(self.identifiers, ItemCodes) and self.identifiers.ragged:
            raise DataError("parallel identifiers: expected codes of one length, got some shorter than L")
        if self.content is not None:
            given = np.ascontiguousarray(self.content, dtype=np.float32)
            if given.ndim != 2 or len(given) != self.n_items or not np.isfinite(given).all():
                raise DataError(f"content: expected finite vectors [{self.n_items}, X], got {given.shape}")
            object.__setattr__(self, "content", given)

    @property
    def n_items(self) -> int:
        """Number of items N."""
        return len(self.identifiers)

    @property
    def catalog(self) -> str:
        """Fingerprint of the catalog."""
        return self.identifiers.catalog

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that depend on the identifiers and the content."""
        digest = hashlib.sha256(self.identifiers.fingerprint.encode())
        if self.content is not None:
            digest.update(self.content.astype("<f4").tobytes())
        return digest.hexdigest()[:32]

    @cached_property
    def shape(self) -> ItemShape:
        """What a model must fit to."""
        given = self.identifiers
        width = 0 if self.content is None else self.content.shape[1]
        if isinstance(given, ItemSlots):
            return ItemShape(given.n_slots, (), given.dim, width, False, given.names)
        books = hashlib.sha256(b"".join(book.astype("<f4").tobytes() for book in given.codebooks)).hexdigest()[:32]
        own = books if given.codebooks else ""
        return ItemShape(given.n_levels, given.level_sizes, 0, width, given.shared_vocabulary, (), own)

    def tables(self, settings: ParallelSettings) -> PartTables:
        """The same as tensors, on the CPU.

        Raises DataError where the items have not what the settings ask for.
        """
        found, content = self.identifiers, self.content
        if isinstance(found, ItemSlots) != (settings.target == "vectors"):
            raise DataError(f"target: expected identifiers for {settings.target!r}, got {type(found).__name__}")
        if (settings.content or settings.joint is not None) and content is None:
            raise DataError("the model reads item vectors beside the identifiers: expected content, got none")
        if isinstance(found, ItemCodes):
            codes = torch.from_numpy(found.codes.astype(np.int64))
            pieces = None if content is None or not settings.content else _pieces(content, found.n_levels)
            return PartTables(codes=codes, vectors=pieces)
        if settings.joint is None:
            return PartTables(vectors=torch.from_numpy(found.vectors))
        assert content is not None
        if COLLABORATIVE not in found.names or found.n_slots != settings.joint.n_semantic + 1:
            raise DataError(
                f"joint: expected a collaborative slot and {settings.joint.n_semantic} more, got {found.names}"
            )
        return PartTables(
            vectors=torch.from_numpy(np.array(found.slot(COLLABORATIVE))[:, None]),
            content=torch.from_numpy(content),
            known=torch.from_numpy(content.any(axis=1)),
        )


@dataclass(frozen=True)
class ItemShape:
    """Sizes that a model shares with all catalogs it can read (internal).

    n_parts: n. sizes: codes K of each part, () for slots. dim: width of slots, 0 for codes. content: width of the item
    vectors, 0 = none. names: of slots. codebooks: digest of the vectors behind the codes, "" where there are none.
    """

    n_parts: int
    sizes: tuple[int, ...]
    dim: int
    content: int
    shared: bool
    names: tuple[str, ...]
    codebooks: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        object.__setattr__(self, "names", tuple(self.names))

    def check(self, other: ItemShape) -> None:
        """FingerprintMismatch unless a model of this shape can read items of the other."""
        for field in fields(self):
            mine, found = getattr(self, field.name), getattr(other, field.name)
            if field.name == "codebooks" and "" in (mine, found):
                continue  # identifiers that do not tell
            if mine != found:
                raise FingerprintMismatch(
                    f"the model was trained on identifiers with {field.name} {mine!r}, got {found!r}",
                    hint="encode the items with the item tokenizer that the model was trained with",
                )


@dataclass(frozen=True, eq=False)
class PartTables:
    """Tensors of all items (internal): codes int64 ``[N, n]``; vectors float32 ``[N, n, X]``, of the collaborative slot
    alone (``[N, 1, X]``) where an autoencoder makes the others from content ``[N, X]``, which bool ``[N]`` items have.
    """

    codes: Tensor | None = None
    vectors: Tensor | None = None
    content: Tensor | None = None
    known: Tensor | None = None

    def to(self, device: torch.device) -> PartTables:
        """The same on a device."""
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in given.items() if value is not None})


def _pieces(content_NX: Floats, n: int) -> Tensor:
    """Contiguous pieces as equal as can be, float32 ``[N, n, ceil(X / n)]``, short ones filled with zeros."""
    parts = np.array_split(content_NX, n, axis=1)
    width = parts[0].shape[1]
    return torch.from_numpy(np.stack([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts], axis=1))


@dataclass(frozen=True, eq=False)
class Sequence:
    """The positions of a batch of sequences (internal).

    position_BT: int64 position ids. rank_BT: int64; a position sees those of lower rank. real_BT: bool, False =
    padding. query_T: bool, learned queries, which nobody but themselves sees.
    """

    position_BT: Tensor
    rank_BT: Tensor
    real_BT: Tensor
    query_T: Tensor

    def mask(self, together: bool) -> Tensor:
        """Who sees whom, bool ``[B, T, T]`` (query, key).

        ::

            mask[q, k] = real[k] and (k = q, or k is no learned query and (rank[k] < rank[q]
                                             or together and rank[k] = rank[q] and q is no learned query))

        ``together``: the parts of an item see each other. With and without, a position sees nothing of later items.
        """
        rank_BT, own_T = self.rank_BT, ~self.query_T
        seen = rank_BT[:, None, :] < rank_BT[:, :, None]
        if together:
            seen |= (rank_BT[:, None, :] == rank_BT[:, :, None]) & own_T[:, None]
        seen &= own_T
        seen |= torch.eye(rank_BT.shape[1], dtype=torch.bool, device=rank_BT.device)
        return seen & self.real_BT[:, None, :]


@dataclass(frozen=True)
class Arrangement:
    """How the items of a history, and what predicts the next one, lie in a sequence (internal).

    ::

        text x n_text | start x n_start | item 0 x per_item | … | queries after a items x n_queries | …

    Text is causal. The queries after a items see the text, the start and these items, nothing later, so one sequence
    asks for the next item at every place of a history. ``counted``: every position has a number of its own; otherwise
    the parts of an item share one, and the queries after a items have that of the item to come. (SETRec's code lets the
    numbers of queries jump to their place in the sequence, which depends on padding.) Padding is on the right and plays
    no part.
    """

    n_start: int
    per_item: int
    n_queries: int
    counted: bool
    n_text: int = 0

    def of(self, lengths_B: Tensor, n_items: int, after_BQ: Tensor) -> Sequence:
        """lengths_B: items of each history, of ``n_items`` columns. after_BQ: items before each place to predict at."""
        device, n_rows = lengths_B.device, len(lengths_B)
        column = torch.arange(n_items, device=device).repeat_interleave(self.per_item)
        text = torch.arange(-1 - self.n_text, -1, device=device)
        item_T = torch.cat([text, torch.full((self.n_start,), -1, device=device), column])
        places_BT = item_T.expand(n_rows, -1)
        ahead_BT = after_BQ.repeat_interleave(self.n_queries, dim=1)
        numbers_T = torch.arange(len(item_T), device=device) if self.counted else item_T + 1 + self.n_text
        return Sequence(
            position_BT=torch.cat([numbers_T.expand(n_rows, -1), ahead_BT + 1 + self.n_text], dim=1),
            rank_BT=torch.cat([2 * places_BT, 2 * ahead_BT - 1], dim=1),
            real_BT=torch.cat([places_BT < lengths_B[:, None], torch.ones_like(ahead_BT, dtype=torch.bool)], dim=1),
            query_T=torch.arange(len(item_T) + ahead_BT.shape[1], device=device) >= len(item_T),
        )

    def read_at(self, n_items: int, after_BQ: Tensor) -> Tensor:
        """Where the states of every place to predict at stand, int64 ``[B, Q, R]``: its queries, or the last item."""
        n_places = after_BQ.shape[1]
        if self.n_queries:
            first = self.n_text + self.n_start + n_items * self.per_item
            at = first + torch.arange(n_places * self.n_queries, device=after_BQ.device)
            return at.view(1, n_places, self.n_queries).expand(len(after_BQ), -1, -1)
        return (self.n_text + after_BQ * self.per_item)[:, :, None] + torch.arange(
            self.per_item, device=after_BQ.device
        )
