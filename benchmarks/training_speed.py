"""Trained tokens per CPU-second on Beauty's histories, beside transformers' own Trainer.

Every candidate trains the same model from the same weights on the same data for 50 steps: the ready recipe's decoder
(and TIGER's T5, with smaller batches) over three codes of 256, cross-entropy over the whole vocabulary, AdamW, float32,
one thread. The Trainer pads on the right, and gets its batches at random or grouped by length (it sorts 50 batches at a
time, so 50 steps see all lengths); ours are of like length, or packed. What is timed is the CPU time of a call of 51
steps less that of a call of one, the candidates in turn. Which codes an item has is drawn: it changes no speed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from genrec.data.histories import Histories
from genrec.data.readers import read
from genrec.data.readers.base import ReaderSettings
from genrec.data.splits import leave_one_out
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.backbone import BackboneSettings, DecoderSettings, T5Settings, build, layout_of
from genrec.models.prompting import build_prompts, item_tokens
from genrec.training.collate import Collator
from genrec.training.dataset import Plan, Samples, TrainingData, prefix_samples, window_samples
from genrec.training.finetune import finetune
from genrec.training.settings import TrainSettings
from genrec.vocab.token_map import TokenMap

STEPS, MAX_ITEMS = 50, 20
MODELS: dict[str, BackboneSettings] = {"decoder": DecoderSettings(), "t5": T5Settings()}
BATCH = {"decoder": 96, "t5": 16}


def settings_of(kind: str, packing: bool = False, n_steps: int = STEPS) -> TrainSettings:
    """What this library trains with."""
    return TrainSettings(
        epochs=9, max_steps=n_steps, batch_size=BATCH[kind], max_items=MAX_ITEMS, softmax="vocab", warmup_steps=0,
        packing=packing, eval_every=0, save_every=0, bf16=False,
    )  # fmt: skip


def beauty(folder: Path) -> TrainingData:
    """Training histories of Beauty, leave one out, with identifiers drawn at random."""
    loaded = read(ReaderSettings("neutral", folder))
    histories = leave_one_out(loaded.interactions).train()
    drawn = np.random.default_rng(0).choice(256**3, len(loaded.catalog), replace=False)
    codes = ItemCodes.from_int(np.stack([drawn // 65536, drawn // 256 % 256, drawn % 256], 1), (256,) * 3, "beauty")
    return TrainingData(histories, codes, TokenMap.of(codes))


@dataclass(frozen=True, eq=False)
class Rows:
    """Samples as the Trainer is given them: one dict of lists each."""

    features: list[dict[str, list[int]]]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        return self.features[i]


def samples_of(model: Any, data: TrainingData) -> Samples:
    """What an epoch of the model has to learn."""
    cut = prefix_samples if layout_of(model) == "encoder" else window_samples
    return cut(data.histories, MAX_ITEMS)


def rows_of(model: Any, data: TrainingData) -> Rows:
    """The samples of :func:`samples_of`, spelled out."""
    samples, tokens_NM = samples_of(model, data), item_tokens(data.codes, data.token_map)
    seq2seq = layout_of(model) == "encoder"
    known = Histories.from_slices(samples.items, samples.starts, samples.ends - int(seq2seq))
    prompts = build_prompts(layout_of(model), known, tokens_NM, data.token_map)
    found = []
    for ids, real, target in zip(prompts.tokens_BT, prompts.mask_BT, samples.items[samples.ends - 1], strict=True):
        own = ids[real].tolist()
        labels = tokens_NM[target].tolist() if seq2seq else [-100, *own[1:]]
        found.append({"input_ids": own, "labels": labels})
    return Rows(found)


def padded(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch as Hugging Face's models take it, filled up on the right."""
    ids = [each["input_ids"] for each in features]
    return {
        "input_ids": _filled(ids, 0),
        "attention_mask": _filled([[1] * len(row) for row in ids], 0),
        "labels": _filled([each["labels"] for each in features], -100),
    }


def _filled(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def theirs(kind: str, model: Any, rows: Rows, sampling: str, n_steps: int) -> int:
    """Some steps of transformers' Trainer; the tokens that the model read."""
    read: list[torch.Tensor] = []
    body = model.get_encoder() if kind == "t5" else model.get_decoder()
    body.register_forward_pre_hook(lambda _, __, given: read.append(given["attention_mask"].sum()), with_kwargs=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=n_steps, per_device_train_batch_size=BATCH[kind], learning_rate=2e-3,
            weight_decay=0.05, adam_beta2=0.98, lr_scheduler_type="cosine", max_grad_norm=1.0,
            train_sampling_strategy=sampling, use_cpu=True, bf16=False, save_strategy="no", logging_strategy="no",
            report_to="none", disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=rows, data_collator=padded).train()
    return int(sum(read))


def ours(kind: str, model: Any, data: TrainingData, packing: bool, n_steps: int) -> int:
    """Some steps of this library's training; the tokens that the model read."""
    settings = settings_of(kind, packing, n_steps)
    with tempfile.TemporaryDirectory() as folder:
        finetune(model, data, settings, folder)
    plan, apart = plan_of(model, data, settings), int(kind == "t5")
    batches = [plan.batch(step) for step in range(n_steps)]
    # one token more a sample: the </s> of an encoder; a decoder reads its <s>, but not the last token
    return sum(int(((b.ends - b.starts - apart) * 3 + apart).sum()) for b in batches)


def plan_of(model: Any, data: TrainingData, settings: TrainSettings) -> Plan:
    """The batches of a training."""
    collator = Collator(data, layout_of(model))
    samples = samples_of(model, data)
    return Plan(samples, collator.item_lengths_N, settings, target_apart=collator.target_apart)


def rates(kind: str, data: TrainingData, n_rounds: int) -> dict[str, list[float]]:
    """Tokens per CPU-second by candidate, in turn."""
    rows = rows_of(build(MODELS[kind], data.token_map, seed=0), data)
    candidates: dict[str, Callable[[Any, int], int]] = {
        "plain Trainer": lambda model, n: theirs(kind, model, rows, "random", n),
        "grouped Trainer": lambda model, n: theirs(kind, model, rows, "group_by_length", n),
        "like length": lambda model, n: ours(kind, model, data, False, n),
    }
    if kind == "decoder":
        candidates["packed"] = lambda model, n: ours(kind, model, data, True, n)
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(n_rounds):
        for name, train in candidates.items():
            spent = []
            for n_steps in (1, STEPS + 1):
                model = build(MODELS[kind], data.token_map, seed=0)
                begun = time.process_time()
                n_tokens = train(model, n_steps)
                spent.append((n_tokens, time.process_time() - begun))
            (first, setup), (tokens, whole) = spent
            found[name].append((tokens - first) / (whole - setup))
    return found


def medians(found: dict[str, list[float]]) -> dict[str, float]:
    """The median of every candidate."""
    return {name: statistics.median(values) for name, values in found.items()}


def padding(data: TrainingData) -> dict[str, float]:
    """Padding share of a whole epoch: of like length, packed, and at random as the plain Trainer has it."""
    found = {}
    for kind, settings in MODELS.items():
        model, apart = build(settings, data.token_map, seed=0), int(kind == "t5")
        plan = plan_of(model, data, settings_of(kind))
        found[f"{kind}, like length"] = plan.padding_share()
        if kind == "decoder":
            found["decoder, packed"] = plan_of(model, data, settings_of(kind, packing=True)).padding_share()
        length = (plan.samples.ends - plan.samples.starts - apart) * 3
        order = np.random.default_rng(0).permutation(len(length))
        cells = sum(len(b) * int(length[b].max()) for b in np.array_split(order, -(-len(order) // BATCH[kind])))
        found[f"{kind}, at random"] = 1 - float(length.sum()) / cells
    return found
