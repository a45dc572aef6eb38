"""A parallel model as a recommender: one forward pass a user, then the exact best of the whole catalog.

Axes: U users, B users of a batch, N items, n parts of an item, D width, M items asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.data.histories import Histories
from genrec.decoding.filters import by_row
from genrec.decoding.interface import Recommendations, SearchOptions
from genrec.decoding.listing import joined_lists
from genrec.decoding.parallel import ParallelIndex
from genrec.decoding.parallel_slots import SlotIndex, setrec_weights
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.slots import ItemSlots
from genrec.models.asked import check_items, rows_of_like_length
from genrec.models.backbone import evaluating
from genrec.models.parallel_inputs import ParallelItems, PartTables
from genrec.models.parallel_model import ParallelModel

if TYPE_CHECKING:
    from genrec.data.catalog import ItemCatalog
    from genrec.item_tokenizers.base import TokenizerSource
    from genrec.item_tokenizers.fsq import Fsq

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ParallelDecoding:
    """How a parallel model is asked; stored with it (experimental).

    max_items: newest items of a history that the model sees (all count as seen). batch_size: users at once. beta: of
    ``target: vectors``, the weight of every semantic slot, ``1 - beta`` that of the collaborative one
    (:func:`~genrec.decoding.parallel_slots.setrec_weights`): .5 weighs all slots alike, as the loss does.
    Raises ConfigError for values out of range.
    """

    max_items: int = 20
    batch_size: int = 128
    beta: float = 0.5

    def __post_init__(self) -> None:
        for name in ("max_items", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected a positive integer, got {getattr(self, name)}")
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"beta: expected 0 to 1, got {self.beta}")


class ParallelRecommender:
    """Recommends by one pass and an exact search; a :class:`~genrec.decoding.interface.Recommender` (experimental).

    ::

        target: codes     score(i) = sum over parts of log softmax(logits of the part)[code of i]    normalize = level
        target: vectors   score(i) = sum over slots of weight[slot] <state of the slot, vector of i>

    Every list is the exact best of all allowed items (``certified``). Items that share an identifier share its score.
    (RecGPT searches a tree of the catalog's codes with a beam and divides logits by a temperature of .1; the parts do
    not depend on each other, so the sum over them can be had exactly, with the probabilities that were trained.)

    catalog: for ids and titles, None = item numbers only. Raises FingerprintMismatch for items that the model cannot
    read, DataError where they lack what it reads.
    """

    def __init__(
        self,
        model: ParallelModel,
        items: ParallelItems,
        settings: ParallelDecoding | None = None,
        *,
        catalog: ItemCatalog | None = None,
    ) -> None:
        model.shape.check(items.shape)
        if catalog is not None and catalog.fingerprint != items.catalog:
            raise DataError(f"catalog: expected {items.catalog[:8]}, that of the items, got {catalog.fingerprint[:8]}")
        self.model, self.items, self.catalog = model, items, catalog
        self.settings = settings or ParallelDecoding()
        self._tables = items.tables(model.settings).to(self._device)
        self._index: ParallelIndex | SlotIndex | None = None

    @property
    def _device(self) -> torch.device:
        return self.model.body.start.device

    @property
    def n_items(self) -> int:
        """Number of items N of the catalog."""
        return self.items.n_items

    @property
    def history_cap(self) -> int:
        """How many events of a history the model sees, the newest ones."""
        return self.settings.max_items

    def with_beta(self, beta: float) -> ParallelRecommender:
        """The same with another weight of the semantic slots; model, tables and index are shared."""
        self._searched()
        other = ParallelRecommender.__new__(ParallelRecommender)
        other.__dict__.update(self.__dict__, settings=replace(self.settings, beta=beta))
        return other

    def for_catalog(self, items: ParallelItems, catalog: ItemCatalog | None = None) -> ParallelRecommender:
        """The same model on other items, which it may never have seen: nothing is trained (RecGPT's zero-shot)."""
        return ParallelRecommender(self.model, items, self.settings, catalog=catalog)

    def recommend(
        self,
        histories: Histories | Sequence[Sequence[int]],
        options: SearchOptions | None = None,
        users: npt.NDArray[np.int32] | None = None,
    ) -> Recommendations:
        """Lists for all histories, in their order; ``users`` and the options of a beam search play no part.

        Raises DataError for unknown items, ConfigError for options that ask for ``diversity`` or another normaliser.
        """
        wanted = options or SearchOptions()
        if wanted.diversity is not None:
            raise ConfigError("diversity: not for parallel identifiers", hint="re-rank a longer list")
        if wanted.normalize not in (None, self._normalize):
            raise ConfigError(f"normalize: expected {self._normalize!r} or None, got {wanted.normalize!r}")
        rows = self._histories(histories)
        filters, index = by_row(wanted.filter, len(rows)), self._searched()
        found, order = [], []
        for batch, states in self._batches(rows):
            deny = rows.take(batch) if wanted.exclude_seen else None
            allowed = [filters[row] for row in batch.tolist()]
            if isinstance(index, ParallelIndex):
                part = index.search(
                    self._log_probabilities(states),
                    top_k=wanted.top_k,
                    filter=allowed,
                    deny=deny,
                    normalize=self._normalize,
                )
            else:
                queries, weights = states.float().cpu().numpy(), self._weights()
                part = index.search(queries, top_k=wanted.top_k, weights=weights, filter=allowed, deny=deny)
            found.append(part)
            order.append(batch)
        return joined_lists(found, order, width=wanted.top_k or 0, normalize=self._normalize)

    def score(self, histories: Histories | Sequence[Sequence[int]], items: npt.ArrayLike | None = None) -> Floats:
        """Scores of all items, or of some for everyone, float32 ``[U, M]``; seen items are scored like others.

        Equal to the scores of :meth:`recommend` to rounding.
        """
        rows = self._histories(histories)
        asked = np.arange(self.n_items) if items is None else np.asarray(items, dtype=np.int64)
        out, index = np.empty((len(rows), len(asked)), dtype=np.float32), self._searched()
        for batch, states in self._batches(rows):
            if isinstance(index, ParallelIndex):
                tables = self._log_probabilities(states)
                parts = [table[:, codes[asked]] for table, codes in zip(tables, index.codes, strict=True)]
                out[batch] = np.sum(parts, axis=0)
            else:
                queries = states.float().cpu().numpy() * self._weights()[:, None]
                out[batch] = queries.reshape(len(batch), -1) @ index.vectors[asked].T
        return out

    @property
    def _normalize(self) -> str | None:
        return "level" if self.model.settings.target == "codes" else None

    def _weights(self) -> Floats:
        return setrec_weights(self.model.shape.names, self.settings.beta)

    @torch.no_grad()
    def _searched(self) -> ParallelIndex | SlotIndex:
        """The index of the catalog, made when first needed: the model's weights count as they are then."""
        if self._index is None:
            if self.model.settings.target == "codes":
                self._index = ParallelIndex.of(self.items.identifiers)
            else:
                with evaluating(self.model):
                    vectors = self.model.item_vectors(self._tables).float().cpu().numpy()
                self._index = SlotIndex.of(ItemSlots(vectors, self.model.shape.names, self.items.catalog))
        return self._index

    def _log_probabilities(self, states_BnD: Tensor) -> list[Floats]:
        with torch.no_grad():
            logits = self.model.code_logits(states_BnD)
        return [table.log_softmax(dim=1).cpu().numpy() for table in logits]

    @torch.no_grad()
    def _batches(self, histories: Histories) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        """Row numbers, and the states ``[B, n, D]`` after the whole history, of users with histories of like length."""
        recent = histories.last(self.settings.max_items)
        with evaluating(self.model):
            for batch in rows_of_like_length(recent, self.settings.batch_size):
                yield batch, states_after(self.model, self._tables, recent.take(batch))

    def _histories(self, given: Histories | Sequence[Sequence[int]]) -> Histories:
        return check_items(given if isinstance(given, Histories) else Histories.from_lists(given), self.n_items)


def states_after(model: ParallelModel, tables: PartTables, histories: Histories) -> Tensor:
    """What predicts the item after each whole history, ``[B, n, D]`` (internal)."""
    device = model.body.start.device
    items = torch.from_numpy(histories.padded(pad=0, side="right").astype(np.int64)).to(device)
    lengths = torch.from_numpy(histories.lengths).to(device)
    return model.states(model.parts(tables, items), lengths, lengths[:, None])[:, 0]


def unseen_catalog(
    recommender: ParallelRecommender, tokenizer: Fsq, source: TokenizerSource, catalog: ItemCatalog | None = None
) -> ParallelRecommender:
    """The recommender on a catalog that neither it nor the item tokenizer was trained on (experimental).

    RecGPT's zero-shot protocol (Jiang et al. 2025, 2506.06270): the fitted tokenizer encodes items by their vectors,
    and the trained model recommends them; nothing is learned. source: vectors made as those of the training catalog
    were. Any tokenizer with codes of one length will do. The published figures include many users whose last event
    repeats the one before it: compare with ``copy_last``, and exclude seen items, as ours do.
    """
    content = source.vectors() if recommender.model.settings.content else None
    return recommender.for_catalog(ParallelItems(tokenizer.encode(source), content), catalog)
