"""New items on a version of a run: adapt its model, measure old and new items before and after, keep it or not."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrec import artifacts, recipes
from genrec.errors import ConfigError, TrainingPaused
from genrec.evaluation.report import EvalReport
from genrec.evaluation.run import evaluate
from genrec.evaluation.settings import EvalSettings
from genrec.metrics import forgetting
from genrec.models.bundle import Bundle, bundle_folder, load_bundle, save_bundle
from genrec.models.recommender import GenerativeRecommender
from genrec.pipeline.continual_inputs import ContinualInputs, ContinualPaths, read_inputs
from genrec.pipeline.preference_stage import settings_of_model, trainable_model
from genrec.pipeline.recipe import seeded
from genrec.pipeline.runner import file_digest
from genrec.training.continual import ContinualSettings, adapt
from genrec.training.finetune import TrainResult
from genrec.training.settings import TrainSettings, decisive

log = logging.getLogger(__name__)

CONTINUAL_VERSION = 1
"""Raise it when the code trains differently."""
RECALL = "recall@10"


@dataclass(frozen=True)
class ContinualRecipe:
    """A training on new items; a ready file: ``train/continual/replay.yaml`` (experimental).

    continual: what is learned. train: ``softmax`` and ``max_items`` are those of the bundle, whatever stands here.
    tolerance: the new model is kept if its recall@10 on the validation users of the run, who ask for old items, is at
    most this share below that of the model before. users: each question is put to at most so many users, drawn by the
    seed (None = to all). evaluate: of all measurements. Raises ConfigError for values out of range.
    """

    continual: ContinualSettings = field(default_factory=ContinualSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    tolerance: float = 0.02
    users: int | None = None
    evaluate: EvalSettings = field(default_factory=EvalSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= 1:
            raise ConfigError(f"tolerance: expected a share from 0 to 1, got {self.tolerance}")
        if self.users is not None and self.users < 1:
            raise ConfigError(f"users: expected a positive integer, or none, got {self.users}")


@dataclass(frozen=True)
class Outcome:
    """What came of it (experimental).

    kept: whether the new bundle was written. figures: ``recall@10`` of ``valid``, ``old`` and, where users are asked
    for new items, ``new``, each ``before`` and ``after``; ``average``, ``forgetting`` and ``learning`` of the test part
    (:mod:`genrec.metrics.forgetting`).
    """

    kept: bool
    figures: dict[str, float]

    def summary(self) -> str:
        """A few lines to print."""
        names = {"valid": "old items, validation", "old": "old items, test", "new": "new items"}
        rows = [(text, self.figures.get(f"{n}.before"), self.figures.get(f"{n}.after")) for n, text in names.items()]
        lines = [f"{RECALL:<24}{'before':>9}{'after':>9}"]
        lines += [f"{text:<24}{a:>9.4f}{b:>9.4f}" for text, a, b in rows if a is not None and b is not None]
        rest = [f"{name} {self.figures[name]:.4f}" for name in forgetting.DEFINITIONS if name in self.figures]
        return "\n".join([*lines, ", ".join(rest)])


def continual_stage(paths: ContinualPaths, recipe: ContinualRecipe) -> Outcome | None:
    """Adapt, measure, and save if old items did not suffer: artifacts ``training``, ``eval/…`` and ``bundle``.

    Goes on from ``checkpoints/``; what is finished is read. A model that is not kept leaves no bundle, and the log says
    why. None in all processes of torchrun but the one that writes. Raises TrainingPaused when training is not finished,
    ConfigError for a version without new items and for another softmax than the bundle's, FingerprintMismatch for the
    split of another catalog.
    """
    key = _key(paths, recipe, measured=True)
    if (done := _finished(paths.out, key)) is not None:
        return done
    start = load_bundle(paths.version, dtype=torch.float32, base=paths.base)
    read = read_inputs(paths, start.recommender)
    train = settings_of_model(recipe.train, recipe.seed, start.recommender)
    model, own = trainable_model(start, paths.base), _key(paths, recipe, measured=False)
    folder = paths.out / "checkpoints" / own[:16]
    prompts = start.recommender.prompts
    result = adapt(model, read.data, read.grown, recipe.continual, train, folder, prompts=prompts)
    if not result.complete:
        raise TrainingPaused(
            f"training stopped at step {result.steps} ({result.status})",
            hint="the checkpoint is complete; run the same command to go on",
        )
    if not result.main_process:
        return None
    # the model that was loaded is the new one by now
    start = load_bundle(paths.version, dtype=torch.float32, base=paths.base)
    after = _recommender(result.model, start)
    reports = {
        when: _measured(each, read, recipe, paths.out, when)
        for when, each in (("before", start.recommender), ("after", after))
    }
    outcome = _judged(reports, recipe.tolerance)
    if outcome.kept:
        save_bundle(
            paths.out / "bundle",
            after,
            catalog=read.grown.catalog,
            recipe=recipes.to_json(recipe),
            parents={"continual": key, "bundle": start.manifest.digest},
            vocabulary=start.vocabulary,
            overwrite=True,
        )
    _save_training(paths.out, recipe, key, result, outcome)
    return _said(outcome, recipe.tolerance, paths.out)


def _recommender(model: Any, start: Bundle) -> GenerativeRecommender:
    """The adapted model, asked as the one before."""
    found = start.recommender
    return GenerativeRecommender(
        model,
        found.token_map,
        found.codes,
        found.index,
        found.settings,
        prompts=found.prompts,
        user_index=found.user_index,
    )


def _measured(
    recommender: GenerativeRecommender, read: ContinualInputs, recipe: ContinualRecipe, out: Path, when: str
) -> dict[str, EvalReport]:
    recommender.user_ids = read.user_ids
    reports = {}
    for name, everybody in read.asked.items():
        queries = everybody if recipe.users is None else everybody.sample(recipe.users, recipe.seed)
        reports[name] = evaluate(
            recommender,
            queries,
            settings=seeded(recipe.evaluate, recipe.seed),
            train=read.cut.train(),
            identifier_of=recommender.codes.collision_ids(),
            name=when,
            catalog=read.grown.catalog.fingerprint,
            context={"asked": name, "split": read.cut.rule, "seed": recipe.seed},
        )
        reports[name].save(out / "eval" / f"{name}-{when}", overwrite=True)
    recommender.user_ids = None  # not stored
    return reports


def _judged(reports: dict[str, dict[str, EvalReport]], tolerance: float) -> Outcome:
    figures = {f"{n}.{when}": float(r.mean(RECALL)) for when, each in reports.items() for n, r in each.items()}
    names = [name for name in ("old", "new") if f"{name}.after" in figures]
    values = np.array([[figures[f"{name}.{when}"] for name in names] for when in ("before", "after")[: len(names)]])
    if len(names) == 2:
        figures |= {name: getattr(forgetting, name)(values) for name in forgetting.DEFINITIONS}
    return Outcome(figures["valid.after"] >= (1 - tolerance) * figures["valid.before"], figures)


def _save_training(out: Path, recipe: ContinualRecipe, key: str, result: TrainResult, outcome: Outcome) -> None:
    """The curve, and what came of it: written last, so that it says that all the rest is there."""
    meta = {
        "steps": result.steps,
        "wall_seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "bf16": result.bf16,
        "kept": outcome.kept,
        "figures": outcome.figures,
    }
    settings = recipes.to_json(recipe)
    with artifacts.write(
        out / "training", kind="training", recipe=settings, parents={"continual": key}, meta=meta, overwrite=True
    ) as draft:
        artifacts.save_json(draft.dir / "log.json", result.log)


def _finished(out: Path, key: str) -> Outcome | None:
    """What came of exactly this training, if it is done."""
    if not artifacts.exists(out / "training", "training"):
        return None
    found = artifacts.read(out / "training", verify=False)
    if found.parents.get("continual") != key:
        return None
    kept = bool(found.meta["kept"])
    if kept and artifacts.read(out / "bundle", kind="bundle", verify=False).parents.get("continual") != key:
        return None
    return Outcome(kept, found.meta["figures"])


def _said(outcome: Outcome, tolerance: float, out: Path) -> Outcome:
    if not outcome.kept:
        before, after = outcome.figures["valid.before"], outcome.figures["valid.after"]
        other = f"; {out / 'bundle'} is of an earlier training" if (out / "bundle").exists() else ""
        log.warning(
            "not kept: %s of old items fell from %.4f to %.4f on validation users, more than %g %%; the bundle of the "
            "version stays the one to use%s",
            *(RECALL, before, after, 100 * tolerance, other),
        )
    return outcome


def _key(paths: ContinualPaths, recipe: ContinualRecipe, *, measured: bool) -> str:
    """Hash of all that decides the training, and what is measured and kept."""
    chosen = recipes.to_json(recipe)
    chosen["train"] = decisive(chosen["train"])
    files = [paths.log, paths.ask] if measured else [paths.log]
    if not measured:
        del chosen["evaluate"], chosen["tolerance"], chosen["users"]
    read = [bundle_folder(paths.version), paths.version / "embeddings", paths.run / "split"]
    digests = [artifacts.read(each, verify=False).digest for each in read]
    digests += ["" if each is None else file_digest(each) for each in files]
    return hashlib.sha256(json.dumps([CONTINUAL_VERSION, chosen, digests], sort_keys=True).encode()).hexdigest()
