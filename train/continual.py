"""Teach a trained recommender the items that were appended to its catalog, without forgetting the old ones.

First:      genrec run train/pipelines/demo.yaml --out runs/demo
            genrec append runs/demo --items new.jsonl --out runs/demo-2
Then:       python train/continual.py runs/demo-2 train/continual/replay.yaml
With a log: python train/continual.py runs/demo-2 train/continual/replay.yaml --log learn.csv --ask measure.csv
Change:     python train/continual.py runs/demo-2 train/continual/replay.yaml --set continual.steps=400
In pieces:  python train/continual.py runs/demo-2 train/continual/replay.yaml --max-seconds 540  (until it exits with 0)
Two GPUs:   torchrun --standalone --nproc-per-node 2 train/continual.py runs/demo-2 train/continual/replay.yaml

Reads ``bundle/``, ``catalog/`` and ``embeddings/`` of the version, and ``split/`` of the run that it comes from. Writes
``continual/`` (or ``--out``): ``checkpoints/``, ``training/`` (the curve and the figures), ``eval/`` (each question
before and after) and, if old items did not suffer, ``bundle/``: the new recommender. The version's own bundle stays.

Exit code: 0 = trained and kept, 75 = stopped before the end by a signal or --max-seconds, 1 = error, 3 = not kept: old
items lost more than the tolerance, or new ones are found less often, and no bundle was written.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from pathlib import Path

from genrec import recipes
from genrec.errors import GenrecError, TrainingPaused
from genrec.pipeline.continual_inputs import ContinualPaths
from genrec.pipeline.continual_stage import ContinualRecipe, continual_stage
from genrec.training.processes import leave_process_group

PAUSED, NOT_KEPT = 75, 3


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", type=Path, help="a folder of `genrec append`, with a bundle")
    parser.add_argument("recipe", type=Path, help="a YAML file like train/continual/replay.yaml")
    parser.add_argument("--run", type=Path, help="the run with the split (default: the one the version comes from)")
    parser.add_argument("--log", type=Path, help="events with new items to learn from: user_id,item_id,timestamp")
    parser.add_argument("--ask", type=Path, help="other such events, to measure new items by")
    parser.add_argument("--out", type=Path, help="where results go (default: VERSION/continual)")
    parser.add_argument("--base", type=Path, help="the pretrained model of an adapter, where it has moved")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change a value of the recipe")
    parser.add_argument("--max-seconds", type=float, help="stop, with a checkpoint, after so many seconds")
    return parser.parse_args()


def main() -> int:
    """Adapt, measure, keep or not."""
    options = parsed()
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("genrec").setLevel(logging.INFO if first else logging.WARNING)

    recipe = recipes.load(options.recipe, ContinualRecipe, options.set).value
    if options.max_seconds is not None:
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, max_seconds=options.max_seconds))
    paths = ContinualPaths.of(
        options.version, run=options.run, out=options.out, log=options.log, ask=options.ask, base=options.base
    )
    try:
        outcome = continual_stage(paths, recipe)
    except TrainingPaused as paused:
        if first:
            print(f"{paused}; run the same command to go on", file=sys.stderr)
        return PAUSED
    finally:
        leave_process_group()
    if outcome is None:
        return 0
    print(outcome.summary())
    print(f"bundle: {paths.out / 'bundle'}" if outcome.kept else "not kept: no bundle was written")
    return 0 if outcome.kept else NOT_KEPT


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GenrecError as error:
        sys.exit(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))
