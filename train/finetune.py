"""Train the generative model of a prepared run folder: on this CPU, one GPU, or several.

Prepare, on any machine:     genrec run train/pipelines/beauty.yaml --data DATA --out runs/beauty --until tokenize
One process:                 python train/finetune.py runs/beauty
Two GPUs (or CPU processes): torchrun --standalone --nproc-per-node 2 train/finetune.py runs/beauty
With accelerate (GPUs):      accelerate launch --num_processes 2 train/finetune.py runs/beauty
In pieces of nine minutes:   python train/finetune.py runs/beauty --max-seconds 540   (again, until it exits with 0)
Then, where you prepared:    genrec run train/pipelines/beauty.yaml --data DATA --out runs/beauty

The folder needs ``recipe.json``, ``split/``, ``codes/`` and ``index/`` only (with ``catalog/`` the bundle can print
titles), so it can be copied to a machine that has torch, transformers, accelerate, numpy, scipy, scikit-learn,
safetensors, tqdm and PyYAML, but neither pyarrow nor pydantic. (A recipe with ``n_user_tokens`` also needs
``interactions/``, for the ids of the users, and pyarrow to read them.) It writes ``checkpoints/``, ``training/`` (the
curve) and ``bundle/``. A killed run goes on from its newest complete checkpoint when started again.

On a CPU use torchrun for several processes: ``accelerate launch --cpu --num_processes 2`` starts a single one, and
``accelerate launch --multi_gpu --num_processes 2``, in spite of its name, two.
From a source tree that is not installed, put its root on the path: ``PYTHONPATH=. python train/finetune.py RUN``.

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
from genrec.errors import GenrecError, TrainingPaused
from genrec.pipeline.model_stages import train
from genrec.pipeline.recipe import PipelineRecipe
from genrec.training.processes import leave_process_group

PAUSED = 75


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder, prepared by `genrec run ... --until tokenize`")
    parser.add_argument("--max-seconds", type=float, help="stop, with a checkpoint, after so many seconds")
    parser.add_argument("--workers", type=int, help="processes that build batches")
    return parser.parse_args()


def main() -> int:
    """Read the recipe, train, say how it ended."""
    options = parsed()
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("genrec").setLevel(logging.INFO if first else logging.WARNING)

    sys.path.append(str(Path.cwd()))  # for tasks and item tokenizers of one's own
    recipe = recipes.from_dict(PipelineRecipe, load_json(options.run / "recipe.json"))
    given = {"max_seconds": options.max_seconds, "n_workers": options.workers}
    how = dataclasses.replace(recipe.train, **{name: value for name, value in given.items() if value is not None})
    try:
        train(options.run, dataclasses.replace(recipe, train=how))
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
