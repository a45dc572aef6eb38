"""Stages of the baselines: train SASRec, evaluate each baseline under the run's rule."""

from __future__ import annotations

import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

from genrec import artifacts
from genrec.baselines import counting, sasrec_training
from genrec.baselines.leak_probe import LargerIdProbe, id_order
from genrec.baselines.sasrec import SasRec
from genrec.data.catalog import ItemCatalog
from genrec.data.splits import Split
from genrec.decoding.interface import DenseRecommender
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ArtifactError, TrainingPaused
from genrec.evaluation.run import evaluate
from genrec.pipeline.recipe import PipelineRecipe, seeded
from genrec.pipeline.runner import same_catalog
from genrec.training.callbacks import StopRequest

log = logging.getLogger(__name__)
READ = {
    "sasrec": ("sasrec",),
    "content_knn": ("text_embeddings",),
    "content_knn_unseen": ("text_embeddings",),
    "item_knn_larger_id": ("catalog",),
    "oracle": ("catalog",),
}
"""Artifacts besides ``split`` that a baseline reads, or, the oracle, makes anew."""


def fit_sasrec(folder: Path, recipe: PipelineRecipe, pause_after: float = math.inf) -> None:
    """Train SASRec on the train part, stopped by validation NDCG@10: artifact ``sasrec``.

    Goes on from ``sasrec_checkpoint/`` in the run folder, which goes when the result is saved. SIGTERM, SIGINT and
    ``pause_after`` wall seconds of this call end it after a step, with a checkpoint: raises TrainingPaused.
    The result of the same training that is already there is kept.
    """
    checkpoint, request, start = folder / "sasrec_checkpoint", StopRequest(), time.monotonic()
    if sasrec_trained(folder, recipe):
        log.info("the SASRec of this recipe is already there")
        shutil.rmtree(checkpoint, ignore_errors=True)
        return
    if not artifacts.exists(checkpoint, sasrec_training.KIND):  # half deleted
        shutil.rmtree(checkpoint, ignore_errors=True)

    def pause() -> None:
        if request.received or time.monotonic() - start >= pause_after:
            why = "a signal" if request.received else "out of time"
            hint = "the checkpoint is complete; run the same command to go on"
            raise TrainingPaused(f"training of SASRec stopped ({why})", hint=hint)

    cut = Split.load(folder / "split")
    given = _sasrec_inputs(cut, recipe)
    with request.listening():
        model = SasRec.fit(**given, checkpoint=checkpoint, between_steps=pause)
    parents = {"training": sasrec_training.training_key(**given)}
    model.save(folder / "sasrec", catalog=cut.catalog, parents=parents, overwrite=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
    if model.log:
        best = max(line.get("ndcg@10", 0.0) for line in model.log)
        log.info("%d evaluations, best validation ndcg@10 %.4f", len(model.log), best)


def sasrec_trained(folder: Path, recipe: PipelineRecipe) -> bool:
    """Whether the folder holds the finished, undamaged SASRec of exactly this recipe on this split."""
    try:
        found = artifacts.read(folder / "sasrec", kind="sasrec")
    except ArtifactError:
        return False
    cut = Split.load(folder / "split")
    key = sasrec_training.training_key(**_sasrec_inputs(cut, recipe))
    return found.catalog == cut.catalog and found.parents.get("training") == key


def _sasrec_inputs(cut: Split, recipe: PipelineRecipe) -> dict[str, Any]:
    """What decides the training of SASRec."""
    return {
        "train": cut.train(),
        "n_items": cut.n_items,
        "settings": seeded(recipe.sasrec, recipe.seed),
        "valid": cut.queries("valid"),
        "tied": cut.train_ties(),
    }


def evaluate_baseline(folder: Path, recipe: PipelineRecipe, name: str) -> None:
    """Evaluate one baseline on the test part: artifact ``eval/<name>``."""
    cut = Split.load(folder / "split")
    report = evaluate(
        baseline(name, folder, cut, recipe),
        cut.queries("test"),
        settings=seeded(recipe.evaluate, recipe.seed),
        train=cut.train(),
        name=name,
        catalog=cut.catalog,
        context=context(recipe, cut),
    )
    report.save(folder / "eval" / name, overwrite=True)
    log.info("%s", report.summary())


def baseline(name: str, folder: Path, cut: Split, recipe: PipelineRecipe) -> DenseRecommender:
    """The fitted baseline called ``name`` (see ``genrec.pipeline.recipe.BASELINES``).

    Raises FingerprintMismatch if what it reads is not of the catalog of ``cut``.
    """
    same_catalog(folder, cut.catalog, *READ.get(name, ()))
    if name == "sasrec":
        return SasRec.load(folder / "sasrec")
    if name == "oracle":
        from genrec.data.synthetic import Oracle, make

        assert recipe.data.synthetic is not None
        return Oracle(make(recipe.data.synthetic).truth)
    model: Any
    if name in ("content_knn", "content_knn_unseen"):
        vectors = ItemEmbeddings.load(folder / "text_embeddings").vectors
        candidates = "unseen" if name == "content_knn_unseen" else "all"
        model = counting.ContentKnn(vectors, candidates=candidates)  # type: ignore[arg-type]
    elif name == "item_knn_larger_id":
        ids = ItemCatalog.load(folder / "catalog").ids
        model = LargerIdProbe(counting.ItemKnn(), id_order(ids))
    else:
        classes = {
            "popularity": counting.Popularity,
            "copy_last": counting.CopyLast,
            "markov": counting.Markov1,
            "item_knn": counting.ItemKnn,
        }
        model = classes[name]()
    fitted: DenseRecommender = model.fit(cut.train(), cut.n_items)
    return fitted


def context(recipe: PipelineRecipe, cut: Split) -> dict[str, Any]:
    """What a report notes about the question it answers.

    has_ties: whether a user has events at the same time, in an order that was drawn (None = not known).
    """
    ties = None if cut.tied is None else bool(cut.tied.any())
    return {"part": "test", "split": cut.rule, "ties": recipe.split.ties, "has_ties": ties, "seed": recipe.seed}
