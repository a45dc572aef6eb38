"""Validation during training: constrained search on a seeded sample of users."""

from __future__ import annotations

from typing import Any

from genrec.decoding.index import CatalogIndex
from genrec.evaluation.run import evaluate
from genrec.evaluation.settings import EvalSettings
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.models.template_prompts import TemplatePrompts
from genrec.training.callbacks import Evaluate
from genrec.training.dataset import TrainingData
from genrec.training.settings import TrainSettings


def decoding_settings(settings: TrainSettings, *, n_beams: int | None = None) -> DecodingSettings:
    """How a model trained with ``settings`` is decoded: its own softmax and history length (stable)."""
    return DecodingSettings(
        n_beams=n_beams or settings.eval_beams,
        loss=settings.softmax,
        max_items=settings.max_items,
    )


def validator(data: TrainingData, settings: TrainSettings, prompts: TemplatePrompts | None = None) -> Evaluate:
    """A function from the model to ``recall@10`` and ``ndcg@10`` on validation users (internal).

    ``eval_users`` users are drawn by the seed, the same for every call. The whole catalog is ranked, seen
    items excluded, ties at their expected rank, with the softmax of the loss. prompts: the words around histories.
    """
    assert data.valid is not None
    sample = data.valid.sample(settings.eval_users, settings.seed)
    index = CatalogIndex.build(data.codes)
    rule = EvalSettings(ks=(10,), n_beams=settings.eval_beams, normalize=settings.softmax, n_bootstrap=0)

    def run(model: Any) -> dict[str, float]:
        decoding = decoding_settings(settings)
        recommender = GenerativeRecommender(
            model,
            data.token_map,
            data.codes,
            index,
            decoding,
            user_ids=data.user_ids,
            user_index=data.user_index,
            prompts=prompts,
        )
        report = evaluate(recommender, sample, settings=rule, progress=False)
        return {name: float(report.mean(name)) for name in ("recall@10", "ndcg@10")}

    return run
