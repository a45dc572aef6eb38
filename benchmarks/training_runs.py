"""Trainings that are killed, shared and merged: small models whose bits, losses and logits are compared.

    python benchmarks/training_runs.py --kills 30     # one JSON line: trials, kills, failures
    torchrun --standalone --nproc-per-node 2 benchmarks/training_runs.py --losses lora

Every trial of ``--kills`` trains one of five models, kills the training at a random moment (`kill -9`) after its first
step, goes on from what is on the disk, and compares the last, averaged and best weights, bit by bit, with those of a
training left alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from genrec.models.adapters import LoraSettings, add_lora
from genrec.models.pretrained import extend_rows
from genrec.testing.text_models import tiny_text_model
from genrec.testing.walks import tiny_model, walks
from genrec.training.dataset import TrainingData
from genrec.training.finetune import TrainResult, finetune
from genrec.training.settings import TrainSettings
from genrec.vocab.text_vocabulary import extend_vocabulary

SETTINGS = TrainSettings(
    epochs=99, max_steps=24, batch_size=8, warmup_steps=3, learning_rate=5e-3, prefix_drop=0.4, ema_decay=0.9,
    eval_every=1, eval_unit="steps", save_every=3, bf16=False,
)  # fmt: skip
KINDS = ("decoder", "packed", "t5", "lora", "rows")
LONGEST_LIFE = 1.0  # seconds from the first step to the kill; 24 steps take about as long


def started(kind: str, dropout: float = 0.2) -> tuple[Any, TrainingData]:
    """A model and its data: from scratch, or a tiny Qwen3 with adapters and new rows, or new rows only."""
    data = walks(tied=True)
    if kind not in ("lora", "rows"):
        return tiny_model("t5" if kind == "t5" else "decoder", data, dropout=dropout), data
    model, words = tiny_text_model("qwen3")
    vocabulary = extend_vocabulary(words, data.codes)
    extend_rows(model, vocabulary)
    lora = LoraSettings(r=2 if kind == "lora" else 0, dropout=dropout)
    return add_lora(model, vocabulary.token_map, lora), dataclasses.replace(data, token_map=vocabulary.token_map)


def train(kind: str, folder: Path, steps: Connection | None = None, **changes: Any) -> TrainResult:
    """Train (or go on); a byte through ``steps`` after every step."""

    def evaluate(_: Any) -> dict[str, float]:
        if steps is not None:
            steps.send_bytes(b".")
        return {"recall@10": 0.0}

    settings = dataclasses.replace(SETTINGS, packing=kind == "packed", **changes)
    model, data = started(kind, 0.2 if "prefix_drop" not in changes else 0.0)
    return finetune(model, data, settings, folder, evaluate=evaluate)


def _child(kind: str, folder: Path, steps: Connection) -> None:
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until it is killed
    train(kind, folder, steps)


def killed(kind: str, folder: Path, moments: random.Random) -> bool:
    """Train in a forked process until a random moment; whether the kill came before its end."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(kind, folder, writer))
    child.start()
    reader.recv_bytes()
    time.sleep(moments.uniform(0.0, LONGEST_LIFE))
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return child.exitcode == -signal.SIGKILL


def final(folder: Path) -> dict[str, torch.Tensor]:
    """The last weights, their average and the best ones, as the newest checkpoint has them."""
    newest = max(folder.glob("checkpoint-*"))
    files = [newest / f"{name}.safetensors" for name in ("weights", "average", "best")]
    return {f"{file.stem} {name}": value for file in files for name, value in load_file(file).items()}


def kills(n_trials: int, seed: int = 0) -> dict[str, Any]:
    """Trials by kind in turn: how many trainings were killed, and how many did not end with the bits of the other."""
    moments, n_killed, failures, wanted = random.Random(seed), 0, [], {}
    with tempfile.TemporaryDirectory() as made:
        for kind in KINDS[:n_trials]:
            train(kind, Path(made, kind))
            wanted[kind] = final(Path(made, kind))
        for trial in range(n_trials):
            kind, folder = KINDS[trial % len(KINDS)], Path(made, str(trial))
            n_killed += killed(kind, folder, moments)
            ended = train(kind, folder)
            found = final(folder)
            same = ended.steps == SETTINGS.max_steps and found.keys() == wanted[kind].keys()
            if not (same and all(torch.equal(found[name], wanted[kind][name]) for name in found)):
                failures.append(kind)
    return {"trials": n_trials, "killed": n_killed, "failures": failures, "kinds": list(wanted)}


def losses(kind: str, accumulation_steps: int) -> list[float]:
    """The loss of every step, without dropout, which differs between processes; batches do not depend on them."""
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(os.environ.get("GENREC_LOSSES_FOLDER", folder))
        changes = {"prefix_drop": 0.0, "save_every": 0, "accumulation_steps": accumulation_steps, "ema_decay": None}
        return [entry["loss"] for entry in train(kind, shared, **changes).log]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int)
    parser.add_argument("--losses", choices=KINDS)
    parser.add_argument("--parts", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = kills(options.kills) if options.kills else losses(options.losses, options.parts)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found))


if __name__ == "__main__":
    main()
