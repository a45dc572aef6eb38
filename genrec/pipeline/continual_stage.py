"""New items on a version of a run: adapt its model, measure old and new items before and after, keep it or not."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
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

CONTINUAL_VERSION = 2
"""Raise it when the code trains differently."""
RECALL = "recall@10"
OF_LISTS = {"exposure": "new ones in old lists", "first_code": "first codes of new ones"}


@dataclass(frozen=True)
class ContinualRecipe:
    """A training on new items; a ready file: ``train/continual/replay.yaml`` (experimental).

    continual: what is learned. train: ``softmax`` and ``max_items`` are those of the bundle, whatever stands here.
    tolerance: the new model is kept if its recall@10 on the validation users of the run, who ask for old items, is at
    most this share below that of the model before, and on those who ask for new items, where there are any, not below
    it. users: each question is put to at most so many users, drawn by the
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
    for new items, ``new``, each ``before`` and ``after``; ``exposure`` and ``first_code`` of
    :func:`of_lists`; ``average``, ``forgetting`` and ``learning`` of the test part (:mod:`genrec.metrics.forgetting`).
    """

    kept: bool
    figures: dict[str, float]

    def summary(self) -> str:
        """A few lines to print."""
        names = {"valid": "old items, validation", "old": "old items, test", "new": "new items", **OF_LISTS}
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
        return _said(done, recipe.tolerance, paths.out)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    start = load_bundle(paths.version, dtype=torch.float32, device=device, base=paths.base)
    read = read_inputs(paths, start.recommender)
    train = settings_of_model(recipe.train, recipe.seed, start.recommender)
    model, own = trainable_model(start, paths.base).to(device), _key(paths, recipe, measured=False)
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
    start = load_bundle(paths.version, dtype=torch.float32, device=device, base=paths.base)
    after = _recommender(result.model, start)
    reports = {
        when: _measured(each, read, recipe, paths.out, when)
        for when, each in (("before", start.recommender), ("after", after))
    }
    outcome = _judged(reports, recipe.tolerance)
    outcome.figures.update(of_lists(reports, read.grown.new_N, after.codes.as_int()[:, 0]))
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
    if not figures["valid.before"]:
        log.warning(
            "%s of old items is 0 on validation users before: nothing can be lost, so nothing is decided", RECALL
        )
    return Outcome(_stays(figures, "valid", tolerance) and _stays(figures, "new", 0.0), figures)


def _stays(figures: dict[str, float], name: str, tolerance: float) -> bool:
    """Whether a recall fell by no more than a share; what is not measured stays."""
    return figures.get(f"{name}.after", 0.0) >= (1 - tolerance) * figures.get(f"{name}.before", 0.0)


def of_lists(
    reports: dict[str, dict[str, EvalReport]], new_N: npt.NDArray[np.bool_], first_N: npt.NDArray[np.integer]
) -> dict[str, float]:
    """What the lists of ten say of new items, ``before`` and ``after`` (internal).

    ``exposure``: their share of the places in the lists of ``old``. ``first_code``: the share of the queries ``new`` in
    whose list an item begins with the first code of the target; in the others the search may have lost it at once.
    first_N: the first code of every item.
    """
    figures = {}
    for when, each in reports.items():
        listed = each["old"].lists[:, :10]
        figures[f"exposure.{when}"] = float(new_N[listed[listed >= 0]].mean()) if (listed >= 0).any() else 0.0
        if "new" in each:
            lists, targets = each["new"].lists[:, :10], each["new"].targets[:, None]
            figures[f"first_code.{when}"] = float(
                ((first_N[lists] == first_N[targets]) & (lists >= 0)).any(axis=1).mean()
            )
    return figures


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
    asked = (("valid", "old items", tolerance, "validation users"), ("new", "new items", 0.0, "the users in --ask"))
    for name, what, bound, whom in asked:
        if not _stays(outcome.figures, name, bound):
            before, after = outcome.figures[f"{name}.before"], outcome.figures[f"{name}.after"]
            other = f"; {out / 'bundle'} is of an earlier training" if (out / "bundle").exists() else ""
            log.warning(
                "not kept: %s of %s fell from %.4f to %.4f on %s, more than %g %%; the bundle of the version stays the "
                "one to use%s",
                *(RECALL, what, before, after, whom, 100 * bound, other),
            )
    return outcome


def _key(paths: ContinualPaths, recipe: ContinualRecipe, *, measured: bool) -> str:
    """Hash of all that decides the training, and what is measured and kept."""
    chosen = recipes.to_json(recipe)
    chosen["train"] = decisive(chosen["train"])
    files = [paths.log, paths.ask if measured or paths.log else None]  # what is asked is not learned from a log
    if not measured:
        del chosen["evaluate"], chosen["tolerance"], chosen["users"]
    read = [bundle_folder(paths.version), paths.version / "embeddings", paths.run / "split"]
    digests = [artifacts.read(each, verify=False).digest for each in read]
    digests += ["" if each is None else file_digest(each) for each in files]
    return hashlib.sha256(json.dumps([CONTINUAL_VERSION, chosen, digests], sort_keys=True).encode()).hexdigest()
