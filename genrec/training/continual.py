"""New items for a trained model: a short training on samples of the new ones, and on old ones so that they stay.

After DSI++ (Mehta et al. 2022, arXiv 2212.09744), with pseudo-histories in place of generated queries. The loop, the
checkpoints and the stopping are those of :mod:`genrec.training.finetune`. Axes: N items, D width.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog
from genrec.data.ties import Bools
from genrec.errors import ConfigError, DataError
from genrec.models.adapters import item_rows
from genrec.models.backbone import layout_of
from genrec.models.template_prompts import TemplatePrompts
from genrec.seeding import rng
from genrec.training.alignment import AlignmentCollator, AlignmentLoss
from genrec.training.continual_loss import ContinualCollator, ContinualModule, OldCodes
from genrec.training.continual_mix import (
    KINDS,
    Events,
    Learned,
    MixSettings,
    amounts,
    neighbours,
    pseudo_histories,
    replayed,
    spread,
)
from genrec.training.continual_rows import ContinualPlan, SampleRows, has_texts, item_texts, written_targets
from genrec.training.dataset import TrainingData
from genrec.training.finetune import Job, TrainResult, bind, run_job
from genrec.training.identity import identity_of, weights_digest
from genrec.training.settings import TrainSettings
from genrec.vocab.new_rows import warm_start

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ContinualSettings:
    """How new items are learned (experimental).

    steps: optimiser steps; with 0 the model stays what it is, to the bit. mix: what the samples are. distil_weight: of
    the distance to the model before on samples of old items (``replay`` and ``written``): KL of the codes that lead to
    old items, summed over the codes of the target, beside the cross-entropy.

    Raises ConfigError for values out of range.
    """

    steps: int = 200
    mix: MixSettings = field(default_factory=MixSettings)
    distil_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"steps: expected 0 or more, got {self.steps}")
        if not 0 <= self.distil_weight < np.inf:
            raise ConfigError(f"distil_weight: expected 0 or more, got {self.distil_weight}")


@dataclass(frozen=True, eq=False)
class Grown:
    """The catalog that a model is adapted to (experimental).

    catalog: all N items, with tombstones and texts. n_old: its first items, which the model was trained on. vectors:
    float ``[N, D]``, by which new items are like old ones; made from content, or from what the training part tells.
    n_histories: the first histories, which the model was trained on; of those behind them, a log's, events on new items
    alone are learned (None = there is no log).
    Raises DataError where sizes do not fit.
    """

    catalog: ItemCatalog
    n_old: int
    vectors: npt.NDArray[np.floating]
    n_histories: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.n_old <= len(self.catalog):
            raise DataError(f"n_old: expected 1..{len(self.catalog)}, the items of the catalog, got {self.n_old}")
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.catalog):
            raise DataError(f"vectors: expected {len(self.catalog)} rows, got shape {list(self.vectors.shape)}")

    @property
    def old_N(self) -> Bools:
        """Items that the model was trained on and that are still offered."""
        return (np.arange(len(self.catalog)) < self.n_old) & self._offered

    @property
    def new_N(self) -> Bools:
        """Items behind them that are offered."""
        return (np.arange(len(self.catalog)) >= self.n_old) & self._offered

    @property
    def _offered(self) -> Bools:
        retired = self.catalog.retired
        return np.ones(len(self.catalog), np.bool_) if retired is None else ~retired


def adapt(
    model: Any,
    data: TrainingData,
    grown: Grown,
    settings: ContinualSettings,
    train: TrainSettings,
    out_dir: str | Path,
    *,
    prompts: TemplatePrompts | None = None,
) -> TrainResult:
    """Teach a trained model the items that were appended to its catalog (experimental).

    model: T5, Llama, Qwen2 or Qwen3, whole or with adapters; it is changed. data: the training histories it was trained
    on, behind them those of a log with new items, if there is one; ``codes`` of all items. train: ``softmax`` and
    ``max_items`` of the model's own training; ``epochs``, ``max_steps`` and the validation play no part: the last
    weights are returned. prompts: the words around histories of a model that was trained with them.

    Rows of tokens that no trained item has are started from trained ones (:func:`genrec.vocab.new_rows.warm_start`).
    Checkpoints, resuming (on a CPU to the bit), signals and errors are those of
    :func:`genrec.training.finetune.finetune`. Where there are no new items, or no steps, nothing is changed. Raises
    ConfigError for settings that have no effect here, and for a mix that leaves nothing to train on.
    """
    train = _alone(train, settings.steps)
    if not settings.steps or not grown.new_N.any():
        return TrainResult(model.eval(), "finished", [], None, 0, 0, 0.0, 0.0, 0.0, False)
    bind(model, data)
    trained = data.histories.take(np.arange(len(data.histories) if grown.n_histories is None else grown.n_histories))
    seen_N = np.bincount(trained.items, minlength=len(grown.catalog)) > 0
    for rows_RD in item_rows(model, data.token_map):
        changed = warm_start(rows_RD, data.token_map, data.codes, seen_N, grown.n_old, seed=train.seed)
        if len(changed):
            logger.info("%d tokens of the new items were never trained: started from trained ones", len(changed))
    return run_job(_job(model, data, grown, settings, train, prompts), train, out_dir, resume=True, evaluate=None)


def _alone(train: TrainSettings, steps: int) -> TrainSettings:
    """The settings of one epoch of ``steps`` without validation; ConfigError where another one was asked for."""
    forced = {"epochs": 1, "max_steps": 0, "eval_every": 0, "patience": 0, "prefix_drop": 0.0, "packing": False}
    for name, value in {**forced, "fsdp": False}.items():
        if getattr(train, name) not in (value, getattr(TrainSettings(), name)):
            hint = "leave it out; steps says how long" if name in ("epochs", "max_steps") else "leave it out"
            raise ConfigError(f"train.{name}: no effect on a training on new items", hint=hint)
    return replace(train, **forced)  # type: ignore[arg-type]


def _job(
    model: Any,
    data: TrainingData,
    grown: Grown,
    settings: ContinualSettings,
    train: TrainSettings,
    prompts: TemplatePrompts | None,
) -> Job:
    learned = drawn_samples(model, data, grown, settings, train, prompts)
    n_texts = int((learned.kind == KINDS.index("text")).sum())
    texts = item_texts(prompts, grown.catalog, grown.new_N, n_texts, seed=train.seed) if prompts and n_texts else None
    plan = ContinualPlan(learned, SampleRows(model, data, prompts, train.max_items), texts, train, settings.steps)
    start = getattr(model.config, "decoder_start_token_id", None) or 0
    collator = ContinualCollator(AlignmentCollator(data.codes, data.token_map, layout_of(model), start))
    loss = AlignmentLoss(data.token_map, train.softmax, train.label_smoothing, data.codes)
    module = ContinualModule(model, loss)
    if settings.distil_weight:
        of_old = data.codes.take(np.arange(grown.n_old))
        collator.of_old = AlignmentCollator(of_old, data.token_map, layout_of(model), start)
        module.keep(OldCodes(data.token_map, "children", codes=of_old), settings.distil_weight)
    identity = {
        **identity_of(model, data),
        "continual": asdict(settings),
        "samples": _digest(learned),
        "texts": texts.digest if texts is not None else None,
        "prompt": None if prompts is None else prompts.template.fingerprint,
        "start": weights_digest(model),
    }
    # the trainer counts, cuts and hands over samples, whatever they are
    return Job(module, cast(Any, plan), cast(Any, collator), identity)


def drawn_samples(
    model: Any,
    data: TrainingData,
    grown: Grown,
    settings: ContinualSettings,
    train: TrainSettings,
    prompts: TemplatePrompts | None = None,
) -> Learned:
    """All samples of a training, ``steps`` times ``batch_size``, in the order in which they are learned (internal).

    A function of its arguments and of the model's weights (by ``written`` alone).
    """
    mix, random = settings.mix, rng(train.seed, "continual")
    events = Events.of(data.histories, len(grown.catalog), grown.n_histories)
    new = np.flatnonzero(grown.new_N)
    like_N = (np.arange(len(grown.catalog)) < grown.n_old) & (events.counts_N > 0)
    near, cosine = neighbours(grown.vectors, new, like_N, mix.n_neighbours)
    alone = int((cosine.sum(axis=1) == 0).sum())
    if alone and mix.pseudo:
        logger.warning("%d of %d new items are like no old one: they get no pseudo-histories", alone, len(new))
    every = Events.of(data.histories, len(grown.catalog)).at
    logged = every[grown.new_N[data.histories.items[every]]]
    old = bool((grown.old_N & (events.counts_N > 0)).any())
    there = {
        "pseudo": alone < len(new),
        "log": len(logged) > 0,
        "replay": old,
        "written": old,
        "text": prompts is not None and has_texts(grown.catalog, grown.new_N),
    }
    count = amounts(mix, there, settings.steps * train.batch_size)
    logger.info("samples: %s", ", ".join(f"{name} {n}" for name, n in count.items() if n))
    items, parts = data.histories.items.astype(np.int64), {}
    if count["pseudo"]:
        at, row = pseudo_histories(events, near, cosine, mix, count["pseudo"], random)
        parts["pseudo"] = at, new[row]
    if count["log"]:
        at = logged[spread(np.ones(len(logged)), count["log"], random)]
        parts["log"] = at, items[at]
    for kind in ("replay", "written"):
        if count[kind]:
            at = replayed(events, grown.old_N, mix, count[kind], random)
            parts[kind] = at, items[at]
    if count["written"]:
        at, real = parts["written"]
        parts["written"] = at, written_targets(model, data, at, real, grown.old_N, train, prompts)
    if count["text"]:  # which of the new items' texts is the mixture's choice
        parts["text"] = np.full(count["text"], -1), np.full(count["text"], -1)
    order = random.permutation(settings.steps * train.batch_size)
    made = np.concatenate([np.full(len(at), KINDS.index(name), np.int8) for name, (at, _) in parts.items()])
    events_R, targets_R = (np.concatenate([part[n] for part in parts.values()])[order] for n in (0, 1))
    told_R = np.ones(len(order), np.bool_)
    if data.user_index is not None:  # a real user's codes say nothing of who wants a new item
        told_R = rng(train.seed, "continual", "users").random(len(order)) >= train.user_drop
        told_R &= made[order] != KINDS.index("pseudo")
    return Learned(events_R, targets_R, made[order], told_R)


def _digest(learned: Learned) -> str:
    # what the model wrote follows from its weights and the rest; on a GPU a draw may differ when it is drawn again
    targets = np.where(learned.kind == KINDS.index("written"), -1, learned.targets)
    arrays = learned.events, targets, learned.kind, learned.told
    parts = [hashlib.sha256(each.tobytes()).hexdigest() for each in arrays]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
