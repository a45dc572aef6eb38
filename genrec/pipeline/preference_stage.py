"""Preferences on a finished run or a bundle: train, save the new bundle, compare the two on the test part."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrec import artifacts, recipes
from genrec.data.interactions import Interactions
from genrec.data.splits import Split
from genrec.decoding.filters import ItemFilter
from genrec.errors import ArtifactError, ConfigError, TrainingPaused
from genrec.evaluation.report import EvalReport
from genrec.evaluation.run import evaluate
from genrec.evaluation.settings import EvalSettings
from genrec.models.adapter_files import holds_adapter, load_adapter
from genrec.models.bundle import Bundle, bundle_folder, load_bundle, save_bundle
from genrec.models.recommender import GenerativeRecommender
from genrec.pipeline.recipe import seeded
from genrec.training.dataset import TrainingData
from genrec.training.preference import PreferenceResult, prefer
from genrec.training.preference_settings import Alarms, Method
from genrec.training.settings import TrainSettings, decisive

log = logging.getLogger(__name__)

PREFERENCE_VERSION = 2
"""Raise it when the code trains differently."""


@dataclass(frozen=True)
class PreferenceRecipe:
    """A preference training; ready files: ``train/preference/*.yaml`` (experimental).

    method: :class:`~genrec.training.preference_settings.DpoSettings` or
    :class:`~genrec.training.preference_settings.GrpoSettings`. train: ``softmax`` and ``max_items`` are those of the
    bundle, whatever stands here. alarms: when to stop. evaluate: of the comparison on the test part.
    """

    method: Method
    train: TrainSettings = field(default_factory=TrainSettings)
    alarms: Alarms = field(default_factory=Alarms)
    evaluate: EvalSettings = field(default_factory=EvalSettings)
    seed: int = 0


@dataclass(frozen=True)
class PreferencePaths:
    """Where everything is (experimental).

    source: a run folder, or a bundle. split: the split of its histories. out: where results go. base: the pretrained
    model of an adapter, where it has moved.
    """

    source: Path
    split: Path
    out: Path
    base: Path | None = None

    @classmethod
    def of(
        cls, source: Path, kind: str, *, split: Path | None = None, out: Path | None = None, base: Path | None = None
    ) -> PreferencePaths:
        """The usual places: ``split`` in the run folder, results in ``preference-<kind>`` beside the bundle.

        Raises ArtifactError where there is no split.
        """
        run = bundle_folder(source).parent
        chosen = split or run / "split"
        if not artifacts.exists(chosen, "split"):
            raise ArtifactError(f"{chosen}: no split, which has the histories to learn from", hint="--split FOLDER")
        return cls(source, chosen, out or run / f"preference-{kind}", base)

    def user_ids(self, bundle: Bundle) -> tuple[str, ...] | None:
        """The ids behind user numbers, where the vocabulary has user tokens: those of the run's interactions."""
        if not bundle.recommender.token_map.n_user_tokens:
            return None
        return Interactions.load(self.split.parent / "interactions").user_ids


def preference_stage(paths: PreferencePaths, recipe: PreferenceRecipe) -> Bundle | None:
    """Train, and save: artifacts ``bundle`` and ``training``. Goes on from ``checkpoints/``.

    A finished bundle of the same recipe, model and split is read. None in all processes of torchrun but the one that
    writes. Raises TrainingPaused when training is not finished,
    DegenerateRun where an alarm rings (nothing is saved then), ConfigError for another softmax than the bundle's.
    """
    key = _key(paths, recipe)
    done = paths.out / "bundle"
    if artifacts.exists(done, "bundle") and artifacts.read(done, verify=False).parents.get("preference") == key:
        return load_bundle(done, base=paths.base)
    cut = Split.load(paths.split)
    old = load_bundle(paths.source, dtype=torch.float32, base=paths.base)
    user_ids, found = paths.user_ids(old), old.recommender
    data = TrainingData(
        cut.train(),
        found.codes,
        found.token_map,
        cut.queries("valid"),
        user_ids=user_ids,
        tied=cut.train_ties(),
        catalog=cut.catalog,
        user_index=found.user_index,
    )
    model, train = trainable_model(old, paths.base), settings_of_model(recipe.train, recipe.seed, found)
    checkpoints = paths.out / "checkpoints" / key[:16]
    result = prefer(
        model,
        data,
        recipe.method,
        train,
        checkpoints,
        alarms=recipe.alarms,
        allowed=_allowed(old),
        prompts=found.prompts,
    )
    if not result.training.complete:
        raise TrainingPaused(
            f"training stopped at step {result.training.steps} ({result.training.status})",
            hint="the checkpoint is complete; run the same command to go on",
        )
    if not result.training.main_process:
        return None
    _say(result, recipe)
    _save(paths, recipe, key, old, result)
    return load_bundle(done, base=paths.base)


def compare_stage(paths: PreferencePaths, recipe: PreferenceRecipe, after: Bundle) -> tuple[EvalReport, EvalReport]:
    """Evaluate the old and the new bundle on the test part: artifacts ``eval/before`` and ``eval/after``."""
    cut = Split.load(paths.split)
    reports = []
    for name, bundle in (("before", load_bundle(paths.source, base=paths.base)), ("after", after)):
        bundle.recommender.user_ids = paths.user_ids(bundle)
        report = evaluate(
            bundle.recommender,
            cut.queries("test"),
            settings=seeded(recipe.evaluate, recipe.seed),
            train=cut.train(),
            identifier_of=bundle.recommender.codes.collision_ids(),
            name=name,
            catalog=cut.catalog,
            context={"part": "test", "split": cut.rule, "seed": recipe.seed, "method": recipe.method.kind},
        )
        report.save(paths.out / "eval" / name, overwrite=True)
        reports.append(report)
    return reports[0], reports[1]


def trainable_model(old: Bundle, base: Path | None) -> Any:
    """The model to train: whole, or the adapter of the bundle around its pretrained model (internal)."""
    folder = old.manifest.path / "model"
    if not holds_adapter(folder):
        return old.recommender.model
    return load_adapter(folder, old.recommender.token_map, base=base, trainable=True)


def settings_of_model(train: TrainSettings, seed: int, found: GenerativeRecommender) -> TrainSettings:
    """Those of a recipe, with what the model was trained with (internal); ConfigError where they say otherwise."""
    of_model = {"softmax": found.settings.loss, "max_items": found.settings.max_items}
    for name, value in of_model.items():
        given = getattr(train, name)
        if given not in (value, getattr(TrainSettings(), name)):
            raise ConfigError(f"train.{name}: the model was trained with {value!r}, got {given!r}", hint="leave it out")
        if given != value:
            log.info("train.%s: %r, which the model was trained with", name, value)
    return dataclasses.replace(seeded(train, seed), **of_model)  # type: ignore[arg-type]


def _allowed(old: Bundle) -> ItemFilter | None:
    """The items that the bundle would list: those of its index that are not retired; None = all."""
    index, catalog = old.recommender.index, old.catalog
    mask = np.zeros(index.n_items, dtype=np.bool_)
    mask[index.items] = True
    if catalog is not None and catalog.retired is not None:
        mask &= ~catalog.retired[: len(mask)]
    return None if mask.all() else ItemFilter.of_mask(mask, index.catalog)


def _say(result: PreferenceResult, recipe: PreferenceRecipe) -> None:
    best, start = result.training.best, result.start.get(recipe.train.metric)
    if best is not None and start is not None and best <= start:
        log.warning(
            "validation %s: %.4f before, %.4f at best after it: nothing was gained", recipe.train.metric, start, best
        )


def _save(paths: PreferencePaths, recipe: PreferenceRecipe, key: str, old: Bundle, result: PreferenceResult) -> None:
    """The curve, then the bundle."""
    training, before = result.training, old.recommender
    meta = {
        "status": training.status,
        "steps": training.steps,
        "best": training.best,
        "best_step": training.best_step,
        "metric": recipe.train.metric,
        "before": result.start,
        "wall_seconds": training.seconds,
        "cpu_seconds": training.cpu_seconds,
        "bf16": training.bf16,
    }
    settings = recipes.to_json(recipe)
    with artifacts.write(
        paths.out / "training", kind="training", recipe=settings, parents={"preference": key}, meta=meta, overwrite=True
    ) as draft:
        artifacts.save_json(draft.dir / "log.json", training.log)
    recommender = GenerativeRecommender(
        training.model,
        before.token_map,
        before.codes,
        before.index,
        before.settings,
        prompts=before.prompts,
        user_index=before.user_index,
    )
    save_bundle(
        paths.out / "bundle",
        recommender,
        catalog=old.catalog,
        recipe=settings,
        parents={"preference": key, "bundle": old.manifest.digest},
        vocabulary=old.vocabulary,
        overwrite=True,
    )


def _key(paths: PreferencePaths, recipe: PreferenceRecipe) -> str:
    """Hash of the recipe but for the comparison, and of the bundle and the split."""
    chosen = {name: value for name, value in recipes.to_json(recipe).items() if name != "evaluate"}
    chosen["train"] = decisive(chosen["train"])
    digests = [artifacts.read(each, verify=False).digest for each in (bundle_folder(paths.source), paths.split)]
    return hashlib.sha256(json.dumps([PREFERENCE_VERSION, chosen, digests], sort_keys=True).encode()).hexdigest()
