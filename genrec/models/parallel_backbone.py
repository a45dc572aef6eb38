"""The transformer behind a parallel model: drawn, or the layers of a pretrained language model; on disk and back.

Axes: I tokens of an instruction, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from genrec import artifacts
from genrec.errors import ArtifactError, ConfigError
from genrec.models.adapter_files import BASE, checked_base, identity_of
from genrec.models.adapters import add_lora
from genrec.models.backbone import VOCAB_MULTIPLE, build_body
from genrec.models.parallel_settings import ParallelSettings
from genrec.models.pretrained import PretrainedSettings, load_pretrained, load_rounded

FOLDER = "backbone"


def transformer_of(settings: ParallelSettings, *, seed: int) -> tuple[Any, Tensor]:
    """A new transformer, in adapters if the settings have them, and the rows ``[I, D]`` of the instruction (internal).

    Of a pretrained model, the tables of its tokens are let go once the rows are read: nothing else needs them. Raises
    as :func:`~genrec.models.pretrained.load_pretrained`, and ConfigError for an instruction that is no text to it.
    """
    backbone = settings.backbone
    if not isinstance(backbone, PretrainedSettings):
        return build_body(backbone, seed=seed), torch.empty(0, 0)
    model = load_pretrained(backbone, seed=seed)
    ids = _ids(backbone.path, settings.instruction)
    text_ID = model.get_input_embeddings().weight.detach()[ids].float().clone()
    return _without_tables(model, settings, seed=seed), text_ID


def _ids(path: str, text: str) -> list[int]:
    if not text:
        return []
    try:
        words = AutoTokenizer.from_pretrained(path, local_files_only=Path(path).is_dir(), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: instruction: the model has no loadable text tokenizer ({error})") from error
    ids: list[int] = words(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ConfigError(f"instruction: the text tokenizer in {path} makes no tokens of {text!r}")
    return ids


def _without_tables(model: PreTrainedModel, settings: ParallelSettings, *, seed: int) -> Any:
    """The same without a vocabulary, its few rows left frozen; with adapters, all of its own weights are."""
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(VOCAB_MULTIPLE, mean_resizing=False)
    model.config.pad_token_id = 0  # one of the rows that are there, or the config makes no model again
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight.requires_grad_(False)
    return model if settings.lora is None else add_lora(model, None, settings.lora, seed=seed)


def save_transformer(folder: Path, settings: ParallelSettings, transformer: Any) -> None:
    """What :func:`load_transformer` needs beside the weights that are kept: ``backbone/`` (internal).

    Of a pretrained model its configuration, and with adapters the digests of its files, since its own weights are left
    out; nothing of a drawn one.
    """
    if not isinstance(settings.backbone, PretrainedSettings):
        return
    transformer.config.save_pretrained(folder / FOLDER)
    if settings.lora is not None:
        name = settings.backbone.path
        artifacts.save_json(folder / FOLDER / BASE, {"name": name, "files": identity_of(name)})


def load_transformer(
    folder: Path, settings: ParallelSettings, n_text: int, base: str | Path | None
) -> tuple[Any, Tensor] | None:
    """A transformer of the kept kind and room for ``n_text`` rows, weights to be assigned; None if drawn (internal).

    Raises ArtifactError where the pretrained model of adapters is missing, FingerprintMismatch where it is another one.
    """
    backbone = settings.backbone
    if not isinstance(backbone, PretrainedSettings):
        return None
    if settings.lora is None:
        config = AutoConfig.from_pretrained(folder / FOLDER, local_files_only=True)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.random.fork_rng(devices=[]):
            model = auto.from_config(config, dtype=torch.float32).eval()
    else:
        source = checked_base(folder / FOLDER, base)
        kept = AutoConfig.from_pretrained(folder / FOLDER, local_files_only=True)
        model = load_rounded(PretrainedSettings(str(source), weights=backbone.weights), kept)
    found = _without_tables(model, settings, seed=0)
    return found, torch.zeros(n_text, found.config.hidden_size)
