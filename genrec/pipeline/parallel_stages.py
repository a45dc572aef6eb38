"""A parallel model on a prepared run folder: identifiers, training, evaluation. Each reads and writes artifacts.

The run folder has ``catalog``, ``split`` and ``embeddings`` (``genrec run … --until embed``); all that is made goes
into a folder of its own beside them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from genrec import artifacts, recipes
from genrec.data.catalog import ItemCatalog
from genrec.data.splits import Split
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.collaborative import SvdSettings, svd
from genrec.errors import ConfigError, TrainingPaused
from genrec.evaluation.report import EvalReport
from genrec.evaluation.run import evaluate
from genrec.evaluation.settings import EvalSettings
from genrec.item_tokenizers import registry
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.sets import SetRec
from genrec.item_tokenizers.slots import ItemSlots
from genrec.models.adapters import LoraSettings
from genrec.models.backbone import DecoderSettings, T5Settings
from genrec.models.parallel_bundle import load_parallel, save_parallel
from genrec.models.parallel_inputs import ParallelItems
from genrec.models.parallel_model import ParallelModel
from genrec.models.parallel_recommender import ParallelDecoding, ParallelRecommender
from genrec.models.parallel_settings import Method, ParallelSettings, preset
from genrec.models.pretrained import PretrainedSettings, told_pretrained
from genrec.pipeline.data_stages import sasrec_vectors
from genrec.pipeline.recipe import seeded
from genrec.pipeline.runner import same_catalog
from genrec.training.parallel_training import ParallelData, choose_beta, train_parallel
from genrec.training.settings import TrainSettings, decisive

log = logging.getLogger(__name__)

TRAIN_VERSION = 1
"""Raise it when the code trains differently."""


@dataclass(frozen=True)
class ParallelRecipe:
    """A parallel model from item vectors to figures; ready files: ``train/parallel/*.yaml`` (experimental).

    method: see :func:`~genrec.models.parallel_settings.preset`. tokenizer: the recipe of an item tokenizer that gives
    slots for ``setrec``, codes of one length for the others. model, lora, instruction: the transformer, see
    :class:`~genrec.models.parallel_settings.ParallelSettings`. joint: ``setrec``'s autoencoder goes on learning with
    the model. reconstruction: weight of its loss then. collaborative: of ``setrec``: ``sasrec`` = the item table of the
    run's SASRec, ``svd`` = of the training histories, made here, as wide as ``collaborative_dim``.
    """

    method: Method
    tokenizer: dict[str, Any]
    model: DecoderSettings | T5Settings | PretrainedSettings = field(default_factory=DecoderSettings)
    lora: LoraSettings | None = None
    instruction: str = ""
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvalSettings = field(default_factory=EvalSettings)
    joint: bool = False
    reconstruction: float = 0.7
    collaborative: Literal["sasrec", "svd"] = "svd"
    collaborative_dim: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.joint and self.method != "setrec":
            raise ConfigError(f"joint: only for method: setrec, got {self.method!r}")
        self.settings()

    def settings(self, **changes: Any) -> ParallelSettings:
        """Of the model. Raises ConfigError where they do not fit together."""
        own = {"lora": self.lora, "instruction": self.instruction, "reconstruction": self.reconstruction}
        return preset(self.method, self.model, **own, **changes)


def tokenize_parallel(run: Path, out: Path, recipe: ParallelRecipe) -> ParallelItems:
    """Fit the item tokenizer: artifacts ``item_tokenizer``, and ``slots`` or ``codes``; what is there is read."""
    vectors = ItemEmbeddings.load(run / "embeddings")
    name, kind = ("slots", ItemSlots) if recipe.method == "setrec" else ("codes", ItemCodes)
    key = _key(run, recipe, "tokenizer", "collaborative", "collaborative_dim", "seed")
    content = vectors.vectors if recipe.joint or recipe.method == "recgpt" else None
    if artifacts.exists(out / name, name) and artifacts.read(out / name, verify=False).parents.get("key") == key:
        return ParallelItems(kind.load(out / name, catalog=vectors.catalog), content)
    cut = Split.load(run / "split")
    same_catalog(run, vectors.catalog, "split", "catalog")
    beside = _collaborative(run, cut, recipe) if recipe.method == "setrec" else None
    source = TokenizerSource.of(
        ItemCatalog.load(run / "catalog"), embeddings=vectors, train=cut.train(), collaborative=beside, seed=recipe.seed
    )
    settings = recipes.validate(recipe.tokenizer, registry.settings_class(recipe.tokenizer["kind"]), where="tokenizer")
    tokenizer: Any = (registry.build_slots if name == "slots" else registry.build)(settings)
    found = tokenizer.fit(source, seed=recipe.seed)
    tokenizer.save(out / "item_tokenizer", overwrite=True)
    found.save(out / name, parents={"key": key}, overwrite=True)
    log.info("%s: %d items, %d share an identifier", name, len(found), sum(map(len, found.collisions())))
    return ParallelItems(found, content)


def train_stage(run: Path, out: Path, recipe: ParallelRecipe) -> ParallelRecommender:
    """Train, choose beta on validation, and save: artifact ``bundle``. Goes on from ``checkpoints/``.

    Raises TrainingPaused when training is not finished, ConfigError in one of several processes. A finished bundle of
    the same recipe and artifacts is read, to where training leaves a model.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "parallel models are trained by one process: every other would fit the tokenizer and write the same files",
            hint="start it with python, not with torchrun or accelerate; train.accumulation_steps saves memory",
        )
    key = _key(run, recipe, *(f.name for f in dataclasses.fields(recipe) if f.name != "evaluate"))
    bundle = out / "bundle"
    kept = artifacts.exists(bundle, kind="parallel_bundle")
    if kept and artifacts.read(bundle, verify=False).parents.get("key") == key:
        return load_parallel(bundle, device="cuda" if torch.cuda.is_available() else "cpu")
    items, cut = tokenize_parallel(run, out, recipe), Split.load(run / "split")
    settings, valid = seeded(recipe.train, recipe.seed), cut.queries("valid")
    model = _model(out, items, recipe)
    log.info("%s, %.2f M weights", recipe.method, sum(w.numel() for w in model.parameters() if w.requires_grad) / 1e6)
    data = ParallelData(cut.train(), items, valid, tied=cut.train_ties(), catalog=cut.catalog)
    result = train_parallel(model, data, settings, out / "checkpoints" / key[:16])
    if not result.complete:
        raise TrainingPaused(
            f"training stopped at step {result.steps} ({result.status})",
            hint="the checkpoint is complete; run the same command to go on",
        )
    found = ParallelRecommender(model, items, ParallelDecoding(settings.max_items))
    found = choose_beta(found, valid.sample(settings.eval_users, settings.seed), metric=settings.metric)
    meta = {"key": key, "cpu_seconds": str(round(result.cpu_seconds)), "best": str(result.best)}
    save_parallel(
        bundle,
        found,
        catalog=ItemCatalog.load(run / "catalog"),
        recipe=recipes.to_json(recipe),
        parents=meta,
        overwrite=True,
    )
    return found


def evaluate_stage(run: Path, out: Path, recipe: ParallelRecipe, found: ParallelRecommender) -> EvalReport:
    """Evaluate on the test part: artifact ``eval``."""
    cut = Split.load(run / "split")
    report = evaluate(
        found,
        cut.queries("test"),
        settings=seeded(recipe.evaluate, recipe.seed),
        train=cut.train(),
        identifier_of=found.items.identifiers.collision_ids(),
        name=recipe.method,
        catalog=cut.catalog,
        context={"part": "test", "split": cut.rule, "seed": recipe.seed, "beta": found.settings.beta},
    )
    report.save(out / "eval", overwrite=True)
    return report


def _collaborative(run: Path, cut: Split, recipe: ParallelRecipe) -> ItemEmbeddings:
    if recipe.collaborative == "svd":
        settings = SvdSettings(dim=recipe.collaborative_dim, seed=recipe.seed)
        return svd(cut.train(), cut.n_items, settings, cut.catalog)
    if not artifacts.exists(run / "sasrec"):
        raise ConfigError(f"collaborative: {run} has no sasrec", hint="`genrec run … --until sasrec`, or svd")
    return sasrec_vectors(run, cut)


def _model(out: Path, items: ParallelItems, recipe: ParallelRecipe) -> ParallelModel:
    if not recipe.joint:
        return ParallelModel.of(recipe.settings(), items, seed=recipe.seed)
    tokenizer = SetRec.load(out / "item_tokenizer")
    settings = recipe.settings(joint=tokenizer.settings)
    return ParallelModel.of(settings, items, seed=recipe.seed, autoencoder=tokenizer.autoencoder())


def _key(run: Path, recipe: ParallelRecipe, *names: str) -> str:
    """Hash of the parts of the recipe and of what is read from the run folder."""
    chosen = {name: value for name, value in recipes.to_json(recipe).items() if name in names}
    usual = {"lora": None, "instruction": "", "reconstruction": 0.7}  # what was trained before there were these stays
    chosen = {name: value for name, value in chosen.items() if name not in usual or value != usual[name]}
    if "train" in chosen:
        chosen["train"] = decisive(chosen["train"])
    digests = [artifacts.read(run / name, verify=False).digest for name in ("split", "embeddings")]
    if "model" in names and isinstance(recipe.model, PretrainedSettings):
        chosen["model"] = told_pretrained(recipe.model)
    parts = [TRAIN_VERSION, recipe.method, chosen, digests]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
