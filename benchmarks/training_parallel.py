"""Parallel models on Amazon Beauty, ties neutral, beside the sequential ones: the suite ``training_parallel``.

    python benchmarks/run.py --name training_parallel --data DATA

Item vectors are those of beauty.yaml; the transformer is its decoder and the epochs are its own, so the
budget in samples is that of ``beauty_neutral_decoder_recall10`` (suite quality). Seen items excluded, item-exact, one
permutation of ties, seed 0. Hours on two cores; what is finished is only read, and an interrupted training goes on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from real_data import ROOT, bring_up_to_date, read_json
from run import Figure, Measured, Options

from genrec import recipes
from genrec.pipeline.parallel_stages import ParallelRecipe, evaluate_stage, train_stage
from genrec.pipeline.recipe import PipelineRecipe

METHODS = {"setrec": "setrec", "fsq": "recgpt", "product": "rpg"}
FULL = {
    "setrec": ["collaborative_dim=128", "tokenizer.dim=128", "tokenizer.epochs=40"],
    "recgpt": ["tokenizer.epochs=50"],
    "rpg": ["tokenizer.n_levels=32", "tokenizer.level_size=256"],
}


def recipe_of(method: str, run: Path, changes: tuple[str, ...] = ()) -> ParallelRecipe:
    """The ready recipe of a method with transformer, training and evaluation of a run folder."""
    pipeline = recipes.from_dict(PipelineRecipe, read_json(run, "recipe.json"))
    ready = recipes.load(
        ROOT / "train" / "parallel" / f"{method}.yaml", ParallelRecipe, [*FULL[method], *changes]
    ).value
    train = dataclasses.replace(pipeline.train, softmax="level")
    return dataclasses.replace(ready, model=pipeline.model, train=train, evaluate=pipeline.evaluate, seed=pipeline.seed)


def measured(run: Path, out: Path, recipe: ParallelRecipe) -> Measured:
    """Train (or read) and evaluate on the test part."""
    found = train_stage(run, out, recipe)
    report = evaluate_stage(run, out, recipe, found)
    spent = read_json(out, "bundle", "genrec.json")["parents"]["cpu_seconds"]
    return Measured(
        float(report.mean("recall@10")),
        spread={"ndcg@10": float(report.mean("ndcg@10")), "beta": found.settings.beta},
        budget=f"{recipe.train.epochs} epochs at most, {int(spent) / 60:.1f} CPU-minutes",
        note=f"{recipe.method}: item-exact, seen excluded, ties neutral, seed {recipe.seed}",
    )


def beauty(options: Options, method: str) -> Measured:
    """One method on Beauty."""
    run = bring_up_to_date(options.data, "beauty.yaml", "amazon-beauty-2014", "parallel/beauty-neutral", until="embed")
    return measured(run, run / f"parallel-{method}", recipe_of(method, run))


FIGURES = [
    Figure(f"{name}_beauty_neutral_recall10", "recall@10", lambda o, method=method: beauty(o, method))
    for name, method in METHODS.items()
]
