"""The recipe of a whole job: one YAML file, one frozen dataclass per block.

Ready files: train/pipelines/*.yaml. ``seed`` of the pipeline is the seed of every stage after the data, and of
the order of events that share a time under the rule ``neutral``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from genrec.baselines.sasrec import SasRecSettings
from genrec.data.readers.base import ReaderSettings
from genrec.data.synthetic import SyntheticSettings
from genrec.embeddings.aligned import AlignSettings
from genrec.embeddings.collaborative import PpmiSettings, SvdSettings
from genrec.embeddings.famae import FamaeSettings
from genrec.embeddings.graph import GraphSettings
from genrec.embeddings.text import LsaSettings, SentenceSettings
from genrec.errors import ConfigError
from genrec.evaluation.settings import EvalSettings
from genrec.models.adapters import LoraSettings
from genrec.models.backbone import DecoderSettings, T5Settings
from genrec.models.pretrained import PretrainedSettings
from genrec.prompts.mixture import MixtureSettings
from genrec.training.settings import TrainSettings
from genrec.vocab.user_index import UserSettings

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


def _exactly_one(settings: Any, names: tuple[str, ...], where: str) -> str:
    given = [name for name in names if getattr(settings, name)]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ConfigError(f"{where}: expected exactly one of {', '.join(names)}, got {found}")
    return given[0]


@dataclass(frozen=True)
class DataSettings:
    """Where the catalog and the log come from: ``synthetic`` (made by the package) or ``reader`` (files).

    on_error: what a malformed row does: fail, or skip and count. user_core, item_core: keep only users and
    items with at least so many events, repeatedly (0 = no filter; items without events stay then). get_it: where
    the data come from, told to whoever does not have them.
    """

    synthetic: SyntheticSettings | None = None
    reader: ReaderSettings | None = None
    on_error: Literal["fail", "skip"] = "fail"
    user_core: int = 0
    item_core: int = 0
    get_it: str = ""

    def __post_init__(self) -> None:
        _exactly_one(self, ("synthetic", "reader"), "data")


@dataclass(frozen=True)
class SplitSettings:
    """How events become train, valid and test.

    kind: leave_one_out (last = test, second last = valid), time (global cuts, so many events at the end),
    predefined (the log's ``column``), held_out_items (``cold_fraction`` of the items is never trained on).
    ties: order of a user's events that share a time: ``file`` keeps the file's order (what the literature
    used; it may carry item order), ``neutral`` permutes with the pipeline's seed, and training draws another
    order every epoch.
    """

    kind: Literal["leave_one_out", "time", "predefined", "held_out_items"] = "leave_one_out"
    ties: Literal["neutral", "file"] = "neutral"
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    column: str = "split"
    cold_fraction: float = 0.05


@dataclass(frozen=True)
class Block:
    """One source of item vectors, reduced to ``dim`` principal directions (None = as it is), times ``weight``.

    Exactly one of: lsa, sentence (text), ppmi, svd (training interactions), famae (fields and training interactions,
    the vectors of ReSID), sasrec (the item table of the
    SASRec baseline), file (vectors of your own: .npy or .safetensors with one array in catalog order, or .parquet
    with the ids in a column item_id).
    unit_rows: scale every item's vector to length 1 first. Lengths of co-occurrence vectors spread widely, and the
    few long ones take most codes of the later levels. whiten: give the principal directions equal variance: those that
    few items differ in count as much as the first. keywords: a column of the catalog with a list of keywords; a vector
    of text moves halfway to the mean of those of its keywords (KHQE of OneSearch). Only for lsa and sentence. align:
    turn the vectors so that items of one history come together (DAS). Only for lsa, sentence and file. neighbours: mean
    over so many steps to the items of the same users and back (MMGRec). graph: a network that learns from the vectors
    and the graph of users and items who has what (the encoder of MMGRec); its output replaces the vectors. Only for
    lsa, sentence and file. In this order: keywords, align, neighbours, graph, unit_rows.
    """

    lsa: LsaSettings | None = None
    sentence: SentenceSettings | None = None
    ppmi: PpmiSettings | None = None
    svd: SvdSettings | None = None
    famae: FamaeSettings | None = None
    sasrec: bool = False
    file: str | None = None
    dim: int | None = None
    weight: float = 1.0
    unit_rows: bool = False
    whiten: bool = False
    keywords: str | None = None
    align: AlignSettings | None = None
    neighbours: int = 0
    graph: GraphSettings | None = None

    def __post_init__(self) -> None:
        _exactly_one(self, ("lsa", "sentence", "ppmi", "svd", "famae", "sasrec", "file"), "embeddings")
        if self.keywords is not None and not (self.lsa or self.sentence):
            raise ConfigError("keywords: expected an lsa or sentence block, whose model makes the vectors of keywords")
        for name in ("align", "graph"):
            if getattr(self, name) is not None and not (self.lsa or self.sentence or self.file):
                raise ConfigError(
                    f"{name}: expected an lsa, sentence or file block, whose vectors say nothing of behaviour yet"
                )
        if self.neighbours < 0:
            raise ConfigError(f"neighbours: expected 0 or more, got {self.neighbours}")

    @property
    def as_is(self) -> bool:
        """Whether the block, alone, is used without centring, rotating or scaling."""
        return self.dim is None and not self.whiten


@dataclass(frozen=True)
class PipelineRecipe:
    """Everything that decides a run.

    tokenizer: settings of an item tokenizer, chosen by its ``kind``. collaborative: vectors learned from training
    interactions, for item tokenizers that ask for them beside the item vectors. shuffle_identifiers: a control: the
    identifiers are dealt out to the items at random, so they mean nothing; what a model gains from their
    meaning is lost. token_init: ``codebooks`` starts the embeddings of tokens with like codebook vectors alike,
    where the item tokenizer has codebooks; ``random`` does not; ``text`` (pretrained models) starts them from the text
    of the items with the code. lora: train adapters and item tokens of a pretrained model instead of all its weights.
    alignment: train a pretrained model on a mixture of tasks that tie item tokens to text, and ask it with one of their
    prompts. n_user_tokens: user ids are hashed to so many tokens that open the prompt (0 = none). users: instead, users
    get codes from the vectors of their training histories.
    """

    data: DataSettings
    name: str = "run"
    seed: int = 0
    split: SplitSettings = field(default_factory=SplitSettings)
    embeddings: tuple[Block, ...] = (Block(lsa=LsaSettings()),)
    collaborative: Block | None = None
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"kind": "rqkmeans"})
    shuffle_identifiers: bool = False
    token_init: Literal["codebooks", "random", "text"] = "codebooks"
    n_user_tokens: int = 0
    users: UserSettings | None = None
    model: DecoderSettings | T5Settings | PretrainedSettings = field(default_factory=DecoderSettings)
    lora: LoraSettings | None = None
    alignment: MixtureSettings | None = None
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvalSettings = field(default_factory=EvalSettings)
    baselines: tuple[str, ...] = ("popularity", "copy_last", "markov", "item_knn", "item_knn_larger_id")
    sasrec: SasRecSettings = field(default_factory=SasRecSettings)

    def __post_init__(self) -> None:
        for name in self.baselines:
            if name not in BASELINES:
                raise ConfigError(f"baselines: expected names out of {', '.join(BASELINES)}, got {name!r}")
        blocks = {"train": self.train, "sasrec": self.sasrec}
        blocks |= {f"embeddings.{n}": b.lsa or b.ppmi or b.svd or b.famae for n, b in enumerate(self.embeddings)}
        blocks |= {f"embeddings.{n}.align": b.align for n, b in enumerate(self.embeddings)}
        blocks |= {f"embeddings.{n}.graph": b.graph for n, b in enumerate(self.embeddings)}
        if self.collaborative is not None:
            if self.collaborative.lsa or self.collaborative.sentence:
                raise ConfigError("collaborative: expected ppmi, svd, famae, sasrec or file, got vectors of text")
            blocks["collaborative"] = self.collaborative.ppmi or self.collaborative.svd or self.collaborative.famae
        for where, block in blocks.items():
            if getattr(block, "seed", 0) not in (0, self.seed):
                raise ConfigError(f"{where}.seed: the pipeline's seed is the seed of every stage; set seed instead")
        text_model = isinstance(self.model, PretrainedSettings)
        if self.lora is not None and (not text_model or getattr(self.model, "random_weights", False)):
            raise ConfigError(
                "lora: expected a model of kind pretrained with its own weights: others are trained whole"
            )
        if getattr(self.model, "weights", "float32") != "float32" and self.lora is None:
            raise ConfigError(
                "model.weights: a model that is trained whole is held in float32", hint="add a lora block"
            )
        if self.train.rows_first and (self.lora is None or not self.lora.r or not self.lora.train_rows):
            raise ConfigError("train.rows_first: expected a lora block with adapters and train_rows")
        if self.token_init == "text" and not text_model:
            raise ConfigError("token_init: text needs a model of kind pretrained, which knows text")
        if self.alignment is not None:
            self._check_alignment(text_model)
        if self.users is not None:
            self._check_users(self.users)
        if "oracle" in self.baselines and self.data.synthetic is None:
            raise ConfigError("baselines: 'oracle' needs synthetic data, whose generator is known")
        if not self.embeddings:
            raise ConfigError("embeddings: expected at least one block")
        if not isinstance(self.tokenizer.get("kind"), str):
            raise ConfigError("tokenizer: expected a 'kind', such as rqkmeans, rqvae or my_module:MyTokenizer")

        if self.needs_text_vectors and self.text_block < 0:
            raise ConfigError("baselines: content_knn needs an lsa, sentence or file block in embeddings")

    def _check_alignment(self, text_model: bool) -> None:
        assert self.alignment is not None
        if not text_model:
            raise ConfigError("alignment: expected a model of kind pretrained, which knows text")
        ours, theirs = self.alignment.max_items, self.train.max_items
        if ours != theirs:
            raise ConfigError(f"alignment.max_items: expected train.max_items, which is {theirs}, got {ours}")
        if self.train.prefix_drop:
            raise ConfigError("train.prefix_drop: no effect on tasks, which begin at random steps", hint="leave it out")
        if self.alignment.ask.task not in {each.task for each in self.alignment.tasks}:
            raise ConfigError(
                f"alignment.ask.task: expected one of the tasks, got {self.alignment.ask.task!r}",
                hint="the model is asked with a prompt that it was trained with",
            )

    def _check_users(self, users: UserSettings) -> None:
        if self.n_user_tokens:
            raise ConfigError("users: users have codes or are hashed, not both", hint="leave n_user_tokens out")
        if users.vectors == "collaborative" and self.collaborative is None:
            raise ConfigError(
                "users.vectors: 'collaborative' needs a block collaborative",
                hint="one such as --set 'collaborative={svd: {dim: 64}}'",
            )

    @property
    def knows_users(self) -> bool:
        """Whether the vocabulary has user tokens."""
        return bool(self.n_user_tokens) or self.users is not None

    @property
    def text_block(self) -> int:
        """Position of the first block that knows item content; -1 if there is none."""
        return next((n for n, b in enumerate(self.embeddings) if b.lsa or b.sentence or b.file), -1)

    @property
    def needs_text_vectors(self) -> bool:
        """Whether a content baseline is asked for."""
        return any(name.startswith("content_knn") for name in self.baselines)

    @property
    def needs_sasrec(self) -> bool:
        """Whether SASRec is trained: as a baseline or as a source of item vectors."""
        return "sasrec" in self.baselines or self.vectors_from_sasrec

    @property
    def vectors_from_sasrec(self) -> bool:
        """Whether SASRec's item table is a source of item vectors."""
        blocks = self.embeddings if self.collaborative is None else (*self.embeddings, self.collaborative)
        return any(block.sasrec for block in blocks)


def as_used(recipe: PipelineRecipe) -> PipelineRecipe:
    """The recipe with the pipeline's seed in every block, as the stages use it."""

    def own(block: Block) -> Block:
        made = {
            name: seeded(found, recipe.seed)
            for name in ("lsa", "ppmi", "svd", "famae", "align", "graph")
            if (found := getattr(block, name))
        }
        return dataclasses.replace(block, **made)

    train, sasrec = seeded(recipe.train, recipe.seed), seeded(recipe.sasrec, recipe.seed)
    collaborative = None if recipe.collaborative is None else own(recipe.collaborative)
    embeddings = tuple(map(own, recipe.embeddings))
    return dataclasses.replace(
        recipe,
        embeddings=embeddings,
        collaborative=collaborative,
        train=train,
        sasrec=sasrec,
        evaluate=seeded(recipe.evaluate, recipe.seed),
    )


def seeded(settings: T, seed: int) -> T:
    """The same settings with the pipeline's seed, where they have one."""
    if any(f.name == "seed" for f in dataclasses.fields(settings)):  # type: ignore[arg-type]
        return dataclasses.replace(settings, seed=seed)  # type: ignore[type-var]
    return settings
