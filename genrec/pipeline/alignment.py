"""Alignment tasks in a pipeline: what they read from outside the run folder, what they lack, and the training parts."""

from __future__ import annotations

import inspect
import json
from hashlib import sha256
from pathlib import Path

from transformers import AutoConfig

from genrec import recipes
from genrec.data.catalog import ItemCatalog
from genrec.errors import ArtifactError, ConfigError, require
from genrec.models.backbone import T5Settings
from genrec.models.pretrained import PretrainedSettings, pretrained_digests
from genrec.pipeline.recipe import PipelineRecipe
from genrec.pipeline.runner import file_digest
from genrec.prompts.mixture import MixtureSettings
from genrec.prompts.tasks import TASKS, load_task
from genrec.prompts.wrapper import Wrapper
from genrec.training.packing import check_packs
from genrec.training.reporting import reporters
from genrec.training.tasks import Tasks
from genrec.vocab.text_vocabulary import TextVocabulary, check_tokenizer, load_tokenizer

MODEL = "the pretrained model"


def tasks_of(folder: Path, recipe: PipelineRecipe, vocabulary: TextVocabulary | None) -> Tasks | None:
    """What tasks are made of, from the run's catalog; None for a recipe without an ``alignment`` block."""
    if recipe.alignment is None:
        return None
    assert vocabulary is not None  # the recipe asks for a model that knows text
    return Tasks(ItemCatalog.load(folder / "catalog"), vocabulary, recipe.alignment)


def files_read(recipe: PipelineRecipe) -> dict[str, str]:
    """Digests of what a training reads beside the run folder, by names that are the same on every machine.

    Templates and functions of tasks, wrapper, queries, and the pretrained model's files.
    Raises ConfigError for what is not there.
    """
    found = {}
    if isinstance(recipe.model, PretrainedSettings) and (files := pretrained_digests(recipe.model)):
        found[MODEL] = sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    if recipe.alignment is None:
        return found
    for each in recipe.alignment.tasks:
        task = load_task(each.task, each.template)
        found[f"template of {each.task}"] = task.template.fingerprint
        if each.task not in TASKS:
            found[f"module of {each.task}"] = file_digest(Path(inspect.getfile(task.draw)))
    return found | _other_files(recipe.alignment)


def _other_files(mixture: MixtureSettings) -> dict[str, str]:
    found = {}
    if mixture.wrapper != "chat":  # which belongs to the text tokenizer
        wrapper = Wrapper.named(mixture.wrapper)
        pieces = [[list(segment) for segment in piece] for piece in (wrapper.before, wrapper.after)]
        found["wrapper"] = sha256(json.dumps(pieces).encode()).hexdigest()
    if mixture.queries is not None:
        if not mixture.queries.is_file():
            raise ConfigError(f"alignment.queries: no file {mixture.queries}", hint="genrec.prompts.queries makes one")
        found["queries"] = file_digest(mixture.queries)
    return found


def check(recipe: PipelineRecipe) -> None:
    """Raise what a training would fail with for want of a file, as far as that is known without the network.

    ArtifactError for a pretrained model that is not there or cannot be read, ConfigError for a text tokenizer that
    cannot take item tokens, for templates, wrappers, queries and prompts that are not there or do not fit, and for
    packing with an encoder-decoder; MissingExtra for packages that are not installed.
    """
    settings = recipe.model
    reporters(recipe.train.report_to)
    if not isinstance(settings, PretrainedSettings):
        if recipe.train.packing:
            check_packs(isinstance(settings, T5Settings))
        return
    if settings.quantized:
        require("bitsandbytes", "qlora")
    here = _is_folder(settings.path)
    tokenizer = load_tokenizer(settings.path) if here else None
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    if recipe.train.packing and here:
        check_packs(AutoConfig.from_pretrained(settings.path, local_files_only=True).is_encoder_decoder)
    files_read(recipe)
    mixture = recipe.alignment
    if mixture is None:
        return
    if mixture.wrapper == "chat" and tokenizer is not None:
        Wrapper.of_chat(tokenizer)
    ask = mixture.ask
    template = next(load_task(each.task, each.template).template for each in mixture.tasks if each.task == ask.task)
    template.check_asks(ask.wording)


def _is_folder(path: str) -> bool:
    """Whether a pretrained model lies in a folder here; ArtifactError for a place that no hub can have."""
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise ArtifactError(f"model.path: {path} has no config.json", hint="name the folder of one model")
        return True
    above = Path(path).parent
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or (above != Path() and above.is_dir()):
        beside = sorted(each.name for each in above.glob("*") if each.is_dir()) if above.is_dir() else []
        hint = f"in {above} there are: {', '.join(beside[:10])}" if beside else "download it, or correct model.path"
        raise ArtifactError(f"model.path: no folder {path}", hint=hint)
    return False  # the training asks the hub, or its cache on this machine


def key_parts(recipe: PipelineRecipe) -> list[object]:
    """What decides a training beside the parts that every recipe has; nothing for one without alignment."""
    if recipe.alignment is None:
        return []
    read = {name: digest for name, digest in files_read(recipe).items() if name != MODEL}
    return [recipes.to_json(recipe.alignment), read]
