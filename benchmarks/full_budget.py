"""Full training budgets on Amazon Beauty and Games, on a GPU machine and in pieces: what two cores cannot afford.

Prepare, where genrec and the data are (the name of a run folder names its figure):

    prepare() { genrec run "train/pipelines/$1.yaml" --data "DATA/$2" --out "full/$3" --until tokenize \\
                --set "model=$4" --set train.epochs=$5 --set train.eval_every=$6; }
    prepare beauty amazon-beauty-2014 beauty-t5 '{kind: t5}' 60 10
    cp -r full/beauty-t5 full/beauty-decoder-large     # the same identifiers, not made again
    prepare beauty amazon-beauty-2014 beauty-decoder-large \\
            '{kind: decoder, hidden_size: 256, n_layers: 6, n_heads: 8, d_ff: 688, dropout: 0.3}' 40 4
    prepare games amazon-games-2014-timesplit games-decoder '{kind: decoder}' 24 4

Of each run only recipe.json, split/, codes/ and index/ are read (no user tokens). A run with sasrec among its
baselines has a second row, of SASRec on the same split under the same rule (epochs: --set sasrec.epochs=...); of runs
that would train the same SASRec, only the first. Then, on the GPU machine (what train/finetune.py needs, no network),
again until it exits with 0 (75 = go on, 1 = error):

    python benchmarks/full_budget.py --runs full --state state --rows rows.jsonl

A call always gets something done and stops after --seconds: in training with a checkpoint, in evaluation between two
pieces of queries. Keep 80 seconds in hand: the last validation, checkpoint or state may end late. --state keeps what
a bare machine needs to go on, as parts (15 MB at most) of one tar: of an unfinished training the newest checkpoint (16
bytes per weight, 12 with train.eval_every=0), of a finished one the model until its row is written. The rows have
the keys of benchmarks/run.py; what has its row is skipped.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1]))  # last: its folder tokenizers/ is not the package

from run import Figure, Measured, git_state, machine, row_of

from genrec import artifacts, recipes
from genrec.baselines.sasrec import SasRec
from genrec.data.splits import Split
from genrec.decoding.interface import DenseRecommender, Recommender
from genrec.errors import ArtifactError, ConfigError, GenrecError, TrainingPaused
from genrec.evaluation.run import evaluate
from genrec.metrics.significance import Interval, bootstrap_means
from genrec.models.bundle import load_bundle
from genrec.pipeline.baseline_stages import fit_sasrec, sasrec_trained
from genrec.pipeline.model_stages import train, trained
from genrec.pipeline.recipe import PipelineRecipe

PAUSED = 75
SHARD = 15 * 10**6
FIRST, LARGEST = 16, 1024  # queries in the first piece of a call and in the largest one
WORK = ("checkpoints", "training", "bundle", "full_budget", "sasrec_checkpoint")
FIGURE = "full_budget_{}_recall10"
log = logging.getLogger("genrec.full_budget")


@dataclass(frozen=True)
class Job:
    """What gives one row: the generative model of a run folder, or the SASRec of its split."""

    folder: Path
    sasrec: bool = False

    @property
    def figure(self) -> str:
        """The name of its row."""
        return FIGURE.format(self.folder.name + "_sasrec" * self.sasrec)

    @property
    def row(self) -> Path:
        """Where its row is kept."""
        return self.folder / "full_budget" / ("sasrec.json" if self.sasrec else "row.json")


@dataclass(frozen=True)
class Trained:
    """A trained model, where its values are kept, and what its row says: its settings, what its training took."""

    model: Recommender | DenseRecommender
    pieces: Path
    identifier_of: npt.NDArray[np.integer] | None
    settings: Any
    spent: str


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


def loaded(job: Job, recipe: PipelineRecipe) -> Trained:
    """The finished model of a job."""
    if job.sasrec:
        model, same, settings = SasRec.load(job.folder / "sasrec"), None, asdict(recipe.sasrec)
        manifest = artifacts.read(job.folder / "sasrec")
        digest, cost, last = manifest.digest, manifest.meta, manifest.meta["log"][-1]
    else:
        bundle = load_bundle(job.folder / "bundle", device="cuda" if torch.cuda.is_available() else "cpu")
        model, same, settings = bundle.recommender, bundle.recommender.codes.collision_ids(), asdict(recipe.model)
        digest, cost = bundle.manifest.digest, artifacts.read(job.folder / "training", kind="training").meta
        last = artifacts.load_json(job.folder / "training" / "log.json")[-1]
    key = json.dumps([digest, recipes.to_json(replace(recipe.evaluate, n_bootstrap=0))], sort_keys=True)
    pieces = job.folder / "full_budget" / hashlib.sha256(key.encode()).hexdigest()[:16]
    spent = f"{last['epoch']:g} epochs, {last['step']} steps, {cost['wall_seconds']:.0f} s of training"
    return Trained(model, pieces, same, settings, spent)


def measured(job: Job, recipe: PipelineRecipe, made: Trained, budget: Budget) -> dict[str, Interval]:
    """Recall@10 and NDCG@10 as the evaluate stages find them, but in pieces that are kept, and on the GPU."""
    cut = Split.load(job.folder / "split")
    queries, history = cut.queries("test"), cut.train()
    rule, pieces, same = replace(recipe.evaluate, n_bootstrap=0), made.pieces, made.identifier_of
    start = max((artifacts.read(piece).meta["stop"] for piece in pieces.glob("[0-9]*")), default=0)
    size, pace = FIRST, 0.0
    while start < len(queries):
        size = min(size, len(queries) - start)
        budget.grant(1.3 * pace * size)
        began = budget.clock()
        asked = queries.take(np.arange(start, start + size))
        report = evaluate(made.model, asked, settings=rule, train=history, identifier_of=same, progress=False)
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


def result_row(
    job: Job, recipe: PipelineRecipe, made: Trained, found: dict[str, Interval], git: str | None
) -> dict[str, Any]:
    """The row of a finished job."""
    main = found["recall@10"]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    seen = f"seen {'excluded' if recipe.evaluate.exclude_seen else 'kept'}, ties {recipe.split.ties}"
    spread: dict[str, Any] = {name: i.mean for name, i in found.items() if i.n}
    spread["interval"] = [bound for bound in (main.low, main.high) if not np.isnan(bound)]
    beams = "" if job.sasrec else f", {recipe.evaluate.n_beams} beams"
    budget = f"{made.spent} on {device}; item-exact, {seen}, {main.n} test queries{beams}"
    value = Measured(main.mean, spread, budget, note=json.dumps(made.settings | {"seed": recipe.seed}))
    row = row_of(Figure(job.figure, "recall@10", lambda _: value), value, "")
    where = {"machine": f"{machine()}, {device}", "git": git or git_state() or "unknown"}
    return row | {"command": shlex.join(["python", *sys.argv])} | where


def advance(job: Job, options: argparse.Namespace, budget: Budget) -> dict[str, Any]:
    """Train and evaluate; returns the row. Raises TrainingPaused when the seconds are used up."""
    if job.row.exists():  # from the state of a machine whose rows are not here
        return dict(artifacts.load_json(job.row))
    folder, recipe = job.folder, read_recipe(job.folder)
    if recipe.n_user_tokens:
        raise ConfigError(f"{folder}: n_user_tokens: expected 0 (user ids need pyarrow), got {recipe.n_user_tokens}")
    if job.sasrec and not sasrec_trained(folder, recipe):
        fit_sasrec(folder, recipe, pause_after=budget.grant(20))
    elif not job.sasrec and not trained(folder, recipe):
        how = replace(recipe.train, max_seconds=budget.grant(20), n_workers=options.workers)
        train(folder, replace(recipe, train=how))
    made = loaded(job, recipe)
    found = result_row(job, recipe, made, measured(job, recipe, made, budget), options.git)
    artifacts.atomic_write_bytes(job.row, json.dumps(found).encode())
    shutil.rmtree(made.pieces)
    return found


def read_recipe(folder: Path) -> PipelineRecipe:
    """The recipe of a prepared run."""
    return recipes.from_dict(PipelineRecipe, artifacts.load_json(folder / "recipe.json"))


def jobs(folders: Sequence[Path]) -> list[Job]:
    """The model of every run, and SASRec where it is among the baselines: once, where several would train the same."""
    found, known = [], set()
    for folder in folders:
        found.append(Job(folder))
        recipe = read_recipe(folder)
        parts = [artifacts.read(folder / "split", verify=False).digest, recipe.seed]
        key = json.dumps([*parts, recipes.to_json(recipe.sasrec), recipes.to_json(recipe.evaluate)], sort_keys=True)
        if "sasrec" in recipe.baselines and key not in known:
            known.add(key)
            found.append(Job(folder, sasrec=True))
    return found


def needed(folder: Path) -> list[Path]:
    """What must be kept of a run folder to go on."""
    found = [folder / "full_budget", folder / "training"]
    if not Job(folder).row.exists():
        steps = [path for path in folder.glob("checkpoints/*/checkpoint-*") if artifacts.exists(path)]
        newest = sorted(steps, key=lambda path: path.name)[-1:]
        found += [folder / "bundle"] if artifacts.exists(folder / "bundle") else newest
    if not Job(folder, sasrec=True).row.exists():
        paused = folder / "sasrec_checkpoint"
        found.append(paused if artifacts.exists(paused) else folder / "sasrec")
    return [path for path in found if path.exists()]


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
        for kept in (Path(place, folder.name, name) for folder in fresh for name in (*WORK, "sasrec")):
            if kept.exists():
                own = folders[0].parent / kept.relative_to(place)
                shutil.rmtree(own, ignore_errors=True)  # SASRec may have been trained in preparing
                shutil.move(kept, own)


def go_on(todo: Sequence[Job], options: argparse.Namespace, budget: Budget) -> None:
    """Append the rows that are missing, one job after the other."""
    for job in todo:
        lines = options.rows.read_text().splitlines() if options.rows.exists() else []
        if job.figure in {json.loads(line)["figure"] for line in lines}:
            continue
        found = advance(job, options, budget)
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
    chosen = [job for job in jobs(folders) if options.only in (None, job.folder.name)]
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
