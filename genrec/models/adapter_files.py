"""An adapter on disk: what was trained, and which pretrained model it belongs to.

model/
  adapter/       as PEFT stores it: low-rank factors and the rows of item tokens, megabytes
  base.json      name and sha256 of the files of the pretrained model
  config.json    of the whole model, with its rows for item tokens
  tokenizer…     the text tokenizer with the item tokens
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import cached_file

from genrec import artifacts
from genrec.errors import ArtifactError, ConfigError, FingerprintMismatch
from genrec.models.adapters import base_of, freeze_rows, quiet_peft
from genrec.models.pretrained import (
    OLD_WEIGHTS,
    PretrainedSettings,
    grow_tables,
    known_sha256,
    load_rounded,
    without_old_weights,
)
from genrec.vocab.token_map import TokenMap

ADAPTER, BASE = "adapter", "base.json"
_GIVE_BASE = "give the folder of the pretrained model: load_bundle(..., base=PATH), or --base PATH"


def holds_adapter(folder: Path) -> bool:
    """Whether a model folder holds an adapter rather than a whole model (internal)."""
    return (folder / ADAPTER).is_dir()


def save_adapter(folder: Path, model: Any) -> None:
    """Write ``adapter/``, ``base.json`` and ``config.json`` (internal); the text tokenizer is the caller's.

    Raises ConfigError for a model that was not loaded from a folder or a hub: nobody could load its adapter.
    """
    name = getattr(model.config, "_name_or_path", "")
    if not name:
        raise ConfigError(
            "an adapter belongs to a pretrained model that can be loaded again, this one was made from a config",
            hint="save model.merge_and_unload() instead",
        )
    files = identity_of(name)
    with quiet_peft():
        model.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
    (folder / ADAPTER / "README.md").unlink(missing_ok=True)
    own = folder / ADAPTER / "adapter_config.json"
    config = artifacts.load_json(own)
    if isinstance(config.get("target_modules"), list):  # a set in PEFT, so its order is that of hashes
        config["target_modules"] = sorted(config["target_modules"])
    artifacts.save_json(own, config)
    base_of(model).config.save_pretrained(folder)
    single = model.get_input_embeddings().weight.dtype == torch.float32
    # a model that was loaded with its adapter is in float32, whatever its numbers were rounded to
    held = getattr(model.config, "genrec_base_weights", None if single else "bfloat16")
    rounded = {"weights": held} if held else {}
    artifacts.save_json(folder / BASE, {"name": str(name), "files": files, **rounded})


def load_adapter(folder: Path, token_map: TokenMap, *, base: str | Path | None = None, trainable: bool = False) -> Any:
    """The pretrained model with the adapter of ``folder`` around it, in float32 and evaluation mode.

    base: folder (or hub name) of the pretrained model, where it is not the one that was trained on. Hub names are read
    from the local cache. trainable: to go on training what was trained. Raises ArtifactError where the pretrained model
    is missing, FingerprintMismatch where it is another one. Stability: experimental.
    """
    from peft import PeftModel

    from genrec.models.trained_rows import place_rows

    with quiet_peft():
        model = load_base(folder, token_map, base=base)
        wrapped = PeftModel.from_pretrained(model, folder / ADAPTER, is_trainable=trainable).eval()
    place_rows(wrapped)
    if not getattr(wrapped.config, "genrec_train_rows", True):
        freeze_rows(wrapped)
    return wrapped


def load_base(folder: Path, token_map: TokenMap, *, base: str | Path | None = None) -> Any:
    """The pretrained model of an adapter, with a row for every token but none of what was trained (internal).

    Raises as :func:`load_adapter` does.
    """
    needed = artifacts.load_json(folder / BASE)
    name, source = str(base or needed["name"]), checked_base(folder, base)
    # as it was beside the adapter, in float32: numbers that were rounded, to bfloat16 or to fewer bits, stay so
    held, kept = needed.get("weights", "float32"), AutoConfig.from_pretrained(folder, local_files_only=True)
    model = load_rounded(PretrainedSettings(str(source), weights=held), kept).float()
    model.config._name_or_path = name
    grow_tables(model, token_map)
    for key, value in kept.to_dict().items():
        if key.startswith("genrec_"):
            setattr(model.config, key, value)
    if "weights" in needed:
        model.config.genrec_base_weights = held
    return model


def checked_base(folder: Path, base: str | Path | None = None) -> Path:
    """Where the pretrained model of the adapter in ``folder`` lies, its files being those trained on (internal).

    Raises as :func:`load_adapter` does.
    """
    needed = artifacts.load_json(folder / BASE)
    name = str(base or needed["name"])
    found, kept = identity_of(name), needed["files"]
    named = {*found, *without_old_weights(kept)}
    if different := sorted(n for n in named if found.get(n) != kept.get(n)):
        raise FingerprintMismatch(
            f"{name} is not the pretrained model that the adapter in {folder} was trained on: "
            f"{', '.join(different)} {'differs' if len(different) == 1 else 'differ'}",
            hint=_GIVE_BASE,
        )
    return _folder_of(name)


def _folder_of(name: str) -> Path:
    """Where a pretrained model lies: the folder itself, or the hub's cache on this machine."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(str(cached_file(name, "config.json", local_files_only=True))).parent
    except (OSError, ValueError) as error:
        raise ArtifactError(f"the pretrained model {name} is not here", hint=_GIVE_BASE) from error


def identity_of(name: str) -> dict[str, str]:
    """sha256 of the config and of every file of weights that is read of a pretrained model (internal)."""
    folder = _folder_of(name)
    patterns = ("config.json", "*.safetensors", "*.safetensors.index.json", *OLD_WEIGHTS)
    names = {file.name for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return {name: known_sha256(folder / name) for name in sorted(without_old_weights(names))}
