"""Exact top-50 of a million items by four independent codes, beside a matrix product with a million vectors.

What a two-tower recommender pays: users ``[32, 256]`` times items ``[1e6, 256]`` in float32, top-k of every block,
blocks merged (several block sizes; the fastest counts). Scores of codes are given, as the vectors of the users are.
In turns, process CPU time, one thread.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from run import Figure, Measured, Options

from genrec.decoding.parallel import ParallelIndex
from genrec.decoding.parallel_best import Best
from genrec.decoding.parallel_request import Request
from genrec.decoding.parallel_scan import pruned_scan
from genrec.item_tokenizers.codes import ItemCodes
from genrec.seeding import rng

N, LEVELS, SIZE, USERS, TOP_K, WIDTH = 1_000_000, 4, 256, 32, 50, 256
BLOCKS = (32_768, 131_072, N)
ROUNDS = 7


def score_tables(kind: str, codes: ItemCodes) -> np.ndarray:
    """Log-probabilities ``[U, L, K]``: of noise, of noise and a target whose codes stand out, or all equal."""
    generator = rng(0, "parallel", kind)
    x = generator.normal(size=(USERS, LEVELS, SIZE))
    if kind == "peaked":
        targets = generator.integers(0, N, USERS)
        for level in range(LEVELS):
            x[np.arange(USERS), level, codes.codes[targets, level]] += 4
    elif kind == "equal":
        x[:] = 0
    return (x - np.log(np.exp(x).sum(axis=-1, keepdims=True))).astype(np.float32)


def dense(users_UD: torch.Tensor, items_ND: torch.Tensor, block: int) -> torch.Tensor:
    """Items ``[U, k]`` of the highest products."""
    best = torch.empty(len(users_UD), 0)
    items = torch.empty(len(users_UD), 0, dtype=torch.long)
    for start in range(0, len(items_ND), block):
        found = torch.topk(users_UD @ items_ND[start : start + block].T, TOP_K)
        best = torch.cat([best, found.values], dim=1)
        items = torch.cat([items, found.indices + start], dim=1)
        best, place = torch.topk(best, TOP_K)
        items = items.gather(1, place)
    return items


class Counting(Best):
    """Counts what is offered."""

    offered = 0

    def offer(self, rows: Any, items: Any, scores: Any) -> None:
        """Count and offer."""
        self.offered += len(rows)
        super().offer(rows, items, scores)


def share_looked_at(index: ParallelIndex, scores: np.ndarray) -> float:
    """Pairs of a user and an item that were scored, of all; 1 for users whose list needs a scan."""
    (batch,) = Request.of(USERS, N, "", top_k=TOP_K, filter=None, deny=None).batches()
    best = Counting(USERS, TOP_K, batch.rules)
    tables = [np.ascontiguousarray(scores[:, level]) for level in range(LEVELS)]
    left = len(pruned_scan(index.codes, index.parts, index.lists, tables, best))
    return (best.offered + left * N) / (USERS * N)


def in_turns(candidates: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median CPU milliseconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS + 1):
        for name, call in candidates.items():
            start = time.process_time()
            call()
            taken[name].append((time.process_time() - start) * 1e3)
    return {name: round(statistics.median(each[1:]), 2) for name, each in taken.items()}


def peak_mib(call: Callable[[], Any]) -> float:
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(peak / 2**20, 1)


def parallel_ratio(options: Options) -> Measured:
    """Pruned search of peaked scores over the fastest dense form; the rest in the spread."""
    torch.set_num_threads(1)
    generator = rng(0, "parallel codes")
    codes = ItemCodes(generator.integers(0, SIZE, (N, LEVELS)), (SIZE,) * LEVELS, "")
    start = time.process_time()
    index = ParallelIndex.of(codes)
    build = time.process_time() - start
    whole = ParallelIndex.of(codes, prune=False)
    users, items = torch.randn(USERS, WIDTH), torch.randn(N, WIDTH)
    kinds = {kind: score_tables(kind, codes) for kind in ("peaked", "flat")}
    candidates: dict[str, Callable[[], Any]] = {
        f"dense, blocks of {block}": lambda block=block: dense(users, items, block) for block in BLOCKS
    }
    for kind, scores in kinds.items():
        candidates[f"{kind}"] = lambda scores=scores: index.search(scores, top_k=TOP_K)
        candidates[f"{kind}, all items scored"] = lambda scores=scores: whole.search(scores, top_k=TOP_K)
        candidates[f"{kind}, one user"] = lambda scores=scores: index.search(scores[:1], top_k=TOP_K)
    candidates["dense, one user"] = lambda: dense(users[:1], items, N)
    taken = in_turns(candidates)
    equal = score_tables("equal", codes)
    start = time.process_time()
    index.search(equal, top_k=TOP_K)
    taken["everything ties"] = round((time.process_time() - start) * 1e3)
    best = min(value for name, value in taken.items() if name.startswith("dense, blocks"))
    spread = {
        "cpu_ms": taken,
        "share_of_items_looked_at": {kind: share_looked_at(index, scores) for kind, scores in kinds.items()},
        "bytes_per_item": {"codes": index.nbytes / N, "codes, no pruning": whole.nbytes / N, "dense": 4.0 * WIDTH},
        "peak_mib_of_a_search": peak_mib(lambda: index.search(kinds["flat"], top_k=TOP_K)),
        "build_seconds": round(build, 3),
    }
    budget = f"{N:,} items x {LEVELS} codes of {SIZE}, top-{TOP_K} for {USERS} users, one thread, {ROUNDS} rounds"
    return Measured(taken["peaked"] / best, spread=spread, budget=budget)


FIGURES = [Figure("parallel_ratio_to_dense", "ratio", parallel_ratio, quick=True)]
