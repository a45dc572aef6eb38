"""Align a pretrained language model with the catalog of a prepared run folder: item tokens, adapters, tasks.

Prepare, on any machine:     genrec run train/pipelines/beauty-lcrec.yaml --data DATA --out runs/lcrec --until tokenize
                             (--set model.path=FOLDER_OR_HUB_NAME for another language model)
One process:                 python train/align_lora.py runs/lcrec
The same by accelerate:      accelerate launch --config_file train/launch/one.yaml train/align_lora.py runs/lcrec
Two GPUs:                    accelerate launch --config_file train/launch/ddp.yaml train/align_lora.py runs/lcrec
In pieces of nine minutes:   python train/align_lora.py runs/lcrec --max-seconds 540   (again, until it exits with 0)
Then, where you prepared:    genrec run train/pipelines/beauty-lcrec.yaml --data DATA --out runs/lcrec

The steps are those of the stage ``train`` of `genrec run`, in its order, so that each can be looked at or replaced. The
recipe in the run folder says which language model, which adapters and which tasks. The folder needs ``recipe.json``,
``catalog/``, ``split/``, ``codes/`` and ``index/``; it gets ``checkpoints/``, ``training/`` (the curve) and ``bundle/``
(adapter, item rows, prompt, catalog, index). A killed run goes on from its newest complete checkpoint.

Exit code: 0 = trained, 75 = stopped before the end by a signal or --max-seconds (start again to go on), 1 = error.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from pathlib import Path

from genrec import recipes
from genrec.artifacts import load_json
from genrec.errors import ConfigError, GenrecError, TrainingPaused
from genrec.pipeline import alignment, model_stages
from genrec.pipeline.recipe import PipelineRecipe
from genrec.training.processes import leave_process_group

PAUSED = 75


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder, prepared by `genrec run ... --until tokenize`")
    parser.add_argument("--max-seconds", type=float, help="stop, with a checkpoint, after so many seconds")
    return parser.parse_args()


def recipe_of(options: argparse.Namespace) -> PipelineRecipe:
    """The recipe of the run folder; ConfigError where it has no tasks or its language model is not there."""
    recipe = recipes.from_dict(PipelineRecipe, load_json(options.run / "recipe.json"))
    if recipe.alignment is None:
        raise ConfigError(f"{options.run}: its recipe has no block `alignment`", hint="train/finetune.py trains it")
    alignment.check(recipe)
    if options.max_seconds is None:
        return recipe
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, max_seconds=options.max_seconds))


def align(run: Path, recipe: PipelineRecipe) -> None:
    """The sequence."""
    # 1. the model's own text tokenizer, with a token for every code of the identifiers
    vocabulary = model_stages.text_vocabulary(run, recipe)
    # 2. the pretrained weights, frozen; a row for every new token, and adapters, which are trained
    model = model_stages.language_model(run, recipe, vocabulary)
    # 3. training histories, texts of the catalog, the mixture of tasks, the prompt that the model will be asked with
    made = model_stages.ready(run, recipe, model, vocabulary)
    # 4. every example's loss is on its target; validation searches the catalog with that prompt
    result = model_stages.fit(run, recipe, made)
    # 5. what was trained, and all that is needed to ask it
    if result.main_process:
        model_stages.save(run, recipe, made, result)


def main() -> int:
    """Train unless it is done, and say how it ended."""
    options = parsed()
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("genrec").setLevel(logging.INFO if first else logging.WARNING)
    sys.path.append(str(Path.cwd()))  # a task of your own, named module:function

    recipe = recipe_of(options)
    try:
        if not model_stages.trained(options.run, recipe):
            align(options.run, recipe)
    except TrainingPaused as paused:
        if first:
            print(f"{paused}; run the same command to go on", file=sys.stderr)
        return PAUSED
    finally:
        leave_process_group()
    if first:
        print(f"bundle: {options.run / 'bundle'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GenrecError as error:
        sys.exit(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))
