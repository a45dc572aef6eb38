"""Stages of the generative model: train it, evaluate it."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from genrec import artifacts, recipes
from genrec.data.catalog import ItemCatalog
from genrec.data.interactions import Interactions
from genrec.data.splits import Split
from genrec.decoding.index import CatalogIndex
from genrec.embeddings.text import DEFAULT_TEXT, item_text
from genrec.errors import ArtifactError, TrainingPaused
from genrec.evaluation.run import evaluate
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.adapters import add_lora, base_of
from genrec.models.backbone import build
from genrec.models.bundle import load_bundle, save_bundle
from genrec.models.pretrained import (
    PretrainedSettings,
    RowInit,
    extend_rows,
    load_pretrained,
    told_pretrained,
)
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.models.template_prompts import TemplatePrompts
from genrec.models.whole_catalog import WholeCatalog
from genrec.pipeline import alignment
from genrec.pipeline.baseline_stages import context
from genrec.pipeline.recipe import PipelineRecipe, seeded
from genrec.pipeline.runner import same_catalog
from genrec.training import checkpoints
from genrec.training.dataset import TrainingData
from genrec.training.finetune import TrainResult, finetune
from genrec.training.settings import decisive
from genrec.training.tasks import Tasks, finetune_on_tasks, task_encoder, task_prompts
from genrec.training.validation import decoding_settings
from genrec.vocab.extend import start_from_codebooks
from genrec.vocab.text_vocabulary import TextVocabulary, extend_vocabulary, load_tokenizer
from genrec.vocab.token_map import TextBase, TokenMap
from genrec.vocab.user_index import UserIndex

log = logging.getLogger(__name__)

TRAIN_VERSION = 3
"""Raise it when the code trains differently: finished and unfinished trainings are then done again."""


def train(folder: Path, recipe: PipelineRecipe) -> None:
    """Train the model to write identifiers: artifacts ``training`` (the log) and ``bundle`` (the model).

    Goes on from ``checkpoints/`` in the run folder. Raises TrainingPaused when it is not finished.
    A bundle of the same training that is already there, say from another machine, is kept.
    Runs from artifacts alone: ``split``, ``codes``, ``index`` and, if it is there, ``catalog`` (which a recipe with
    an ``alignment`` block needs). Raises FingerprintMismatch if they are not of one catalog.
    """
    if trained(folder, recipe):
        log.info("the model of this recipe is already there")
        return
    made = started(folder, recipe)
    result = fit(folder, recipe, made)
    if result.main_process:
        save(folder, recipe, made, result)


def fit(folder: Path, recipe: PipelineRecipe, made: Started) -> TrainResult:
    """Train from the newest checkpoint in ``checkpoints/`` on, to the end (internal). Raises TrainingPaused."""
    data, model, settings = made.data, made.model, seeded(recipe.train, recipe.seed)
    CatalogIndex.load(folder / "index", codes=data.codes)  # one of other codes is refused before any training
    n_weights = sum(w.numel() for w in model.parameters())
    n_trained = sum(w.numel() for w in model.parameters() if w.requires_grad)
    log.info(
        "%s, %.2f M weights, %.2f M of them trained, vocabulary %d",
        *(type(base_of(model)).__name__, n_weights / 1e6, n_trained / 1e6, data.token_map.vocab_size),
    )
    out = _checkpoints(folder, training_key(folder, recipe))
    if made.tasks is None:
        result = finetune(model, data, settings, out)
    else:
        result = finetune_on_tasks(model, data, made.tasks, settings, out)
    if not result.complete:
        raise TrainingPaused(
            f"training stopped at step {result.steps} ({result.status})",
            hint="the checkpoint is complete; run the same command to go on",
        )
    return result


def save(folder: Path, recipe: PipelineRecipe, made: Started, result: TrainResult) -> None:
    """Write the artifacts ``training`` and ``bundle``, with the prompt that the model is asked with (internal)."""
    key, data = training_key(folder, recipe), made.data
    _save_training(folder, recipe, result, key)
    search = decoding_settings(seeded(recipe.train, recipe.seed), n_beams=DecodingSettings().n_beams)
    index = CatalogIndex.load(folder / "index", codes=data.codes)
    trained = GenerativeRecommender(
        result.model,
        data.token_map,
        data.codes,
        index,
        search,
        user_ids=data.user_ids,
        user_index=data.user_index,
        prompts=made.prompts,
    )
    save_bundle(
        folder / "bundle",
        trained,
        catalog=_catalog(folder),
        recipe=recipes.to_json(recipe),
        parents={"training": key},
        vocabulary=made.vocabulary,
        overwrite=True,
    )


@dataclass(frozen=True, eq=False)
class Started:
    """What a training begins with (internal). tasks, prompts: of a recipe with an ``alignment`` block."""

    data: TrainingData
    model: Any
    vocabulary: TextVocabulary | None = None
    tasks: Tasks | None = None
    prompts: TemplatePrompts | None = None


def started(folder: Path, recipe: PipelineRecipe) -> Started:
    """The data, and the model as it is before the first step (internal)."""
    if isinstance(recipe.model, PretrainedSettings):
        vocabulary = text_vocabulary(folder, recipe)
        return ready(folder, recipe, language_model(folder, recipe, vocabulary), vocabulary)
    data = _training_data(folder, recipe)
    model = build(recipe.model, data.token_map, seed=recipe.seed)
    if recipe.token_init == "codebooks":
        weight = model.get_input_embeddings().weight
        start_from_codebooks(weight, data.token_map, data.codes.codebooks, seed=recipe.seed)
    return Started(data, model)


def text_vocabulary(folder: Path, recipe: PipelineRecipe) -> TextVocabulary:
    """The pretrained model's text tokenizer, with a token for every code and for users (internal)."""
    assert isinstance(recipe.model, PretrainedSettings)
    tokenizer, codes = load_tokenizer(recipe.model.path), ItemCodes.load(folder / "codes")
    index = user_index(folder, recipe)
    levels = () if index is None else index.level_sizes
    return extend_vocabulary(tokenizer, codes, n_user_tokens=recipe.n_user_tokens, user_levels=levels)


def language_model(folder: Path, recipe: PipelineRecipe, vocabulary: TextVocabulary) -> Any:
    """The pretrained model with a row for every token; with ``lora``, frozen and inside its adapters (internal)."""
    assert isinstance(recipe.model, PretrainedSettings)
    codes, seed = ItemCodes.load(folder / "codes"), recipe.seed
    model = load_pretrained(recipe.model, seed=seed)
    texts = _item_texts(folder, recipe) if recipe.token_init == "text" and not codes.pieces else None
    init: RowInit = "mean" if recipe.token_init == "random" else recipe.token_init
    extend_rows(model, vocabulary, init=init, seed=seed, codes=codes, texts=texts)
    return model if recipe.lora is None else add_lora(model, vocabulary.token_map, recipe.lora, seed=seed)


def ready(folder: Path, recipe: PipelineRecipe, model: Any, vocabulary: TextVocabulary) -> Started:
    """A pretrained model with the run's data, its tasks, and the prompt that it will be asked with (internal)."""
    data = _training_data(folder, recipe, vocabulary.token_map.base)
    tasks = alignment.tasks_of(folder, recipe, vocabulary)
    prompts = None if tasks is None else task_prompts(tasks, task_encoder(model, data, tasks))
    return Started(data, model, vocabulary, tasks, prompts)


def _item_texts(folder: Path, recipe: PipelineRecipe) -> list[str]:
    """The text of every item, as the first block of text vectors reads it."""
    blocks = [block.lsa or block.sentence for block in recipe.embeddings if block.lsa or block.sentence]
    return item_text(ItemCatalog.load(folder / "catalog"), blocks[0].text if blocks and blocks[0] else DEFAULT_TEXT)


def _training_data(folder: Path, recipe: PipelineRecipe, base: TextBase | None = None) -> TrainingData:
    cut, codes, users = Split.load(folder / "split"), ItemCodes.load(folder / "codes"), user_index(folder, recipe)
    levels = () if users is None else users.level_sizes
    known = ["catalog"] if artifacts.exists(folder / "catalog") else []
    same_catalog(folder, cut.catalog, *known, *_of_users(recipe))
    return TrainingData(
        cut.train(),
        codes,
        TokenMap.of(codes, n_user_tokens=recipe.n_user_tokens, base=base, user_levels=levels),
        valid=cut.queries("valid"),
        user_ids=user_ids(folder, recipe),
        tied=cut.train_ties(),
        catalog=cut.catalog,
        user_index=users,
    )


def user_index(folder: Path, recipe: PipelineRecipe) -> UserIndex | None:
    """The codes of the run's users, of a recipe with a ``users`` block."""
    return None if recipe.users is None else UserIndex.load(folder / "users")


def _of_users(recipe: PipelineRecipe) -> list[str]:
    """The artifact with the ids behind user numbers, where they are needed."""
    return ["interactions"] if recipe.knows_users else []


def user_ids(folder: Path, recipe: PipelineRecipe) -> tuple[str, ...] | None:
    """The ids behind user numbers, where the vocabulary has user tokens."""
    return Interactions.load(folder / "interactions").user_ids if recipe.knows_users else None


def base_path(recipe: PipelineRecipe) -> str | None:
    """Where the pretrained model of an adapter is."""
    return recipe.model.path if isinstance(recipe.model, PretrainedSettings) else None


def training_key(folder: Path, recipe: PipelineRecipe) -> str:
    """Hash of all that decides a training: recipe, identifiers, histories and the version of this code."""
    train_part = decisive(recipes.to_json(recipe.train))
    read = ["split", "codes", *_of_users(recipe), *(["users"] if recipe.users else [])]
    digests = [artifacts.read(folder / name, verify=False).digest for name in read]
    own: list[Any] = [recipe.seed, recipe.token_init, recipe.n_user_tokens]
    if isinstance(recipe.model, PretrainedSettings):
        own += [told_pretrained(recipe.model), recipe.lora and recipes.to_json(recipe.lora)]
        own += alignment.key_parts(recipe)
    else:
        own.append(recipes.to_json(recipe.model))
    parts = [TRAIN_VERSION, train_part, *own, digests]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def trained(folder: Path, recipe: PipelineRecipe) -> bool:
    """Whether the folder holds the finished, undamaged training of exactly this recipe on these artifacts."""
    try:
        log_of = artifacts.read(folder / "training", kind="training").parents.get("training")
        model_of = artifacts.read(folder / "bundle", kind="bundle").parents.get("training")
    except ArtifactError:
        return False
    # the log of older versions does not say what it is of
    return model_of == training_key(folder, recipe) and log_of in (None, model_of)


def standing(folder: Path, recipe: PipelineRecipe) -> str:
    """From where an unfinished training of exactly this recipe goes on, in words; "" where there is none."""
    try:
        key = training_key(folder, recipe)
    except ArtifactError:
        return ""
    step = checkpoints.newest_step(folder / "checkpoints" / key[:16])
    return f"goes on from step {step}" if step else ""


def _checkpoints(folder: Path, key: str) -> Path:
    """The folder for checkpoints of exactly this training; those of another one are deleted."""
    own = folder / "checkpoints" / key[:16]
    for other in (folder / "checkpoints").glob("*"):
        if other != own and other.is_dir():
            shutil.rmtree(other, ignore_errors=True)
    return own


def _save_training(folder: Path, recipe: PipelineRecipe, result: TrainResult, key: str) -> None:
    """The curve and the cost of a training, as an artifact of kind "training"."""
    summary = {
        "status": result.status,
        "steps": result.steps,
        "best": result.best,
        "best_step": result.best_step,
        "metric": recipe.train.metric,
        "wall_seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "padding_share": result.padding_share,
        "bf16": result.bf16,
    }
    with artifacts.write(
        folder / "training",
        kind="training",
        recipe=recipes.to_json(recipe.train),
        parents={"training": key},
        meta=summary,
        overwrite=True,
    ) as draft:
        artifacts.save_json(draft.dir / "log.json", result.log)
    log.info("%d steps in %.0f s, padding %.1f %%", result.steps, result.seconds, 100 * result.padding_share)


def _catalog(folder: Path) -> ItemCatalog | None:
    """The run's catalog for the bundle; None on a machine without pyarrow (training needs no titles)."""
    if find_spec("pyarrow") is None or not artifacts.exists(folder / "catalog"):
        log.warning("the bundle is written without the catalog: lists will be item numbers")
        return None
    return ItemCatalog.load(folder / "catalog")


def evaluate_model(folder: Path, recipe: PipelineRecipe) -> None:
    """Evaluate the trained model on the test part: artifact ``eval/<kind of the model>``."""
    cut = Split.load(folder / "split")
    same_catalog(folder, cut.catalog, "bundle", *_of_users(recipe))
    bundle = load_bundle(folder / "bundle", device=_device(), user_ids=user_ids(folder, recipe), base=base_path(recipe))
    dense = recipe.evaluate.method == "dense"
    report = evaluate(
        WholeCatalog(bundle.recommender, recipe.evaluate.normalize) if dense else bundle.recommender,
        cut.queries("test"),
        settings=seeded(recipe.evaluate, recipe.seed),
        train=cut.train(),
        identifier_of=bundle.recommender.codes.collision_ids(),
        name=recipe.model.kind,
        catalog=cut.catalog,
        context=context(recipe, cut),
    )
    report.save(folder / "eval" / recipe.model.kind, overwrite=True)
    log.info("%s", report.summary())


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
