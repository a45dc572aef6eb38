"""Does aligning a language model with a catalog help? A mechanism check without published weights: suite ``alignment``.

    python benchmarks/alignment_check.py --data DATA              every row that is missing; stop and start as you like
    python benchmarks/alignment_check.py --data DATA --rows beauty/lora_tasks
    python benchmarks/alignment_check.py --quick                  a small synthetic shop, minutes
    python benchmarks/run.py --name alignment --commit            the figures, from finished rows

The language model is a small Qwen3, pretrained here on the texts of the catalog itself (title, brand, categories) and
on nothing else: what is checked is the mechanism, not what a model that has read the web would gain. Four trainings
start from it, or from random weights of the same shape, with the same batches, steps and learning rate:

    lora_tasks       adapters and item rows, on a mixture of tasks: 60 % histories, the rest texts
    lora_notasks     adapters and item rows, on histories only
    full_tasks       all weights, the mixture
    scratch_tasks    all weights, the mixture, random start

Identifiers, split and evaluation are those of the ready pipeline: item-exact, seen items excluded, ties neutral.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is there: times are those of one thread

import numpy as np
import torch
from real_data import RUNS, bring_up_to_date, read_json
from run import RESULTS, Figure, Measured, Options, git_state, machine
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from genrec import recipes
from genrec.data.catalog import ItemCatalog
from genrec.embeddings.text import DEFAULT_TEXT, item_text
from genrec.models.adapters import LoraSettings
from genrec.models.pretrained import PretrainedSettings
from genrec.pipeline import runner
from genrec.pipeline.model_stages import evaluate_model, train
from genrec.pipeline.recipe import PipelineRecipe
from genrec.pipeline.stages import stages, stages_until
from genrec.prompts.mixture import MixedTask, MixtureSettings
from genrec.schedules import warmup_cosine

HERE = Path(__file__).resolve().parent
ROWS_FILE = RESULTS / "alignment_rows.json"
VARIANTS = ("lora_tasks", "lora_notasks", "full_tasks", "scratch_tasks")
SHOPS: dict[str, tuple[str, str, list[str]]] = {
    "beauty": ("beauty.yaml", "amazon-beauty-2014", []),
    "office-cold": ("office.yaml", "amazon-office-2014", ["split.kind=held_out_items", "name=office-cold"]),
    "office": ("office.yaml", "amazon-office-2014", []),
}
TASKS = MixtureSettings(
    (
        MixedTask("sequential", weight=0.6),
        MixedTask("item_from_text", weight=0.15),
        MixedTask("text_from_item", weight=0.1),
        MixedTask("fused", weight=0.15),
    ),
    samples_per_epoch=100_000,
    max_items=10,
    max_tokens=160,
    max_text=80,
)
HISTORIES = dataclasses.replace(TASKS, tasks=(MixedTask("sequential", weight=1.0),))


@dataclass(frozen=True)
class Budget:
    """Of everything: width and layers, pretraining steps (of 64 x 64 text tokens), training steps and their samples."""

    hidden: int = 96
    layers: int = 3
    pieces: int = 2048
    pretrain_steps: int = 800
    steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 2e-3


QUICK = Budget(hidden=64, layers=2, pieces=512, pretrain_steps=60, steps=60)


# --- the base: a language model of the catalog's texts ------------------------------------------------------


def pretrained(folder: Path, catalog: ItemCatalog, budget: Budget) -> dict[str, float]:
    """A Qwen3 that has read the catalog, in ``folder``; returns its loss (nats a token) and its CPU seconds."""
    if not (folder / "done.json").exists():
        texts = item_text(catalog, DEFAULT_TEXT)
        words = text_tokenizer(texts, budget.pieces)
        model = language_model(len(words), budget)
        found = pretrain(model, blocks(words, texts), budget)
        model.save_pretrained(folder)
        words.save_pretrained(folder)
        (folder / "done.json").write_text(json.dumps(found))
    return read_json(folder, "done.json")  # type: ignore[no-any-return]


def text_tokenizer(texts: list[str], n_pieces: int) -> PreTrainedTokenizerFast:
    """Byte-level pieces as Qwen has them, of these texts."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=n_pieces, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


def language_model(n_tokens: int, budget: Budget) -> Qwen3ForCausalLM:
    """The shape, with random weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=n_tokens, hidden_size=budget.hidden, intermediate_size=budget.hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=budget.layers, num_attention_heads=4, num_key_value_heads=4, head_dim=budget.hidden // 4,
        tie_word_embeddings=True, max_position_embeddings=512,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def blocks(words: PreTrainedTokenizerFast, texts: list[str], width: int = 64) -> torch.Tensor:
    """All texts behind each other, an end after each, as rows of ``width`` tokens."""
    ids = [token for text in texts for token in [*words(text)["input_ids"], words.eos_token_id]]
    n_rows = len(ids) // width
    return torch.tensor(ids[: n_rows * width]).reshape(n_rows, width)


def pretrain(model: Qwen3ForCausalLM, rows: torch.Tensor, budget: Budget, batch_size: int = 64) -> dict[str, float]:
    """Plain next-token training, in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    random, start, losses = np.random.default_rng(0), time.process_time(), []
    for step, batch in zip(range(budget.pretrain_steps), _batches(rows, batch_size, random), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * warmup_cosine(step, budget.pretrain_steps, 50)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"loss": float(np.mean(losses[-50:])), "cpu_seconds": time.process_time() - start}


def _batches(rows: torch.Tensor, size: int, random: np.random.Generator) -> Iterator[torch.Tensor]:
    while True:
        order = torch.from_numpy(random.permutation(len(rows)))
        yield from (rows[part] for part in order.split(size) if len(part) == min(size, len(rows)))


# --- a row: one training and its evaluation ------------------------------------------------------------------


def recipe_of(run: Path, base: Path, variant: str, budget: Budget) -> PipelineRecipe:
    """The run's own recipe with another model and another way to train it."""
    recipe = recipes.from_dict(PipelineRecipe, read_json(run, "recipe.json"))
    settings = dataclasses.replace(
        recipe.train, epochs=1000, max_steps=budget.steps, batch_size=budget.batch_size, warmup_steps=100,
        learning_rate=budget.learning_rate, prefix_drop=0.0, max_items=TASKS.max_items, eval_every=0, patience=0,
        softmax="children", label_smoothing=0.1, bf16=False, save_every=0, save_seconds=60.0,
    )  # fmt: skip
    start, tasks = variant.split("_")
    return dataclasses.replace(
        recipe,
        model=PretrainedSettings(str(base), random_weights=start == "scratch"),
        lora=LoraSettings(r=16, alpha=32, dropout=0.0, target_modules="all-linear") if start == "lora" else None,
        alignment=TASKS if tasks == "tasks" else HISTORIES,
        train=settings,
        evaluate=dataclasses.replace(recipe.evaluate, n_beams=20, n_bootstrap=0),
    )


def row_of(shop: str, variant: str, run: Path, base: dict[str, float], budget: Budget) -> dict[str, Any]:
    """Train and evaluate one variant in a folder of its own; what is finished there is read."""
    folder = run.parent / f"{run.name}-{variant}"
    for name in ("catalog", "interactions", "split", "codes", "index"):
        if not (folder / name).exists():
            shutil.copytree(run / name, folder / name)
    recipe = recipe_of(run, run / "base", variant, budget)
    train(folder, recipe)
    evaluate_model(folder, recipe)
    report, trained = (
        read_json(folder, "eval", "pretrained", "report.json"),
        read_json(folder, "training", "genrec.json"),
    )
    means = report["intervals"]
    return {
        "row": f"{shop}/{variant}",
        **{
            name: means[name]["mean"]
            for name in ("recall@10", "ndcg@10", "cold.recall@10", "cold.ndcg@10")
            if name in means
        },
        "budget": dataclasses.asdict(budget),
        "train_cpu_seconds": round(trained["meta"]["cpu_seconds"]),
        "base": {name: round(value, 3) for name, value in base.items()},
        "machine": machine(),
        "git": git_state(),
    }


def prepared(shop: str, data: Path | None) -> Path:
    """A run folder with identifiers."""
    pipeline, data_set, changes = SHOPS[shop]
    return bring_up_to_date(data, pipeline, data_set, f"alignment/{shop}", *changes, until="tokenize")


def quick_run() -> Path:
    """The same for a small synthetic shop."""
    folder = RUNS / "alignment" / "quick"
    recipe = recipes.load(HERE.parent / "train" / "pipelines" / "demo.yaml", PipelineRecipe, QUICK_CHANGES).value
    runner.run(folder, stages_until(stages(recipe, folder), "tokenize"), lambda *_: None, recipes.to_json(recipe))
    return folder


QUICK_CHANGES = ["data.synthetic.n_items=200", "data.synthetic.n_users=300", "tokenizer.level_size=16"]


def kept() -> dict[str, dict[str, Any]]:
    """The committed rows by name."""
    return {row["row"]: row for row in json.loads(ROWS_FILE.read_text())} if ROWS_FILE.exists() else {}


def main() -> int:
    """Make the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("GENREC_DATA"), help="folder of the real data")
    parser.add_argument("--rows", nargs="*", help="only these, as beauty/lora_tasks")
    parser.add_argument("--quick", action="store_true", help="a synthetic shop and a few steps; nothing is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.rows or [f"{shop}/{variant}" for shop in SHOPS for variant in VARIANTS]
    names = [f"quick/{variant}" for variant in VARIANTS] if options.quick else [n for n in names if n not in kept()]
    budget = QUICK if options.quick else Budget()
    for name in names:
        shop, variant = name.split("/")
        run = quick_run() if options.quick else prepared(shop, options.data)
        base = pretrained(run / "base", ItemCatalog.load(run / "catalog"), budget)
        row = row_of(shop, variant, run, base, budget)
        print(json.dumps(row), flush=True)
        if not options.quick:
            rows = kept() | {name: row}
            ROWS_FILE.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
    return 0


def figure(options: Options, row: str) -> Measured:
    """A figure from its row; the long run is :func:`main`'s."""
    found = kept().get(row)
    if found is None:
        return Measured(None, note=f"not measured: python benchmarks/alignment_check.py --data DATA --rows {row}")
    more = {name: found[name] for name in ("ndcg@10", "cold.recall@10", "cold.ndcg@10") if name in found}
    steps, size = (found["budget"][name] for name in ("steps", "batch_size"))
    minutes = found["train_cpu_seconds"] / 60
    return Measured(
        found["recall@10"],
        spread=more,
        budget=f"{steps} steps of {size} samples, {minutes:.1f} CPU-minutes, after pretraining on the catalog's texts",
        note="mechanism check: a small Qwen3 that has read nothing but this catalog; item-exact, ties neutral, seed 0",
    )


FIGURES = [
    Figure(f"beauty_neutral_{name}_recall10", "recall@10", lambda o, row=row: figure(o, f"beauty/{row}"), quick=True)
    for name, row in {
        "lora_tasks": "lora_tasks",
        "lora_notasks": "lora_notasks",
        "full": "full_tasks",
        "scratch": "scratch_tasks",
    }.items()
]

if __name__ == "__main__":
    sys.exit(main())
