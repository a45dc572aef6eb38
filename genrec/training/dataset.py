"""What is trained on: histories cut into samples, and which samples make up the batch of each step.

Axes: U users, E items of all histories together, R samples, N items, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from genrec.data.batching import length_batches, packed_padding_share, padding_share, random_batches
from genrec.data.histories import Histories, Int32
from genrec.data.splits import EvalSet
from genrec.data.ties import Bools, redraw
from genrec.errors import DataError
from genrec.item_tokenizers.codes import ItemCodes, check_catalog
from genrec.seeding import rng
from genrec.training.settings import TrainSettings
from genrec.vocab.token_map import TokenMap
from genrec.vocab.user_index import UserIndex, check_users, user_tokens

Int64 = npt.NDArray[np.int64]
TOLD = 8  # users that a message names


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a fine-tune may read (stable).

    histories: the training part, one row per user. codes: identifiers of all items. token_map: their tokens.
    valid: validation queries, for early stopping. user_ids: the id of the user of each history (and of each
    user number in ``valid``), needed if the vocabulary has user tokens. user_index: the codes of users, where the
    vocabulary has tokens for them. tied: which events of the histories
    stand in an arbitrary order (:meth:`genrec.data.splits.Split.train_ties`), drawn anew every epoch. catalog:
    fingerprint of the catalog whose item numbers the histories hold (None = not known).

    Raises DataError if the parts do not fit together, FingerprintMismatch for codes of another catalog.
    """

    histories: Histories
    codes: ItemCodes
    token_map: TokenMap
    valid: EvalSet | None = None
    user_ids: Sequence[str] | None = None
    tied: Bools | None = None
    catalog: str | None = None
    user_index: UserIndex | None = None

    def __post_init__(self) -> None:
        check_catalog("codes", self.codes.catalog, self.catalog)
        check_users(self.token_map, self.user_index)
        items, n_items = self.histories.items, self.codes.n_items
        if len(items) and not 0 <= int(items.min()) <= int(items.max()) < n_items:
            raise DataError(f"histories: expected item numbers 0..{n_items - 1}, got {items.min()}..{items.max()}")
        if self.tied is not None and len(self.tied) != len(items):
            raise DataError(f"tied: expected {len(items)} marks, one per event of the histories, got {len(self.tied)}")
        if self.token_map.level_sizes != self.codes.level_sizes:
            raise DataError(
                f"token map: expected level sizes {self.codes.level_sizes}, got {self.token_map.level_sizes}"
            )
        if self.token_map.n_user_tokens and len(self.user_ids or ()) != len(self.histories):
            raise DataError(
                f"user_ids: the vocabulary has user tokens, so expected one id per history "
                f"({len(self.histories)}), got {len(self.user_ids or ())}"
            )

    @cached_property
    def users_UM(self) -> Int64 | None:
        """Tokens of the user of each history, int64 ``[U, M]``, -1 = none; None where the vocabulary has none.

        With a user index there is one row more, the last: ``<unk_user>``, so that row -1 is it.
        """
        ids = list(self.user_ids or ()) if self.user_index is None else [*(self.user_ids or ()), ""]
        return user_tokens(self.token_map, ids, self.user_index)

    @cached_property
    def told_E(self) -> Bools | None:
        """Which events are learned with their user's tokens before them (:meth:`UserIndex.told`); None = all."""
        return None if self.user_index is None else self.user_index.told(self.histories, self.tied)


@dataclass(frozen=True, eq=False)
class Samples:
    """Sample r is ``items[starts[r]:ends[r]]``, of user ``rows[r]`` (-1 = whose user is not told) (internal).

    starts, ends, rows: int64 ``[R]``. items: int32 ``[E]``, all histories below each other. A sample has
    at least two items: something known, something to predict. learned: int64 ``[R]``, the first event that a
    decoder-only model learns of a sample; None = learn all.
    """

    starts: Int64
    ends: Int64
    rows: Int64
    items: Int32
    learned: Int64 | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, at: Int64) -> Samples:
        """These samples only."""
        learned = None if self.learned is None else self.learned[at]
        return replace(self, starts=self.starts[at], ends=self.ends[at], rows=self.rows[at], learned=learned)

    @property
    def only_read(self) -> Int64:
        """How many items of each sample, the oldest, a decoder-only model reads and does not learn, ``[R]``."""
        first = self.starts if self.learned is None else self.learned
        only_read: Int64 = np.maximum(first - self.starts, 0)
        return only_read

    def drop_prefixes(self, probability: float, seed: int, epoch: int) -> Samples:
        """Each sample loses, with this probability, between one and all but two of its oldest items.

        The choice depends on (seed, epoch, sample number) only.
        """
        if not probability:
            return self
        chance, share = rng(seed, "prefix_drop", epoch).random((2, len(self)))
        room = self.ends - self.starts - 2
        dropped = np.where((chance < probability) & (room > 0), 1 + np.floor(share * room), 0)
        return replace(self, starts=self.starts + dropped.astype(np.int64))

    def drop_users(self, probability: float, seed: int, epoch: int) -> Samples:
        """Each sample becomes, with this probability, that of an unknown user; chosen as :meth:`drop_prefixes` does."""
        if not probability:
            return self
        dropped = rng(seed, "user_drop", epoch).random(len(self)) < probability
        return replace(self, rows=np.where(dropped, -1, self.rows))


def prefix_samples(histories: Histories, max_items: int, told_E: Bools | None = None) -> Samples:
    """Every item but the first of each history, once, as the target of the items before it (internal).

    For encoder-decoders: the last item of a sample is the target, up to ``max_items`` before it the input. Only where
    that event is ``told`` does the sample tell its user.
    """
    rows = histories.rows()
    first = histories.offsets[:-1][rows]
    target = np.flatnonzero(np.arange(len(rows)) > first)
    starts = np.maximum(first[target], target - max_items)
    users = rows[target] if told_E is None else np.where(told_E[target], rows[target], -1)
    return Samples(starts, target + 1, users, histories.items)


def window_samples(histories: Histories, max_items: int, told_E: Bools | None = None) -> Samples:
    """Each history cut, from its newest item, into windows of ``max_items + 1`` items (internal).

    For decoder-only models, which learn every item of a window. What is left at the oldest end makes a
    shorter window; a single item is no sample. With ``told``, the newest events of each history: windows of those
    before them, which do not tell their user, and windows of the whole, which do and where only these are learned.
    """
    first, last, width = histories.offsets[:-1], histories.offsets[1:], max_items + 1
    if told_E is None:
        return Samples(*_windows(first, last, width), histories.items)
    begin = last - np.bincount(histories.rows()[told_E], minlength=len(histories))
    starts, ends, rows = _windows(first, last, width)
    newer = ends > begin[rows]
    before = _windows(first, begin, width)
    parts = [(*before[:2], np.full_like(before[2], -1)), (starts[newer], ends[newer], rows[newer])]
    learned = np.concatenate([before[0], begin[rows[newer]]])
    starts, ends, rows = (np.concatenate(pair) for pair in zip(*parts, strict=True))
    return Samples(starts, ends, rows, histories.items, learned)


def _windows(first: Int64, last: Int64, width: int) -> tuple[Int64, Int64, Int64]:
    """Starts, ends and users of windows of the events ``first[u]:last[u]``, from the newest, of two items and more."""
    n_windows = -(-(last - first) // width)
    rows = np.repeat(np.arange(len(first)), n_windows)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
    ends = last[rows] - nth * width
    starts = np.maximum(first[rows], ends - width)
    enough = ends - starts >= 2
    return starts[enough], ends[enough], rows[enough]


class Plan:
    """Which samples are the batch of step s: a pure function of the data, the settings and s (internal).

    Batches hold samples of like length (see :func:`genrec.data.batching.length_batches`), with ``packing`` of any, and
    come in another order every epoch, so a resumed run goes on with exactly the batches to come.
    """

    def __init__(
        self,
        samples: Samples,
        item_lengths_N: Int64,
        settings: TrainSettings,
        *,
        tied: Bools | None = None,
        target_apart: bool = False,
        user_drop: float = 0.0,
    ) -> None:
        """``item_lengths_N``: tokens of each item. ``tied``: which events to bring into another order every epoch.

        ``target_apart``: the last item of a sample is not part of the padded input (encoder-decoder). ``user_drop``:
        chance that a sample does not tell its user.
        """
        if not len(samples):
            raise DataError(
                "training data: expected a history of two items or more, got none",
                hint="check the split: each user's training part must hold at least two events",
            )
        self.samples, self._item_lengths_N, self._settings, self._tied = samples, item_lengths_N, settings, tied
        self._target_apart, self._user_drop = int(target_apart), user_drop
        self.steps_per_epoch = -(-len(samples) // settings.batch_size)
        self._epoch = -1
        self._padding_share: float | None = None
        self._batches: list[Int64] = []
        self._current = samples

    def batch(self, step: int) -> Samples:
        """The samples of step ``step`` (0-based, counted over all epochs)."""
        epoch, nth = divmod(step, self.steps_per_epoch)
        self._enter(epoch)
        return self._current.take(self._batches[nth])

    def told(self, step: int) -> str:
        """The batch of step ``step`` in words, for who looks for what is wrong with it."""
        batch = self.batch(step)
        users = np.unique(batch.rows[batch.rows >= 0]).tolist()
        more = f" and {len(users) - TOLD} more" if len(users) > TOLD else ""
        return f"{len(batch)} samples of users {', '.join(map(str, users[:TOLD]))}{more} (rows of the histories)"

    def padding_share(self) -> float:
        """Share of the token cells of the first epoch's batches that are padding, in [0, 1)."""
        if self._padding_share is None:
            self._enter(0)
        assert self._padding_share is not None
        return self._padding_share

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        seed = self._settings.seed
        items = redraw(self.samples.items, self._tied, seed=seed, epoch=epoch)
        dropped = self.samples.drop_prefixes(self._settings.prefix_drop, seed, epoch)
        dropped = dropped.drop_users(self._user_drop, seed, epoch)
        self._current = replace(dropped, items=items)
        lengths = self._lengths()
        size, packing = self._settings.batch_size, self._settings.packing
        if packing:
            self._batches = random_batches(len(lengths), size, seed=seed, epoch=epoch)
        else:
            self._batches = length_batches(lengths, size, seed=seed, epoch=epoch)
        self._epoch = epoch
        if not epoch:
            self._padding_share = (packed_padding_share if packing else padding_share)(lengths, self._batches)

    def _lengths(self) -> Int64:
        before = np.concatenate([[0], np.cumsum(self._item_lengths_N[self._current.items])])
        lengths: Int64 = before[self._current.ends - self._target_apart] - before[self._current.starts]
        return lengths
