"""What stages are expected to cost on this machine: rough, from sizes and a measured matrix product.

The figures are for planning ("minutes or hours?"): within a factor of two or three.
"""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path

from genrec import artifacts
from genrec.data.readers import source_files
from genrec.decoding.dense import rows_at_once
from genrec.errors import DataError
from genrec.models.backbone import T5Settings
from genrec.models.pretrained import PretrainedSettings, pretrained_files
from genrec.pipeline.recipe import PipelineRecipe
from genrec.pipeline.runner import Estimate
from genrec.prompts.tasks import load_task

BASE = 7e8  # bytes of a process with torch and transformers loaded
MINILM_FLOPS = 2 * 1.06e7 * 30  # per text: weights x tokens of a usual title with brand and category
TRAIN_SHARE = 0.75  # of the events; the rest is valid and test
HUB_MODEL = 2_400_000_000  # bytes of a pretrained model that is not here
TASK_WORDS = 40  # tokens of an example's own words and texts
EFFICIENCY = 0.35  # share of a large matrix product's speed that small layers reach


class Costs:
    """Estimates of every stage of ``recipe``, from artifacts in ``folder`` where they exist."""

    def __init__(self, recipe: PipelineRecipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """Items, users, events: known after ``prepare``, guessed from file sizes before."""
        if artifacts.exists(self.folder / "catalog") and artifacts.exists(self.folder / "interactions"):
            items = artifacts.read(self.folder / "catalog", verify=False).meta["n_items"]
            log = artifacts.read(self.folder / "interactions", verify=False).meta
            return int(items), int(log["n_users"]), int(log["n_events"])
        synthetic = self.recipe.data.synthetic
        if synthetic is not None:
            return synthetic.n_items, synthetic.n_users, int(synthetic.n_users * synthetic.mean_length)
        events = max(1, self._input_bytes // 60)
        return max(1, events // 15), max(1, events // 9), events

    @cached_property
    def _input_bytes(self) -> int:
        """Bytes of the input once decompressed, guessed."""
        reader = self.recipe.data.reader
        if reader is None:
            return 0
        try:
            files = source_files(reader)
        except DataError:  # said when the data are read
            return 0
        return sum(f.stat().st_size * (4 if f.suffix in (".gz", ".parquet") else 1) for f in files)

    @cached_property
    def flops(self) -> float:
        """Multiply-adds per second of one 512 x 512 product here, times two."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        x = torch.randn(512, 512, device=device)
        x @ x
        if device == "cuda":
            torch.cuda.synchronize()
        start, n = time.perf_counter(), 20
        for _ in range(n):
            y = x @ x
        y.sum().item()
        return EFFICIENCY * n * 2 * 512**3 / (time.perf_counter() - start)

    def prepare(self) -> Estimate:
        """Reading, or making, the data."""
        items, _, events = self.sizes
        return Estimate(0.5 + self._input_bytes / 2e7 + events * 3e-6, BASE + 400.0 * (items + events))

    def split(self) -> Estimate:
        """Sorting and cutting."""
        _, _, events = self.sizes
        return Estimate(0.3 + events * 5e-7, BASE + 200.0 * events)

    def sasrec(self) -> Estimate:
        """Full softmax at every position, at most all epochs."""
        items, _, events = self.sizes
        settings = self.recipe.sasrec
        per_event = 6 * settings.dim * items + 6 * 12 * settings.n_layers * settings.dim**2
        memory = BASE + 16.0 * items * settings.dim + 12.0 * items * settings.batch_size * 8
        return Estimate(settings.epochs * TRAIN_SHARE * events * per_event / self.flops, memory)

    def embed(self) -> Estimate:
        """The slowest block decides."""
        items, _, events = self.sizes
        seconds = 1.0
        for block in self.recipe.embeddings:
            if block.sentence is not None:
                seconds += items * MINILM_FLOPS / self.flops
            else:
                seconds += 2e-4 * items + 1e-6 * events
            if block.famae is not None:
                seconds += 2e-4 * events * block.famae.epochs
            if block.graph is not None:
                seconds += 5e-6 * (events + items) * block.graph.epochs * max(events / block.graph.batch_size, 1)
        return Estimate(seconds, BASE + 4e3 * items)

    @property
    def _level_sizes(self) -> list[int]:
        """Codes of each level, as far as the settings say."""
        settings = self.recipe.tokenizer
        n_levels, size = settings.get("n_levels", settings.get("n_tokens", 3)), settings.get("level_size", 256)
        return [int(k) for k in size] if isinstance(size, list | tuple) else [int(size or 256)] * int(n_levels or 3)

    def tokenize(self) -> Estimate:
        """Lloyd iterations of every level; an RQ-VAE adds its epochs."""
        items, _, _ = self.sizes
        settings, width = self.recipe.tokenizer, 384
        work = 25 * sum(self._level_sizes) * items * width * 2.0
        if settings.get("kind") == "rqvae":
            work += int(settings.get("epochs", 200)) * items * 6 * 6e5
        return Estimate(0.5 + work / self.flops, BASE + 12.0 * width * items)

    def users(self) -> Estimate:
        """As for items, with three levels of 256 codes."""
        _, users, _ = self.sizes
        return Estimate(0.5 + 25 * 768 * users * 384 * 2.0 / self.flops, BASE + 12.0 * 384 * users)

    def train(self) -> Estimate:
        """Six flops per weight and token."""
        _, _, events = self.sizes
        train, model = self.recipe.train, self.recipe.model
        levels = len(self._level_sizes)
        levels += self.recipe.tokenizer.get("collisions", "suffix") == "suffix"
        if isinstance(model, T5Settings):
            attention = 4 * model.d_model * model.d_kv * model.n_heads
            weights = model.n_layers * (attention + 2 * model.d_model * model.d_ff)  # of one stack
            tokens = TRAIN_SHARE * events * levels * min(6, train.max_items)
        elif isinstance(model, PretrainedSettings):  # taken for a decoder with weights in float32
            weights = (sum(pretrained_files(model).values()) or HUB_MODEL) // 4
            tokens = self._task_tokens(levels) or TRAIN_SHARE * events * levels
        else:
            weights = model.n_layers * (4 * model.hidden_size**2 + 3 * model.hidden_size * model.d_ff)
            tokens = TRAIN_SHARE * events * levels
        seconds = train.epochs * 6 * weights * tokens / self.flops
        return Estimate(1.2 * seconds, BASE + 40.0 * weights + 2e4 * train.batch_size * levels * train.max_items)

    def _task_tokens(self, levels: int) -> float:
        """Tokens of an epoch of alignment tasks: examples of some words and half a history; 0 without such tasks."""
        mixture = self.recipe.alignment
        if mixture is None:
            return 0
        items, users, events = self.sizes
        rows = {"items": items, "users": users, "steps": TRAIN_SHARE * events}
        each = TASK_WORDS + levels * min(6, mixture.max_items)
        if mixture.samples_per_epoch is not None:
            return mixture.samples_per_epoch * each
        kinds = [load_task(task.task, task.template).template.header.rows for task in mixture.tasks]
        counts = [t.samples or (t.share or 1.0) * rows[kind] for t, kind in zip(mixture.tasks, kinds, strict=True)]
        return each * sum(counts)

    def evaluate(self) -> Estimate:
        """A beam search per test user: about as many tokens as beams times levels."""
        _, users, _ = self.sizes
        return Estimate(users * 2e-4 * self.recipe.evaluate.n_beams, BASE + 1e9)

    def dense(self) -> Estimate:
        """Scores of every item for every user."""
        items, users, _ = self.sizes
        return Estimate(0.5 + users * items * 3e-8, BASE + 24.0 * rows_at_once(items, 256) * items)

    def report(self) -> Estimate:
        """Tables and pictures."""
        return Estimate(5.0, BASE + 2e8)
