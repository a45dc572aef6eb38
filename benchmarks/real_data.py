"""Runs of the ready pipelines on real data, for the suites that need them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs"


def bring_up_to_date(
    data: Path | None, pipeline: str, data_set: str, run: str, *overrides: str, until: str | None = None
) -> Path:
    """`genrec run` on a ready pipeline; what is finished is only read. Returns the run folder, runs/<run>."""
    if data is None:
        sys.exit("this needs real data: give --data FOLDER or set GENREC_DATA")
    folder = RUNS / run
    _share_text_vectors(folder, data_set)
    command = [sys.executable, "-m", "genrec.cli.main", "run", str(ROOT / "train" / "pipelines" / pipeline)]
    command += ["--data", str(data / data_set), "--out", str(folder)]
    for override in overrides:
        command += ["--set", override]
    command += ["--until", until] if until else []
    subprocess.run(command, check=True, stdout=sys.stderr)
    _keep_text_vectors(folder, data_set)
    return folder


def read_json(*parts: str | Path) -> dict[str, Any]:
    """One JSON object from a file."""
    found: dict[str, Any] = json.loads(Path(*parts).read_text())
    return found


def training_minutes(run: Path, stage: str) -> float:
    """CPU minutes of the model's training over all its calls ("train"), or of another stage."""
    if stage == "train":
        return float(read_json(run, "training", "genrec.json")["meta"]["cpu_seconds"]) / 60
    return float(read_json(run, "ledger.json")[stage]["cpu_seconds"]) / 60


def _share_text_vectors(folder: Path, data_set: str) -> None:
    """Vectors of texts are kept by content, so one embedding of a catalog serves all its runs."""
    shared = RUNS / "text-vectors" / data_set
    if shared.exists() and not (folder / "cache").exists():
        shutil.copytree(shared, folder / "cache")


def _keep_text_vectors(folder: Path, data_set: str) -> None:
    shared = RUNS / "text-vectors" / data_set
    if (folder / "cache").exists() and not shared.exists():
        shutil.copytree(folder / "cache", shared)
