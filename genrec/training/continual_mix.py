"""What a training on new items is made of: contexts from the training histories, and the items to learn behind them.

Numpy only, and a function of data, settings and seed. Axes: N items, M new items, k neighbours, E events of all
histories, R samples, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.data.ties import Bools
from genrec.errors import ConfigError

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
_NEW_AT_ONCE, _OLD_AT_ONCE = 1 << 10, 1 << 14
KINDS = ("pseudo", "log", "replay", "written", "text")


@dataclass(frozen=True)
class MixSettings:
    """How much of what (experimental).

    Amounts are relative; the part of a kind that there is none of goes to the others. pseudo: a training history of an
    old item that is like the new one, with the new one in the old one's place. log: events on new items, where a log of
    them is given. replay: training events of old items. written: training contexts with an old item that the model
    before draws for them. text: texts of new items to their identifier and back, for models that were trained with
    words.
    n_neighbours: old items that a new one borrows from, by the cosine of their vectors, which is their weight too.
    max_over_mean, uniform: of the pseudo-histories, the share ``uniform`` is the same for every new item; the rest goes
    by the weight of all contexts of its neighbours (popular neighbours have many), but no item counts for more than
    ``max_over_mean`` times the mean. replay_by: every old item as often as any other (``items``), or as in the log
    (``events``); of ``written`` too.

    Raises ConfigError for values out of range.
    """

    pseudo: float = 1.0
    log: float = 1.0
    replay: float = 2.0
    written: float = 0.0
    text: float = 1.0
    n_neighbours: int = 10
    max_over_mean: float = 3.0
    uniform: float = 0.5
    replay_by: Literal["items", "events"] = "items"

    def __post_init__(self) -> None:
        for name in KINDS:
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"mix.{name}: expected 0 or more, got {getattr(self, name)}")
        if self.n_neighbours < 1:
            raise ConfigError(f"mix.n_neighbours: expected a positive integer, got {self.n_neighbours}")
        if not self.max_over_mean >= 1:
            raise ConfigError(f"mix.max_over_mean: expected 1 or more, got {self.max_over_mean}")
        if not 0 <= self.uniform <= 1:
            raise ConfigError(f"mix.uniform: expected a share, got {self.uniform}")
        if self.replay_by not in ("items", "events"):
            raise ConfigError(f"mix.replay_by: expected items or events, got {self.replay_by!r}")


@dataclass(frozen=True, eq=False)
class Events:
    """Training events that have something before them, by item (internal).

    at: int64 ``[E']``, places in ``histories.items``, those of item n being ``at[first[n]:first[n + 1]]``. first: int64
    ``[N + 1]``.
    """

    histories: Histories
    at: Int64
    first: Int64

    @classmethod
    def of(cls, histories: Histories, n_items: int, n_rows: int | None = None) -> Events:
        """Of the first ``n_rows`` histories (None = all); every event but the first of each."""
        end = len(histories.items) if n_rows is None else int(histories.offsets[n_rows])
        places = np.arange(end, dtype=np.int64)
        places = places[places > histories.offsets[:-1][histories.rows()[:end]]]
        item = histories.items[places]
        first = np.zeros(n_items + 1, np.int64)
        np.cumsum(np.bincount(item, minlength=n_items), out=first[1:])
        return cls(histories, places[np.argsort(item, kind="stable")], first)

    @property
    def counts_N(self) -> Int64:
        """Events of each item, int64 ``[N]``."""
        return np.diff(self.first)

    def drawn(self, items_R: Int64, random: np.random.Generator) -> Int64:
        """A uniform event of each of these items (which must have one)."""
        nth = (random.random(len(items_R)) * self.counts_N[items_R]).astype(np.int64)
        found: Int64 = self.at[self.first[items_R] + nth]
        return found


@dataclass(frozen=True, eq=False)
class Learned:
    """Samples: behind a context, an item to learn (internal).

    events: int64 ``[R]``, the place in the histories before which the context ends; -1 = no context, the item's own
    text. targets: int64 ``[R]``. kind: int8 ``[R]``, of :data:`KINDS`. told: bool ``[R]``, whether the sample says
    whose history it is.
    """

    events: Int64
    targets: Int64
    kind: npt.NDArray[np.int8]
    told: Bools

    def __len__(self) -> int:
        return len(self.targets)


def amounts(settings: MixSettings, there: dict[str, bool], n_samples: int) -> dict[str, int]:
    """Samples of each kind, ``n_samples`` together, by largest remainder; none of what is not there (internal)."""
    weight = np.array([getattr(settings, name) if there[name] else 0.0 for name in KINDS])
    if not weight.any():
        raise ConfigError("mix: nothing is left to train on", hint="give mix.pseudo or mix.replay an amount above 0")
    exact = n_samples * weight / weight.sum()
    count = np.floor(exact).astype(np.int64)
    rest = n_samples - int(count.sum())
    count[np.argsort(count - exact, kind="stable")[:rest]] += 1
    return dict(zip(KINDS, count.tolist(), strict=True))


def neighbours(vectors_ND: npt.NDArray[np.floating], new_M: Int64, like_N: Bools, k: int) -> tuple[Int64, Float64]:
    """The k items of ``like_N`` nearest to each new item by cosine, int64 ``[M, k]``, and max(cosine, 0) (internal).

    A vector of zeros is like nothing.
    """
    among = np.flatnonzero(like_N)
    k = min(k, len(among))
    near, cosine = np.zeros((len(new_M), k), np.int64), np.zeros((len(new_M), k), np.float32)
    for start in range(0, len(new_M), _NEW_AT_ONCE):
        rows = slice(start, start + _NEW_AT_ONCE)
        new_BD = _unit(vectors_ND[new_M[rows]])
        # the nearest so far and those of the next part: never all old items at once
        found, close = np.zeros((len(new_BD), 0), np.int64), np.zeros((len(new_BD), 0), np.float32)
        for first in range(0, len(among), _OLD_AT_ONCE):
            part = among[first : first + _OLD_AT_ONCE]
            close = np.hstack([close, new_BD @ _unit(vectors_ND[part]).T])
            found = np.hstack([found, np.broadcast_to(part, (len(new_BD), len(part)))])
            best = np.argpartition(-close, min(k, close.shape[1]) - 1, axis=1)[:, :k]
            found, close = np.take_along_axis(found, best, axis=1), np.take_along_axis(close, best, axis=1)
        near[rows], cosine[rows] = found, close
    return near, np.maximum(cosine, 0).astype(np.float64)


def _unit(rows_RD: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    norm_R1 = np.linalg.norm(rows_RD, axis=1, keepdims=True)
    unit_RD: npt.NDArray[np.float32] = (rows_RD / np.where(norm_R1 > 0, norm_R1, 1)).astype(np.float32)
    return unit_RD


def item_shares(mass_M: Float64, settings: MixSettings) -> Float64:
    """The share of the pseudo-histories that each new item gets, float64 ``[M]``, none without mass (internal).

    ::

        n     = number of items that have any
        w     = min(mass * f, max_over_mean / n), with the f for which the sum of w is 1
        share = (1 - uniform) * w + uniform / n
    """
    some_M = mass_M > 0
    n = int(some_M.sum())
    if not n:
        return np.zeros(len(mass_M))
    cap, most_first = min(settings.max_over_mean / n, 1.0), np.sort(mass_M[some_M])[::-1]
    # with the j greatest at the cap, the others share the rest: f[j]; right is the first that keeps all below it
    factor = (1 - cap * np.arange(n)) / np.cumsum(most_first[::-1])[::-1]
    at = int(np.argmax(factor * most_first <= cap * (1 + 1e-9)))
    share_M: Float64 = (1 - settings.uniform) * np.minimum(mass_M * factor[at], cap) + settings.uniform * some_M / n
    return share_M


def spread(share: Float64, n: int, random: np.random.Generator) -> Int64:
    """n numbers of an axis, each as often as its share says, to within one (internal)."""
    ends = np.cumsum(share)
    found: Int64 = np.searchsorted(ends, (np.arange(n) + random.random()) / n * ends[-1], side="right")
    return found


def pseudo_histories(
    events: Events, near_Mk: Int64, cosine_Mk: Float64, settings: MixSettings, n: int, random: np.random.Generator
) -> tuple[Int64, Int64]:
    """n contexts of old items and the new item (0..M-1) to put behind each (internal).

    The item by :func:`item_shares`; of its neighbours' contexts each with a probability in proportion to the cosine.
    """
    mass_Mk = cosine_Mk * events.counts_N[near_Mk]
    item_R = spread(item_shares(mass_Mk.sum(axis=1), settings), n, random)
    ends_Rk = np.cumsum(mass_Mk, axis=1)[item_R]
    nth_R = (ends_Rk <= random.random((n, 1)) * ends_Rk[:, -1:]).sum(axis=1)
    return events.drawn(near_Mk[item_R, np.minimum(nth_R, near_Mk.shape[1] - 1)], random), item_R


def replayed(events: Events, old_N: Bools, settings: MixSettings, n: int, random: np.random.Generator) -> Int64:
    """n events of old items, drawn by item or by event (internal)."""
    count_N = np.where(old_N, events.counts_N, 0)
    weight_N = (count_N > 0) if settings.replay_by == "items" else count_N
    return events.drawn(spread(weight_N.astype(np.float64), n, random), random)
