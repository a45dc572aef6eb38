"""Speed, memory and stability of item tokenizers (suite "tokenizers"; this file must not be called tokenizers.py).

The 1e6-item figures run each candidate in a process of its own, A B A B, on the same vectors and the same training
sample, one thread; medians. faiss must be installed for the ratios (pip install faiss-cpu).
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rqvae_step import matmul_share, ratio_to_plain_loop
from rqvae_time import time_to_error
from run import Figure, Measured, Options

HERE = Path(__file__).resolve().parent
N, WIDTH, SIZES = 1_000_000, 384, "3 x 256, 64 training rows per code"
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}


def _process(candidate: str, *arguments: int) -> dict[str, float]:
    """What residual_kmeans.py measured for one candidate."""
    command = [sys.executable, str(HERE / "residual_kmeans.py"), candidate, *map(str, arguments)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **ONE_THREAD})
    return dict(json.loads(found.stdout.splitlines()[-1]))


def _side_by_side(options: Options) -> dict[str, list[dict[str, float]]]:
    """Ours and faiss, beam 1, twice each in turns, and faiss once with beam 5; kept for the other figures."""
    if "residual" not in options.cache:
        found: dict[str, list[dict[str, float]]] = {"ours": [], "faiss": []}
        for candidate in ("ours", "faiss", "ours", "faiss"):
            found[candidate].append(_process(candidate, N, WIDTH, 1))
        options.cache["residual"] = found | {"faiss beam 5": [_process("faiss", N, WIDTH, 5)]}
    return options.cache["residual"]  # type: ignore[no-any-return]


def residual(options: Options, what: str) -> Measured:
    """Ours over faiss's ResidualQuantizer with beam 1: CPU seconds of fit and encode together, or the error left."""
    found = _side_by_side(options)
    medians = {name: statistics.median(run[what] for run in runs) for name, runs in found.items()}
    return Measured(medians["ours"] / medians["faiss"], spread=found, budget=f"{N:,} x {WIDTH}, {SIZES}, one thread")


def peak_memory(options: Options) -> Measured:
    """Peak memory of the process that fits and encodes, over the size of its input."""
    found = _side_by_side(options)["ours"]
    return Measured(max(run["peak_over_input"] for run in found), spread=found, budget=f"{N:,} x {WIDTH}, {SIZES}")


def encode_rate(options: Options) -> Measured:
    """Items encoded per CPU second by a fitted RQ-k-means."""
    found = [N / run["encode_seconds"] for run in _side_by_side(options)["ours"]]
    return Measured(statistics.median(found), spread=found, budget=f"{N:,} x {WIDTH}, {SIZES}, one thread")


def speed_table(options: Options) -> Measured:
    """CPU seconds of ours, with those of every library that is installed beside it (once each)."""
    found = _side_by_side(options)
    others = {"scikit-learn": ("sklearn", "sklearn"), "vector-quantize-pytorch": ("vector_quantize_pytorch", "vqp")}
    spread = dict(found)
    for name, (module, candidate) in others.items():
        if importlib.util.find_spec(module) is not None:
            spread[name] = [_process(candidate, N, WIDTH, 1)]
    ours = statistics.median(run["cpu_seconds"] for run in found["ours"])
    return Measured(ours, spread=spread, budget=f"{N:,} x {WIDTH}, {SIZES}, one thread")


def spectral_beauty(options: Options) -> Measured:
    """CPU seconds of spectral clustering (20 clusters a split, leaves of 500) of Beauty's co-occurrence graph."""
    from genrec.data.readers import ReaderSettings, read
    from genrec.data.splits import leave_one_out
    from genrec.item_tokenizers.base import TokenizerSource
    from genrec.item_tokenizers.spectral import Spectral, SpectralSettings

    if options.data is None:
        sys.exit("this needs real data: give --data FOLDER or set GENREC_DATA")
    loaded = read(ReaderSettings("neutral", options.data / "amazon-beauty-2014"))
    cut = leave_one_out(loaded.interactions.order_ties("neutral", seed=0))
    source = TokenizerSource.of(loaded.catalog, train=cut.train())
    found, codes = [], None
    for _ in range(3):
        start = time.process_time()
        codes = Spectral(SpectralSettings(n_clusters=20, max_leaf=500)).fit(source, seed=0)
        found.append(time.process_time() - start)
    assert codes is not None
    lengths = codes.lengths if codes.lengths is not None else np.full(len(codes), codes.n_levels)
    spread = {"seconds": found, "mean_length": float(lengths.mean())}
    return Measured(statistics.median(found), spread=spread, budget="12,101 items, training histories, one thread")


def spectral_1e5(options: Options) -> Measured:
    """CPU seconds of spectral clustering of 100,000 items, used by 200,000 users in groups of related items."""
    from genrec.data.catalog import ItemCatalog
    from genrec.data.histories import Histories
    from genrec.item_tokenizers.base import TokenizerSource
    from genrec.item_tokenizers.spectral import Spectral, SpectralSettings
    from genrec.seeding import rng

    n, users, length = 100_000, 200_000, 8
    draw = rng(0, "spectral 1e5")
    group = draw.integers(1000, size=(users, 1))
    items = np.where(draw.random((users, length)) < 0.8, group * 100 + draw.integers(100, size=(users, length)),
                     draw.integers(n, size=(users, length)))  # fmt: skip
    train = Histories(np.arange(0, users * length + 1, length), items.astype(np.int32).ravel())
    catalog = ItemCatalog(tuple(f"item-{number}" for number in range(n)), {"title": [""] * n})
    source = TokenizerSource.of(catalog, train=train)
    start = time.process_time()
    codes = Spectral(SpectralSettings(n_clusters=20, max_leaf=500)).fit(source, seed=0)
    seconds = time.process_time() - start
    spread = {"n_levels": codes.n_levels, "collisions": len(codes.collisions())}
    return Measured(seconds, spread=spread, budget=f"{n:,} items, {users:,} users of {length} events, one thread")


def best_metric(options: Options) -> Measured:
    """Spearman with Recall@10 of the metric that foretells it best, from the committed runs of metric_study.py."""
    from metric_study import PRIMARY, report

    file = HERE / "results" / "metric_study.json"
    if not file.exists():
        return Measured(None, note="python benchmarks/metric_study.py --data DATA has not been run")
    log = json.loads(file.read_text())
    found = log["spearman"]["with_random=False"]
    both = max(len(each["by_set"]) for each in found.values())  # not every set has categories of two levels
    known = {key: each for key, each in found.items() if np.isfinite(each["mean"]) and len(each["by_set"]) == both}
    best = max(known, key=lambda key: abs(known[key]["mean"]))
    spread = {
        "metric": best, best: known[best], "primary": {PRIMARY: found.get(PRIMARY)},
        "largest_of_all_by_chance": log["largest_by_chance"]["with_random=False"],
    }  # fmt: skip
    note = "the best of many metrics, chosen after the runs; the primary one was named before"
    print(report(log["runs"]), file=sys.stderr)
    return Measured(known[best]["mean"], spread=spread, budget=f"{len(log['runs'])} runs", note=note)


def collisions(options: Options) -> Measured:
    """CPU seconds of resolving the collisions of a million items by reassignment."""
    from genrec.item_tokenizers.collisions import reassign, suffix
    from genrec.testing.crowded import crowded_items

    crowded = crowded_items(N)
    spread: dict[str, Any] = {"items_in_a_collision": crowded.codes.report()["collision_share"]}
    for name, run in (
        ("suffix", lambda: suffix(crowded.codes, crowded.keys, limit=N)),
        ("reassign", lambda: reassign(crowded.codes, crowded.keys, crowded.quantized)),
    ):
        start = time.process_time()
        left = len(run().codes.collisions())
        spread[name] = {"cpu_seconds": time.process_time() - start, "collisions_left": left}
    return Measured(spread["reassign"]["cpu_seconds"], spread=spread, budget=f"{N:,} x 64, 3 x 256, one thread")


def append_moved(options: Options) -> Measured:
    """Published identifiers that change when a tenth of the catalog is appended; beside it, fitting again."""
    from genrec.data.catalog import ItemCatalog
    from genrec.embeddings.base import ItemEmbeddings
    from genrec.item_tokenizers.base import TokenizerSource
    from genrec.item_tokenizers.drift import drift
    from genrec.item_tokenizers.life import append
    from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings
    from genrec.seeding import rng

    n, n_old = 20_000, 18_000
    generator = rng(0, "append benchmark")
    centres = generator.normal(size=(300, 32))
    vectors = (centres[generator.integers(300, size=n)] + 0.4 * generator.normal(size=(n, 32))).astype(np.float32)
    ids = [f"item-{number}" for number in range(n)]
    old = ItemCatalog(tuple(ids[:n_old]), {"title": [""] * n_old})
    new = old.append(ids[n_old:], {"title": [""] * (n - n_old)})

    def source(catalog: ItemCatalog) -> TokenizerSource:
        rows = ItemEmbeddings(vectors[: len(catalog)], catalog.fingerprint, {})
        return TokenizerSource.of(catalog, embeddings=rows)

    spread = {}
    for policy in ("suffix", "reassign", "shared"):
        tokenizer = RqKMeans(RqKMeansSettings(level_size=64, collisions=policy))  # type: ignore[arg-type]
        published = tokenizer.fit(source(old), seed=0)
        start = time.process_time()
        grown = append(tokenizer, published, source(new)).codes
        seconds = time.process_time() - start
        again = RqKMeans(tokenizer.settings).fit(source(new), seed=0)
        moved = int((grown.as_int()[:n_old] != published.as_int()).any(axis=1).sum())
        spread[policy] = {
            "moved": moved,
            "cpu_seconds": seconds,
            "collisions": len(grown.collisions()),
            "moved_by_fitting_again": len(drift(published, again).moved) if policy != "suffix" else None,
        }
    moved = max(row["moved"] for row in spread.values())
    return Measured(float(moved), spread=spread, budget=f"{n - n_old:,} items onto {n_old:,}, 3 x 64")


FIGURES = [
    Figure("rqkmeans_1e6_time_ratio_to_faiss_beam1", "ratio", lambda o: residual(o, "cpu_seconds"), target="<= 1.3"),
    Figure("rqkmeans_1e6_mse_ratio_to_faiss_beam1", "ratio", lambda o: residual(o, "error_left"), target="<= 1.0"),
    Figure("rqkmeans_peak_memory_ratio_to_input", "ratio", peak_memory, target="< 2"),
    Figure("encode_items_per_cpu_second", "items/CPU s", encode_rate),
    Figure("rqvae_matmul_share", "share", matmul_share, target=">= 0.8", quick=True),
    Figure("rqvae_ratio_to_plain_loop", "ratio", ratio_to_plain_loop, target="<= 1.0", quick=True),
    Figure("rqvae_time_to_error_ratio_to_public", "ratio", time_to_error, target="< 1"),
    Figure("rqkmeans_1e6_cpu_seconds", "CPU s", speed_table, baseline="faiss, scikit-learn, vector-quantize-pytorch"),
    Figure("spectral_1e5_cpu_seconds", "CPU s", spectral_1e5, target="<= 600"),
    Figure("best_metric_spearman", "Spearman", best_metric, quick=True),
    Figure("spectral_beauty_cpu_seconds", "CPU s", spectral_beauty, target="<= 10"),
    Figure("collisions_1e6_seconds", "CPU s", collisions, target="seconds", quick=True),
    Figure("append_moved_identifiers", "items", append_moved, target="0", quick=True),
]
