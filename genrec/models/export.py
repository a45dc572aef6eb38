"""A trained model as a plain Hugging Face folder, which needs neither genrec nor PEFT nor the pretrained model."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from genrec import artifacts
from genrec.errors import ArtifactError, ConfigError
from genrec.models.adapter_files import holds_adapter, load_adapter
from genrec.models.adapters import quiet_peft
from genrec.models.bundle import KIND, bundle_folder, load_model, schema_of
from genrec.vocab.token_map import TokenMap

TOLERANCE = 1e-4
"""Largest difference of logits (float32) between what was trained and what was exported."""
N_PROBES, PROBE_LENGTH = 4, 16


@dataclass(frozen=True)
class Exported:
    """What :func:`export_merged` wrote: largest difference of logits, and bytes. Stability: experimental."""

    folder: Path
    difference: float
    bytes: int


def export_merged(path: str | Path, out: str | Path, *, base: str | Path | None = None) -> Exported:
    """Write the model of a run folder or bundle, adapters merged into the weights, with its text tokenizer.

    ``AutoModelForCausalLM`` (or ``AutoModelForSeq2SeqLM``) and ``AutoTokenizer`` load the folder. It is read back, and
    its logits are compared with those of the adapter on random prompts of text and item tokens, in float32, before it
    appears under its name. base: see :func:`genrec.models.bundle.load_bundle`. Raises ArtifactError where a logit
    differs by more than 1e-4, ConfigError where ``out`` exists. Stability: experimental.
    """
    target = Path(out)
    if target.exists():
        raise ConfigError(f"{target} exists", hint="give a folder that does not exist")
    bundle = bundle_folder(path)
    manifest = artifacts.read(bundle, kind=KIND, schema=schema_of(bundle))
    source = manifest.path / "model"
    token_map = TokenMap.from_dict(artifacts.load_json(manifest.path / "token_map.json"))
    if holds_adapter(source):
        trained = load_adapter(source, token_map, base=base)
        probes = _probes(trained, token_map)
        want = _logits(trained, probes)
        with quiet_peft():
            whole = trained.merge_and_unload().eval()
    else:
        whole = load_model(source, token_map, torch.float32)
        probes = _probes(whole, token_map)
        want = _logits(whole, probes)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as made:
        draft = Path(made) / "model"
        whole.save_pretrained(draft)
        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(draft)
        auto = AutoModelForSeq2SeqLM if whole.config.is_encoder_decoder else AutoModelForCausalLM
        back = auto.from_pretrained(draft, local_files_only=True, dtype=torch.float32).eval()
        difference = max(float((a - b).abs().max()) for a, b in zip(_logits(back, probes), want, strict=True))
        if not difference <= TOLERANCE:  # NaN too
            raise ArtifactError(
                f"the exported model's logits differ from the trained ones by up to {difference:.2g}, "
                f"more than {TOLERANCE:g}: nothing was written"
            )
        shutil.move(draft, target)
    return Exported(target, difference, sum(file.stat().st_size for file in target.rglob("*") if file.is_file()))


def _probes(model: Any, token_map: TokenMap) -> list[Tensor]:
    """Random token ids: half of the whole vocabulary, half item and user tokens, ``[B, T]`` each."""
    random = torch.Generator().manual_seed(0)
    ranges = ((0, token_map.vocab_size), (token_map.first_item_id, token_map.vocab_size))
    return [torch.randint(low, high, (N_PROBES, PROBE_LENGTH), generator=random) for low, high in ranges]


@torch.no_grad()
def _logits(model: Any, probes: list[Tensor]) -> list[Tensor]:
    """The next-token logits of every position of every probe."""
    if model.config.is_encoder_decoder:
        return [model(input_ids=ids, decoder_input_ids=ids.flip(1)).logits for ids in probes]
    return [model(input_ids=ids).logits for ids in probes]
