"""Train a model that predicts all parts of an item at once, on a prepared run folder, and evaluate it.

Prepare:   genrec run train/pipelines/demo.yaml --out runs/demo --until embed
Train:     python train/parallel.py runs/demo train/parallel/setrec.yaml          (or recgpt.yaml, rpg.yaml)
Change:    python train/parallel.py runs/demo train/parallel/rpg.yaml --set train.epochs=20 --set tokenizer.n_levels=32
In pieces: python train/parallel.py runs/demo train/parallel/setrec.yaml --max-seconds 540    (until it exits with 0)

The run folder needs ``catalog/``, ``split/`` and ``embeddings/`` (and ``sasrec/`` for ``collaborative: sasrec``). One
process trains. Written beside them, into ``parallel-<method>/`` or ``--out``: ``item_tokenizer/``, ``slots/`` or
``codes/``, ``checkpoints/``, ``bundle/`` and ``eval/``. What is finished is read; a killed training goes on from its
newest complete checkpoint.

Exit code: 0 = trained and evaluated, 75 = stopped before the end by a signal or --max-seconds, 1 = error.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

from genrec import recipes
from genrec.errors import GenrecError, TrainingPaused
from genrec.pipeline.parallel_stages import ParallelRecipe, evaluate_stage, tokenize_parallel, train_stage

PAUSED = 75


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder, prepared by `genrec run ... --until embed`")
    parser.add_argument("recipe", type=Path, help="a YAML file like train/parallel/setrec.yaml")
    parser.add_argument("--out", type=Path, help="where results go (default: RUN/parallel-<method>)")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change a value of the recipe")
    parser.add_argument("--max-seconds", type=float, help="stop, with a checkpoint, after so many seconds")
    return parser.parse_args()


def main() -> int:
    """Identifiers, training, evaluation."""
    options = parsed()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("genrec").setLevel(logging.INFO)

    recipe = recipes.load(options.recipe, ParallelRecipe, options.set).value
    if options.max_seconds is not None:
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, max_seconds=options.max_seconds))
    out = options.out or options.run / f"parallel-{recipe.method}"
    tokenize_parallel(options.run, out, recipe)
    try:
        recommender = train_stage(options.run, out, recipe)
    except TrainingPaused as paused:
        print(f"{paused}; run the same command to go on", file=sys.stderr)
        return PAUSED
    print(evaluate_stage(options.run, out, recipe, recommender).summary())
    print(f"bundle: {out / 'bundle'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GenrecError as error:
        sys.exit(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))
