"""Figures of the spine: the demo, import time, tokenizer fit, crash safety, padding."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from run import Figure, Measured, Options

HERE = Path(__file__).resolve().parent


def _demo(options: Options, *overrides: str) -> dict[str, Any]:
    """One run of the demo in a fresh folder: wall seconds and its results, kept for the other figures."""
    key = " ".join(("demo", *overrides))
    if key not in options.cache:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "demo"
            command = [sys.executable, "-m", "genrec.cli.main", "demo", "--out", str(out)]
            for override in overrides:
                command += ["--set", override]
            start = time.perf_counter()
            subprocess.run(command, check=True)
            seconds = time.perf_counter() - start
            results = json.loads((out / "report" / "results.json").read_text())
        options.cache[key] = {"seconds": seconds, "results": results}
    return options.cache[key]  # type: ignore[no-any-return]


def _recall(results: dict[str, Any], model: str) -> float:
    rows = next(m["rows"] for m in results["models"] if m["model"] == model)
    return next(r["mean"] for r in rows if (r["slice"], r["metric"], r["k"]) == ("all", "recall", 10))


def demo_seconds(options: Options) -> Measured:
    """Wall time of `genrec demo`, one run, everything installed."""
    return Measured(_demo(options)["seconds"], budget="wall, both cores, after install")


def demo_ratio(options: Options, other: str, *overrides: str) -> Measured:
    """Recall@10 of the demo's model over that of another model of its table."""
    results = _demo(options, *overrides)["results"]
    ours = results["recipe"]["model"]["kind"]
    mine, line = _recall(results, ours), _recall(results, other)
    return Measured(mine / line, spread={ours: mine, other: line}, budget="demo recipe, seed 0, test part")


def import_seconds(options: Options) -> Measured:
    """CPU seconds of `import genrec` beyond starting Python, median of 9 processes."""
    command = "import time; t = time.process_time(); import genrec; print(time.process_time() - t)"
    found = [
        float(subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout)
        for _ in range(9)
    ]
    return Measured(statistics.median(found), spread=[min(found), max(found)], budget="9 processes")


def rq_kmeans_fit(options: Options) -> Measured:
    """CPU seconds of fitting and encoding 3 x 256 codes on 12,101 x 384 vectors with one thread."""
    import numpy as np
    import torch
    from threadpoolctl import threadpool_limits

    from genrec.embeddings.base import ItemEmbeddings
    from genrec.item_tokenizers.base import TokenizerSource
    from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings

    # vectors with the spectrum of text embeddings (variance falls as i^-1.2), so that no data set is needed
    draw = np.random.default_rng(0)
    vectors = (draw.standard_normal((12_101, 384)) * np.arange(1, 385) ** -0.6).astype(np.float32)
    keys = draw.permutation(12_101).astype(np.uint64)
    source = TokenizerSource("benchmark", keys, ItemEmbeddings(vectors, "benchmark", {}))
    torch.set_num_threads(1)
    times = []
    with threadpool_limits(1):
        for _ in range(3):
            start = time.process_time()
            RqKMeans(RqKMeansSettings(n_levels=3, level_size=256, collisions="suffix")).fit(source, seed=0)
            times.append(time.process_time() - start)
    return Measured(
        statistics.median(times), spread=times, budget="one thread, median of 3, synthetic vectors of Beauty's size"
    )


def save_kill_lost(options: Options) -> Measured:
    """Acknowledged saves lost over 200 `kill -9` at random moments."""
    command = [sys.executable, str(HERE / "save_kill.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.strip().splitlines()]
    row = next(r for r in rows if r["figure"] == "save_kill_lost")
    return Measured(row["value"], spread=row["seen"], budget=row["command"])


def padding_share(options: Options) -> Measured:
    """Share of padding among the token cells of the demo's training batches."""
    return Measured(_demo(options)["results"]["training"]["padding_share"], budget="first epoch of the demo")


FIGURES = [
    Figure("demo_seconds", "s wall", demo_seconds, target="<= 300"),
    Figure(
        "demo_recall10_ratio_to_itemknn", "ratio", lambda o: demo_ratio(o, "item_knn"), target=">= 1.05",
        baseline="item-kNN, shrink 10, decay 0.7",
    ),
    Figure(
        "demo_recall10_share_of_oracle", "ratio", lambda o: demo_ratio(o, "oracle"), target=">= 0.7",
        baseline="Bayes oracle of the generator",
    ),
    Figure(
        "demo_shuffled_recall10_ratio_to_itemknn", "ratio",
        lambda o: demo_ratio(o, "item_knn", "shuffle_identifiers=true"), target="loses most of the gain",
        baseline="the same with identifiers that mean something: demo_recall10_ratio_to_itemknn",
    ),
    Figure("import_seconds", "s CPU", import_seconds, target="<= 0.5", quick=True),
    Figure("rq_kmeans_beauty_fit_seconds", "s CPU", rq_kmeans_fit, target="seconds", quick=True),
    Figure("save_kill_lost", "of 200", save_kill_lost, target="0", quick=True),
    Figure("padding_share", "share", padding_share, target="<= 0.10"),
]  # fmt: skip
