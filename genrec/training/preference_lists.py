"""What a preference step is about: queries of the training histories, and the lists the model makes for them.

Axes: U users, E events, B queries of a batch, C items of a list, N items.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from genrec.data.histories import Histories, Int32
from genrec.data.ties import Bools
from genrec.decoding.filters import ItemFilter, RankFilter
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import Normalize, SearchOptions
from genrec.decoding.sampling import draw, row_keys
from genrec.decoding.scorer import Prompts
from genrec.decoding.search import Batch, Search
from genrec.decoding.select import DeviceIndex
from genrec.errors import DataError
from genrec.models.backbone import layout_of, scorer_of
from genrec.models.prompting import build_prompts, item_tokens
from genrec.models.template_prompts import TemplatePrompts
from genrec.seeding import derive
from genrec.training.dataset import Plan, Samples, TrainingData, prefix_samples
from genrec.training.settings import TrainSettings

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Queries:
    """What is asked in one step (internal).

    histories: what stands before the targets, the newest ``max_items``. targets: int64 ``[B]`` item numbers. rows:
    int64 ``[B]``, the user of each. users: the same, -1 = not told (:attr:`TrainingData.told_E`). known: all items of
    that user's training history but the target. seeds: int64 ``[B]``, of the draws. fresh: False where the lists of the
    step before are used again.
    """

    histories: Histories
    targets: Int64
    rows: Int64
    users: Int64
    known: Histories
    seeds: Int64
    fresh: bool = True

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, at: Int64) -> Queries:
        """These queries only."""
        rows, users = self.rows[at], self.users[at]
        known = self.known.take(at)
        return Queries(self.histories.take(at), self.targets[at], rows, users, known, self.seeds[at], self.fresh)


def query_samples(histories: Histories, max_items: int, allowed: npt.NDArray[np.bool_] | None = None) -> Samples:
    """Every item of a history, but the first, that a list could hold: not had before, and allowed (internal).

    allowed: bool ``[N]``. Raises DataError where nothing is left.
    """
    samples = prefix_samples(histories, max_items)
    samples = samples.take(np.flatnonzero(_askable(histories, allowed)[samples.ends - 1]))
    if not len(samples):
        raise DataError(
            "training data: expected a history with an item that is allowed and was not had before, got none",
            hint="each user's training part must hold at least two events; a filter must allow some of them",
        )
    return samples


def _askable(histories: Histories, allowed: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    """Events whose item the user had not had before and a list may hold, bool ``[E]``."""
    items, rows = histories.items.astype(np.int64), histories.rows()
    new = np.zeros(len(items), dtype=np.bool_)
    new[np.unique(rows * (int(items.max(initial=0)) + 1) + items, return_index=True)[1]] = True
    return new if allowed is None else new & allowed[items]


class QueryPlan:
    """The queries of every step, a pure function of data, settings and step (internal).

    ``n_updates`` steps in a row have the same queries; only the first of them asks for new lists. Ties of the data
    (``data.tied``) are drawn anew every epoch, as in fine-tuning; a query whose target could not be asked for in that
    order, since the user had it before or it is not ``allowed``, has the user's events in the order of the data.
    """

    def __init__(
        self,
        samples: Samples,
        data: TrainingData,
        settings: TrainSettings,
        n_updates: int,
        allowed: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        lengths_N = data.token_map.real(item_tokens(data.codes, data.token_map)).sum(axis=1)
        self._plan = Plan(samples, lengths_N, settings, tied=data.tied, target_apart=True)
        self._tied, self._allowed = data.tied is not None, allowed
        self._histories, self._told_E = data.histories, data.told_E
        self._seed, self._n_updates = settings.seed, n_updates
        self._targets = samples.ends - 1
        self._order: tuple[Int32 | None, Int32] = (None, samples.items)
        self.steps_per_epoch = self._plan.steps_per_epoch * n_updates

    def batch(self, step: int) -> Queries:
        """The queries of step ``step`` (0-based, counted over all epochs)."""
        block, again = divmod(step, self._n_updates)
        samples = self._plan.batch(block)
        if self._tied:
            samples = replace(samples, items=self._ordered(samples.items))
        seeds = derive(self._seed, "rollouts", block) % 2**62 + np.arange(len(samples), dtype=np.int64)
        return queries_of(self._histories, samples, seeds, told_E=self._told_E, fresh=not again)

    def told(self, step: int) -> str:
        """The batch of step ``step`` in words."""
        return self._plan.told(step // self._n_updates)

    def _ordered(self, drawn: Int32) -> Int32:
        """The events in the order of this epoch, of users for whom it fits."""
        if self._order[0] is not drawn:  # one array an epoch
            askable, row = _askable(Histories(self._histories.offsets, drawn), self._allowed), self._histories.rows()
            fits = np.ones(len(self._histories), np.bool_)
            fits[row[self._targets[~askable[self._targets]]]] = False
            self._order = (drawn, np.where(fits[row], drawn, self._histories.items))
        return self._order[1]

    def padding_share(self) -> float:
        """Padding among the tokens of the histories of the first epoch, in [0, 1)."""
        return self._plan.padding_share()


def queries_of(
    histories: Histories, samples: Samples, seeds: Int64, *, told_E: Bools | None = None, fresh: bool = True
) -> Queries:
    """Samples as queries (internal)."""
    items, rows = samples.items, samples.rows
    targets = items[samples.ends - 1].astype(np.int64)
    whole = histories.take(samples.rows)
    kept = whole.items != np.repeat(targets, whole.lengths)
    offsets = np.concatenate([[0], np.cumsum(kept)])[whole.offsets]
    return Queries(
        Histories.from_slices(items, samples.starts, samples.ends - 1),
        targets,
        rows,
        rows if told_E is None else np.where(told_E[samples.ends - 1], rows, -1),
        Histories(offsets, whole.items[kept]),
        seeds,
        fresh,
    )


class QueryCollator:
    """Hands queries on; their lists need the weights of the step (internal)."""

    def n_targets(self, queries: Queries) -> int:
        """One loss per query."""
        return len(queries)

    def __call__(self, queries: Queries) -> dict[str, Any]:
        """The argument of the module."""
        return {"queries": queries}


class ListMaker:
    """The best or drawn items for queries, by the library's constrained search (internal).

    No list holds an item of the user's training history (but the target, where asked), one that is not ``allowed``, or
    two items of one identifier. All are in the catalog.
    """

    def __init__(
        self,
        model: Any,
        data: TrainingData,
        softmax: Normalize,
        *,
        allowed: ItemFilter | None = None,
        prompts: TemplatePrompts | None = None,
    ) -> None:
        self.data, self._softmax, self._template = data, softmax, prompts
        self._scorer: Any = scorer_of(model, data.token_map)
        self._layout = layout_of(model)
        self._host = CatalogIndex.build(data.codes)
        self._filter = None if allowed is None else RankFilter.of(allowed, self._host)
        self._tokens_NA = item_tokens(data.codes, data.token_map)
        self._users_UM = data.users_UM
        self.identifiers_N: Int32 = data.codes.collision_ids()

    @functools.cached_property
    def _index(self) -> DeviceIndex:
        """On the device of the model, which is moved after this object is made."""
        return DeviceIndex(self._host, self._scorer.device)

    def prompts(self, queries: Queries) -> Prompts:
        """Model inputs of the histories."""
        users = None if self._users_UM is None else self._users_UM[queries.users]
        if self._template is not None:
            return self._template(queries.histories, users)
        return build_prompts(self._layout, queries.histories, self._tokens_NA, self.data.token_map, users)

    def best(self, queries: Queries, prompts: Prompts, size: int, *, with_target: bool) -> Int64:
        """The ``size`` best items, best first, int64 ``[B, size]``, -1 = no more."""
        search = self._search(size)
        with torch.no_grad(), torch.autocast(self._scorer.device.type, enabled=False):
            found = search(self._batch(queries, prompts, with_target)).items
        return self._distinct(found.astype(np.int64), queries, with_target)

    def drawn(
        self, queries: Queries, prompts: Prompts, size: int, *, with_target: bool, temperature: float = 1.0
    ) -> Int64:
        """``size`` items drawn without replacement, the most probable first, int64 ``[B, size]``, -1 = no more."""
        keys = row_keys(prompts, queries.seeds)
        with torch.no_grad(), torch.autocast(self._scorer.device.type, enabled=False):
            found = draw(self._search(size), self._batch(queries, prompts, with_target), keys, temperature=temperature)
        order = np.argsort(-found.logp, axis=1, kind="stable")
        return self._distinct(np.take_along_axis(found.items, order, axis=1).astype(np.int64), queries, with_target)

    def _search(self, size: int) -> Search:
        return Search(self._scorer, self._index, SearchOptions(top_k=size), size, self._softmax)

    def _batch(self, queries: Queries, prompts: Prompts, with_target: bool) -> Batch:
        deny = queries.known
        if not with_target:
            items = np.insert(deny.items, deny.offsets[1:], queries.targets)
            deny = Histories(deny.offsets + np.arange(len(queries) + 1), items)
        return Batch(prompts, deny, [self._filter] * len(queries))

    def _distinct(self, items_BC: Int64, queries: Queries, with_target: bool) -> Int64:
        """Of items with one identifier the first (or the target): the model cannot tell them apart. Padding last."""
        own_BC = np.where(items_BC >= 0, self.identifiers_N[items_BC], -1)
        target_B1 = self.identifiers_N[queries.targets][:, None]
        same = own_BC == target_B1
        items_BC = np.where(same, queries.targets[:, None] if with_target else -1, items_BC)
        earlier = np.tri(items_BC.shape[1], k=-1, dtype=np.bool_)
        repeated = ((own_BC[:, :, None] == own_BC[:, None, :]) & earlier).any(axis=2)
        items_BC = np.where(repeated, -1, items_BC)
        order = np.argsort(items_BC < 0, axis=1, kind="stable")
        return np.take_along_axis(items_BC, order, axis=1)
