"""Training of parallel models by the trainer of :mod:`genrec.training.finetune`: resumable, stopped early, averaged.

Axes: B samples, H items of an input, Q places to predict at, P places of all samples, N items, n parts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec import recipes
from genrec.baselines.softmax import linear_cross_entropy
from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.data.ties import Bools
from genrec.errors import ConfigError, DataError
from genrec.evaluation.run import evaluate as measured
from genrec.evaluation.settings import EvalSettings
from genrec.item_tokenizers.codes import check_catalog
from genrec.models.parallel_inputs import ItemShape, ParallelItems, PartTables
from genrec.models.parallel_model import ParallelModel, VectorParts
from genrec.models.parallel_recommender import ParallelDecoding, ParallelRecommender
from genrec.models.parallel_settings import ParallelSettings
from genrec.training.callbacks import Evaluate
from genrec.training.dataset import Plan, Samples, prefix_samples, window_samples
from genrec.training.finetune import Job, TrainResult, run_job
from genrec.training.identity import data_digests, frozen_parts, shapes_digest
from genrec.training.precision import attention_kernel
from genrec.training.settings import TrainSettings

BETAS = tuple(round(0.1 * step, 1) for step in range(11))


@dataclass(frozen=True, eq=False)
class ParallelData:
    """What the training of a parallel model may read (experimental).

    histories: the training part, one row per user. items: identifiers, and item vectors where the model reads them.
    valid, tied, catalog: as in :class:`genrec.training.dataset.TrainingData`.
    Raises DataError if the parts do not fit together, FingerprintMismatch for identifiers of another catalog.
    """

    histories: Histories
    items: ParallelItems
    valid: EvalSet | None = None
    tied: Bools | None = None
    catalog: str | None = None

    def __post_init__(self) -> None:
        check_catalog("identifiers", self.items.catalog, self.catalog)
        items, n_items = self.histories.items, self.items.n_items
        if len(items) and not 0 <= int(items.min()) <= int(items.max()) < n_items:
            raise DataError(f"histories: expected item numbers 0..{n_items - 1}, got {items.min()}..{items.max()}")
        if self.tied is not None and len(self.tied) != len(items):
            raise DataError(f"tied: expected {len(items)} marks, one per event of the histories, got {len(self.tied)}")


def train_parallel(
    model: ParallelModel,
    data: ParallelData,
    settings: TrainSettings,
    out_dir: str | Path,
    *,
    resume: bool = True,
    evaluate: Evaluate | None = None,
) -> TrainResult:
    """Train a parallel model (experimental).

    A decoder-only model learns every item of a history from those before it, the first from nothing, in one pass: the
    states after the first t items are those of a history that ends there. A T5 learns one item a sample. Checkpoints,
    resuming, signals, errors and what is returned are those of :func:`genrec.training.finetune.finetune`; of the
    settings, ``packing`` and ``fsdp`` are refused, and ``softmax`` and ``eval_beams`` play no part. Validation searches
    exactly, at ``beta`` .5 for slots; :func:`choose_beta` comes afterwards.
    """
    model.shape.check(data.items.shape)
    if settings.packing:
        raise ConfigError("packing: no effect on parallel models", hint="leave it out; batches are of like length")
    if settings.fsdp:
        raise ConfigError("fsdp: parallel models are not sharded", hint="leave it out")
    if evaluate is None and settings.eval_every and data.valid is not None and len(data.valid):
        evaluate = _validator(data, settings)
    encodes = model.body.encodes
    samples = (prefix_samples if encodes else window_samples)(data.histories, settings.max_items)
    loss = ParallelLoss(model, data.items, settings.label_smoothing)
    lengths_N = np.full(data.items.n_items, model.body.arrangement.per_item, dtype=np.int64)
    job = Job(
        loss,
        Plan(samples, lengths_N, settings, tied=data.tied, target_apart=True),
        ParallelCollator(model.shape, encodes, loss.known_N),
        {
            "model": shapes_digest(model),
            "parallel": told_settings(model.settings),
            "items": data.items.fingerprint,
            **(frozen_parts(model.body.transformer) if model.settings.lora else {}),
            **data_digests(data.histories, data.tied, data.valid),
        },
    )
    return run_job(job, settings, out_dir, resume=resume, evaluate=evaluate)


def told_settings(settings: ParallelSettings) -> dict[str, Any]:
    """Settings of a model for the identity of its training (internal).

    Without those at their defaults, which a later version may add to, and without the path of a pretrained model, which
    may be moved: its frozen weights are in the identity.
    """
    told, usual = recipes.to_json(settings), recipes.to_json(ParallelSettings())
    told["backbone"].pop("path", None)
    return {name: value for name, value in told.items() if value != usual[name]}


def _validator(data: ParallelData, settings: TrainSettings) -> Evaluate:
    assert data.valid is not None
    sample = data.valid.sample(settings.eval_users, settings.seed)

    def run(model: Any) -> dict[str, float]:
        return _figures(ParallelRecommender(model, data.items, ParallelDecoding(settings.max_items)), sample)

    return run


def _figures(recommender: ParallelRecommender, queries: EvalSet) -> dict[str, float]:
    report = measured(recommender, queries, settings=EvalSettings(ks=(10,), n_bootstrap=0), progress=False)
    return {name: float(report.mean(name)) for name in ("recall@10", "ndcg@10")}


def choose_beta(
    recommender: ParallelRecommender, valid: EvalSet, *, betas: Sequence[float] = BETAS, metric: str = "recall@10"
) -> ParallelRecommender:
    """The recommender with the ``beta`` that is best on validation queries, of equals the one nearest to .5
    (experimental).

    SETRec's code chooses it on the test set, which is a leak. Nothing to choose where the model predicts codes.
    """
    if recommender.model.settings.target == "codes":
        return recommender
    values = {beta: _figures(recommender.with_beta(beta), valid)[metric] for beta in betas}
    return recommender.with_beta(max(values, key=lambda beta: (values[beta], -abs(beta - 0.5))))


class ParallelCollator:
    """Builds the inputs of a batch of samples (internal).

    ``encodes``: the last item of a sample is the only target; otherwise all are. known_N: which items have content.
    """

    def __init__(self, shape: ItemShape, encodes: bool, known_N: Bools | None = None) -> None:
        self.n_parts, self.encodes, self.known_N = shape.n_parts, encodes, known_N

    def n_targets(self, samples: Samples) -> int:
        """Number of parts that carry a loss."""
        places = len(samples) if self.encodes else int((samples.ends - samples.starts).sum())
        return places * self.n_parts

    def of_whole(self, samples: Samples) -> dict[str, Any]:
        """per_known: targets for each item with content in the histories, which turns a sum over these into a mean.

        Of the whole batch, else the means of its parts would not add up to its mean.
        """
        items = Histories.from_slices(samples.items, samples.starts, samples.ends - 1).items
        n_known = len(items) if self.known_N is None else int(self.known_N[items].sum())
        return {"per_known": self.n_targets(samples) / max(1, n_known)}

    def __call__(self, samples: Samples) -> dict[str, Any]:
        """Inputs and targets.

        items int64 ``[B, H]``, the sample without its last item, padded on the right; lengths int64 ``[B]``; after
        int64 ``[B, Q]``, how many items each place stands behind; positions int64 ``[P]`` into the flattened places;
        targets int64 ``[P]`` item numbers; per_known as in :meth:`of_whole`, of these samples.
        """
        inputs = Histories.from_slices(samples.items, samples.starts, samples.ends - 1)
        lengths = inputs.lengths
        if self.encodes:
            after, targets = lengths[:, None], samples.items[samples.ends - 1]
            positions = np.arange(len(samples))
        else:
            whole = Histories.from_slices(samples.items, samples.starts, samples.ends)
            place = np.arange(int(lengths.max()) + 1)
            # beyond the end of a sample a place asks again after its last input; nothing is learned there
            after = np.minimum(place, lengths[:, None])
            positions = np.flatnonzero(place <= lengths[:, None])
            targets = whole.items
        return {
            "items": _tensor(inputs.padded(pad=0, side="right")),
            "lengths": _tensor(lengths),
            "after": _tensor(after),
            "positions": _tensor(positions),
            "targets": _tensor(targets),
            **self.of_whole(samples),
        }


class ParallelLoss(nn.Module):
    """``forward(batch of the collator) -> loss``, a scalar (internal).

    ::

        target: codes     sum over places and parts of  - log softmax(logits of the part)[code of the target]
        target: vectors   sum over places and slots of  - log softmax over all N items (<state, vector>)[target]
                          + reconstruction * (places * n) * mean squared error of the autoencoder, over history items

    times ``scale``, in float32. ``vectors`` encodes all items at every step, with their gradient: memory is N n D.
    The mean is over the items of the whole batch, of which this may be a part. With ``reconstruction: 0`` the
    autoencoder's decoder has no part in the loss; it is frozen.
    """

    def __init__(self, model: ParallelModel, items: ParallelItems, label_smoothing: float) -> None:
        super().__init__()
        self.model, self.eps = model, label_smoothing
        for name, table in asdict(items.tables(model.settings)).items():
            self.register_buffer(name, table, persistent=False)
        coder = model.parts.autoencoder if isinstance(model.parts, VectorParts) else None
        if coder is not None and not model.settings.reconstruction:
            coder.decoders.requires_grad_(False)  # data parallelism expects a gradient of all that is trained

    @property
    def known_N(self) -> Bools | None:
        """Which items have content, where an autoencoder learns to reconstruct it."""
        known = getattr(self, "known", None)
        return None if known is None else np.asarray(known.cpu(), dtype=np.bool_)

    def forward(
        self,
        *,
        items: Tensor,
        lengths: Tensor,
        after: Tensor,
        positions: Tensor,
        targets: Tensor,
        per_known: float,
        scale: float,
    ) -> Tensor:
        """See the class; the arguments are those of :class:`ParallelCollator`."""
        model, tables = self.model, PartTables(**{f.name: getattr(self, f.name) for f in fields(PartTables)})
        vectors_NnD = model.item_vectors(tables) if model.settings.target == "vectors" else None
        parts_BHnD = model.parts(tables, items) if vectors_NnD is None else vectors_NnD[items]
        with attention_kernel():
            states_BQnD = model.states(parts_BHnD, lengths, after)
        states_PnD = states_BQnD.flatten(0, 1)[positions]
        with torch.autocast(states_PnD.device.type, enabled=False):
            if vectors_NnD is None:
                assert tables.codes is not None
                total = self._of_codes(states_PnD, tables.codes[targets])
            else:
                total = self._of_vectors(states_PnD.float(), vectors_NnD.float(), targets)
        return (total + self._reconstruction(tables, items, lengths) * per_known) * scale

    def _of_codes(self, states_PnD: Tensor, codes_Pn: Tensor) -> Tensor:
        logits = self.model.code_logits(states_PnD)
        losses = [
            F.cross_entropy(table, codes_Pn[:, part], reduction="sum", label_smoothing=self.eps)
            for part, table in enumerate(logits)
        ]
        return torch.stack(losses).sum()

    def _of_vectors(self, states_PnD: Tensor, vectors_NnD: Tensor, target_P: Tensor) -> Tensor:
        losses = [
            linear_cross_entropy(states_PnD[:, slot], vectors_NnD[:, slot], target_P, label_smoothing=self.eps)
            for slot in range(states_PnD.shape[1])
        ]
        return torch.stack(losses).sum() * len(target_P)

    def _reconstruction(self, tables: PartTables, items_BH: Tensor, lengths_B: Tensor) -> Tensor | float:
        """Weighted sum over the items of the histories that have content, repeats counted."""
        parts, weight = self.model.parts, self.model.settings.reconstruction
        if not isinstance(parts, VectorParts) or parts.autoencoder is None or not weight:
            return 0.0
        assert tables.content is not None and tables.known is not None
        real_BH = torch.arange(items_BH.shape[1], device=items_BH.device) < lengths_B[:, None]
        counted = (real_BH & tables.known[items_BH]).flatten().float()
        content = tables.content[items_BH.flatten()]
        coder = parts.autoencoder
        made = coder.decode(coder.encoder(content))
        squared = (made - coder.encoder.scaled(content)).square().mean(dim=(0, 2))
        return weight * (squared * counted).sum()


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
