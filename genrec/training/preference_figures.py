"""What is measured at every validation of a preference training, and the alarms.

    recall@10, ndcg@10   on validation queries, as in fine-tuning
    train_recall@10      on as many queries of the training histories: the reward
    coverage@10          distinct items in the lists of the validation queries, as a share of the catalog
    valid_mass           probability that codes written freely, under the softmax of training, are those of an item
    kl                   KL(policy, reference) of the identifier that constrained decoding would write, in nats

All are functions of the weights and the seed, so a resumed run logs what an uninterrupted one does. ``valid_mass`` and
``kl`` are estimated from one item per query, drawn with the softmax over the children: ``valid_mass`` is the mean of
probability under the softmax of training / probability under that of the children, ``kl`` that of k3; the mean of
either over all draws is the figure itself.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.data.ties import Bools
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import Normalize, SearchOptions
from genrec.errors import GenrecError
from genrec.evaluation.run import evaluate
from genrec.evaluation.settings import EvalSettings
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.models.template_prompts import TemplatePrompts
from genrec.training.dataset import Samples
from genrec.training.preference_settings import Alarms, GrpoSettings
from genrec.training.settings import TrainSettings

if TYPE_CHECKING:
    from genrec.training.preference import PreferenceModule

logger = logging.getLogger(__name__)

Float64 = npt.NDArray[np.float64]
Figures = dict[str, float]


class DegenerateRun(GenrecError, ArithmeticError):
    """A preference training went beyond a bound of its :class:`Alarms` (experimental)."""


class Watch:
    """``watch(model) -> figures`` of the weights as they are; raises DegenerateRun beyond a bound (internal)."""

    def __init__(
        self,
        module: PreferenceModule,
        samples: Samples,
        settings: TrainSettings,
        alarms: Alarms,
        prompts: TemplatePrompts | None = None,
    ) -> None:
        data = module.data
        assert data.valid is not None
        self._module, self._settings, self._alarms, self._prompts = module, settings, alarms, prompts
        self._valid = data.valid.sample(settings.eval_users, settings.seed)
        self._train = _asked(samples, data.told_E).sample(settings.eval_users, settings.seed)
        self._index = CatalogIndex.build(data.codes)

    @cached_property
    def start(self) -> Figures:
        """The figures of the reference, measured when first asked for."""
        with self._module.reference():
            found = self._measured(self._module.model)
        logger.info("before: %s", "  ".join(f"{name} {value:.4g}" for name, value in found.items()))
        method = self._module.method
        if isinstance(method, GrpoSettings) and not method.add_target and found["train_recall@10"] == 0:
            raise DegenerateRun(
                "reward: none of the training queries is hit by the model that training starts from, so all lists have "
                "the same reward and teach nothing",
                hint="fine-tune longer first, or method.add_target=true",
            )
        return found

    def __call__(self, model: Any) -> Figures:
        """The figures, once they are within bounds."""
        start, found = self.start, self._measured(model)
        for name, bound, what in (
            ("valid_mass", self._alarms.min_valid, "validity"),
            ("coverage@10", self._alarms.min_coverage, "diversity"),
            ("train_recall@10", self._alarms.min_reward, "reward"),
        ):
            least = bound * start[name]
            if found[name] < least:
                raise _degenerate(f"{what}: {name} {found[name]:.4g}, it was {start[name]:.4g} before", f"{least:.4g}")
        most = self._alarms.max_kl
        if most is not None and not found["kl"] <= most:
            raise _degenerate(f"distance: kl {found['kl']:.4g} nats to the model before", f"{most:.4g} at most")
        return found

    def _measured(self, model: Any) -> Figures:
        recommender = self._recommender(model, self._settings.softmax)
        rule = EvalSettings(
            ks=(10,), n_beams=self._settings.eval_beams, normalize=self._settings.softmax, n_bootstrap=0
        )
        valid, train = (
            evaluate(recommender, queries, settings=rule, progress=False) for queries in (self._valid, self._train)
        )
        listed = np.unique(valid.lists[valid.lists >= 0])
        return {
            "recall@10": float(valid.mean("recall@10")),
            "ndcg@10": float(valid.mean("ndcg@10")),
            "train_recall@10": float(train.mean("recall@10")),
            "coverage@10": len(listed) / recommender.n_items,
            **self._drawn(model, recommender),
        }

    def _drawn(self, model: Any, recommender: GenerativeRecommender) -> Figures:
        """What one drawn item per query tells."""
        queries, within = self._valid, self._recommender(model, "children")
        one = SearchOptions(top_k=1, n_beams=1, exclude_seen=False)
        items = within.sample(queries.histories, one, queries.users, seed=self._settings.seed).items

        def scores(by: GenerativeRecommender) -> Float64:
            return by.score(queries.histories, items, queries.users)[:, 0].astype(np.float64)

        now = scores(within)
        valid = 1.0 if self._settings.softmax == "children" else float(np.exp(scores(recommender) - now).mean())
        with self._module.reference():
            gap = scores(within) - now
        return {"valid_mass": valid, "kl": float((np.exp(gap) - gap - 1).mean())}

    def _recommender(self, model: Any, softmax: Normalize) -> GenerativeRecommender:
        data, settings = self._module.data, self._settings
        decoding = DecodingSettings(n_beams=settings.eval_beams, loss=softmax, max_items=settings.max_items)
        return GenerativeRecommender(
            model,
            data.token_map,
            data.codes,
            self._index,
            decoding,
            user_ids=data.user_ids,
            user_index=data.user_index,
            prompts=self._prompts,
        )


def _asked(samples: Samples, told_E: Bools | None) -> EvalSet:
    """Training queries as an evaluation set: those that may say who asks, where some may not."""
    if told_E is not None and (told := told_E[samples.ends - 1]).any():
        samples = samples.take(np.flatnonzero(told))
    return EvalSet(
        samples.rows.astype(np.int32),
        Histories.from_slices(samples.items, samples.starts, samples.ends - 1),
        Histories(np.arange(len(samples) + 1), samples.items[samples.ends - 1]),
    )


def _degenerate(found: str, bound: str) -> DegenerateRun:
    return DegenerateRun(
        f"{found}; expected {bound}",
        hint="start again, in another folder, with a lower train.learning_rate, fewer train.max_steps, or a stronger "
        "pull to the reference (method.beta, method.kl_weight, method.sft_weight); the bounds are those of alarms",
    )
