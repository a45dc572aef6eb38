"""The recipe of a whole job: one YAML file, one frozen dataclass per block.

Ready files: train/pipelines/*.yaml. ``seed`` of the pipeline is the seed of every stage, and of the order of
events that share a time under the rule ``neutral``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from genrec.baselines.sasrec import SasRecSettings
from genrec.data.readers import ReaderSettings
from genrec.data.synthetic import SyntheticSettings
from genrec.embeddings.collaborative import PpmiSettings, SvdSettings
from genrec.embeddings.text import LsaSettings, SentenceSettings
from genrec.errors import ConfigError
from genrec.evaluation.run import EvalSettings
from genrec.item_tokenizers.rqkmeans import RqKMeansSettings
from genrec.item_tokenizers.rqvae import RqVaeSettings
from genrec.models.backbone import DecoderSettings, T5Settings
from genrec.training.settings import TrainSettings

T = TypeVar("T")

BASELINES = (
    "popularity",
    "copy_last",
    "markov",
    "item_knn",
    "item_knn_larger_id",
    "content_knn",
    "content_knn_unseen",
    "sasrec",
    "oracle",
)


@dataclass(frozen=True)
class SyntheticSource:
    """A catalog and users made by the package; nothing is downloaded."""

    kind: Literal["synthetic"] = "synthetic"
    settings: SyntheticSettings = field(default_factory=SyntheticSettings)


@dataclass(frozen=True)
class FileSource:
    """A catalog and a log read from files. ``user_core``/``item_core``: k-core filter (0 = none)."""

    reader: ReaderSettings
    kind: Literal["files"] = "files"
    on_error: Literal["fail", "skip"] = "fail"
    user_core: int = 0
    item_core: int = 0


@dataclass(frozen=True)
class SplitSettings:
    """How events become train, valid and test.

    kind: leave_one_out (last = test, second last = valid), time (global cuts at the ``valid``/``test`` fractions
    from the end), predefined (the log's ``column``), held_out_items (``fraction`` of the items is cold).
    ties: order of a user's events that share a time: ``file`` keeps the file's order (what the literature
    used; it may carry item order), ``neutral`` permutes with the pipeline's seed.
    """

    kind: Literal["leave_one_out", "time", "predefined", "held_out_items"] = "leave_one_out"
    ties: Literal["neutral", "file"] = "neutral"
    valid: float = 0.1
    test: float = 0.1
    column: str = "split"
    fraction: float = 0.05


@dataclass(frozen=True)
class VectorFile:
    """Item vectors brought by the user: .npy in catalog order, or .safetensors / .parquet with ids."""

    path: str
    kind: Literal["file"] = "file"


@dataclass(frozen=True)
class SasRecVectors:
    """The item table of the SASRec baseline (learned from training interactions only)."""

    kind: Literal["sasrec"] = "sasrec"


@dataclass(frozen=True)
class Block:
    """One source of item vectors: reduced to ``dim`` principal directions (None = as it is), times ``weight``."""

    source: LsaSettings | SentenceSettings | PpmiSettings | SvdSettings | VectorFile | SasRecVectors
    dim: int | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class SearchSettings:
    """Beam search of the generative model. normalize None = the softmax of the loss."""

    n_beams: int = 50
    normalize: Literal["vocab", "level", "children"] | None = None


@dataclass(frozen=True)
class PipelineRecipe:
    """Everything that decides a run."""

    data: SyntheticSource | FileSource
    name: str = "run"
    seed: int = 0
    split: SplitSettings = field(default_factory=SplitSettings)
    embeddings: tuple[Block, ...] = (Block(LsaSettings()),)
    tokenizer: RqKMeansSettings | RqVaeSettings = field(default_factory=RqKMeansSettings)
    model: DecoderSettings | T5Settings = field(default_factory=DecoderSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    evaluate: EvalSettings = field(default_factory=EvalSettings)
    baselines: tuple[str, ...] = ("popularity", "copy_last", "markov", "item_knn")
    sasrec: SasRecSettings = field(default_factory=SasRecSettings)

    def __post_init__(self) -> None:
        for name in self.baselines:
            if name not in BASELINES:
                raise ConfigError(f"baselines: expected names out of {', '.join(BASELINES)}, got {name!r}")
        if "oracle" in self.baselines and not isinstance(self.data, SyntheticSource):
            raise ConfigError("baselines: 'oracle' needs synthetic data, whose generator is known")
        if not self.embeddings:
            raise ConfigError("embeddings: expected at least one block")


def seeded(settings: T, seed: int) -> T:
    """The same settings with the pipeline's seed, where they have one."""
    if any(f.name == "seed" for f in dataclasses.fields(settings)):  # type: ignore[arg-type]
        return dataclasses.replace(settings, seed=seed)  # type: ignore[type-var]
    return settings
