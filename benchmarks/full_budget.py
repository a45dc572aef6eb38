"""Full training budgets on Amazon Beauty and Games, on a GPU machine, in pieces: what two cores cannot afford.

Prepare, where genrec and the data are (every run folder under one folder; its name names the figure):

    prepare() { genrec run "train/pipelines/$1.yaml" --data "DATA/$2" --out "full/$3" --until tokenize \\
                --set 'baselines=[popularity]' --set "model=$4" --set train.epochs=$5 --set train.eval_every=$6; }
    prepare beauty amazon-beauty-2014 beauty-t5 '{kind: t5}' 60 10
    prepare beauty amazon-beauty-2014 beauty-decoder-large \\
            '{kind: decoder, hidden_size: 256, n_layers: 6, n_heads: 8, d_ff: 688, dropout: 0.3}' 40 4
    prepare games amazon-games-2014-timesplit games-decoder '{kind: decoder}' 24 4

Of each only recipe.json, split/, codes/ and index/ are read (no user tokens). Then, on the GPU machine (torch,
transformers, accelerate, numpy, scipy, scikit-learn, safetensors, tqdm, PyYAML; no network), again until it exits with 0:

    python benchmarks/full_budget.py --runs full --state state --rows rows.jsonl

A call stops after --seconds, in training with a checkpoint, in evaluation between two pieces of queries, and always
gets something done. Keep 80 of the seconds that a machine gives for a validation or a checkpoint that ends late.
--state: what is needed to go on (of an unfinished training the newest checkpoint: 16 bytes per weight, 12 without
validation) is kept as state.json and parts of one tar, at most 15 MB each, for the next bare machine.
The rows have the keys of benchmarks/run.py; a run that has its row is skipped.

Exit code: 0 = all rows are there, 75 = start again to go on, 1 = error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shlex
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
if find_spec("genrec") is None:
    sys.path.append(str(HERE.parent))  # last: its folder tokenizers/ is not the package of that name

from run import Figure, Measured, git_state, machine, row_of

from genrec import artifacts, recipes
from genrec.data.splits import Split
from genrec.errors import ArtifactError, ConfigError, GenrecError
from genrec.evaluation.run import evaluate
from genrec.metrics.significance import Interval, bootstrap_means
from genrec.models.bundle import load_bundle
from genrec.pipeline.model_stages import TrainingPaused, train
from genrec.pipeline.recipe import PipelineRecipe
from genrec.training.finetune import MAY_CHANGE

PAUSED = 75
PREPARED = ("split", "codes", "index")
WORK = ("checkpoints", "training", "bundle", "full_budget")
SHARD = 15 * 10**6
FIRST, LARGEST = 16, 1024
"""Queries in the first piece of a call and in the largest one."""
ROW = "full_budget/row.json"

log = logging.getLogger("genrec.full_budget")


class Paused(GenrecError):
    """The seconds of this call are used up."""


class Budget:
    """The seconds of one call. Its first work is always granted, so every call gets on."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.clock, self.end, self.worked = clock, clock() + seconds, False

    def grant(self, needed: float) -> float:
        """Seconds left for work expected to take ``needed``; raises Paused if they are too few."""
        left = self.end - self.clock()
        if self.worked and left < needed:
            raise Paused(f"{max(left, 0):.0f} s are left, {needed:.0f} s needed")
        self.worked = True
        return max(left, 1e-3)


# --- one run -----------------------------------------------------------------------------------------------


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def decisive(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a trained model depends on."""
    how = {name: value for name, value in recipe["train"].items() if name not in MAY_CHANGE}
    return {name: value for name, value in recipe.items() if name not in ("evaluate", "baselines")} | {"train": how}


def trained(folder: Path, recipe: PipelineRecipe) -> bool:
    """Whether the run folder holds the model of this recipe."""
    if not (artifacts.exists(folder / "training") and artifacts.exists(folder / "bundle")):
        return False
    found = artifacts.read(folder / "bundle", verify=False).recipe
    return decisive(found) == decisive(recipes.to_json(recipe))


def measured(folder: Path, recipe: PipelineRecipe, budget: Budget) -> dict[str, Interval]:
    """Recall@10 and NDCG@10 of all test queries and of each slice, evaluated in pieces that are kept.

    In pieces, and on the GPU, which the pipeline's own stage does not do; otherwise the same evaluation.
    """
    cut = Split.load(folder / "split")
    queries, history = cut.queries("test"), cut.train()
    bundle = load_bundle(folder / "bundle", device="cuda" if torch.cuda.is_available() else "cpu")
    settings = replace(recipe.evaluate, n_bootstrap=0)
    key = json.dumps([bundle.manifest.digest, recipes.to_json(settings)], sort_keys=True).encode()
    pieces = folder / "full_budget" / hashlib.sha256(key).hexdigest()[:16]
    identifier_of = bundle.recommender.codes.collision_ids()
    size, pace = FIRST, 0.0
    while (start := n_measured(pieces)) < len(queries):
        size = min(size, len(queries) - start)
        budget.grant(1.3 * pace * size)
        began = budget.clock()
        part = queries.take(np.arange(start, start + size))
        report = evaluate(
            bundle.recommender, part, settings=settings, train=history, identifier_of=identifier_of, progress=False
        )
        values = {name: v for name, v in report.values.items() if name.endswith(("recall@10", "ndcg@10"))}
        with artifacts.write(pieces / f"{start:08d}", kind="queries", meta={"stop": start + size}) as draft:
            artifacts.save_arrays(draft.dir / "values.safetensors", values)
        pace = (budget.clock() - began) / size
        log.info("%d of %d queries, %.3f s each", start + size, len(queries), pace)
        size = min(2 * size, LARGEST)
    return joined(pieces, recipe)


def n_measured(pieces: Path) -> int:
    """Queries in the finished pieces."""
    done = 0
    while artifacts.exists(pieces / f"{done:08d}"):
        done = artifacts.read(pieces / f"{done:08d}").meta["stop"]
    return done


def joined(pieces: Path, recipe: PipelineRecipe) -> dict[str, Interval]:
    """Means and intervals over all pieces; a slice that a piece lacks has no value there."""
    files = sorted(pieces.glob("*/values.safetensors"))
    found = [artifacts.load_arrays(file) for file in files]
    names = sorted({name for part in found for name in part})
    blank = [np.full(len(part["recall@10"]), np.nan) for part in found]
    columns = [np.concatenate([p.get(n, b) for p, b in zip(found, blank, strict=True)]) for n in names]
    how = recipe.evaluate
    intervals = bootstrap_means(np.stack(columns, axis=1), n_resamples=how.n_bootstrap, seed=how.seed)
    return dict(zip(names, intervals, strict=True))


def budget_text(folder: Path, recipe: PipelineRecipe, n_queries: int) -> str:
    """What the number cost, and the rule it was measured under."""
    cost = artifacts.read(folder / "training", kind="training").meta
    epochs = artifacts.load_json(folder / "training" / "log.json")[-1]["epoch"]
    seen = "excluded" if recipe.evaluate.exclude_seen else "kept"
    spent = f"{epochs:g} epochs, {cost['steps']} steps, {cost['wall_seconds']:.0f} s of training on {device_name()}"
    return f"{spent}; item-exact, seen {seen}, {n_queries} test queries, {recipe.evaluate.n_beams} beams"


def figure_of(folder: Path) -> str:
    return f"full_budget_{folder.name}_recall10"


def row(folder: Path, recipe: PipelineRecipe, found: dict[str, Interval], git: str | None) -> dict[str, Any]:
    """The result row of a finished run."""
    main = found["recall@10"]
    spread = {name.replace(".", "_"): i.mean if i.n else None for name, i in found.items()}
    interval = None if np.isnan(main.low) else [main.low, main.high]
    value = Measured(
        main.mean,
        spread | {"interval": interval, "warm": spread.get("warm_recall@10"), "cold": spread.get("cold_recall@10")},
        budget_text(folder, recipe, main.n),
        note=json.dumps({"model": asdict(recipe.model), "seed": recipe.seed, "ties": recipe.split.ties}),
    )
    made = row_of(Figure(figure_of(folder), "recall@10", lambda _: value), value, "")
    command = shlex.join(["python", *sys.argv])
    return made | {"command": command, "machine": f"{machine()}, {device_name()}", "git": git or git_state() or "unknown"}


def advance(folder: Path, options: argparse.Namespace, budget: Budget) -> None:
    """Train, evaluate, append the row; raises Paused or TrainingPaused when the seconds are used up."""
    recipe = recipes.from_dict(PipelineRecipe, artifacts.load_json(folder / "recipe.json"))
    if recipe.n_user_tokens:
        raise ConfigError(f"{folder}: n_user_tokens: expected 0 (user ids need pyarrow), got {recipe.n_user_tokens}")
    if not trained(folder, recipe):
        how = replace(recipe.train, max_seconds=budget.grant(20), n_workers=options.workers)
        train(folder, replace(recipe, train=how))
    found = row(folder, recipe, measured(folder, recipe, budget), options.git)
    artifacts.save_json(folder / ROW, found)
    append(options.rows, found)


# --- rows and state ----------------------------------------------------------------------------------------


def written(rows: Path) -> set[str]:
    """The figures that have a row."""
    return {json.loads(line)["figure"] for line in rows.read_text().splitlines()} if rows.exists() else set()


def append(rows: Path, found: dict[str, Any]) -> None:
    with rows.open("a") as out:
        out.write(json.dumps(found) + "\n")
    log.info("%s %.4f", found["figure"], found["value"])


def needed(folder: Path) -> list[Path]:
    """What must be kept of a run folder to go on."""
    if (folder / ROW).exists():
        return [folder / "training", folder / ROW]
    if artifacts.exists(folder / "bundle"):
        return [path for name in WORK[1:] if (path := folder / name).exists()]
    found = sorted(path for path in folder.glob("checkpoints/*/checkpoint-*") if artifacts.exists(path))
    return sorted(found, key=lambda path: path.name)[-1:]


def pack(folders: Sequence[Path], state: Path) -> None:
    """Replace the state: new parts, then state.json, then the old parts go."""
    state.mkdir(parents=True, exist_ok=True)
    parts = {}
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as tar:
            for folder in folders:
                for path in needed(folder):
                    tar.add(path, f"{folder.name}/{path.relative_to(folder)}")
        whole.seek(0)
        while shard := whole.read(SHARD):
            digest = hashlib.sha256(shard).hexdigest()
            name = f"state-{len(parts):03d}-{digest[:12]}"
            artifacts.atomic_write_bytes(state / name, shard)
            parts[name] = digest
    artifacts.atomic_write_bytes(state / "state.json", json.dumps(parts, indent=1).encode())
    for old in state.glob("state-*"):
        if old.name not in parts:
            old.unlink()


def unpack(folders: Sequence[Path], state: Path) -> None:
    """Fill the run folders in which nothing was done yet. Raises ArtifactError for a damaged state."""
    fresh = [folder for folder in folders if not any((folder / name).exists() for name in WORK)]
    if not fresh or not (state / "state.json").exists():
        return
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile() as whole:
        for name, digest in artifacts.load_json(state / "state.json").items():
            file = state / Path(name).name
            shard = file.read_bytes() if file.exists() else b""
            if hashlib.sha256(shard).hexdigest() != digest:
                raise ArtifactError(f"{file} is missing or damaged", hint="delete the state folder to start again")
            whole.write(shard)
        whole.seek(0)
        with tarfile.open(fileobj=whole, mode="r:") as tar:
            tar.extractall(place, filter="data")
        for folder in fresh:
            for name in WORK:
                if (kept := Path(place) / folder.name / name).exists():
                    shutil.move(kept, folder / name)


# --- the call ----------------------------------------------------------------------------------------------


def prepared(runs: Path, only: str | None) -> list[Path]:
    """The prepared run folders in name order. Raises ConfigError if there is none."""
    found = [file.parent for file in sorted(runs.glob(f"{only or '*'}/recipe.json"))]
    found = [folder for folder in found if all(artifacts.exists(folder / name) for name in PREPARED)]
    if not found:
        raise ConfigError(f"no prepared run {only or ''} in {runs}", hint="see --help for how to prepare one")
    return found


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of prepared run folders")
    parser.add_argument("--only", help="only the run folder of this name")
    parser.add_argument("--seconds", type=float, default=520, help="stop after so many seconds (default 520)")
    parser.add_argument("--state", type=Path, help="keep here what a fresh machine needs to go on")
    parser.add_argument("--rows", type=Path, default=Path("rows.jsonl"), help="append result rows to this file")
    parser.add_argument("--workers", type=int, default=0, help="processes that build training batches")
    parser.add_argument("--git", help="commit of this tree, noted in the rows where there is no .git")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, clock: Callable[[], float] = time.monotonic) -> int:
    """Go on with every run until all have a row or the seconds are used up."""
    options = parsed(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("genrec").setLevel(logging.INFO)
    budget, everything = Budget(options.seconds, clock), prepared(options.runs, None)
    if options.state:
        unpack(everything, options.state)
    try:
        for folder in prepared(options.runs, options.only):
            if figure_of(folder) in written(options.rows):
                continue
            if (folder / ROW).exists():  # from the state of a machine whose rows are not here
                append(options.rows, artifacts.load_json(folder / ROW))
                continue
            log.info("%s", folder.name)
            advance(folder, options, budget)
    except (Paused, TrainingPaused) as paused:
        print(f"{paused}; run the same command to go on", file=sys.stderr)
        return PAUSED
    finally:
        if options.state:
            pack(everything, options.state)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(PAUSED))  # outside of training, which handles it itself
    try:
        sys.exit(main())
    except GenrecError as error:
        sys.exit(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))
