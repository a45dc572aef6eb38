"""Preferences after fine-tuning: DPO on (target, hard negatives), and GRPO on the model's own constrained lists.

The loop, the checkpoints and the stopping are those of :mod:`genrec.training.finetune`. The lists are made inside the
forward pass, by the weights of that very step. Axes: B queries, C items of a list, A tokens of an item.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from genrec.decoding.filters import ItemFilter
from genrec.errors import ConfigError
from genrec.models.backbone import evaluating
from genrec.models.template_prompts import TemplatePrompts
from genrec.training.candidates import CandidateLogProbs, check_candidates
from genrec.training.dataset import TrainingData
from genrec.training.finetune import Job, TrainResult, bind, run_job
from genrec.training.identity import identity_of, weights_digest
from genrec.training.module import StartWeights
from genrec.training.preference_figures import Watch
from genrec.training.preference_lists import ListMaker, Queries, QueryCollator, QueryPlan, query_samples
from genrec.training.preference_losses import advantages, dpo_loss, grpo_loss, rank_rewards
from genrec.training.preference_settings import Alarms, DpoSettings, Method
from genrec.training.settings import TrainSettings

logger = logging.getLogger(__name__)

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PreferenceResult:
    """What a preference training gave (experimental).

    training: as of :func:`genrec.training.finetune.finetune`; its log has the figures of
    :mod:`genrec.training.preference_figures`. start: the same figures of the model that training started from; empty
    without validation, and in all processes but the first.
    """

    training: TrainResult
    start: dict[str, float]


def prefer(
    model: Any,
    data: TrainingData,
    method: Method,
    settings: TrainSettings,
    out_dir: str | Path,
    *,
    alarms: Alarms | None = None,
    allowed: ItemFilter | None = None,
    prompts: TemplatePrompts | None = None,
    resume: bool = True,
) -> PreferenceResult:
    """Teach a fine-tuned model which items to rank above which (experimental).

    model: T5, Llama, Qwen2 or Qwen3, whole or with adapters. What it is now is the reference: a copy of the weights
    that are trained, 4 bytes each (with adapters megabytes), put in their place while the reference is asked. Dropout
    is off throughout, so that the two differ by what was learned alone. settings: ``softmax`` and ``max_items`` must be
    those of the fine-tuning; lists, log-probabilities and validation share the softmax. An epoch asks for every item of
    every history that the user had not had before. allowed: the only items that lists may hold. prompts: the words
    around histories of a model that was trained with them.

    Checkpoints, resuming (on a CPU to the bit), signals and errors are those of
    :func:`genrec.training.finetune.finetune`; a checkpoint is gone on from only with the same reference. Raises
    :class:`~genrec.training.preference_figures.DegenerateRun` where an alarm rings at a validation, ConfigError for
    settings that have no effect here.
    """
    _check(settings, method)
    bind(model, data)
    module = PreferenceModule(model, data, method, settings, allowed=allowed, prompts=prompts)
    mask = None if allowed is None else allowed.mask
    samples = query_samples(data.histories, settings.max_items, mask)
    plan = QueryPlan(samples, data, settings, method.n_updates, mask)
    identity = {
        **identity_of(model, data),
        "method": asdict(method),
        "reference": weights_digest(model),
        "prompt": None if prompts is None else prompts.template.fingerprint,
        "allowed": None if allowed is None else hashlib.sha256(allowed.words.tobytes()).hexdigest()[:32],
    }
    watch = None
    if settings.eval_every and data.valid is not None and len(data.valid):
        watch = Watch(module, samples, settings, alarms or Alarms(), prompts)
    else:
        logger.warning("no validation, so no alarm: a run that goes wrong goes on")
    # the trainer counts, cuts and hands over queries, as it does samples
    job = Job(module, cast(Any, plan), cast(Any, QueryCollator()), identity)
    result = run_job(job, settings, out_dir, resume=resume, evaluate=watch)
    # the other processes have measured nothing, and are not to begin now
    return PreferenceResult(result, watch.start if watch is not None and result.main_process else {})


class PreferenceModule(nn.Module):
    """``forward(queries, scale) -> loss``, a scalar: lists, log-probabilities, reference, loss (internal).

    held: lists, log-probabilities and reference of the step that made them, for the ``n_updates - 1`` steps after it;
    checkpoints keep it.
    """

    def __init__(
        self,
        model: Any,
        data: TrainingData,
        method: Method,
        settings: TrainSettings,
        *,
        allowed: ItemFilter | None = None,
        prompts: TemplatePrompts | None = None,
    ) -> None:
        super().__init__()
        check_candidates(model)
        self.model: Any = model
        self.method, self.data = method, data
        self.held: dict[str, Tensor] = {}
        self.lists = ListMaker(model, data, settings.softmax, allowed=allowed, prompts=prompts)
        self.log_probs = CandidateLogProbs(data.codes, data.token_map, settings.softmax)
        self.reference = StartWeights(model)

    def forward(self, *, queries: Queries, scale: float) -> Tensor:
        """The summed loss of the queries, times ``scale``."""
        with evaluating(self.model):
            loss_B = self._dpo(queries) if isinstance(self.method, DpoSettings) else self._grpo(queries)
        loss: Tensor = loss_B.sum() * scale
        return loss

    def _dpo(self, queries: Queries) -> Tensor:
        method = self.method
        assert isinstance(method, DpoSettings)
        prompts = self.lists.prompts(queries)

        def negatives() -> Int64:
            make = self.lists.drawn if method.negatives == "sample" else self.lists.best
            return make(queries, prompts, method.n_negatives, with_target=False)

        items = negatives() if method.made_by == "policy" else None
        with self.reference(), torch.no_grad():
            items = negatives() if items is None else items
            items_BC = np.hstack([queries.targets[:, None], items])
            before_BC = self.log_probs(self.model, prompts, items_BC).sum(2)
        logp_BC: Tensor = self.log_probs(self.model, prompts, items_BC).sum(2)
        ratio_BC, real_BC = logp_BC - before_BC, torch.from_numpy(items_BC >= 0).to(logp_BC.device)
        target_B = logp_BC[:, 0]
        return dpo_loss(ratio_BC[:, 0], ratio_BC[:, 1:], real_BC[:, 1:], method.beta) - method.sft_weight * target_B

    def _grpo(self, queries: Queries) -> Tensor:
        method = self.method
        assert not isinstance(method, DpoSettings)
        prompts = self.lists.prompts(queries)
        if queries.fresh:
            self.held = {"items": torch.from_numpy(self._rollouts(queries, prompts))}
        items_BC = self.held["items"].cpu().numpy()
        # the target stands beside the list, where its own cross-entropy is asked for
        asked_BC = np.hstack([items_BC, queries.targets[:, None]]) if method.sft_weight else items_BC
        if queries.fresh and method.kl_weight:
            with self.reference(), torch.no_grad():
                self.held["reference"] = self.log_probs(self.model, prompts, items_BC)
        logp_BCA = self.log_probs(self.model, prompts, asked_BC)
        listed_BCA = logp_BCA[:, : items_BC.shape[1]]
        if queries.fresh:
            self.held["old"] = listed_BCA.detach().sum(2)
        hit_BC, real_BC = (
            torch.from_numpy(each).to(logp_BCA.device) for each in (items_BC == queries.targets[:, None], items_BC >= 0)
        )
        advantage_BC = advantages(rank_rewards(hit_BC, real_BC, method.rank_weight), real_BC)
        loss_B: Tensor = grpo_loss(
            listed_BCA, self.held["old"], self.held.get("reference"), advantage_BC, real_BC, method
        )
        return loss_B - method.sft_weight * logp_BCA[:, -1].sum(1) if method.sft_weight else loss_B

    def _rollouts(self, queries: Queries, prompts: Any) -> Int64:
        method = self.method
        assert not isinstance(method, DpoSettings)
        if method.rollouts == "beam":
            items_BC = self.lists.best(queries, prompts, method.n_rollouts, with_target=True)
        else:
            items_BC = self.lists.drawn(
                queries, prompts, method.n_rollouts, with_target=True, temperature=method.temperature
            )
        return with_targets(items_BC, queries.targets) if method.add_target else items_BC


def with_targets(items_BC: Int64, targets_B: Int64) -> Int64:
    """Lists without their target get it in the last place, behind what there is or instead of the last (internal)."""
    out = items_BC.copy()
    missing = np.flatnonzero(~(items_BC == targets_B[:, None]).any(axis=1))
    place = np.minimum((items_BC >= 0).sum(axis=1), items_BC.shape[1] - 1)
    out[missing, place[missing]] = targets_B[missing]
    return out


def _check(settings: TrainSettings, method: Method) -> None:
    # checkpointing happens in training mode only, and the model is in evaluation mode
    for name in ("prefix_drop", "label_smoothing", "packing", "gradient_checkpointing", "fsdp", "sam_rho"):
        if getattr(settings, name):
            raise ConfigError(f"{name}: no effect on preferences, got {getattr(settings, name)}", hint="leave it out")
    parts = settings.accumulation_steps * int(os.environ.get("WORLD_SIZE", "1"))
    if method.n_updates > 1 and parts > 1:
        raise ConfigError(
            "n_updates: more than 1 only in one process, and without accumulation_steps",
            hint="set method.n_updates to 1, or train in one process with train.accumulation_steps=1",
        )
