"""Which weights an engine has: a name for those of a bundle, which exported folders carry in their config."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec import artifacts
from genrec.disk import MANIFEST
from genrec.manifest import Manifest

WEIGHTS, NEEDS = "genrec_weights", "genrec_needs_adapter"
"""In the config of an exported folder: the name, and whether it is the base without what an adapter learned."""

HELD = "GENREC_ENGINE_HELD"
"""Environment variable: the name of the weights that an engine had when the watching process began."""


def weights_of(manifest: Manifest) -> str:
    """A name for the weights of a bundle (internal): equal where an engine that has one has the other."""
    weights = (".safetensors", "base.json")
    files = sorted(
        (n, str(each)) for n, each in manifest.files.items() if n.startswith("model/") and n.endswith(weights)
    )
    return hashlib.sha256(repr(files).encode()).hexdigest()


def weights_of_run(run: Path) -> str:
    """:func:`weights_of` the bundle that is in a run folder, or is one, now (internal). Raises ArtifactError."""
    folder = run.resolve()
    inside = folder / "bundle"
    return weights_of(artifacts.read(inside if inside.is_dir() else folder, verify=False))


@dataclass(frozen=True)
class Held:
    """The weights of a folder. name: None = it does not say. needs_adapter: they are an adapter's base. Internal."""

    name: str | None
    needs_adapter: bool

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any] | None = None) -> Held:
        """Of a model folder, exported or in its bundle. config: None = it is read. Raises ArtifactError."""
        folder = folder.resolve()
        if folder.name == "model" and (folder.parent / MANIFEST).is_file():
            return cls(weights_of(artifacts.read(folder.parent, verify=False)), False)
        said = artifacts.load_json(folder / "config.json") if config is None else config
        return cls(said.get(WEIGHTS), bool(said.get(NEEDS)))
