"""Run stages in order, skip what has not changed, go on after an interruption.

A stage is *done* when the run folder's ledger holds its key (its recipe, its code version and the digests of
what it reads) and the artifacts it wrote are still there with the digests the ledger recorded. The ledger line
is written after the artifacts, so a kill at any moment costs at most the stage that was running. Training goes on
from its own checkpoints, and sentence vectors from their cache; an evaluation begins again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from genrec import artifacts, disk
from genrec.errors import ArtifactError, ConfigError, FingerprintMismatch, GenrecError
from genrec.formats import to_json_bytes

log = logging.getLogger(__name__)

LEDGER = "ledger.json"
Status = Literal["done", "run", "changed"]


@dataclass(frozen=True)
class Estimate:
    """What a stage is expected to cost: wall seconds on this machine and peak bytes of memory."""

    seconds: float
    bytes: float


@dataclass(frozen=True)
class Stage:
    """One step: ``run(folder)`` writes every artifact of ``outputs`` (paths relative to the run folder).

    ``recipe`` (JSON-able) is all that decides the result besides ``needs``; bump ``version`` when the code
    changes what it writes. ``inputs`` are digests of what comes from outside the run folder (data files).
    ``with_defaults`` fills a recipe in, so that one of an older version can be compared: options that it lacks stand at
    their defaults.
    ``check()`` raises what the stage would fail with for want of a package or a file: it is called before any
    stage runs, unless this one is done. ``standing()`` says where a stage stands that was interrupted, "" = nowhere.
    """

    name: str
    outputs: tuple[str, ...]
    run: Callable[[Path], None]
    recipe: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)
    version: int = 1
    estimate: Callable[[], Estimate] = lambda: Estimate(1.0, 1e8)
    about: str = ""
    check: Callable[[], None] = lambda: None
    standing: Callable[[], str] = lambda: ""
    with_defaults: Callable[[dict[str, Any]], dict[str, Any]] = lambda older: older


WILL_FAIL = "; it will fail: "
"""What stands between the reason of a planned stage and what it lacks."""


@dataclass(frozen=True)
class Planned:
    """A stage with what the plan says about it."""

    stage: Stage
    status: Status
    reason: str
    estimate: Estimate


def read_ledger(folder: Path) -> dict[str, Any]:
    """What is done in a run folder: stage name → key, inputs, outputs, cost; empty where nothing is."""
    file = folder / LEDGER
    if not file.exists():
        return {}
    hint = "delete the file: every stage runs again"
    try:
        found = artifacts.load_json(file)
    except ArtifactError as error:
        raise ArtifactError(str(error), hint=hint) from error
    if not isinstance(found, dict):
        raise ArtifactError(f"{file}: expected a JSON object", hint=hint)
    return found


def _write_ledger(folder: Path, ledger: dict[str, Any]) -> None:
    text = json.dumps(ledger, indent=1, sort_keys=True)
    artifacts.atomic_write_bytes(folder / LEDGER, text.encode())


def _digests(folder: Path, outputs: Sequence[str]) -> dict[str, str] | None:
    """Digest of each output's manifest, or None when one is missing, incomplete or damaged."""
    found = {}
    for output in outputs:
        try:
            found[output] = artifacts.read(folder / output).digest
        except ArtifactError as error:
            if (folder / output).exists():
                log.warning("%s", error)
            return None
    return found


def key_of(stage: Stage, upstream: dict[str, dict[str, str]]) -> str:
    """Hash of all that decides what the stage writes; ``upstream``: stage name → digests of its outputs."""
    parts = {
        "name": stage.name,
        "version": stage.version,
        "recipe": stage.recipe,
        "inputs": stage.inputs,
        "needs": {name: upstream[name] for name in stage.needs},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _state(folder: Path, stage: Stage, ledger: dict[str, Any], done: dict[str, dict[str, str]]) -> tuple[Status, str]:
    missing = [name for name in stage.needs if name not in done]
    line = ledger.get(stage.name)
    if missing:
        return ("changed" if line else "run"), f"after {missing[0]}"
    digests = _digests(folder, stage.outputs)
    if line is None or digests is None:
        return "run", "not done yet" if line is None else "its output is missing or damaged"
    if not same_key(stage, line, done):
        return "changed", difference(stage, line, done)
    if line["outputs"] != digests:
        return "changed", "its output was replaced"
    return "done", "unchanged"


def same_key(stage: Stage, line: dict[str, Any], done: dict[str, dict[str, str]]) -> bool:
    """Whether what a ledger line was made from is what the stage would be made from now.

    Also where the recipe of an older version lacks options that are new since then and stand at their defaults.
    """
    if line["key"] == key_of(stage, done):
        return True
    older = line.get("recipe")
    if older is None or line["key"] != key_of(replace(stage, recipe=older), done):
        return False
    try:
        return stage.with_defaults(older) == stage.with_defaults(stage.recipe)
    except ConfigError:  # it has options that are no more
        return False


def difference(stage: Stage, line: dict[str, Any], done: dict[str, dict[str, str]]) -> str:
    """Why the key is another one: the settings that differ, else the input."""
    old, new = _leaves(line.get("recipe", {})), _leaves(stage.recipe)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    with contextlib.suppress(ConfigError):  # options that it lacks and that stand at their defaults are no difference
        before, after = (_leaves(stage.with_defaults(part)) for part in (line.get("recipe", {}), stage.recipe))
        names = [name for name in names if before.get(name) != after.get(name)] if "recipe" in line else names
    if names and "recipe" in line:  # ledgers of older versions have none
        first = names[0]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"{first}: {old.get(first)} -> {new.get(first)}{more}"
    if line["inputs"] != stage.inputs:
        return "the files it reads changed"
    upstream = [name for name in stage.needs if line.get("needs", {}).get(name) != done[name]]
    return f"the output of {upstream[0]} changed" if line.get("needs") and upstream else "its code or input changed"


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted path → value of every leaf of nested JSON."""
    if not isinstance(value, dict | list):
        return {path: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Any] = {}
    for name, inner in pairs:
        found |= _leaves(inner, f"{path}.{name}" if path else str(name))
    return found


def _states(folder: Path, stages: Sequence[Stage], ledger: dict[str, Any]) -> Iterator[tuple[Stage, Status, str]]:
    """Each stage with its status and the reason, while none has run."""
    done: dict[str, dict[str, str]] = {}
    for stage in stages:
        status, reason = _state(folder, stage, ledger, done)
        if status == "done":
            done[stage.name] = ledger[stage.name]["outputs"]
        yield stage, status, reason


def plan(folder: Path, stages: Sequence[Stage]) -> list[Planned]:
    """What :func:`run` would do, without doing it; a stage that lacks something says so in its reason."""
    planned = []
    for stage, status, reason in _states(folder, stages, read_ledger(folder)):
        cost = Estimate(0.0, 0.0)
        if status != "done":
            cost = stage.estimate()
            if not reason.startswith("after") and (standing := stage.standing()):
                reason = f"{reason}; {standing}"
            try:
                stage.check()
            except GenrecError as error:
                reason = f"{reason}{WILL_FAIL}{error}"
        planned.append(Planned(stage, status, reason, cost))
    return planned


def run(
    folder: Path,
    stages: Sequence[Stage],
    say: Callable[[Planned | Stage, dict[str, Any] | None], None],
    recipe: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run what is not done; returns the ledger. ``say(planned, None)`` is called before, ``say(stage, line)`` after.

    ``recipe`` is kept as recipe.json. Raises what a stage raises; what was finished before stays and is not run
    again.
    """
    for stage, status, _ in _states(folder, stages, read_ledger(folder)):
        if status != "done":
            stage.check()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # /proc, a drive that is not there
        raise ConfigError(f"{folder}: cannot make this folder ({error.strerror})", hint="give another --out") from error
    with disk.claimed(folder, "run"):
        artifacts.sweep(folder)
        if recipe is not None:
            artifacts.atomic_write_bytes(folder / "recipe.json", to_json_bytes(recipe))
        ledger = read_ledger(folder)
        done: dict[str, dict[str, str]] = {}
        for stage in stages:
            status, reason = _state(folder, stage, ledger, done)
            say(Planned(stage, status, reason, Estimate(0.0, 0.0)), None)
            if status != "done":
                ledger[stage.name] = _run_one(folder, stage, done)
                _write_ledger(folder, ledger)
                say(stage, ledger[stage.name])
            done[stage.name] = ledger[stage.name]["outputs"]
    return ledger


def same_catalog(folder: Path, catalog: str, *names: str) -> None:
    """Raise FingerprintMismatch unless these artifacts of a run folder belong to ``catalog`` (a fingerprint)."""
    for name in names:
        found = artifacts.read(folder / name, verify=False).catalog
        if found != catalog:
            raise FingerprintMismatch(
                f"{folder / name} belongs to catalog {(found or '(none)')[:8]}, got catalog {catalog[:8]}",
                hint="two catalogs cannot be mixed: make it anew in this run folder (`genrec run` does)",
            )


def _run_one(folder: Path, stage: Stage, done: dict[str, dict[str, str]]) -> dict[str, Any]:
    _reset_peak_memory()
    wall, cpu = time.perf_counter(), time.process_time()
    stage.run(folder)
    outputs = _digests(folder, stage.outputs)
    if outputs is None:
        raise ArtifactError(f"stage {stage.name!r} did not write all of {', '.join(stage.outputs)}")
    return {
        "key": key_of(stage, done),
        "recipe": stage.recipe,
        "inputs": stage.inputs,
        "needs": {name: done[name] for name in stage.needs},
        "outputs": outputs,
        "wall_seconds": round(time.perf_counter() - wall, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_bytes": peak_memory(),
    }


def _reset_peak_memory() -> None:
    """Start a new high-water mark (Linux); elsewhere the mark is the process's own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak resident bytes since the last reset (Linux) or since the process began."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    scale = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, or of the names and bytes of the files below a folder.

    Left out below a folder: what is hidden (version control, download caches), compiled Python and ``.md`` files.
    """
    if not path.exists():
        return "missing"
    total = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        below = file.relative_to(path)  # "." for a single file
        if any(part.startswith(".") or part == "__pycache__" for part in below.parts) or below.suffix == ".md":
            continue
        total.update(str(below).encode())
        with file.open("rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()
