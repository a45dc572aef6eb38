"""Figures of the training: speed beside transformers' Trainer, padding, adapters, processes, kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from run import Figure, Measured, Options

HERE = Path(__file__).resolve().parent
BEAUTY = "amazon-beauty-2014"
RUNS = HERE / "training_runs.py"
ROUNDS = 2


def _beauty(options: Options) -> Any:
    """Beauty's histories, read once; None where they are not here."""
    import training_speed

    folder = options.data and options.data / BEAUTY
    if folder is None or not folder.is_dir():
        return None
    if "beauty" not in options.cache:
        options.cache["beauty"] = training_speed.beauty(folder)
    return options.cache["beauty"]


NO_DATA = f"skipped: no folder {BEAUTY}; give --data FOLDER or set GENREC_DATA"


def _rates(options: Options) -> dict[str, dict[str, float]] | None:
    """Median tokens per CPU-second by model and candidate, measured once for both ratios."""
    import torch
    import training_speed

    data = _beauty(options)
    if data is None:
        return None
    if "rates" not in options.cache:
        torch.set_num_threads(1)
        options.cache["rates"] = {
            kind: training_speed.medians(training_speed.rates(kind, data, ROUNDS)) for kind in training_speed.MODELS
        }
    return options.cache["rates"]  # type: ignore[no-any-return]


def tokens_ratio(options: Options, other: str) -> Measured:
    """Trained tokens per CPU-second over those of another candidate: the decoder's slower form, the rest as spread."""
    rates = _rates(options)
    if rates is None:
        return Measured(None, note=NO_DATA)
    ratios = {
        f"{kind}, {name}": each[name] / each[other]
        for kind, each in rates.items()
        for name in ("like length", "packed")
        if name in each
    }
    return Measured(
        ratios["decoder, packed"],
        spread={"ratios": ratios, "tokens per CPU-second": rates},
        budget=f"50 steps a call, mean of {ROUNDS} rounds, candidates in turn, one thread, float32",
        note="the decoder, packed; Beauty, leave one out, 20 items at most, three codes of 256",
    )


def padding_share(options: Options) -> Measured:
    """Padding among the token cells of an epoch of Beauty."""
    import training_speed

    data = _beauty(options)
    if data is None:
        return Measured(None, note=NO_DATA)
    found = training_speed.padding(data)
    return Measured(found["decoder, packed"], spread=found, budget="first epoch", note="the decoder, packed")


def _losses(kind: str, n_parts: int, n_processes: int) -> list[float]:
    launch = (
        [] if n_processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    )
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GENREC_LOSSES_FOLDER": folder}
        command = [sys.executable, *launch, str(RUNS), "--losses", kind, "--parts", str(n_parts)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    found: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def two_process_loss_difference(options: Options) -> Measured:
    """Largest relative difference of a step's loss between one process and two, by kind of model."""
    found = {}
    for kind, n_parts in (("decoder", 1), ("packed", 2), ("t5", 1), ("lora", 2)):
        one, two = _losses(kind, 1, 1), _losses(kind, n_parts, 2)
        assert len(one) == len(two) > 1
        found[f"{kind}, {n_parts} parts"] = max(abs(b / a - 1) for a, b in zip(one, two, strict=True))
    return Measured(max(found.values()), spread=found, budget="24 steps, gloo, one thread a process, float32")


def _adapters(options: Options) -> dict[str, float]:
    """Measured once for two figures."""
    import training_adapters

    if "adapters" not in options.cache:
        options.cache["adapters"] = training_adapters.measured()
    return options.cache["adapters"]  # type: ignore[no-any-return]


def adapter_megabytes(options: Options) -> Measured:
    """Bytes of the adapter of a bundle."""
    found = _adapters(options)
    return Measured(
        found["adapter_megabytes"], spread=found, budget="20 steps, one thread",
        note="Qwen3 of random weights: r 16 on the attention, and 768 new rows",
    )  # fmt: skip


def merge_logit_difference(options: Options) -> Measured:
    """Largest difference of a logit between the adapter and the exported model, float32."""
    found = _adapters(options)
    return Measured(found["merge_logit_difference"], budget="as adapter_megabytes")


def resume_failures(options: Options, n_trials: int = 30) -> Measured:
    """Trainings that were killed, went on, and did not end with the bits of one left alone."""
    command = [sys.executable, str(RUNS), "--kills", str(n_trials)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return Measured(len(found["failures"]), spread=found, budget="kill -9 at a random moment of 24 steps, seed 0")


def continual(options: Options, key: str) -> Measured:
    """New items of Beauty, appended and then taught: one number of :mod:`training_continual`."""
    import torch
    import training_continual

    if options.data is None or not (options.data / BEAUTY).is_dir():
        return Measured(None, note=NO_DATA)
    if "continual" not in options.cache:
        torch.set_num_threads(1)
        options.cache["continual"] = training_continual.measured(options.data)
    found = options.cache["continual"]
    old = found["old.after"] / found["old.before"] - 1
    rest = {name: value for name, value in found.items() if name != "budget"}
    return Measured(
        old if key == "change" else found[key], spread=rest, budget=found["budget"],
        note=f"{found['n_new']} items held out of training; 3,000 users each; item-exact, seen excluded, 20 beams, "
        "ties neutral, seed 0",
    )  # fmt: skip


FIGURES = [
    Figure(
        "tokens_ratio_to_plain_trainer", "ratio", lambda o: tokens_ratio(o, "plain Trainer"), target=">= 2",
        baseline="transformers.Trainer, padding on the right",
    ),
    Figure(
        "tokens_ratio_to_grouped_trainer", "ratio", lambda o: tokens_ratio(o, "grouped Trainer"), target=">= 1.0",
        baseline="transformers.Trainer, group_by_length",
    ),
    Figure("padding_share", "share", padding_share, target="<= 0.10", quick=True),
    Figure("two_process_loss_difference", "relative", two_process_loss_difference, target="<= 1e-5"),
    Figure("adapter_megabytes", "MB", adapter_megabytes, baseline="the whole model, in spread"),
    Figure("merge_logit_difference", "logit", merge_logit_difference, target="<= 1e-4"),
    Figure("resume_failures", "of 30", resume_failures, target="0"),
    Figure("append_moved_identifiers", "items", lambda o: continual(o, "moved"), target="0"),
    Figure("new_items_recall10_before", "recall@10", lambda o: continual(o, "new.before")),
    Figure(
        "new_items_recall10_after", "recall@10", lambda o: continual(o, "new.after"), baseline="before, in spread"
    ),
    Figure("old_items_recall10_change", "relative", lambda o: continual(o, "change"), target=">= -0.02"),
]  # fmt: skip
