"""Trials on Amazon Beauty: settings of SASRec and of the decoder, the choice made on validation alone.

    python benchmarks/trials.py --data DATA                  # all; those that are finished are only read
    python benchmarks/trials.py --data DATA --model decoder
    python benchmarks/trials.py --data DATA --model sasrec --trial 4 --trial 5   # these; other rows of the log stay
    python benchmarks/trials.py --data DATA --read           # run nothing: read the trials that are in runs/

Permutation 0 of the ties, seed 0. Every trial may spend 60 CPU-minutes of training. It is judged by NDCG@10 on
the validation targets of all users, seen items excluded; test targets are not looked at. The log is
benchmarks/results/trials.json, with what each trial was trained with; the pipelines hold the chosen settings.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import real_data
from real_data import bring_up_to_date, read_json, training
from run import RESULTS, git_state, machine

from genrec import artifacts
from genrec.evaluation.settings import EvalSettings

BUDGET = 60.0
STAGE = {"sasrec": "sasrec", "decoder": "train"}
ARTIFACT = {"sasrec": "sasrec", "decoder": "bundle"}
TRIALS: dict[str, list[list[str]]] = {  # changes to beauty.yaml
    "sasrec": [
        [],
        ["sasrec.label_smoothing=0"],
        ["sasrec.label_smoothing=0", "sasrec.dropout=0.4"],
        ["sasrec.label_smoothing=0", "sasrec.learning_rate=1e-3"],
        ["sasrec.dim=64"],
        ["sasrec.dim=192"],
        ["sasrec.n_layers=1"],
        ["sasrec.n_layers=3"],
    ],
    "decoder": [
        [],
        ["tokenizer.balance=none"],
        ["tokenizer.balance=none", "tokenizer.n_levels=3", "tokenizer.level_size=256"],
        ["tokenizer.balance=none", "train.softmax=level"],
    ],
}


def judge(run: Path, model: str, rule: EvalSettings) -> dict[str, float]:
    """Recall@10 and NDCG@10 of the trained model on the validation targets of all users."""
    from genrec.baselines.sasrec import SasRec
    from genrec.data.splits import Split
    from genrec.evaluation.run import evaluate
    from genrec.models.bundle import load_bundle

    trained: Any = SasRec.load(run / "sasrec") if model == "sasrec" else load_bundle(run / "bundle").recommender
    report = evaluate(trained, Split.load(run / "split").queries("valid"), settings=rule)
    return {name: float(report.mean(name)) for name in ("recall@10", "ndcg@10")}


def scores(run: Path, model: str) -> dict[str, float]:
    """What :func:`judge` found, kept beside the model until the model, the split or the rule is another one."""
    rule = EvalSettings(ks=(10,), n_beams=20, n_bootstrap=0)
    read = {name: artifacts.read(run / name).digest for name in ("split", ARTIFACT[model])}
    judged = {"artifacts": read, "rule": asdict(rule) | {"ks": list(rule.ks)}}
    kept = run / f"validation-{model}.json"
    found = read_json(kept) if kept.exists() else {}
    if found.get("judged") != judged:
        found = {"judged": judged, "scores": judge(run, model, rule)}
        kept.write_text(json.dumps(found, indent=1) + "\n")
    return dict(found["scores"])


def trial(data: Path, model: str, number: int, *, read: bool = False) -> dict[str, Any]:
    """One trial, as a row of the log; ``read``: of a run that is there already."""
    changes = TRIALS[model][number]
    stage = STAGE[model]
    # the pipeline as it is: the run that the quality suite tests
    name = f"trials/{model}-{number}" if changes else "quality/beauty-neutral-decoder-0"
    settings = ("seed=0", "split.ties=neutral", *changes)
    if read:
        run = real_data.RUNS / name
        check_recipe(run, model, settings)
    else:
        run = bring_up_to_date(data, "beauty.yaml", "amazon-beauty-2014", name, *settings, until=stage)
    row = {"model": model, "trial": number, "settings": changes, **scores(run, model), **training(run, stage)}
    return {**row, "machine": machine(), "git": git_state()}


def check_recipe(run: Path, model: str, settings: tuple[str, ...]) -> None:
    """End with a message unless the run was made with the settings of the trial."""
    from genrec import recipes
    from genrec.item_tokenizers.registry import settings_class
    from genrec.pipeline.recipe import PipelineRecipe
    from genrec.pipeline.recipe_files import load_recipe

    wanted = load_recipe(real_data.ROOT / "train" / "pipelines" / "beauty.yaml", settings).value
    kept = recipes.from_dict(PipelineRecipe, read_json(run, "recipe.json"))
    parts = ("seed", "split", *(("sasrec",) if model == "sasrec" else ("embeddings", "tokenizer", "model", "train")))
    for name in parts:
        both = [getattr(recipe, name) for recipe in (wanted, kept)]
        if name == "tokenizer":
            both = [recipes.validate(each, settings_class(each["kind"])) for each in both]
        if both[0] != both[1]:
            sys.exit(f"{run} was made with other settings ({name}): leave out --read")


def choose(rows: list[dict[str, Any]]) -> None:
    """Mark the best row of each model within the budget as chosen; none where every trial is over it."""
    best: dict[str, dict[str, Any]] = {}
    for row in (row for row in rows if row["cpu_minutes"] <= BUDGET):
        best[row["model"]] = max(best.get(row["model"], row), row, key=lambda r: r["ndcg@10"])
    for row in rows:
        row["chosen"] = row is best.get(row["model"])
    for model in sorted({row["model"] for row in rows} - set(best)):
        print(f"{model}: none is chosen, every trial took more than {BUDGET:g} CPU-minutes", file=sys.stderr)


def main() -> None:
    """Run the trials and write the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("GENREC_DATA"), help="folder of the real data")
    parser.add_argument("--read", action="store_true", help="run nothing: read the trials that are in runs/")
    parser.add_argument("--model", choices=sorted(TRIALS), help="only this model")
    parser.add_argument("--trial", type=int, action="append", help="only the trial of this number (may be repeated)")
    args = parser.parse_args()
    models = [args.model] if args.model else sorted(TRIALS)
    file = RESULTS / "trials.json"
    numbers = [(model, n) for model in models for n in range(len(TRIALS[model])) if n in (args.trial or [n])]
    fresh = {(model, n): trial(args.data, model, n, read=args.read) for model, n in numbers}
    log = read_json(file) if file.exists() else {"trials": []}
    found = {(row["model"], row["trial"]): row for row in log["trials"]} | fresh
    rows = [found[key] for key in sorted(found) if key[1] < len(TRIALS[key[0]])]
    choose(rows)
    command = "python benchmarks/trials.py --data DATA"
    whole = {"command": command, "budget_cpu_minutes": BUDGET, "trials": rows}
    file.write_text(json.dumps(whole, indent=1) + "\n")
    for row in sorted(rows, key=lambda r: (r["model"], -r["ndcg@10"])):
        mark = "*" if row["chosen"] else " "
        found = f"recall@10 {row['recall@10']:.4f}  ndcg@10 {row['ndcg@10']:.4f}"
        print(f"{mark} {row['model']:<8} {found}  {row['cpu_minutes']:5.1f} min  {' '.join(row['settings'])}")


if __name__ == "__main__":
    main()
