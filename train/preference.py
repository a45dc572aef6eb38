"""Teach a trained recommender preferences: DPO or GRPO on its own constrained lists, and compare before and after.

First:     genrec run train/pipelines/demo.yaml --out runs/demo
Then:      python train/preference.py runs/demo train/preference/dpo.yaml                   (or grpo.yaml)
Change:    python train/preference.py runs/demo train/preference/dpo.yaml --set method.beta=0.5 --set train.max_steps=9
In pieces: python train/preference.py runs/demo train/preference/dpo.yaml --max-seconds 540  (until it exits with 0)
A bundle:  python train/preference.py BUNDLE train/preference/dpo.yaml --split runs/demo/split --out tuned
Two GPUs:  torchrun --standalone --nproc-per-node 2 train/preference.py runs/demo train/preference/dpo.yaml

Reads ``bundle/`` and ``split/`` of the run folder (and ``interactions/``, where the vocabulary has user tokens). Writes
``preference-dpo/`` (or ``--out``): ``checkpoints/``, ``training/`` (the curve), ``bundle/`` (the new recommender; the
old one stays as it is) and ``eval/before``, ``eval/after`` on the test part. A bundle of adapters stays one. What is
finished is read; a killed training goes on from its newest complete checkpoint.

Exit code: 0 = trained and compared, 75 = stopped before the end by a signal or --max-seconds, 1 = error, also where an
alarm stopped the training: then no bundle is written.
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
from genrec.pipeline.preference_stage import PreferencePaths, PreferenceRecipe, compare_stage, preference_stage
from genrec.training.processes import leave_process_group

PAUSED = 75


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="run folder with a trained model, or a bundle")
    parser.add_argument("recipe", type=Path, help="a YAML file like train/preference/dpo.yaml")
    parser.add_argument("--split", type=Path, help="the split to learn from (default: the run's)")
    parser.add_argument("--out", type=Path, help="where results go (default: RUN/preference-<method>)")
    parser.add_argument("--base", type=Path, help="the pretrained model of an adapter, where it has moved")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change a value of the recipe")
    parser.add_argument("--max-seconds", type=float, help="stop, with a checkpoint, after so many seconds")
    return parser.parse_args()


def main() -> int:
    """Train, save, compare."""
    options = parsed()
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("genrec").setLevel(logging.INFO if first else logging.WARNING)

    recipe = recipes.load(options.recipe, PreferenceRecipe, options.set).value
    if options.max_seconds is not None:
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, max_seconds=options.max_seconds))
    kind = recipe.method.kind
    paths = PreferencePaths.of(options.source, kind, split=options.split, out=options.out, base=options.base)
    try:
        bundle = preference_stage(paths, recipe)
    except TrainingPaused as paused:
        if first:
            print(f"{paused}; run the same command to go on", file=sys.stderr)
        return PAUSED
    finally:
        leave_process_group()
    if first and bundle is not None:
        for report in compare_stage(paths, recipe, bundle):
            print(report.summary())
        print(f"bundle: {paths.out / 'bundle'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GenrecError as error:
        sys.exit(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))
