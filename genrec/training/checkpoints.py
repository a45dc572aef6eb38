"""Checkpoints that a kill at any moment cannot spoil, and the newest one that can be trusted.

A checkpoint is an artifact (kind ``checkpoint``): written aside, flushed, checksummed, renamed into place. One
that is not complete and unchanged is never resumed from.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from genrec import artifacts
from genrec.errors import ArtifactError, ConfigError

logger = logging.getLogger(__name__)

KIND = "checkpoint"
SCHEMA = 2
_PRECISION = (
    "bf16 unset means what the machine has; set bf16 (train.bf16) explicitly to go on in the precision it began with. "
    "In a run folder another train.bf16 is another training, which starts again: go on on a machine like the first"
)
KEPT = 2
"""Checkpoints kept: the newest, and one more should the disk damage it."""


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest step first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True)


def save(
    folder: Path, step: int, write: Callable[[Path], None], *, recipe: Mapping[str, Any], meta: Mapping[str, Any]
) -> Path:
    """Write checkpoint ``step`` (internal): ``write(directory)`` fills it; older ones are removed afterwards.

    An earlier checkpoint of the same step is replaced. Raises ArtifactError if the disk refuses.
    """
    path = folder / f"checkpoint-{step:08d}"
    if path.exists() and not artifacts.exists(path, KIND):
        shutil.rmtree(path)
    with artifacts.write(path, kind=KIND, schema=SCHEMA, recipe=recipe, meta=meta, overwrite=True) as draft:
        write(draft.dir)
    for old in _folders(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def newest(folder: Path, recipe: Mapping[str, Any]) -> artifacts.Manifest | None:
    """The newest complete, verified checkpoint of this training, or None (internal).

    Leftovers of killed saves are removed. Damaged checkpoints are skipped with a warning. Raises ConfigError
    if the checkpoint is of other settings, data, model or precision: going on from it would be neither run.
    """
    artifacts.sweep(folder)
    for path in _folders(folder):
        try:
            manifest = artifacts.read(path, kind=KIND, schema=SCHEMA)
        except ArtifactError as error:
            logger.warning("checkpoint skipped: %s", error)
            continue
        _check_same(path, manifest.recipe, recipe)
        return manifest
    return None


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none; nothing is verified (internal)."""
    found = _folders(folder)
    return int(found[0].name.removeprefix("checkpoint-")) if found else 0


def clear(folder: Path) -> None:
    """Remove all checkpoints of ``folder`` (internal)."""
    artifacts.sweep(folder)
    for path in _folders(folder):
        shutil.rmtree(path)


def _check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in sorted(set(found) | set(wanted)):
        if found.get(name) != wanted.get(name):
            raise ConfigError(
                f"{path} was trained with {name}={found.get(name)!r}, now {name}={wanted.get(name)!r}",
                hint=_PRECISION if name == "bf16" else "give another folder, or resume=False to start again",
            )
