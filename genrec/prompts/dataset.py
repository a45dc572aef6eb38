"""Batches of alignment examples: the batch of step s is a pure function of the mixture, the seed and s."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np

from genrec.data.batching import length_batches, packed_padding_share, padding_share, random_batches
from genrec.errors import DataError
from genrec.prompts.data import Int64
from genrec.prompts.encode import Encoded, ExampleEncoder, TokenRows
from genrec.prompts.mixture import TaskMixture
from genrec.seeding import derive, rng

logger = logging.getLogger(__name__)

WINDOW = 64
"""Batches whose examples are encoded together and sorted by length; a resumed run encodes one window anew."""
TOLD = 8
"""Examples that a message names."""
ATTEMPTS = 100
"""Rows tried for one sample before the data are called unusable."""


def example_of(mixture: TaskMixture, encoder: ExampleEncoder, epoch: int, i: int, attempt: int) -> Encoded | None:
    """Sample ``i`` as ids, its oldest history items dropped until it fits; None if it cannot (internal).

    for n = max_items, then the largest n in max_items - 1 .. 1 that fits:
        the example with the n newest items of its history
    """
    example = mixture.example(epoch, i, attempt=attempt)
    if example is None:
        return None
    encoded = encoder(example)
    if encoder.fits(encoded):
        return encoded
    best, low, high = None, 1, mixture.data.max_items - 1
    while low <= high:
        n = (low + high) // 2
        shorter = mixture.example(epoch, i, attempt=attempt, max_items=n)
        cut = None if shorter is None else encoder(shorter)
        if cut is not None and encoder.fits(cut):
            best, low = cut, n + 1
        else:
            high = n - 1
    return best


class AlignmentPlan:
    """Which examples are the batch of step s (experimental).

    The samples of an epoch come in a random order, in windows of 64 batches; inside a window, batches hold examples of
    like length (see :func:`genrec.data.batching.length_batches`), with ``packing`` of any. A row that has nothing to
    say, or whose example is longer than ``max_tokens`` even with one history item, is replaced by another row of its
    task and counted in ``replaced`` (by task); those that were too long are in ``too_long`` too, with a warning.
    Raises DataError when that goes on 100 times for one sample.
    """

    def __init__(
        self, mixture: TaskMixture, encoder: ExampleEncoder, *, batch_size: int, seed: int, packing: bool = False
    ) -> None:
        self.mixture, self.encoder, self._batch_size, self._seed = mixture, encoder, batch_size, seed
        self._packing = packing
        self._padding_share: float | None = None
        self.steps_per_epoch = -(-len(mixture) // batch_size)
        self.replaced: Counter[str] = Counter()
        self.too_long: Counter[str] = Counter()
        self._at: tuple[int, int] | None = None
        self._said = False
        self._order: tuple[int, Int64] = (-1, np.zeros(0, np.int64))
        self._rows, self._batches = TokenRows.of([]), list[Int64]()

    def batch(self, step: int) -> TokenRows:
        """The examples of step ``step`` (0-based, counted over all epochs)."""
        epoch, nth = divmod(step, self.steps_per_epoch)
        window, place = divmod(nth, WINDOW)
        self._enter(epoch, window)
        return self._rows.take(self._batches[place])

    def told(self, step: int) -> str:
        """The batch of step ``step`` in words, for who looks for what is wrong with it."""
        self.batch(step)
        epoch, nth = divmod(step, self.steps_per_epoch)
        window, place = divmod(nth, WINDOW)
        first = window * WINDOW * self._batch_size
        numbers = np.sort(self._order[1][first + self._batches[place]])
        named = [f"{i} ({self.mixture.tasks[self.mixture.task_of(int(i))].name})" for i in numbers[:TOLD].tolist()]
        more = f" and {len(numbers) - TOLD} more" if len(numbers) > TOLD else ""
        return f"examples {', '.join(named)}{more} of epoch {epoch} (of the mixture)"

    def padding_share(self) -> float:
        """Share of the input token cells that are padding, in [0, 1): of the first window of the first epoch."""
        if self._padding_share is None:
            self._enter(0, 0)
        assert self._padding_share is not None
        return self._padding_share

    def _enter(self, epoch: int, window: int) -> None:
        if self._at == (epoch, window):
            return
        if self._order[0] != epoch:
            order = rng(self._seed, "order of examples", epoch).permutation(len(self.mixture))
            self._order = (epoch, order)
        size = WINDOW * self._batch_size
        chosen = self._order[1][window * size : (window + 1) * size]
        self._rows = TokenRows.of([self.encoded(epoch, int(i)) for i in chosen])
        self._say_replaced(len(chosen))
        seed = derive(self._seed, "window", window)
        if self._packing:
            self._batches = random_batches(len(chosen), self._batch_size, seed=seed, epoch=epoch)
        else:
            self._batches = length_batches(self._lengths(), self._batch_size, seed=seed, epoch=epoch)
        self._at = (epoch, window)
        if self._at == (0, 0):
            self._padding_share = (packed_padding_share if self._packing else padding_share)(
                self._lengths(), self._batches
            )

    def _say_replaced(self, n_examples: int) -> None:
        """Warn, once, of examples that are left out for their length."""
        if found := {name: n for name, n in self.too_long.items() if n and not self._said}:
            self._said = True
            logger.warning(
                "of the first %d examples, other rows took the place of %s: they were longer than max_tokens (%d) even "
                "with one item of history; raise max_tokens or lower max_text to keep them",
                *(n_examples, ", ".join(f"{n} of {name}" for name, n in found.items()), self.encoder.max_tokens),
            )

    def _lengths(self) -> Int64:
        return self._rows.prompt_lengths if self.encoder.layout == "encoder" else self._rows.lengths

    def encoded(self, epoch: int, i: int) -> Encoded:
        """Sample ``i`` of an epoch, or what replaces it."""
        for attempt in range(ATTEMPTS):
            found = example_of(self.mixture, self.encoder, epoch, i, attempt)
            if found is not None:
                return found
            name = self.mixture.tasks[self.mixture.task_of(i)].name
            self.replaced[name] += 1
            self.too_long[name] += self.mixture.example(epoch, i, attempt=attempt) is not None
        name = self.mixture.tasks[self.mixture.task_of(i)].name
        raise DataError(
            f"task {name!r}: {ATTEMPTS} rows in a row gave no example of at most {self.encoder.max_tokens} tokens",
            hint="raise max_tokens, lower max_text, or leave the task out",
        )
