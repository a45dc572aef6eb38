"""Figures of the index: bytes, build time, and a hundred million items.

Identifiers are distinct rows drawn uniformly, which is the worst case for size: clustered ones share more prefixes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from run import Figure, Measured, Options

HERE = Path(__file__).resolve().parent
N_LEVELS = 4
MILLION = 10**6


def write_sorted_rows(file: Path, n_items: int, level_size: int, seed: int = 0) -> None:
    """``n_items`` distinct sorted rows ``[N, 4]`` of codes, written in pieces: the gaps between keys are exponential.

    The same gaps are drawn twice, first for their sum, so that they need not be kept.
    """

    def gaps() -> Iterator[np.ndarray]:
        random = np.random.default_rng(seed)
        return (random.exponential(size=min(MILLION, n_items - start)) for start in range(0, n_items, MILLION))

    dtype = np.uint8 if level_size <= 256 else np.uint16
    scale = (level_size**N_LEVELS - n_items) / (sum(float(gap.sum()) for gap in gaps()) + 1)
    last = 0.0
    with file.open("wb") as out:
        for number, gap in enumerate(gaps()):
            upto = last + np.cumsum(gap)
            last = upto[-1]
            key = np.floor(upto * scale).astype(np.int64) + np.arange(len(gap)) + number * MILLION
            columns = [(key // level_size**power) % level_size for power in range(N_LEVELS - 1, -1, -1)]
            np.column_stack(columns).astype(dtype).tofile(out)


def shorten(rows_file: Path, lengths_file: Path) -> None:
    """Take the last code of the last row of every prefix of three: the sorted rows stay sorted; write all lengths."""
    rows = np.memmap(rows_file, dtype=np.uint8, mode="r+").reshape(-1, N_LEVELS)
    with lengths_file.open("wb") as out:
        for start in range(0, len(rows), MILLION):
            part = rows[start : start + MILLION]
            short = np.append((part[1:, :3] != part[:-1, :3]).any(axis=1), False)
            part[short, 3] = 0
            (N_LEVELS - short).astype(np.uint8).tofile(out)
    rows.flush()


def _built(options: Options, level_size: int) -> dict[str, Any]:
    """Bytes and CPU seconds of three builds of ten million items, kept for the other figures."""
    from genrec.decoding.index import CatalogIndex

    key = f"index {level_size}"
    if key not in options.cache:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows"
            write_sorted_rows(file, 10 * MILLION, level_size)
            rows = np.fromfile(file, np.uint8 if level_size <= 256 else np.uint16).reshape(-1, N_LEVELS)
        seconds = []
        for _ in range(3):
            start = time.process_time()
            index = CatalogIndex.from_sorted(rows, (level_size,) * N_LEVELS)
            seconds.append(time.process_time() - start)
        options.cache[key] = {"seconds": seconds, "nbytes": index.nbytes, "map": index.items.nbytes}
    return options.cache[key]  # type: ignore[no-any-return]


def bytes_per_item(options: Options, level_size: int) -> Measured:
    """Bytes per item of ten million items without the map from ranks to items; with it in ``spread``."""
    found = _built(options, level_size)
    whole = found["nbytes"] / (10 * MILLION)
    spread = {"with_item_map": whole, "build_seconds": found["seconds"]}
    return Measured(whole - found["map"] / (10 * MILLION), spread, "1e7 distinct uniform identifiers of 4 codes")


def build_seconds(options: Options) -> Measured:
    """CPU seconds from sorted rows to the index: the slower of 256 and 2048 codes, median of three builds each."""
    medians = {size: statistics.median(_built(options, size)["seconds"]) for size in (256, 2048)}
    return Measured(max(medians.values()), medians, "1e7 items, one thread, rows in memory, median of 3")


def hundred_million(options: Options) -> Measured:
    """Bytes per item, map included, of 1e8 items read from a file; build, save, load by map and search in ``spread``.

    Two processes, each of which says its largest memory: one builds and saves, one loads and searches.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_sorted_rows(Path(folder) / "rows", 100 * MILLION, 256)
        steps = {}
        for step in ("build", "search"):
            steps |= {f"{step}_{name}": value for name, value in _in_process(step, folder).items()}
    budget = "1e8 distinct uniform identifiers of 4 x 256 codes in a file of 400 MB; one thread"
    return Measured(steps.pop("build_bytes_per_item"), steps, budget)


def hundred_million_ragged(options: Options) -> Measured:
    """Largest memory, in GB, of building and saving an index of 1e8 items of three or four codes, read from files."""
    with tempfile.TemporaryDirectory() as folder:
        write_sorted_rows(Path(folder) / "rows", 100 * MILLION, 256)
        shorten(Path(folder) / "rows", Path(folder) / "lengths")
        found = _in_process("build", folder)
    budget = "1e8 identifiers of 4 x 256 codes, a sixth without the last, in files of 400 and 100 MB; one thread"
    return Measured(found.pop("peak_rss_gb"), found, budget, "mapped pages of the files included")


def growing(options: Options) -> Measured:
    """CPU-seconds until a thousand new items can be found among a million (``CatalogStore.add``), median of five.

    Beside it, in turn: the index alone, grown and built anew, for identifiers of equal and of unequal length.
    """
    from genrec.decoding.catalog_store import CatalogStore
    from genrec.decoding.index import CatalogIndex
    from genrec.decoding.snapshot import CatalogSnapshot
    from genrec.item_tokenizers.codes import ItemCodes

    rows = np.random.default_rng(0).integers(0, 256, (MILLION + 1000, N_LEVELS))
    short = rows.copy()
    short[::5, 3] = -1
    spread: dict[str, list[float]] = {}
    for name, each in (("", rows), (", ragged", short)):
        everything = ItemCodes.from_int(each, (256,) * N_LEVELS, "after")
        before = CatalogSnapshot.of(ItemCodes.from_int(each[:MILLION], (256,) * N_LEVELS, "before"))
        for _ in range(5):
            store = CatalogStore(before)
            candidates = {
                "add": lambda: store.add(each[MILLION:], catalog="after").result(),  # noqa: B023
                "grown": lambda: before.index.grown(everything),  # noqa: B023
                "built anew": lambda: CatalogIndex.build(everything),  # noqa: B023
            }
            for what, run in candidates.items():
                start = time.process_time()
                run()
                spread.setdefault(what + name, []).append(round(time.process_time() - start, 4))
            store.close()
    return Measured(statistics.median(spread["add"]), spread, "1e6 + 1e3 items of 4 x 256 codes, all in one thread")


def _in_process(step: str, folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, step, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def _build(folder: Path) -> dict[str, float]:
    from genrec.decoding.index import CatalogIndex

    rows = np.memmap(folder / "rows", dtype=np.uint8, mode="r").reshape(-1, N_LEVELS)
    file = folder / "lengths"
    lengths = np.memmap(file, dtype=np.uint8, mode="r") if file.exists() else None
    start = time.process_time()
    index = CatalogIndex.from_sorted(rows, (256,) * N_LEVELS, lengths=lengths)
    built = time.process_time()
    index.save(folder / "index")
    return {
        "seconds": built - start,
        "save_seconds": time.process_time() - built,
        "index_bytes": index.nbytes,
        "bytes_per_item": index.nbytes / len(rows),
    }


def _search(folder: Path) -> dict[str, float]:
    import torch

    from genrec.data.histories import Histories
    from genrec.decoding.beam import beam_search
    from genrec.decoding.filters import ItemFilter, RankFilter, RowFilters
    from genrec.decoding.index import CatalogIndex
    from genrec.decoding.listing import list_items
    from genrec.decoding.select import DeviceIndex
    from genrec.testing.scripted import ScriptedScorer, row_prompts

    torch.set_num_threads(1)
    start = time.process_time()
    index = CatalogIndex.load(folder / "index")
    loaded = time.process_time()
    random = np.random.default_rng(0)
    scorer = ScriptedScorer(lambda row, prefix: -random.exponential(size=256))
    device, prompts = DeviceIndex(index, torch.device("cpu")), row_prompts(range(8))

    def seconds(filters: RowFilters | None = None, deny: Histories | None = None) -> float:
        begin = time.process_time()
        found = beam_search(scorer, device, prompts, n_beams=50, normalize="level", filters=filters, deny=deny)
        lists = list_items(index, found.leaves, found.scores, top_k=10, normalize="level", filters=filters, deny=deny)
        assert (lists.items >= 0).all()
        return time.process_time() - begin

    out = {"load_seconds": loaded - start, "first_search_seconds": seconds(), "search_seconds": seconds()}
    begin = time.process_time()
    some = ItemFilter.of_mask(random.integers(0, 10, index.n_items, dtype=np.uint8) == 0)
    allowed = RankFilter.of(some, index)
    out["filter_seconds"] = time.process_time() - begin
    filters = RowFilters.of([allowed] * len(prompts))
    out["first_filtered_search_seconds"], out["filtered_search_seconds"] = seconds(filters), seconds(filters)
    denied = Histories.from_lists(random.integers(0, index.n_items, (8, 50)).tolist())
    out["first_denied_search_seconds"], out["denied_search_seconds"] = seconds(deny=denied), seconds(deny=denied)
    return out


def _peak() -> dict[str, float]:
    """Largest resident memory of this process, pages of mapped files included."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"peak_rss_gb": int(status["VmHWM"].split()[0]) * 1024 / 1e9}


FIGURES = [
    Figure("index_bytes_per_item_256", "bytes", lambda o: bytes_per_item(o, 256), "<= 6", "best possible 2.2", True),
    Figure("index_bytes_per_item_2048", "bytes", lambda o: bytes_per_item(o, 2048), "<= 11", "best possible 5.5", True),
    Figure("index_build_seconds_1e7", "s CPU", build_seconds, "<= 1", quick=True),
    Figure("index_bytes_per_item_1e8", "bytes", hundred_million, "<= 6", "best possible 2"),
    Figure("index_ragged_peak_gb_1e8", "GB", hundred_million_ragged, "<= 2"),
    Figure("catalog_add_seconds_1e6", "s CPU", growing, quick=True),
]

if __name__ == "__main__":
    step, folder = sys.argv[1], Path(sys.argv[2])
    found = _build(folder) if step == "build" else _search(folder)
    print(json.dumps(found | _peak()))
