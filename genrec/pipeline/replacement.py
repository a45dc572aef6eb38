"""What a run would replace in its folder: another run, or a training that took long."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec import artifacts, disk
from genrec.errors import ArtifactError, ConfigError
from genrec.pipeline import baseline_stages, model_stages
from genrec.pipeline.recipe import PipelineRecipe
from genrec.pipeline.runner import LEDGER, Stage, difference, read_ledger, same_key

FREE_SECONDS = 120.0
"""CPU seconds of a finished training that a run with other settings replaces without being allowed to."""

_TRAININGS = {
    "train": ("model", "training", model_stages.trained),
    "sasrec": ("SASRec", "sasrec", baseline_stages.sasrec_trained),
}


@dataclass(frozen=True)
class Replaced:
    """A finished training that a run would do anew: of which stage, what it took, and why it is done anew."""

    stage: str
    what: str
    cpu_seconds: float
    reason: str

    @property
    def refused(self) -> bool:
        """Whether the run stops for it unless it is allowed."""
        return self.cpu_seconds > FREE_SECONDS

    def __str__(self) -> str:
        took, unit = (self.cpu_seconds, "seconds") if self.cpu_seconds < 120 else (self.cpu_seconds / 60, "minutes")
        return f"this run replaces a finished {self.what} (trained in {took:.0f} CPU-{unit}): {self.reason}"


def guard(folder: Path, recipe: PipelineRecipe, todo: Sequence[Stage], *, allowed: bool = False) -> list[Replaced]:
    """The finished trainings that running ``todo`` in ``folder`` replaces.

    Raises ConfigError, unless ``allowed``, where the folder holds a run of another name or of other data, or where a
    training of more than ``FREE_SECONDS`` would be done anew. ``allowed``: a run of other data is removed here;
    everything else stays until its stage has made the new one.
    """
    other = other_run(folder, recipe, todo)
    found = [] if other else replaced(folder, recipe, todo)
    if allowed:
        if other is not None and other.data:
            _remove(folder, todo)
        return found
    if other is not None:
        then = "remove it and begin anew" if other.data else "go on under the new name"
        raise ConfigError(str(other), hint=f"give another --out; or --replace to {then}")
    if any(loss.refused for loss in found):
        hint = "give another --out to keep it; or --replace to train anew in this folder"
        raise ConfigError(f"{folder}: {'; '.join(map(str, found))}", hint=hint)
    return found


@dataclass(frozen=True)
class OtherRun:
    """Another run in the folder: its name; ``data``: whether it is one of other data."""

    folder: Path
    name: str
    given: str
    data: bool
    refused = True

    def __str__(self) -> str:
        data = " on other data" if self.data else ""
        return f"{self.folder} holds the run {self.name!r}{data}, got the run {self.given!r}"


def other_run(folder: Path, recipe: PipelineRecipe, todo: Sequence[Stage]) -> OtherRun | None:
    """The run in the folder, where it has another name than ``recipe`` or read another log; None where nothing ran."""
    ledger = read_ledger(folder)
    if not ledger or not (folder / "recipe.json").exists():
        return None
    name = str(artifacts.load_json(folder / "recipe.json").get("name"))
    first = next((stage for stage in todo if stage.name == "prepare"), None)
    data = first is not None and "prepare" in ledger and _other_data(ledger["prepare"], first)
    return OtherRun(folder, name, recipe.name, data) if data or name != recipe.name else None


def _other_data(line: dict[str, Any], stage: Stage) -> bool:
    """Another synthetic catalog, or a log that lies elsewhere and has other bytes."""
    old, new = line.get("recipe", {}).get("data"), stage.recipe["data"]
    if old is None:  # ledgers of older versions
        return False
    if new["synthetic"] is not None:
        made = old["synthetic"]
        return made is None or any(made.get(name, value) != value for name, value in new["synthetic"].items())
    if old["reader"] is None:
        return True
    if "incomplete" in stage.inputs.values():  # the reader says what is missing
        return False
    log, digest = list(stage.inputs.items())[-1]
    return Path(log).resolve() not in {Path(file).resolve() for file in line["inputs"]} and digest not in {
        *line["inputs"].values()
    }


def replaced(folder: Path, recipe: PipelineRecipe, todo: Sequence[Stage]) -> list[Replaced]:
    """The finished trainings in the folder that ``todo`` may do anew: the settings or the data are others."""
    ledger, found = read_ledger(folder), []
    done: dict[str, dict[str, str]] = {}
    why: dict[str, str] = {}
    for stage in todo:
        line, late = ledger.get(stage.name), [name for name in stage.needs if name not in done]
        # what is missing, with the key it had, is made again as it was
        if line is not None and not late and (same_key(stage, line, done) or _moved(stage, line)):
            done[stage.name] = line["outputs"]
            continue
        own = "not done here before" if line is None else "" if late else difference(stage, line, done)
        why[stage.name] = why[late[0]] if late else f"{own} (stage {stage.name})"
        took = _took(folder, stage.name, line)
        if took is not None and (late or not _kept(folder, stage.name, recipe)):
            found.append(Replaced(stage.name, _TRAININGS[stage.name][0], took, why[stage.name]))
    return found


def _moved(stage: Stage, line: dict[str, Any]) -> bool:
    """Whether the same files are read from another place."""
    if stage.name != "prepare":
        return False
    before, after = _unplaced(line.get("recipe", {}).get("data")), _unplaced(stage.recipe["data"])
    return before is not None and before == after and sorted(line["inputs"].values()) == sorted(stage.inputs.values())


def _unplaced(data: dict[str, Any] | None) -> dict[str, Any] | None:
    """The settings of a reader without where its files lie; None where nothing is read."""
    if data is None or not data["reader"]:
        return None
    return {**data, "get_it": "", "reader": data["reader"] | dict.fromkeys(("path", "interactions", "items"))}


def _took(folder: Path, name: str, line: dict[str, Any] | None) -> float | None:
    """CPU seconds of the finished training of this stage; None where there is none."""
    if name not in _TRAININGS or (name == "train" and not artifacts.exists(folder / "bundle", "bundle")):
        return None
    try:
        meta = artifacts.read(folder / _TRAININGS[name][1], verify=False).meta
    except ArtifactError:
        return None
    return float(meta.get("cpu_seconds") or (line or {}).get("cpu_seconds", 0.0))


def _kept(folder: Path, name: str, recipe: PipelineRecipe) -> bool:
    """Whether what is there, say from another machine, is the training that the recipe asks for."""
    try:
        return _TRAININGS[name][2](folder, recipe)
    except ArtifactError:
        return False


def _remove(folder: Path, todo: Sequence[Stage]) -> None:
    """Delete what a run wrote; vectors of texts stay, which are kept by content. The ledger goes first."""
    for stage in todo:
        stage.check()
    with disk.claimed(folder, "run"):
        names = {name for line in read_ledger(folder).values() for name in line["outputs"]}
        (folder / LEDGER).unlink()
        for name in sorted(names):
            if artifacts.exists(folder / name):
                shutil.rmtree(folder / name)
        for name in ("checkpoints", "sasrec_checkpoint"):
            shutil.rmtree(folder / name, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            (folder / "recipe.json").unlink()
