"""Recall on real data: Amazon Beauty 2014 (leave-one-out) and Games (global time split), item-exact.

Every figure comes from `genrec run` on a ready pipeline, in runs/quality/ (kept: a run that is finished is only
read), with one thread. The data folder (--data or GENREC_DATA) must hold amazon-beauty-2014 and
amazon-games-2014-timesplit in the neutral format. Hours on two cores.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path

import numpy as np
from real_data import bring_up_to_date, cost_text, read_json, rule_text
from run import Figure, Measured, Options

SEEDS = (0, 1, 2)
TABLE = ("recall@5", "recall@10", "recall@20", "ndcg@10", "mrr@10")
BEAUTY = "amazon-beauty-2014"


def _run(options: Options, pipeline: str, data: str, name: str, *overrides: str, until: str | None = None) -> Path:
    """Bring a run up to date and return its folder."""
    return bring_up_to_date(options.data, pipeline, data, f"quality/{name}", *overrides, until=until)


def _mean(run: Path, model: str, metric: str = "recall@10") -> float:
    return float(read_json(run, "eval", model, "report.json")["intervals"][metric]["mean"])


def beauty_run(options: Options, seed: int, *, ties: str = "neutral", model: str = "decoder", until: str) -> Path:
    """A run of the Beauty pipeline: permutation ``seed`` of the ties with seed ``seed``."""
    pipeline = "beauty.yaml" if model == "decoder" else "beauty-t5.yaml"
    name = f"beauty-{ties}-{model}-{seed}"
    return _run(options, pipeline, BEAUTY, name, f"seed={seed}", f"split.ties={ties}", until=until)


def beauty(options: Options, model: str, seeds: tuple[int, ...], stage: str, ties: str = "neutral") -> Measured:
    """Recall@10 of one model on Beauty, mean over permutations of the ties."""
    backbone = "t5" if model == "t5" else "decoder"
    runs = [beauty_run(options, seed, ties=ties, model=backbone, until=stage) for seed in seeds]
    values = [_mean(run, model) for run in runs]
    cost = cost_text(runs[0], {"decoder": "train", "t5": "train", "sasrec": "sasrec"}.get(model, f"evaluate {model}"))
    budget = f"{rule_text(runs, model)}; a run: {cost}"
    spread = {"runs": values, "sd": statistics.stdev(values) if len(values) > 1 else None}
    return Measured(statistics.mean(values), spread=spread, budget=budget)


def best_ratio_to_sasrec(options: Options) -> Measured:
    """The decoder (best generative model so far) over SASRec, means over the same permutations."""
    runs = [beauty_run(options, seed, until="report") for seed in SEEDS]
    ours = statistics.mean(_mean(run, "decoder") for run in runs)
    line = statistics.mean(_mean(run, "sasrec") for run in runs)
    costs = f"decoder: {cost_text(runs[0], 'train')}; sasrec: {cost_text(runs[0], 'sasrec')}"
    budget = f"{rule_text(runs, 'decoder')}; means over the seeds; a run of the {costs}"
    return Measured(ours / line, spread={"decoder": ours, "sasrec": line}, budget=budget)


def ndcg_ratio_to_sasrec(options: Options) -> Measured:
    """The same ratio for NDCG@10; beside it the whole table: mean and sd over the permutations, and paired tests."""
    from genrec.evaluation.compare import compare
    from genrec.evaluation.report import EvalReport

    runs = [beauty_run(options, seed, until="report") for seed in SEEDS]
    names = [Path(folder).name for folder in sorted((runs[0] / "eval").iterdir())]
    table, pairs = {}, []
    for name in names:
        found = [read_json(run, "eval", name, "report.json") for run in runs]
        values = {metric: [each["intervals"][metric]["mean"] for each in found] for metric in TABLE}
        values["coverage@10"] = [each["figures"]["coverage@10"] for each in found]
        table[name] = {k: {"mean": statistics.mean(v), "sd": statistics.stdev(v)} for k, v in values.items()}
    for run in runs:
        ours, line = (EvalReport.load(run / "eval" / name) for name in ("decoder", "sasrec"))
        tests = {metric: asdict(compare(ours, line, metric)) for metric in ("recall@10", "ndcg@10")}
        pairs.append({"run": run.name, **tests})
    ratio = table["decoder"]["ndcg@10"]["mean"] / table["sasrec"]["ndcg@10"]["mean"]
    budget = f"{rule_text(runs, 'decoder')}; {cost_text(runs[0], 'train')}; sasrec: {cost_text(runs[0], 'sasrec')}"
    return Measured(ratio, spread={"table": table, "decoder against sasrec": pairs}, budget=budget)


def games_run(options: Options, until: str) -> Path:
    """The run of the Games pipeline."""
    return _run(options, "games.yaml", "amazon-games-2014-timesplit", "games-decoder-0", until=until)


def games(options: Options, slice_name: str, line: str) -> Measured:
    """Recall@10 of the model over that of a line, on the warm or the cold targets of the Games split."""
    for stage in ("evaluate", f"evaluate {line}"):
        run = games_run(options, stage)
    metric = f"{slice_name}.recall@10"
    ours, theirs = _mean(run, "decoder", metric), _mean(run, line, metric)
    budget = f"{slice_name} targets, {rule_text([run], 'decoder')}; {cost_text(run, 'train')}"
    return Measured(ours / theirs, spread={"decoder": ours, line: theirs}, budget=budget)


def stage_costs(options: Options) -> Measured:
    """Peak memory of the Beauty pipeline; wall and CPU seconds and peak memory of every stage beside it."""
    from genrec.pipeline.recipe import PipelineRecipe
    from genrec.pipeline.stages import stages
    from genrec.recipes import from_dict

    run = beauty_run(options, 0, until="report")
    recipe = from_dict(PipelineRecipe, read_json(run, "recipe.json"))
    ledger = read_json(run, "ledger.json")  # it keeps lines of stages that an earlier recipe had
    current = {stage.name: ledger[stage.name] for stage in stages(recipe, run)}
    spread = {
        stage: {
            "wall_seconds": line["wall_seconds"],
            "cpu_seconds": line["cpu_seconds"],
            "peak_mib": round(line["peak_bytes"] / 2**20),
        }
        for stage, line in current.items()
    }
    note = "a training that went on after an interruption counts its last call only"
    peak = max(line["peak_bytes"] for line in current.values()) / 2**30
    return Measured(peak, spread=spread, budget=f"one run; training: {cost_text(run, 'train')}", note=note)


def collisions(options: Options, kind: str) -> Measured:
    """Share of Beauty's test targets that share their raw identifier with another item; usage beside it."""
    from genrec.data.splits import Split
    from genrec.item_tokenizers.codes import ItemCodes

    name = f"quality/beauty-codes-{kind}"
    tokenizer = f"tokenizer={{kind: {kind}, n_levels: 3, level_size: 256, collisions: shared}}"
    run = bring_up_to_date(options.data, "beauty.yaml", BEAUTY, name, "seed=0", tokenizer, until="tokenize")
    codes, cut = ItemCodes.load(run / "codes"), Split.load(run / "split")
    identifier = codes.collision_ids()
    exposed = np.bincount(identifier)[identifier] > 1
    share = float(exposed[cut.queries("test").targets.items].mean())
    budget = f"3 x 256, vectors of the pipeline, {cut.rule['kind']}, seed 0; {cost_text(run, 'tokenize')}"
    return Measured(share, spread=codes.report(), budget=budget)


FIGURES = [
    Figure(
        "beauty_neutral_itemknn_recall10", "recall@10",
        lambda o: beauty(o, "item_knn", SEEDS, "evaluate item_knn"), baseline="shrink 10, decay 0.7",
    ),
    Figure("beauty_neutral_sasrec_recall10", "recall@10", lambda o: beauty(o, "sasrec", SEEDS, "evaluate sasrec")),
    Figure("beauty_neutral_t5_recall10", "recall@10", lambda o: beauty(o, "t5", (0,), "evaluate")),
    Figure("beauty_neutral_decoder_recall10", "recall@10", lambda o: beauty(o, "decoder", SEEDS, "evaluate")),
    Figure("beauty_neutral_best_ratio_to_sasrec", "ratio", best_ratio_to_sasrec, target=">= 1.0"),
    Figure("beauty_neutral_best_ndcg10_ratio_to_sasrec", "ratio", ndcg_ratio_to_sasrec),
    Figure(
        "beauty_file_itemknn_recall10", "recall@10",
        lambda o: beauty(o, "item_knn", (0,), "evaluate item_knn", ties="file"), target=".0723", baseline="literature",
    ),
    Figure(
        "beauty_file_best_recall10", "recall@10", lambda o: beauty(o, "decoder", (0,), "evaluate", ties="file"),
        baseline="literature: TIGER .0648, SASRec with full softmax .0897",
    ),
    Figure("games_warm_best_ratio_to_itemknn", "ratio", lambda o: games(o, "warm", "item_knn")),
    Figure("games_cold_best_ratio_to_contentknn", "ratio", lambda o: games(o, "cold", "content_knn_unseen")),
    Figure("beauty_stages_peak_gib", "GiB", stage_costs),
    Figure("beauty_rqkmeans_exposed_targets", "share", lambda o: collisions(o, "rqkmeans"), baseline="raw codes"),
    Figure("beauty_rqvae_exposed_targets", "share", lambda o: collisions(o, "rqvae"), baseline="raw codes"),
]  # fmt: skip
