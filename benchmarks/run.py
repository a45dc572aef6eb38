"""List and run the benchmarks.

    python benchmarks/run.py                      # what there is
    python benchmarks/run.py --name spine         # measure one suite
    python benchmarks/run.py --name spine --quick # what fits in two minutes; the rest from benchmarks/results/
    python benchmarks/run.py --name spine --json rows.jsonl --commit

A suite is a module of this folder with ``FIGURES``. Each figure becomes one row: figure, value, unit, target,
baseline, source ("measured" or "committed"), budget, spread, command, machine, git. Times are process
CPU-seconds of one thread or ratios of medians of interleaved runs, unless the unit says wall.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SUITES = {
    "spine": "the two commands: demo, imports, tokenizer fit, crash safety, padding",
    "quality": "recall on Amazon Beauty and Games, item-exact (data folder: --data or GENREC_DATA)",
    "alignment": "adapters and tasks on a language model that read the catalog (a mechanism check; from finished rows)",
    "decoding": "index, constrained search, filters, against transformers' generate",
    "serving": "the endpoint: valid lists, malformed requests, swaps, overload, cost beside generate",
    "training": "speed beside transformers' Trainer (--data or GENREC_DATA), adapters, processes, kills",
    "training_parallel": "models that predict an item at once, on Amazon Beauty (hours; --data or GENREC_DATA)",
    "tokenizers": "item tokenizers: a million items beside faiss, the RQ-VAE's step, collisions, append",
}
MODULES = {
    "tokenizers": "item_tokenizers",
    "alignment": "alignment_check",
}  # a file tokenizers.py here would hide Hugging Face's package


@dataclass(frozen=True)
class Measured:
    """One measurement: the value, its spread (any JSON) and the budget spent."""

    value: float | None
    spread: Any = None
    budget: str = ""
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A named figure. ``quick``: its measurement fits the two-minute form."""

    name: str
    unit: str
    measure: Callable[[Options], Measured]
    target: str = ""
    baseline: str = ""
    quick: bool = False


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    quick: bool
    data: Path | None
    cache: dict[str, Any] = field(default_factory=dict)


def machine() -> str:
    """CPU model, cores and memory."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x.split(":", 1)[1].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB"


def git_state() -> str:
    """Commit of the tree, with + when it has changes."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, cwd=HERE)
    except OSError:
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def committed(suite: str) -> dict[str, dict[str, Any]]:
    """The committed rows of a suite by figure name."""
    file = RESULTS / f"{suite}.json"
    return {row["figure"]: row for row in json.loads(file.read_text())} if file.exists() else {}


def row_of(figure: Figure, found: Measured, suite: str) -> dict[str, Any]:
    """The row of a fresh measurement."""
    return {
        "figure": figure.name,
        "value": found.value,
        "unit": figure.unit,
        "target": figure.target,
        "baseline": figure.baseline,
        "source": "measured",
        "budget": found.budget,
        "spread": found.spread,
        "note": found.note,
        "command": f"make bench NAME={suite}",
        "machine": machine(),
        "git": git_state(),
    }


def rows(suite: str, options: Options, only: str | None) -> list[dict[str, Any]]:
    """Measure what is asked, read the rest."""
    module = importlib.import_module(MODULES.get(suite, suite))
    old = committed(suite)
    out = []
    for figure in module.FIGURES:
        if only and figure.name != only:
            continue
        if options.quick and not figure.quick:
            row = {**old[figure.name], "source": "committed"} if figure.name in old else None
            if row is None:
                print(f"{figure.name}: not committed yet and too long for --quick", file=sys.stderr)
                continue
        else:
            print(f"measuring {figure.name} ...", file=sys.stderr, flush=True)
            row = row_of(figure, figure.measure(options), suite)
        out.append(row)
        value = "not measured" if row["value"] is None else f"{row['value']:.6g}"
        print(f"{row['figure']:<42}{value:>14} {row['unit']:<12} target {row['target'] or '-':<10} {row['source']}")
    return out


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", choices=sorted(SUITES), help="the suite to measure")
    parser.add_argument("--figure", help="only this figure of the suite")
    parser.add_argument("--quick", action="store_true", help="measure what fits two minutes, read the rest")
    parser.add_argument("--json", type=Path, help="append one JSON object per line to this file")
    parser.add_argument("--commit", action="store_true", help="store the measured rows in benchmarks/results/")
    parser.add_argument("--data", type=Path, default=os.environ.get("GENREC_DATA"), help="folder of the real data")
    args = parser.parse_args()
    sys.path.insert(0, str(HERE))
    if args.name is None:
        for suite, about in SUITES.items():
            print(f"{suite:<12}{about}")
        return 0
    found = rows(args.name, Options(args.quick, args.data and Path(args.data)), args.figure)
    if args.json:
        with args.json.open("a") as out:
            out.writelines(json.dumps(row) + "\n" for row in found)
    if args.commit:
        merged = committed(args.name) | {
            r["figure"]: r for r in found if r["source"] == "measured" and r["value"] is not None
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{args.name}.json").write_text(json.dumps(list(merged.values()), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
