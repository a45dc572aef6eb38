"""Full training budgets on Amazon Beauty and Games, on a GPU machine and in pieces: what two cores cannot afford.

Prepare, where genrec and the data are (the name of a run folder names its figure):

    prepare() { genrec run "train/pipelines/$1.yaml" --data "DATA/$2" --out "full/$3" --until tokenize \\
                --set "model=$4" --set train.epochs=$5 --set train.eval_every=$6; }
    prepare beauty amazon-beauty-2014 beauty-t5 '{kind: t5}' 60 10
    cp -r full/beauty-t5 full/beauty-decoder-large     # the same identifiers, not made again
    prepare beauty amazon-beauty-2014 beauty-decoder-large \\
            '{kind: decoder, hidden_size: 256, n_layers: 6, n_heads: 8, d_ff: 688, dropout: 0.3}' 40 4
    prepare games amazon-games-2014-timesplit games-decoder '{kind: decoder}' 24 4

Of each run only recipe.json, split/, codes/ and index/ are read (no user tokens). Then, on the GPU machine (what
train/finetune.py needs, no network), again until it exits with 0 (75 = go on, 1 = error):

    python benchmarks/full_budget.py --runs full --state state --rows rows.jsonl

A call always gets something done and stops after --seconds: in training with a checkpoint, in evaluation between two
pieces of queries. Keep 80 seconds in hand: the last validation, checkpoint or state may end late. --state keeps what
a bare machine needs to go on, as parts (15 MB at most) of one tar: of an unfinished training the newest checkpoint (16
bytes per weight, 12 with train.eval_every=0), of a finished one the bundle until its row is written. The rows have
the keys of benchmarks/run.py; a run that has its row is skipped.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1]))  # last: its folder tokenizers/ is not the package

from run import Figure, Measured, git_state, machine, row_of

from genrec import artifacts, recipes
from genrec.data.splits import Split
from genrec.errors import ArtifactError, ConfigError, GenrecError
from genrec.evaluation.run import evaluate
from genrec.metrics.significance import Interval, bootstrap_means
from genrec.models.bundle import load_bundle
from genrec.pipeline.model_stages import TrainingPaused, train, trained
from genrec.pipeline.recipe import PipelineRecipe

PAUSED = 75
SHARD = 15 * 10**6
FIRST, LARGEST = 16, 1024  # queries in the first piece of a call and in the largest one
WORK = ("checkpoints", "training", "bundle", "full_budget")
ROW = Path("full_budget", "row.json")
FIGURE = "full_budget_{}_recall10"
log = logging.getLogger("genrec.full_budget")


class Budget:
    """The seconds of one call. Its first work is always granted, so every call gets on."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.clock, self.end, self.worked = clock, clock() + seconds, False

    def grant(self, needed: float) -> float:
        """Seconds left for work expected to take ``needed``; raises TrainingPaused if they are too few."""
        left = self.end - self.clock()
        if self.worked and left <= needed:
            raise TrainingPaused(f"{max(left, 0):.0f} s are left, the next piece needs {needed:.0f} s")
        self.worked = True
        return max(left, 1e-3)


def measured(folder: Path, recipe: PipelineRecipe, budget: Budget) -> dict[str, Interval]:
    """Recall@10 and NDCG@10 as the evaluate stage finds them, but in pieces that are kept, and on the GPU."""
    cut = Split.load(folder / "split")
    queries, history = cut.queries("test"), cut.train()
    bundle = load_bundle(folder / "bundle", device="cuda" if torch.cuda.is_available() else "cpu")
    rule = replace(recipe.evaluate, n_bootstrap=0)
    key = json.dumps([bundle.manifest.digest, recipes.to_json(rule)], sort_keys=True).encode()
    pieces = folder / "full_budget" / hashlib.sha256(key).hexdigest()[:16]
    model, same = bundle.recommender, bundle.recommender.codes.collision_ids()
    start = max((artifacts.read(piece).meta["stop"] for piece in pieces.glob("[0-9]*")), default=0)
    size, pace = FIRST, 0.0
    while start < len(queries):
        size = min(size, len(queries) - start)
        budget.grant(1.3 * pace * size)
        began = budget.clock()
        asked = queries.take(np.arange(start, start + size))
        report = evaluate(model, asked, settings=rule, train=history, identifier_of=same, progress=False)
        values = {name: v for name, v in report.values.items() if name.endswith(("recall@10", "ndcg@10"))}
        with artifacts.write(pieces / f"{start:08d}", kind="queries", meta={"stop": start + size}) as draft:
            artifacts.save_arrays(draft.dir / "values.safetensors", values)
        pace, start = (budget.clock() - began) / size, start + size
        log.info("%d of %d queries, %.3f s each", start, len(queries), pace)
        size = min(2 * size, LARGEST)
    found = [artifacts.load_arrays(file) for file in sorted(pieces.glob("[0-9]*/values.safetensors"))]
    names = sorted({name for part in found for name in part})  # a piece without a slice has no value of it
    parts = [[p.get(name, np.full(len(p["recall@10"]), np.nan)) for name in names] for p in found]
    table, n = np.concatenate(parts, axis=1).T, recipe.evaluate.n_bootstrap
    return dict(zip(names, bootstrap_means(table, n_resamples=n, seed=rule.seed), strict=True))


def result_row(folder: Path, recipe: PipelineRecipe, found: dict[str, Interval], git: str | None) -> dict[str, Any]:
    """The row of a finished run."""
    main, cost = found["recall@10"], artifacts.read(folder / "training", kind="training").meta
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    epochs = artifacts.load_json(folder / "training" / "log.json")[-1]["epoch"]
    spent = f"{epochs:g} epochs, {cost['steps']} steps, {cost['wall_seconds']:.0f} s of training on {device}"
    seen = f"seen {'excluded' if recipe.evaluate.exclude_seen else 'kept'}, ties {recipe.split.ties}"
    spread: dict[str, Any] = {name: i.mean for name, i in found.items() if i.n}
    spread["interval"] = [bound for bound in (main.low, main.high) if not np.isnan(bound)]
    budget = f"{spent}; item-exact, {seen}, {main.n} test queries, {recipe.evaluate.n_beams} beams"
    value = Measured(main.mean, spread, budget, note=json.dumps(asdict(recipe.model) | {"seed": recipe.seed}))
    made = row_of(Figure(FIGURE.format(folder.name), "recall@10", lambda _: value), value, "")
    where = {"machine": f"{machine()}, {device}", "git": git or git_state() or "unknown"}
    return made | {"command": shlex.join(["python", *sys.argv])} | where


def advance(folder: Path, options: argparse.Namespace, budget: Budget) -> dict[str, Any]:
    """Train and evaluate; returns the row. Raises TrainingPaused when the seconds are used up."""
    if (folder / ROW).exists():  # from the state of a machine whose rows are not here
        return dict(artifacts.load_json(folder / ROW))
    recipe = recipes.from_dict(PipelineRecipe, artifacts.load_json(folder / "recipe.json"))
    if recipe.n_user_tokens:
        raise ConfigError(f"{folder}: n_user_tokens: expected 0 (user ids need pyarrow), got {recipe.n_user_tokens}")
    if not trained(folder, recipe):
        how = replace(recipe.train, max_seconds=budget.grant(20), n_workers=options.workers)
        train(folder, replace(recipe, train=how))
    found = result_row(folder, recipe, measured(folder, recipe, budget), options.git)
    artifacts.atomic_write_bytes(folder / ROW, json.dumps(found).encode())
    return found


def needed(folder: Path) -> list[Path]:
    """What must be kept of a run folder to go on."""
    if (folder / ROW).exists():
        return [folder / "training", folder / ROW]
    if artifacts.exists(folder / "bundle"):
        return [path for name in WORK[1:] if (path := folder / name).exists()]
    found = [path for path in folder.glob("checkpoints/*/checkpoint-*") if artifacts.exists(path)]
    return sorted(found, key=lambda path: path.name)[-1:]


def pack(folders: Sequence[Path], state: Path) -> None:
    """Replace the state: new parts, then state.json, then the old parts go."""
    state.mkdir(parents=True, exist_ok=True)
    parts = {}
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as tar:
            for path in (path for folder in folders for path in needed(folder)):
                tar.add(path, path.relative_to(folders[0].parent))
        whole.seek(0)
        while shard := whole.read(SHARD):
            digest = hashlib.sha256(shard).hexdigest()
            parts[name := f"state-{len(parts):03d}-{digest[:12]}"] = digest
            artifacts.atomic_write_bytes(state / name, shard)
    artifacts.atomic_write_bytes(state / "state.json", json.dumps(parts, indent=1).encode())
    for old in {file.name for file in state.glob("state-*")} - set(parts):
        (state / old).unlink()


def unpack(folders: Sequence[Path], state: Path) -> None:
    """Fill the run folders in which nothing was done yet. Raises ArtifactError for a damaged state."""
    fresh = [folder for folder in folders if not any((folder / name).exists() for name in WORK)]
    if not fresh or not (state / "state.json").exists():
        return
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile() as whole:
        for name, digest in artifacts.load_json(state / "state.json").items():
            whole.write(shard := (state / Path(name).name).read_bytes())
            if hashlib.sha256(shard).hexdigest() != digest:
                raise ArtifactError(f"{state / name} is damaged", hint="delete the state folder to start again")
        whole.seek(0)
        with tarfile.open(fileobj=whole, mode="r:") as tar:
            tar.extractall(place, filter="data")
        for kept in (Path(place, folder.name, name) for folder in fresh for name in WORK):
            if kept.exists():
                shutil.move(kept, folders[0].parent / kept.relative_to(place))


def go_on(folders: Sequence[Path], options: argparse.Namespace, budget: Budget) -> None:
    """Append the rows that are missing, one run after the other."""
    for folder in folders:
        lines = options.rows.read_text().splitlines() if options.rows.exists() else []
        if FIGURE.format(folder.name) in {json.loads(line)["figure"] for line in lines}:
            continue
        found = advance(folder, options, budget)
        with options.rows.open("a") as out:
            out.write(json.dumps(found) + "\n")
        log.info("%(figure)s %(value).4f", found)


def prepared(runs: Path) -> list[Path]:
    """The run folders that have all that is read; says what the others lack."""
    found = []
    for folder in (file.parent for file in sorted(runs.glob("*/recipe.json"))):
        lacking = [name for name in ("split", "codes", "index") if not artifacts.exists(folder / name)]
        if lacking:
            print(f"skipped {folder}: no complete {', '.join(lacking)}; prepare it (--help)", file=sys.stderr)
        else:
            found.append(folder)
    return found


def main(arguments: Sequence[str] | None = None, clock: Callable[[], float] = time.monotonic) -> int:
    """Unpack, go on until all have a row or the seconds are used up, pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of prepared run folders")
    parser.add_argument("--only", help="only the run folder of this name")
    parser.add_argument("--seconds", type=float, default=520, help="stop after so many seconds (default 520)")
    parser.add_argument("--state", type=Path, help="keep here what a fresh machine needs to go on")
    parser.add_argument("--rows", type=Path, default=Path("rows.jsonl"), help="append result rows to this file")
    parser.add_argument("--workers", type=int, default=0, help="processes that build training batches")
    parser.add_argument("--git", help="commit of this tree, noted in the rows where there is no .git")
    options = parser.parse_args(arguments)
    budget = Budget(options.seconds, clock)
    folders = prepared(options.runs)
    chosen = [folder for folder in folders if options.only in (None, folder.name)]
    if not chosen:
        raise ConfigError(f"{options.runs}: no prepared run {options.only or ''}", hint="--help shows how to make one")
    if options.state:
        unpack(folders, options.state)
    try:
        go_on(chosen, options, budget)
    except TrainingPaused as paused:
        print(f"{paused}; run the same command to go on", file=sys.stderr)
        return PAUSED
    finally:
        if options.state:
            pack(folders, options.state)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(PAUSED))  # outside of training, which handles it itself
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        sys.exit(main())
    except GenrecError as error:
        sys.exit(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))
