"""Fine-tune on a mixture of alignment tasks: the same trainer, other batches, words in the loss."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from genrec import recipes
from genrec.data.catalog import ItemCatalog
from genrec.errors import ConfigError
from genrec.item_tokenizers.codes import check_catalog
from genrec.models.backbone import layout_of
from genrec.models.template_prompts import SEARCHES, TemplatePrompts
from genrec.prompts.data import TaskData
from genrec.prompts.dataset import AlignmentPlan
from genrec.prompts.encode import ExampleEncoder, Vocabulary
from genrec.prompts.mixture import MixtureSettings, TaskMixture
from genrec.prompts.tasks import load_task
from genrec.prompts.wrapper import Wrapper
from genrec.training.alignment import AlignmentCollator, AlignmentLoss
from genrec.training.callbacks import Evaluate
from genrec.training.dataset import TrainingData
from genrec.training.finetune import Job, TrainResult, bind, run_job
from genrec.training.identity import identity_of
from genrec.training.module import TrainingModule
from genrec.training.packing import PackedBatches, check_packing
from genrec.training.settings import TrainSettings
from genrec.training.validation import validator


@dataclass(frozen=True, eq=False)
class Tasks:
    """What tasks are made of, beside the training data (experimental).

    catalog: texts of the items. vocabulary: text tokenizer and item tokens, with the token map of the training data.
    mixture: which tasks, and how much of each.
    """

    catalog: ItemCatalog
    vocabulary: Vocabulary
    mixture: MixtureSettings


def finetune_on_tasks(
    model: Any,
    data: TrainingData,
    tasks: Tasks,
    settings: TrainSettings,
    out_dir: str | Path,
    *,
    resume: bool = True,
    evaluate: Evaluate | None = None,
) -> TrainResult:
    """Train as :func:`genrec.training.finetune.finetune` does, on the examples of a mixture (experimental).

    An epoch is one of the mixture. Validation asks as :func:`task_prompts` does. Raises ConfigError for settings that
    do not go with tasks, and otherwise as ``finetune``.
    """
    if settings.max_items != tasks.mixture.max_items:
        raise ConfigError(
            f"max_items: expected the same for training and mixture, got {settings.max_items} and "
            f"{tasks.mixture.max_items}"
        )
    if settings.prefix_drop:
        raise ConfigError("prefix_drop: no effect on tasks, which begin at random steps", hint="set it to 0")
    encoder = task_encoder(model, data, tasks)
    if evaluate is None and settings.eval_every and data.valid is not None and len(data.valid):
        evaluate = validator(data, settings, task_prompts(tasks, encoder))
    return run_job(_job(model, data, tasks, settings, encoder), settings, out_dir, resume=resume, evaluate=evaluate)


def task_encoder(model: Any, data: TrainingData, tasks: Tasks) -> ExampleEncoder:
    """Examples and prompts to ids, for this model (experimental)."""
    if tasks.vocabulary.token_map.fingerprint != data.token_map.fingerprint:
        raise ConfigError("tasks: the vocabulary has another token map than the training data")
    return ExampleEncoder(
        tasks.vocabulary,
        data.codes,
        layout=layout_of(model),
        wrapper=Wrapper.named(tasks.mixture.wrapper, tasks.vocabulary.tokenizer),
        max_tokens=tasks.mixture.max_tokens,
        users_UM=data.users_UM,
    )


def task_prompts(tasks: Tasks, encoder: ExampleEncoder) -> TemplatePrompts:
    """How to ask a model that was trained on these tasks: as ``mixture.ask`` says, and with queries (experimental).

    Raises ConfigError where that task is not in the mixture, or its prompt needs more than a history.
    """
    ask, mixture = tasks.mixture.ask, tasks.mixture
    searches = {
        each.task: load_task(each.task, each.template).template for each in mixture.tasks if each.task in SEARCHES
    }
    for each in mixture.tasks:
        if each.task == ask.task:
            return TemplatePrompts(
                load_task(each.task, each.template).template,
                encoder,
                wording=ask.wording,
                searches=searches,
                max_text=mixture.max_text,
            )
    raise ConfigError(
        f"tasks: expected {ask.task!r} among them, whose prompt the model is asked with",
        hint="add it, or name another one under ask",
    )


def _job(model: Any, data: TrainingData, tasks: Tasks, settings: TrainSettings, encoder: ExampleEncoder) -> Job:
    bind(model, data)
    check_catalog("codes", data.codes.catalog, tasks.catalog.fingerprint)
    with_users = data.token_map.n_user_tokens > 0
    source = TaskData(tasks.catalog, data.histories, with_users=with_users, tied=data.tied, told=data.told_E)
    user_drop = 0.0 if data.user_index is None else settings.user_drop
    mixture = TaskMixture(tasks.mixture, source, seed=settings.seed, user_drop=user_drop)
    plan = AlignmentPlan(mixture, encoder, batch_size=settings.batch_size, seed=settings.seed, packing=settings.packing)
    start = getattr(model.config, "decoder_start_token_id", None) or 0
    collator = AlignmentCollator(data.codes, data.token_map, encoder.layout, start)
    if settings.packing:
        check_packing(model)
    loss = AlignmentLoss(data.token_map, settings.softmax, settings.label_smoothing, data.codes)
    identity = {**identity_of(model, data), "tasks": mixture_digest(mixture, encoder)}
    # the trainer counts, cuts and hands over samples, whatever they are
    batches = PackedBatches(cast(Any, collator)) if settings.packing else cast(Any, collator)
    return Job(TrainingModule(model, loss), cast(Any, plan), batches, identity)


def mixture_digest(mixture: TaskMixture, encoder: ExampleEncoder) -> str:
    """32 hex digits of everything that the examples depend on, beside histories and identifiers (internal)."""
    fields, settings = mixture.settings.fields, recipes.to_json(mixture.settings)
    names = (fields.title, fields.description, fields.brand, fields.categories)
    texts = {name: mixture.data.catalog.fields.get(name) for name in names}
    parts = [settings, mixture.describe(), encoder.wrapper.before, encoder.wrapper.after, texts, mixture.data.queries]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
