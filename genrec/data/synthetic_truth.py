"""The generating distribution of the synthetic shop: draw from it, and compute it exactly.

One step of a user of taste p whose walk stands in cluster c, with the set of items received so far:

    with chance `noise`:   item ~ noise_items                       the walk stays in c
    otherwise:             c' ~ transitions[c], item ~ appeal[p] within c'     the walk moves to c'
    if the item was received before: forget this draw and repeat (so: condition on a new item)

Legend: N items, C clusters, P tastes, U users, B rows of a batch, T steps of a history.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.errors import DataError

_ROWS = 512  # histories filtered at once; bounds the memory of the oracle


@dataclass(frozen=True)
class SyntheticTruth:
    """The parameters of the generator: all that the oracle knows, and (``taste``) what it does not (stable).

    ``transitions`` float64 ``[C, C]``, row = from; ``appeal`` float64 ``[P, N]``: chance of an item inside
    its cluster for a taste; ``noise_items`` float64 ``[N]``; ``taste_prior`` float64 ``[P]``; the walk starts
    in a uniformly drawn cluster. ``cluster``, ``brand`` int32 ``[N]``; ``taste`` int32 ``[U]``.
    """

    transitions: npt.NDArray[np.float64]
    appeal: npt.NDArray[np.float64]
    noise_items: npt.NDArray[np.float64]
    noise: float
    taste_prior: npt.NDArray[np.float64]
    cluster: npt.NDArray[np.int32]
    brand: npt.NDArray[np.int32]
    cluster_names: tuple[tuple[str, str], ...]
    taste: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    @property
    def n_items(self) -> int:
        """Number of items N."""
        return len(self.cluster)


def walk(truth: SyntheticTruth, n_steps: int, draw: np.random.Generator) -> npt.NDArray[np.int32]:
    """Items ``[U, T]`` of every user's walk; a pick the user already has is thrown away and redrawn (internal)."""
    n_users, n_clusters = len(truth.taste), len(truth.transitions)
    order = np.argsort(truth.cluster, kind="stable")
    last = np.cumsum(np.bincount(truth.cluster, minlength=n_clusters)) - 1
    # one cumulative scale for all (taste, cluster) pairs: pair number + chance inside the cluster
    scale_PN = np.cumsum(truth.appeal[:, order], axis=1)
    scale_PN[:, last] = np.arange(1, n_clusters + 1)  # exact ends, whatever the rounding
    scale = (scale_PN + n_clusters * np.arange(len(scale_PN))[:, None]).ravel()
    move_CC = np.cumsum(truth.transitions, axis=1)
    noise_N = np.cumsum(truth.noise_items)
    at = draw.integers(n_clusters, size=n_users)
    items = np.full((n_users, n_steps), -1, np.int32)
    for t in range(n_steps):
        todo = np.arange(n_users)
        while len(todo):
            u = draw.random((4, len(todo)))
            to = (u[0][:, None] * move_CC[at[todo], -1:] >= move_CC[at[todo]]).sum(axis=1)
            pair = truth.taste[todo].astype(np.int64) * n_clusters + to
            picked = order[np.searchsorted(scale, pair + u[1], side="right") % truth.n_items]
            random = np.searchsorted(noise_N, u[2] * noise_N[-1], side="right")
            is_noise = u[3] < truth.noise
            item = np.where(is_noise, random, picked)
            fresh = (items[todo, :t] != item[:, None]).all(axis=1)
            moved = fresh & ~is_noise
            items[todo[fresh], t] = item[fresh]
            at[todo[moved]] = to[moved]
            todo = todo[~fresh]
    return items


def oracle_scores(truth: SyntheticTruth, histories: Histories) -> npt.NDArray[np.float64]:
    """Exact chance of every item to come next given the history, float64 ``[B, N]``; rows sum to 1 (stable).

    Bayes-optimal for whoever knows the shop but not the user: taste and position of the walk are integrated
    out over their posterior. Histories must be whole (from the first event on); items received already have
    chance 0. Raises DataError for a history that the generator cannot make (repeats, unknown item numbers).

    Per row, with a(p, c) the posterior and q(i | p, c) the chance of a draw before the "new item" condition:

        z(p, c) = 1 - sum over received items of q(. | p, c)
        P(i)    = [i not received] * sum over (p, c) of a(p, c) / z(p, c) * q(i | p, c)
    """
    _check_histories(truth, histories)
    out = np.empty((len(histories), truth.n_items))
    for start in range(0, len(histories), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(histories)))
        padded_BT = histories.take(rows).padded(side="right")
        posterior_BPC, left_BPC = _filter(truth, padded_BT)
        ratio_BPC = posterior_BPC / left_BPC
        into_BPC = (1 - truth.noise) * (ratio_BPC @ truth.transitions)
        scores_BN = truth.noise * ratio_BPC.sum(axis=(1, 2))[:, None] * truth.noise_items
        for p in range(len(truth.appeal)):
            scores_BN += into_BPC[:, p, truth.cluster] * truth.appeal[p]
        b, t = np.nonzero(padded_BT >= 0)
        scores_BN[b, padded_BT[b, t]] = 0.0
        out[rows] = scores_BN
    return out


@dataclass(frozen=True)
class Oracle:
    """The Bayes oracle as a recommender that scores every item (stable)."""

    truth: SyntheticTruth

    @property
    def n_items(self) -> int:
        """Number of items N."""
        return self.truth.n_items

    def score_all(self, histories: Histories, users: npt.NDArray[np.int32] | None = None) -> npt.NDArray[np.float32]:
        """Chance of every item to come next, float32 ``[B, N]``; see :func:`oracle_scores`."""
        return oracle_scores(self.truth, histories).astype(np.float32)


def _filter(
    truth: SyntheticTruth, padded_BT: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Posterior of (taste, cluster) and the chance left for new items, both float64 ``[B, P, C]``."""
    n_clusters = len(truth.transitions)
    shape = (len(padded_BT), len(truth.appeal), n_clusters)
    posterior_BPC = np.broadcast_to(truth.taste_prior[:, None] / n_clusters, shape).copy()
    left_BPC = np.ones(shape)
    for t in range(padded_BT.shape[1]):
        live = np.flatnonzero(padded_BT[:, t] >= 0)
        item = padded_BT[live, t]
        to, appeal_BP = truth.cluster[item], truth.appeal[:, item].T
        step_BC = (1 - truth.noise) * truth.transitions[:, to].T
        random_B11 = truth.noise * truth.noise_items[item][:, None, None]
        ratio_BPC = posterior_BPC[live] / left_BPC[live]
        after_BPC = random_B11 * ratio_BPC  # a random item: the walk has not moved
        after_BPC[np.arange(len(live)), :, to] += (ratio_BPC * step_BC[:, None, :]).sum(axis=2) * appeal_BP
        posterior_BPC[live] = after_BPC / after_BPC.sum(axis=(1, 2), keepdims=True)
        left_BPC[live] -= step_BC[:, None, :] * appeal_BP[:, :, None] + random_B11
    return posterior_BPC, left_BPC


def _check_histories(truth: SyntheticTruth, histories: Histories) -> None:
    items = histories.items
    if len(items) and (items.min() < 0 or items.max() >= truth.n_items):
        raise DataError(f"item numbers: expected 0 to {truth.n_items - 1}, got {items.min()} to {items.max()}")
    pair = np.sort(histories.rows() * truth.n_items + items)
    repeated = np.flatnonzero(pair[1:] == pair[:-1])
    if len(repeated):
        row, item = divmod(int(pair[repeated[0]]), truth.n_items)
        raise DataError(f"history {row} holds item {item} twice; synthetic users never repeat an item")
