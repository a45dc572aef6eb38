"""Pretrained language models as backbones: loaded as they are, and given rows for item tokens.

Axes: V rows of an embedding table, D width.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from genrec import recipes, seeding
from genrec.errors import ArtifactError, ConfigError, require
from genrec.item_tokenizers.codes import ItemCodes
from genrec.manifest import sha256
from genrec.models.decoder_scorer import check_decoder
from genrec.models.head import check_output
from genrec.models.rounding import round_layers, rounded_layers
from genrec.models.t5_scorer import check_encoder_decoder
from genrec.vocab.new_rows import start_new_rows
from genrec.vocab.text_vocabulary import TextVocabulary
from genrec.vocab.token_map import TokenMap

logger = logging.getLogger(__name__)

RowInit = Literal["mean", "codebooks", "text"]
ROWS_MULTIPLE = 64
MARKS = ("genrec_base_weights", "genrec_rounded_layers", "genrec_train_rows")
"""What the configuration of a model with adapters says about them."""
READ = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""Files of a pretrained model's folder that decide what it is."""
OLD_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
"""Those that are read where there are no safetensors."""


@dataclass(frozen=True)
class PretrainedSettings:
    """A language model that knows text: T5, mT5, Llama, Qwen2 (and 2.5) or Qwen3.

    path: a folder in the form of Hugging Face, else the name of a model on its hub. random_weights: only the
    configuration and the text tokenizer are read; the weights are drawn. weights: how its own weights are held while
    adapters are trained beside them, in float32: ``float32``, ``bfloat16`` (half the memory), ``8bit`` or ``4bit``
    (QLoRA, Dettmers et al. 2023, arXiv:2305.14314; needs bitsandbytes).

    Code that comes with a model is never run: the search knows the architectures of transformers alone.

    Stability: experimental.
    """

    path: str
    kind: Literal["pretrained"] = "pretrained"
    random_weights: bool = False
    weights: Literal["float32", "bfloat16", "8bit", "4bit"] = "float32"

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("path: expected a folder or the name of a model, got ''")
        if self.weights not in ("float32", "bfloat16", "8bit", "4bit"):
            raise ConfigError(f"weights: expected float32, bfloat16, 8bit or 4bit, got {self.weights!r}")
        if self.random_weights and self.weights != "float32":
            raise ConfigError(f"weights: drawn weights are trained, so they are float32, got {self.weights!r}")

    @property
    def quantized(self) -> bool:
        """Whether the weights are held in 8 or 4 bits."""
        return self.weights.endswith("bit")


def load_pretrained(settings: PretrainedSettings, *, seed: int = 0) -> PreTrainedModel:
    """The model in evaluation mode, its tables as they are; the global random state is left alone.

    What kind of model it is, is asked of its configuration. A folder is read without the network; any other name is
    looked up in the local cache and on the hub. seed: of random weights. Raises ArtifactError where it cannot be read,
    ConfigError for an architecture that the search does not know, MissingExtra for quantized weights without
    bitsandbytes.
    """
    local = Path(settings.path).is_dir()
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(settings.path, **options)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        if settings.random_weights:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seeding.derive(seed, "backbone", settings.kind))
                model = auto.from_config(config, dtype=torch.float32)
            model.config._name_or_path = ""  # these weights are nowhere
        else:
            model = auto.from_pretrained(settings.path, **_held(settings), **options)
            for mark in MARKS:  # of adapters that were merged into these weights
                if hasattr(model.config, mark):
                    delattr(model.config, mark)
            if settings.quantized:  # saved with adapters: they belong to weights that are rounded so
                model.config.genrec_base_weights = settings.weights
                model.config.genrec_rounded_layers = rounded_layers(model)
    except (OSError, ValueError, KeyError) as error:
        hint = None if local else "there is no such folder here; a name without one is looked up on the hub"
        raise ArtifactError(f"{settings.path}: not a loadable Hugging Face model ({error})", hint=hint) from error
    check_supported(model)
    return model.eval()


def _held(settings: PretrainedSettings) -> dict[str, Any]:
    """What transformers is told about how to hold the weights."""
    if not settings.quantized:
        return {"dtype": getattr(torch, settings.weights)}
    require("bitsandbytes", "qlora")
    from transformers import BitsAndBytesConfig

    half = torch.bfloat16
    how: Any = BitsAndBytesConfig(
        load_in_8bit=settings.weights == "8bit",
        load_in_4bit=settings.weights == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=half,
    )
    return {"dtype": half, "quantization_config": how}


def load_rounded(settings: PretrainedSettings, config: Any) -> PreTrainedModel:
    """The model with the numbers that an adapter was trained beside, without the package that held them (internal).

    config: that of the model which was trained, for the layers that were held in few bits. Those are in bfloat16 then.
    """
    if not settings.quantized:
        return load_pretrained(settings)
    model = load_pretrained(dataclasses.replace(settings, weights="bfloat16"))
    round_layers(model, settings.weights, config.genrec_rounded_layers)
    return model


def pretrained_files(settings: PretrainedSettings) -> dict[str, int]:
    """Name and bytes of the files of a pretrained model's folder; nothing for a model of the hub (internal).

    Of those that are read: what else lies there, such as weights in other formats, makes no other model.
    """
    folder = Path(settings.path)
    names = {file.name for pattern in (*READ, *OLD_WEIGHTS) for file in folder.glob(pattern) if file.is_file()}
    return {name: (folder / name).stat().st_size for name in sorted(without_old_weights(names))}


def without_old_weights(names: Iterable[str]) -> set[str]:
    """The names of files without weights in an older format that are not read, for there are safetensors (internal)."""
    found = set(names)
    if any(name.endswith(".safetensors") for name in found):
        found -= {name for name in found if any(fnmatch(name, old) for old in OLD_WEIGHTS)}
    return found


def pretrained_digests(settings: PretrainedSettings) -> dict[str, str]:
    """Name and sha256 of the same files (internal): two models of one shape have files of the same size."""
    folder = Path(settings.path)
    return {name: known_sha256(folder / name) for name in pretrained_files(settings)}


def told_pretrained(settings: PretrainedSettings) -> dict[str, Any]:
    """What decides a training about its pretrained model (internal).

    Settings and contents: of a folder the digests of its files and not where it lies, which may change; of a model of
    the hub its name and commit.
    """
    told, digests = recipes.to_json(settings), pretrained_digests(settings)
    if digests:
        del told["path"]
    return {**told, "files": digests, **hub_commit(settings)}


def hub_commit(settings: PretrainedSettings) -> dict[str, str]:
    """Which commit of a model of the hub this machine has (internal); nothing for a folder, or where it has none."""
    if Path(settings.path).is_dir():
        return {}
    try:
        found = cached_file(
            settings.path, "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False
        )
    except (OSError, ValueError):  # a folder that has moved, whose path is no name of the hub
        return {}
    commit = extract_commit_hash(found, None)
    return {} if commit is None else {"commit": commit}


def known_sha256(file: Path) -> str:
    """sha256 of a file, read once while it stays as it is: it may have gigabytes (internal)."""
    found = file.stat()
    return _sha256_of(file.resolve(), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256_of(file: Path, size: int, changed: int) -> str:
    return sha256(file)


def check_supported(model: PreTrainedModel) -> None:
    """Raise ConfigError for a model that the library's own search would not compute as its forward does."""
    check = check_encoder_decoder if model.config.is_encoder_decoder else check_decoder
    check(model)
    check_output(model)


@torch.no_grad()
def extend_rows(
    model: PreTrainedModel,
    vocabulary: TextVocabulary,
    *,
    init: RowInit = "mean",
    seed: int = 0,
    codes: ItemCodes | None = None,
    texts: Sequence[str] | None = None,
) -> None:
    """Give a model rows for the item tokens, in the input table and the output table, in place.

    The tables grow once, to a multiple of 64 rows that the config records (``vocab_size``, ``genrec_rows_multiple``),
    and never shrink: models with more rows than tokens keep what is there. Old rows keep their values. Rows behind the
    last token stand for nothing: the config says where they begin (``genrec_vocab_size``), and the generation config
    keeps plain ``generate`` from them (``suppress_tokens``). The config names the vocabulary (``genrec_vocabulary``),
    to which the model is bound from now on.

    init: how item tokens start, see :func:`genrec.vocab.new_rows.start_new_rows`: ``mean``, normal with the mean and
    covariance of the old rows; ``codebooks``, through a linear map that gives the codebooks that mean and covariance;
    ``text``, the mean row of the text tokens of the items with the code, or of the code's own text where identifiers
    are text (titles). An output table of its own starts in the same way from its own old rows. codes: for
    ``codebooks`` and ``text``. texts: of every item, for ``text``.

    Raises ConfigError for an init without what it needs. Stability: experimental.
    """
    if init not in ("mean", "codebooks", "text"):
        raise ConfigError(f"init: expected 'mean', 'codebooks' or 'text', got {init!r}")
    if (init != "mean" and codes is None) or (init == "text" and texts is None and not (codes and codes.pieces)):
        raise ConfigError(f"init: {init!r} needs codes{' and texts' if init == 'text' else ''}")
    grow_tables(model, vocabulary.token_map)
    tokens = None
    if init == "text" and codes is not None:
        tokens = vocabulary.encode_pieces(codes.pieces) if codes.pieces else vocabulary.encode_texts(texts or ())
    for table in tables_of(model):
        start_new_rows(table, vocabulary.token_map, init=init, seed=seed, codes=codes, texts=tokens)
    if init == "codebooks" and codes is not None and not codes.codebooks:
        logger.info("the identifiers have no codebooks: item tokens start as init='mean' says")


@torch.no_grad()
def grow_tables(model: PreTrainedModel, token_map: TokenMap) -> None:
    """Bind the model to the vocabulary, with a row for every token: new ones are the mean of the old (internal)."""
    before = len(model.get_input_embeddings().weight)
    if before < token_map.vocab_size:
        rows = -(-token_map.vocab_size // ROWS_MULTIPLE) * ROWS_MULTIPLE
        with torch.random.fork_rng(devices=[]):  # the rows that are drawn here are overwritten
            model.resize_token_embeddings(rows, mean_resizing=False)
        for table in tables_of(model):
            old_OD = table[: min(before, token_map.first_item_id)]
            table[before:] = old_OD.double().mean(0).to(table)
    model.config.genrec_rows_multiple = ROWS_MULTIPLE
    model.config.genrec_vocabulary = token_map.fingerprint
    own, generation = model.config, getattr(model, "generation_config", None)
    for config in (own, generation):
        if config is not None and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = token_map.pad_id
    # rows behind the last token, which no text stands for: recorded, and never written by plain `generate`
    own.genrec_vocab_size = token_map.vocab_size
    spare = range(token_map.vocab_size, len(model.get_input_embeddings().weight))
    if generation is not None and spare:
        generation.suppress_tokens = sorted({*(generation.suppress_tokens or ()), *spare})


def tables_of(model: PreTrainedModel) -> list[torch.Tensor]:
    """The input table, and the output table where it is another one, ``[V, D]`` each (internal)."""
    own, out = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return [own] if own is out else [own, out]
