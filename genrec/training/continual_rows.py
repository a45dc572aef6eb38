"""Samples of a training on new items as token rows, and the batch of every step.

Axes: R samples, B samples of a batch, A tokens of an item, T tokens of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.data.batching import length_batches, padding_share
from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.data.ties import Bools
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import SearchOptions
from genrec.errors import DataError
from genrec.models.backbone import layout_of
from genrec.models.prompting import build_prompts, item_tokens
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.models.template_prompts import TemplatePrompts
from genrec.prompts.data import TaskData
from genrec.prompts.dataset import AlignmentPlan
from genrec.prompts.encode import TokenRows
from genrec.prompts.mixture import AskSettings, MixedTask, MixtureSettings, TaskMixture
from genrec.seeding import derive, rng
from genrec.training.continual_mix import KINDS, Learned
from genrec.training.dataset import TrainingData
from genrec.training.settings import TrainSettings
from genrec.training.tasks import mixture_digest

Int64 = npt.NDArray[np.int64]
WINDOW = 32
"""Batches whose samples are made into rows together and sorted by length; a resumed run does one window anew."""
_TEXT = KINDS.index("text")
_OLD = [KINDS.index("replay"), KINDS.index("written")]
TEXT_TASK = "item_from_text"
"""Only this direction: a loss per token would give most of itself to words that are written."""


@dataclass(frozen=True, eq=False)
class MixedRows:
    """Token rows, and which of them are samples of old items, bool ``[B]`` (internal)."""

    rows: TokenRows
    old: Bools

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, at: Int64) -> MixedRows:
        """These rows only."""
        return MixedRows(self.rows.take(at), self.old[at])


class SampleRows:
    """Contexts and the items behind them as token rows (internal).

    A row is the prompt that the model is asked with, then the item. With words around histories, an item ends with the
    end token, as in their training.
    """

    def __init__(self, model: Any, data: TrainingData, prompts: TemplatePrompts | None, max_items: int) -> None:
        token_map, histories = data.token_map, data.histories
        self._data, self._prompts, self.layout, self._max_items = data, prompts, layout_of(model), max_items
        self._row_E, self._first_E = histories.rows(), histories.offsets[:-1][histories.rows()]
        self._tokens_NA = item_tokens(data.codes, token_map).astype(np.int64)
        self._users_UM = data.users_UM

    def contexts(self, events: Int64, max_items: int | None = None) -> Histories:
        """What stands before each event; the newest ``max_items``."""
        starts = self._first_E[events]
        if max_items is not None:
            starts = np.maximum(starts, events - max_items)
        return Histories.from_slices(self._data.histories.items, starts, events)

    def users(self, events: Int64) -> Int64:
        """Whose events these are."""
        return self._row_E[events]

    def __call__(self, events: Int64, targets: Int64, told: Bools | None = None) -> TokenRows:
        """One row for each sample. told: bool ``[R]``, which say whose they are (None = all); the others, and
        events that codes are made of, ``<unk_user>``, where users have codes.
        """
        token_map, n = self._data.token_map, len(events)
        asked, users = self.contexts(events, self._max_items), None
        if self._users_UM is not None:
            row, told_E = self._row_E[events], self._data.told_E
            row = row if told is None else np.where(told, row, -1)
            users = self._users_UM[row if told_E is None else np.where(told_E[events], row, -1)]
        if self._prompts is not None:
            prompts = self._prompts(asked, users)
        else:
            prompts = build_prompts(self.layout, asked, self._tokens_NA, token_map, users)
        tokens_BA = self._tokens_NA[targets]
        real_BA = token_map.real(tokens_BA)
        level_BA = np.broadcast_to(np.arange(tokens_BA.shape[1]), tokens_BA.shape)
        item_BA = np.broadcast_to(targets[:, None], tokens_BA.shape)
        if self._prompts is not None and not token_map.ragged:
            end = np.full((n, 1), -1)
            tokens_BA = np.hstack([tokens_BA, np.full((n, 1), token_map.eos_id)])
            real_BA = np.hstack([real_BA, np.ones((n, 1), np.bool_)])
            level_BA, item_BA = np.hstack([level_BA, end]), np.hstack([item_BA, end])
        mask = np.hstack([prompts.mask_BT, real_BA])
        none = np.full(prompts.mask_BT.shape, -1)
        ids, items, levels = (
            np.hstack(pair)[mask].astype(np.int32)
            for pair in ((prompts.tokens_BT, tokens_BA), (none, item_BA), (none, level_BA))
        )
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum(mask.sum(axis=1), out=offsets[1:])
        return TokenRows(ids, items, levels, offsets, offsets[:-1] + prompts.mask_BT.sum(axis=1))


@dataclass(frozen=True, eq=False)
class ItemTexts:
    """Examples from texts of new items to their identifiers (internal)."""

    plan: AlignmentPlan
    digest: str

    def rows(self, numbers: Int64) -> TokenRows:
        """These examples."""
        return TokenRows.of([self.plan.encoded(0, int(n)) for n in numbers])


def item_texts(prompts: TemplatePrompts, catalog: ItemCatalog, new_N: Bools, n: int, *, seed: int) -> ItemTexts:
    """``n`` examples of :data:`TEXT_TASK`, in the wrapper that the model knows (internal).

    Raises DataError where no new item has a text.
    """
    mixture = _mixture(catalog, new_N, n, seed, prompts.max_text)
    plan = AlignmentPlan(mixture, prompts.encoder, batch_size=n, seed=seed)
    return ItemTexts(plan, mixture_digest(mixture, prompts.encoder))


def has_texts(catalog: ItemCatalog, new_N: Bools) -> bool:
    """Whether :func:`item_texts` has anything to draw from (internal)."""
    try:
        _mixture(catalog, new_N, 1, 0)
    except DataError:
        return False
    return True


def _mixture(
    catalog: ItemCatalog, new_N: Bools, n: int, seed: int, max_text: int = MixtureSettings.max_text
) -> TaskMixture:
    alone = replace(catalog, retired=~new_N)  # a mixture draws from the items that are offered
    task, ask = MixedTask(TEXT_TASK, weight=1.0), AskSettings(TEXT_TASK)
    settings = MixtureSettings((task,), ask, samples_per_epoch=n, max_text=max_text)
    return TaskMixture(settings, TaskData(alone, Histories.from_lists([])), seed=seed)


class ContinualPlan:
    """The batch of step s, a pure function of samples, settings and s (internal)."""

    def __init__(
        self, learned: Learned, rows: SampleRows, texts: ItemTexts | None, settings: TrainSettings, steps: int
    ) -> None:
        self._learned, self._rows, self._texts, self._settings = learned, rows, texts, settings
        self.steps_per_epoch = steps
        is_text = learned.kind == _TEXT
        self._nth_text = np.cumsum(is_text) - 1
        self._window = -1
        self._made = MixedRows(TokenRows.of([]), np.zeros(0, np.bool_))
        self._batches: list[Int64] = []

    def batch(self, step: int) -> MixedRows:
        """The samples of step ``step`` (0-based)."""
        window, place = divmod(step, WINDOW)
        self._enter(window)
        return self._made.take(self._batches[place])

    def padding_share(self) -> float:
        """Share of the token cells of the first window that are padding, in [0, 1)."""
        self._enter(0)
        return padding_share(self._lengths(), self._batches)

    def _enter(self, window: int) -> None:
        if window == self._window:
            return
        size = self._settings.batch_size
        chosen = np.arange(window * WINDOW * size, min((window + 1) * WINDOW, self.steps_per_epoch) * size)
        kind = self._learned.kind[chosen]
        histories, texts = chosen[kind != _TEXT], chosen[kind == _TEXT]
        learned = self._learned
        parts = [self._rows(learned.events[histories], learned.targets[histories], learned.told[histories])]
        if len(texts):
            assert self._texts is not None
            parts.append(self._texts.rows(self._nth_text[texts]))
        place = np.argsort(np.concatenate([histories, texts]), kind="stable")
        self._made = MixedRows(_joined(parts).take(place), np.isin(kind, _OLD))
        seed = derive(self._settings.seed, "window", window)
        self._batches = length_batches(self._lengths(), size, seed=seed, epoch=0)
        self._window = window

    def _lengths(self) -> Int64:
        rows = self._made.rows
        return rows.prompt_lengths if self._rows.layout == "encoder" else rows.lengths


def _joined(parts: list[TokenRows]) -> TokenRows:
    """The rows of all parts below each other."""
    shift = np.cumsum([0, *(len(part.ids) for part in parts[:-1])])
    moved = list(zip(parts, shift, strict=True))
    return TokenRows(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.items for part in parts]),
        np.concatenate([part.levels for part in parts]),
        np.concatenate([[0], *(part.offsets[1:] + by for part, by in moved)]),
        np.concatenate([part.starts + by for part, by in moved]),
    )


def written_targets(
    model: Any,
    data: TrainingData,
    events: Int64,
    real: Int64,
    old_N: Bools,
    train: TrainSettings,
    prompts: TemplatePrompts | None,
) -> Int64:
    """For each event, an old item that the model draws in its place; ``real`` where there is none (internal)."""
    rows = SampleRows(model, data, prompts, train.max_items)
    index = CatalogIndex.build(data.codes, keep=old_N)
    how = DecodingSettings(loss=train.softmax, max_items=train.max_items)
    writer = GenerativeRecommender(
        model,
        data.token_map,
        data.codes,
        index,
        how,
        user_ids=data.user_ids,
        user_index=data.user_index,
        prompts=prompts,
    )
    users = rows.users(events) if data.token_map.n_user_tokens else None
    # a seed for each: equal contexts would draw the same item again and again
    seeds = rng(train.seed, "written").integers(1 << 62, size=len(events))
    drawn = writer.sample(rows.contexts(events), SearchOptions(top_k=1), users, seed=seeds.tolist())
    found = drawn.items[:, 0].astype(np.int64)
    return np.where(found >= 0, found, real)
