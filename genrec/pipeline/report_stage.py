"""The last stage: a report a person can read (report.md, pictures) and a script can (results.json)."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from genrec import artifacts, recipes
from genrec.data.catalog import ItemCatalog
from genrec.data.interactions import Interactions
from genrec.data.splits import Split
from genrec.evaluation.compare import comparison_table
from genrec.evaluation.report import EvalReport, best_metric
from genrec.evaluation.tables import reports_json, results_table, table_metrics, ties_text
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.bundle import load_bundle
from genrec.pipeline import figures
from genrec.pipeline.codes_text import describe_codes, raw_report
from genrec.pipeline.model_stages import base_path, user_ids
from genrec.pipeline.recipe import PipelineRecipe
from genrec.pipeline.runner import same_catalog

log = logging.getLogger(__name__)

N_EXAMPLES = 3
MODELS = {
    "popularity": "the items with most training events, for everyone",
    "copy_last": "the items of the history, newest first, then by popularity",
    "markov": "the items that most often followed the last one",
    "item_knn": "item nearest neighbours: items bought by the same users as the items of the history",
    "item_knn_larger_id": "a probe, not a model: item_knn with every item whose id is larger than the last one's "
    "favoured; where it beats item_knn, the order of the file leaks the answer",
    "content_knn": "items with vectors like those of the history; knows no other users",
    "content_knn_unseen": "content_knn among the items without any training event: the reference for cold targets",
    "sasrec": "SASRec, a transformer over item numbers, trained with the softmax over all items",
    "oracle": "knows the process that made the synthetic log: no model can do better on average",
    "decoder": "ours: a decoder-only language model that writes item identifiers",
    "t5": "ours: an encoder-decoder language model that writes item identifiers",
}
"""Each model in one sentence, as printed in reports."""


def load_reports(folder: Path, recipe: PipelineRecipe) -> list[EvalReport]:
    """The evaluations of a run: baselines in the order of the recipe, then the model."""
    return [EvalReport.load(folder / "eval" / name) for name in (*recipe.baselines, recipe.model.kind)]


def report(folder: Path, recipe: PipelineRecipe) -> None:
    """Write the artifact ``report``: report.md, results.json and, with matplotlib, pictures."""
    reports = load_reports(folder, recipe)
    codes = ItemCodes.load(folder / "codes")
    training = artifacts.read(folder / "training", kind="training")
    curve = artifacts.load_json(training.path / "log.json")
    examples = example_lists(folder, recipe)
    with artifacts.write(folder / "report", kind="report", recipe=recipes.to_json(recipe), overwrite=True) as draft:
        pictures = _pictures(draft.dir, reports, codes, curve, recipe)
        told = describe_codes(codes, raw_report(folder))
        text = _markdown(recipe, reports, told, training.meta, examples, pictures, left_out(folder))
        (draft.dir / "report.md").write_text(text, encoding="utf-8")
        results = {
            "name": recipe.name,
            "seed": recipe.seed,
            "ties": recipe.split.ties,
            "rejected": artifacts.read(folder / "interactions", verify=False).meta.get("rejected", {}),
            "codes": {**codes.report(), "raw": raw_report(folder)},
            "training": {**training.meta, "log": curve},
            "models": json.loads(reports_json(reports)),
            "recipe": recipes.to_json(recipe),
        }
        artifacts.save_json(draft.dir / "results.json", results)


def left_out(folder: Path) -> list[str]:
    """What reading the data left out: a line for every file, with the reasons."""
    meta = artifacts.read(folder / "interactions", verify=False).meta
    return [
        f"left out {count['rows_rejected']} of {count['rows_in']} rows of {file}: "
        + ", ".join(f"{n} x {reason}" for reason, n in count["reasons"].items())
        for file, count in meta.get("rejected", {}).items()
    ]


def _pictures(
    folder: Path,
    reports: list[EvalReport],
    codes: ItemCodes,
    curve: list[dict[str, Any]],
    recipe: PipelineRecipe,
) -> list[tuple[str, str]]:
    """(file, caption) of each picture written into ``folder``; none without matplotlib."""
    if find_spec("matplotlib") is None:
        log.warning("no pictures: matplotlib is not installed (pip install 'genrec[plots]')")
        return []
    ours = recipe.model.kind
    metric = best_metric(reports, "recall")
    figures.recall_bars(reports, ours, folder / "recall.png", metric)
    best = sorted((r for r in reports if r.name not in (ours, "oracle")), key=lambda r: -r.mean(metric))[:2]
    figures.slice_bars([*best, reports[-1]], ours, folder / "slices.png", metric)
    figures.codebook_usage(codes, folder / "codes.png")
    found = [
        ("recall.png", f"{metric} of every model"),
        ("slices.png", f"{metric} by popularity of the target"),
        ("codes.png", "How often each code is used (perplexity: so many codes, used equally, would be as varied)"),
    ]
    if any(recipe.train.metric in line for line in curve):
        figures.training_curve(curve, recipe.train.metric, folder / "training.png")
        found.append(("training.png", "Training"))
    return found


def example_lists(folder: Path, recipe: PipelineRecipe, n: int = N_EXAMPLES) -> str:
    """Histories of a few test users with what the model recommends, as text."""
    bundle = load_bundle(folder / "bundle", user_ids=user_ids(folder, recipe), base=base_path(recipe))
    catalog = ItemCatalog.load(folder / "catalog")
    titles = [title or id_ for title, id_ in zip(catalog.text("title", clean=True), catalog.ids, strict=True)]
    same_catalog(folder, bundle.recommender.codes.catalog, "catalog", "split", "interactions")
    queries = Split.load(folder / "split").queries("test")
    if not len(queries):
        return ""
    lengths = queries.histories.lengths
    # users with a usual history are easier to judge than the longest or shortest ones
    order = np.argsort(np.abs(lengths - np.median(lengths)), kind="stable")
    picked = queries.take(np.sort(order[:n]))
    ids = Interactions.load(folder / "interactions").user_ids
    lists = bundle.recommender.recommend(picked.histories, users=picked.users, top_k=5)
    lines = []
    for row in range(len(picked)):
        asked = set(picked.targets[row].tolist())
        lines.append(f"user {ids[picked.users[row]]} had:")
        lines += [f"      {titles[i][:90]}" for i in picked.histories[row][-5:]]
        lines.append("    and is offered:")
        for place, (item, score) in enumerate(zip(lists.items[row], lists.scores[row], strict=True), 1):
            if item >= 0:
                mark = "  <- bought next" if item in asked else ""
                lines.append(f"   {place}. {titles[item][:90]}  ({score:.2f}){mark}")
    return "\n".join(lines)


def headline(reports: list[EvalReport], ours: str) -> list[str]:
    """The model's recall beside the lines it must be read against."""
    metric = best_metric(reports, "recall")
    by_name = {r.name: r for r in reports}
    mine = by_name[ours].mean(metric)
    lines = []
    for name, text in (("item_knn", "item-kNN"), ("sasrec", "SASRec"), ("oracle", "the Bayes oracle")):
        if name in by_name and by_name[name].mean(metric) > 0:
            lines.append(f"{metric} of the {ours}: {mine / by_name[name].mean(metric):.2f} x that of {text}")
    return lines


def _markdown(
    recipe: PipelineRecipe,
    reports: list[EvalReport],
    identifiers: str,
    training: dict[str, Any],
    examples: str,
    pictures: list[tuple[str, str]],
    remarks: Sequence[str] = (),
) -> str:
    parts = [
        f"# {recipe.name}",
        "",
        f"Seed {recipe.seed}; split {recipe.split.kind}. {ties_text(reports)}",
        *[f"\n{line[0].upper()}{line[1:]}." for line in remarks],
        "",
        "## Results",
        "",
        results_table(reports, style="markdown", intervals=False),
        *[f"- {line}" for line in headline(reports, recipe.model.kind)],
        "",
        *_identifier_lines(reports[-1]),
        "",
        "## The model against the others, paired by user",
        "",
        "```",
        comparison_table(reports[-1], reports[:-1], table_metrics(reports, ("recall@10", "ndcg@10"))).rstrip(),
        "```",
        "",
        "## Identifiers and training",
        "",
        f"- {identifiers}",
        f"- {training['steps']} steps, {training['wall_seconds']:.0f} s wall, {training['cpu_seconds']:.0f} s CPU; "
        f"best validation {training['metric']} "
        + (
            f"{training['best']:.4f} at step {training['best_step']}"
            if training["best"] is not None
            else "not measured"
        ),
        f"- padding: {100 * training['padding_share']:.1f} % of the token cells",
        "",
        *[f"![{caption}]({file})\n" for file, caption in pictures],
        "## Examples",
        "",
        "```",
        examples,
        "```",
        "",
        "## What the numbers mean",
        "",
        *_definitions(reports),
        "",
    ]
    return "\n".join(parts)


def _identifier_lines(mine: EvalReport) -> list[str]:
    recall, short = best_metric([mine], "recall"), best_metric([mine], "short_lists")
    k = short.partition("@")[2]
    return [
        f"Item-exact {recall} {mine.mean(recall):.4f}; at identifier level (a hit when only the identifier "
        f"matches) {mine.mean(f'identifier.{recall}'):.4f}; {100 * mine.mean('exposed_targets'):.1f} % of the targets "
        f"share their identifier. Valid items: {100 * mine.mean(f'validity@{k}'):.1f} %; lists shorter than {k}: "
        f"{100 * mine.mean(short):.1f} %."
    ]


def _definitions(reports: list[EvalReport]) -> list[str]:
    """Every name in the tables: models, metrics, slices, rules."""
    models = {r.name: MODELS[r.name] for r in reports if r.name in MODELS}
    names = {"name@k": "the metric on the first k places of every list; slice.name@k: on the targets of a slice only"}
    return [f"- **{name}**: {text}" for name, text in (models | names | reports[-1].definitions).items()]
