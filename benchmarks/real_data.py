"""Runs of the ready pipelines on real data, for the suites that need them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs"
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}


def bring_up_to_date(
    data: Path | None, pipeline: str, data_set: str, run: str, *overrides: str, until: str | None = None
) -> Path:
    """`genrec run` on a ready pipeline with one thread; what is finished is only read. Returns the run folder."""
    if data is None:
        sys.exit("this needs real data: give --data FOLDER or set GENREC_DATA")
    folder = RUNS / run
    _share_text_vectors(folder, data_set)
    command = [sys.executable, "-m", "genrec.cli.main", "run", str(ROOT / "train" / "pipelines" / pipeline)]
    command += ["--data", str(data / data_set), "--out", str(folder), "--replace"]
    for override in overrides:
        command += ["--set", override]
    command += ["--until", until] if until else []
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, **ONE_THREAD})
    _keep_text_vectors(folder, data_set)
    return folder


def read_json(*parts: str | Path) -> Any:
    """What a JSON file holds."""
    return json.loads(Path(*parts).read_text())


def training(run: Path, stage: str) -> dict[str, Any]:
    """What a training ("train" or "sasrec") was and took: epochs, precision (None = not recorded), minutes."""
    folder = run / {"train": "training"}.get(stage, stage)
    kept = read_json(folder, "genrec.json")
    log = read_json(folder, "log.json") if stage == "train" else kept["meta"]["log"]
    half = kept["meta"].get("bf16") if stage == "train" else False  # SASRec knows float32 only
    return {
        "epochs": round(log[-1]["epoch"] if log else kept["recipe"]["epochs"], 2),
        "precision": {True: "bfloat16", False: "float32", None: None}[half],
        "wall_minutes": round(_seconds(run, stage, "wall_seconds") / 60, 1),
        "cpu_minutes": round(_seconds(run, stage, "cpu_seconds") / 60, 1),
    }


def cost_text(run: Path, stage: str) -> str:
    """One run's cost in words: of a training with its epochs and precision, of another stage its CPU minutes."""
    if stage not in ("train", "sasrec"):
        return f"{_seconds(run, stage, 'cpu_seconds') / 60:.1f} CPU-minutes, one thread"
    found = training(run, stage)
    how = f"{found['epochs']:g} epochs in {found['precision'] or 'unrecorded precision'}"
    return f"{how}, {found['cpu_minutes']:.1f} CPU-minutes, one thread"


def rule_text(runs: Sequence[Path], model: str) -> str:
    """The rule under which ``model`` was measured in runs that differ in their seed only, from their reports."""
    found = [read_json(run, "eval", model, "report.json") for run in runs]
    settings, context = found[0]["settings"], found[0]["context"]
    seeds = ", ".join(str(each["context"]["seed"]) for each in found)
    seen = "excluded" if settings["exclude_seen"] else "kept"
    beams = f", {settings['n_beams']} beams" if model in ("decoder", "t5") else ""
    split = f"{context['split']['kind']}, ties {context['ties']}, seed{'s' * (len(runs) > 1)} {seeds}"
    return f"item-exact, seen {seen}, {split}{beams}"


def _seconds(run: Path, stage: str, kind: str) -> float:
    """Seconds of a stage; of a training over all its calls."""
    if stage in ("train", "sasrec"):
        folder = "training" if stage == "train" else "sasrec"
        found = read_json(run, folder, "genrec.json")["meta"].get(kind)
        if found is not None:
            return float(found)
    return float(read_json(run, "ledger.json")[stage][kind])


def _share_text_vectors(folder: Path, data_set: str) -> None:
    """Vectors of texts are kept by content, so one embedding of a catalog serves all its runs."""
    shared = RUNS / "text-vectors" / data_set
    if shared.exists() and not (folder / "cache").exists():
        shutil.copytree(shared, folder / "cache")


def _keep_text_vectors(folder: Path, data_set: str) -> None:
    shared = RUNS / "text-vectors" / data_set
    if (folder / "cache").exists() and not shared.exists():
        shutil.copytree(folder / "cache", shared)
