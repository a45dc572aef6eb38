"""A trained model as plain Hugging Face folders, which need neither genrec nor the pretrained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from genrec import artifacts
from genrec.disk import new_folder
from genrec.errors import ArtifactError, ConfigError, GenrecError
from genrec.models.adapter_files import ADAPTER, holds_adapter, load_adapter, load_base
from genrec.models.adapters import quiet_peft
from genrec.models.bundle import KIND, bundle_folder, load_model, schema_of
from genrec.models.engine_weights import NEEDS, WEIGHTS, weights_of
from genrec.models.pretrained import tables_of
from genrec.vocab.token_map import TokenMap

CONFIG, FACTORS = "adapter_config.json", "adapter_model.safetensors"
TABLE_NAMES = ("lm_head", "embed_tokens", "shared")
TOLERANCE = 1e-4
"""Largest difference of logits (float32) between what was trained and what was exported."""
_UNLIKE = {"trainable_token_indices": None, "base_model_name_or_path": None}
"""What of the config of an exported adapter is not as it was trained."""
N_PROBES, PROBE_LENGTH = 4, 16


@dataclass(frozen=True)
class Exported:
    """What an export wrote: largest difference of logits, and bytes. Stability: experimental."""

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
    source, token_map, weights = _source(path, out)
    if holds_adapter(source):
        trained = load_adapter(source, token_map, base=base)
        wanted = _Wanted.of(trained, token_map)
        with quiet_peft():
            whole = trained.merge_and_unload().eval()
    else:
        whole = load_model(source, token_map, torch.float32)
        wanted = _Wanted.of(whole, token_map)
    setattr(whole.config, WEIGHTS, weights)
    setattr(whole.config, NEEDS, False)
    artifacts.sweep(Path(out).absolute().parent)
    with new_folder(Path(out)) as draft:
        whole.save_pretrained(draft)
        _tokenizer(source, draft)
        found = wanted.compared(_loaded(draft), draft, Path(out))
    return found


def export_base_plus_adapter(path: str | Path, out: str | Path, *, base: str | Path | None = None) -> Exported:
    """Write ``base/``, the pretrained model with the trained item rows in its tables, and ``adapter/``, plain LoRA.

    For servers that load adapters beside one model, such as vLLM, and know no rows that are trained apart: ``base/``
    loads as :func:`export_merged` says, and PEFT puts ``adapter/`` on it. Both are read back and compared as there.
    Raises ConfigError for a model without low-rank adapters, or with one on an embedding or output layer: where both
    share a table, it changes one use of it only, and no weights say that. Stability: experimental.
    """
    from peft import PeftModel

    source, token_map, weights = _source(path, out)
    if not holds_adapter(source):
        raise ConfigError(f"{source} holds a whole model, no adapter", hint="use --merge")
    factors = _plain_factors(source / ADAPTER)
    trained = load_adapter(source, token_map, base=base)
    wanted = _Wanted.of(trained, token_map)
    with quiet_peft():
        tables = [table.detach().clone() for table in tables_of(trained.merge_and_unload())]
    artifacts.sweep(Path(out).absolute().parent)
    with new_folder(Path(out)) as draft:
        with_rows = load_base(source, token_map, base=base)
        for table, rows in zip(tables_of(with_rows), tables, strict=True):
            table.data.copy_(rows)
        setattr(with_rows.config, WEIGHTS, weights)
        setattr(with_rows.config, NEEDS, True)
        with_rows.save_pretrained(draft / "base")
        _tokenizer(source, draft / "base")
        config = artifacts.load_json(source / ADAPTER / CONFIG)
        config |= {**_UNLIKE, "base_model_name_or_path": str(Path(out) / "base")}
        (draft / "adapter").mkdir()
        artifacts.save_json(draft / "adapter" / CONFIG, config)
        save_file(factors, draft / "adapter" / FACTORS, metadata={"format": "pt"})
        with quiet_peft():
            back = PeftModel.from_pretrained(_loaded(draft / "base"), draft / "adapter").eval()
        found = wanted.compared(back, draft, Path(out))
    return found


def is_exported(folder: Path, source: Path) -> bool:
    """Whether ``folder`` is the ``adapter/`` exported of the bundle whose model folder is ``source`` (internal)."""
    try:
        theirs, ours = (artifacts.load_json(each / CONFIG) | _UNLIKE for each in (folder, source / ADAPTER))
        found, wanted = load_file(folder / FACTORS), _plain_factors(source / ADAPTER)
    except (OSError, GenrecError, SafetensorError):
        return False
    return theirs == ours and found.keys() == wanted.keys() and all(found[n].equal(wanted[n]) for n in wanted)


def _plain_factors(folder: Path) -> dict[str, Tensor]:
    """The low-rank factors of an adapter, without the rows of tokens."""
    weights = load_file(folder / FACTORS)
    factors = {name: value for name, value in weights.items() if "lora_" in name}
    if not factors:
        raise ConfigError(f"{folder} has trained rows only, no low-rank adapter", hint="use --merge")
    of_tables = sorted(
        name for name in factors if "lora_embedding" in name or name.split(".lora_")[0].endswith(TABLE_NAMES)
    )
    if of_tables:
        raise ConfigError(
            f"{folder}: an adapter on an embedding or output layer ({of_tables[0]}) cannot stand beside its base",
            hint="use --merge, or leave the layer out of target_modules",
        )
    return factors


def _source(path: str | Path, out: str | Path) -> tuple[Path, TokenMap, str]:
    """The model folder of a bundle, its token map, the name of its weights."""
    if Path(out).exists():
        raise ConfigError(f"{out} exists", hint="give a folder that does not exist")
    bundle = bundle_folder(path)
    manifest = artifacts.read(bundle, kind=KIND, schema=schema_of(bundle))
    token_map = TokenMap.from_dict(artifacts.load_json(manifest.path / "token_map.json"))
    return manifest.path / "model", token_map, weights_of(manifest)


def _tokenizer(source: Path, folder: Path) -> None:
    AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(folder)


def _loaded(folder: Path) -> Any:
    """A Hugging Face folder as a stranger would load it."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()


@dataclass(frozen=True, eq=False)
class _Wanted:
    """Probes, and the logits of what was trained on them."""

    probes: list[Tensor]
    logits: list[Tensor]

    @classmethod
    def of(cls, model: Any, token_map: TokenMap) -> _Wanted:
        probes = _probes(token_map)
        return cls(probes, _logits(model, probes))

    def compared(self, back: Any, draft: Path, target: Path) -> Exported:
        """What was exported, if what was read back from the draft has these logits; ArtifactError otherwise."""
        found = _logits(back, self.probes)
        difference = max(float((a - b).abs().max()) for a, b in zip(found, self.logits, strict=True))
        if not difference <= TOLERANCE:  # NaN too
            raise ArtifactError(
                f"the exported model's logits differ from the trained ones by up to {difference:.2g}, "
                f"more than {TOLERANCE:g}: nothing was written"
            )
        return Exported(target, difference, sum(file.stat().st_size for file in draft.rglob("*") if file.is_file()))


def _probes(token_map: TokenMap) -> list[Tensor]:
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
