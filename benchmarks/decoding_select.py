"""What the constraint costs: whole searches over precomputed random logits, so without a model.

Four levels. A search is the library's ``beam_search``, from the prompts to arrays of leaves and scores; its logits are
normalised over the level. The floor does the same without any constraint, on the same logits:
``(score + logits.log_softmax(-1)).flatten(1).topk(beams)`` at every level. Other methods:

- STATIC (Su et al. 2026), its PyTorch code as published, from a checkout given by STATIC_DECODING;
- the ``PrefixConstrainedLogitsProcessor`` of transformers over a trie of Python dictionaries.

Every figure is a ratio of medians of process CPU time, one thread, the two sides measured in turn.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from run import Figure, Measured, Options

from genrec.data.histories import Histories
from genrec.decoding.beam import Found, beam_search
from genrec.decoding.filters import ItemFilter, RankFilter, RowFilters
from genrec.decoding.index import CatalogIndex
from genrec.decoding.scorer import Prompts, StepScores
from genrec.decoding.select import DeviceIndex
from genrec.item_tokenizers.codes import ItemCodes

LEVELS = 4
ROUNDS = 9
CPU = torch.device("cpu")


class Catalog(NamedTuple):
    """Distinct random identifiers: how many, of how many codes a level, each code as likely as its rank says or not."""

    n_items: int
    n_codes: int
    zipf: bool = False

    def __str__(self) -> str:
        return f"{self.n_items:.0e}/{self.n_codes}{' Zipf' if self.zipf else ''}"


MILLION = [Catalog(10**6, 256), Catalog(10**6, 2048), Catalog(10**6, 256, zipf=True)]
CATALOGS = [*MILLION, Catalog(10**7, 256), Catalog(10**7, 2048)]
HF_CATALOGS = [Catalog(10**5, 256), Catalog(10**5, 2048), Catalog(10**6, 256)]  # a dict trie takes 300-700 B an item
BATCHES = (1, 8, 32)
BEAMS = (10, 20, 50)


@functools.lru_cache(maxsize=1)
def identifiers(catalog: Catalog) -> np.ndarray:
    """Sorted rows of codes, unsigned ``[N, 4]``."""
    random = np.random.default_rng(0)
    steps = np.cumsum(1.0 / np.arange(1, catalog.n_codes + 1))
    keys = np.zeros(0, dtype=np.int64)
    while len(keys) < catalog.n_items:
        n = catalog.n_items + catalog.n_items // 50
        more = np.zeros(n, dtype=np.int64)
        for _ in range(LEVELS):
            code = (
                np.searchsorted(steps, random.random(n) * steps[-1])
                if catalog.zipf
                else random.integers(0, catalog.n_codes, n)
            )
            more = more * catalog.n_codes + code
        keys = np.unique(np.concatenate([keys, more]))
    keys = np.delete(keys, np.linspace(0, len(keys) - 1, len(keys) - catalog.n_items).astype(np.int64))
    rows = np.empty((len(keys), LEVELS), dtype=np.uint8 if catalog.n_codes <= 256 else np.uint16)
    for level in range(LEVELS - 1, -1, -1):
        rows[:, level] = keys % catalog.n_codes
        keys //= catalog.n_codes
    return rows


@functools.lru_cache(maxsize=1)
def index_of(catalog: Catalog) -> DeviceIndex:
    return DeviceIndex(CatalogIndex.from_sorted(identifiers(catalog), (catalog.n_codes,) * LEVELS), CPU)


def random_logits(catalog: Catalog, batch: int, beams: int) -> list[torch.Tensor]:
    """Float32 ``[B, 1, V]`` for the first step, ``[B, W, V]`` for the others."""
    generator = torch.Generator().manual_seed(batch * 100 + beams)
    widths = [1, *[min(beams, catalog.n_codes)] * (LEVELS - 1)]
    return [torch.randn((batch, width, catalog.n_codes), generator=generator) for width in widths]


class Given:
    """A scorer that answers with the logits it was given."""

    device = CPU

    def __init__(self, logits: list[torch.Tensor]) -> None:
        self.logits = logits
        self.prompts = Prompts(np.zeros((len(logits[0]), 1), np.int64), np.ones((len(logits[0]), 1), bool))

    def start(self, prompts: Prompts, normalize: str) -> SimpleNamespace:
        """Before the first level."""
        return SimpleNamespace(level=-1)

    def step(self, state: SimpleNamespace, parents: Any, codes: Any) -> StepScores:
        """The logits of the next level."""
        state.level += 1
        return StepScores(self.logits[state.level])


def search(index: DeviceIndex, scorer: Given, beams: int, kept: RankFilter | None = None) -> Found:
    filters = RowFilters.of([kept] * len(scorer.prompts))
    return beam_search(scorer, index, scorer.prompts, n_beams=beams, normalize="level", filters=filters)


@torch.inference_mode()
def floor(logits: list[torch.Tensor], beams: int) -> torch.Tensor:
    """The same without a constraint."""
    score = torch.zeros(len(logits[0]), 1)
    for each in logits:
        scores = (score[..., None] + each.log_softmax(-1)).flatten(1)
        score = scores.topk(min(beams, scores.shape[1])).values
    return score


def seconds(candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median CPU-seconds of each candidate; in turn, each as often as takes 15 ms."""
    torch.set_num_threads(1)
    repeats = {}
    for name, run in candidates.items():
        run()  # compiled, cached
        start = time.process_time()
        run()
        repeats[name] = max(1, int(0.015 / max(time.process_time() - start, 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, run in candidates.items():
            start = time.process_time()
            for _ in range(repeats[name]):
                run()
            found[name].append((time.process_time() - start) / repeats[name])
    return {name: median(times) for name, times in found.items()}


def measured(ratios: dict[str, float], value: float, note: str = "") -> Measured:
    load = f"load {os.getloadavg()[0]:.1f}"
    spread = {name: round(ratio, 3) for name, ratio in sorted(ratios.items(), key=lambda item: item[1])}
    return Measured(value, spread, f"{ROUNDS} rounds, 1 thread", f"{note}; {load}" if note else load)


def against_floor(batches: tuple[int, ...]) -> Measured:
    """The worst ratio to the floor."""
    ratios = {}
    for catalog in CATALOGS:
        index = index_of(catalog)
        for batch in batches:
            for beams in BEAMS:
                logits = random_logits(catalog, batch, beams)
                scorer = Given(logits)
                found = seconds({
                    "ours": lambda: search(index, scorer, beams),  # noqa: B023 - run before the loop goes on
                    "floor": lambda: floor(logits, beams),  # noqa: B023
                })  # fmt: skip
                ratios[f"{catalog} {batch}x{beams}"] = found["ours"] / found["floor"]
    return measured(ratios, max(ratios.values()), f"worst of {len(ratios)}, median {median(ratios.values()):.3f}")


def static_search(folder: str, catalog: Catalog) -> Callable[[list[torch.Tensor], int], torch.Tensor]:
    """STATIC's search as a function of logits and beams; dense tables for two levels, as published."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    build = importlib.import_module("static_decoding.csr_utils").build_static_index
    run = importlib.import_module("static_decoding.decoding_pt").sparse_transition_torch
    csr, pointers, branching, *dense = build(identifiers(catalog).astype(np.int32), catalog.n_codes, 2)
    csr, pointers, *dense = (torch.from_numpy(x) for x in (csr, pointers, *dense))

    def searched(logits: list[torch.Tensor], beams: int) -> torch.Tensor:
        answers = (each.flatten(0, 1)[:, None] for each in logits)
        found: torch.Tensor = run(
            lambda tokens: next(answers), len(logits[0]), beams, beams, 0, LEVELS, catalog.n_codes,
            branching, csr, pointers, *dense, CPU, 2,
        )  # fmt: skip
        return found

    return searched


def against_static(options: Options) -> Measured:
    """How many times longer STATIC takes, median."""
    folder = os.environ.get("STATIC_DECODING")
    if not folder:
        return Measured(None, note="not measured: STATIC_DECODING names no checkout of STATIC")
    ratios, same = {}, []
    for catalog in MILLION:
        index, other = index_of(catalog), static_search(folder, catalog)
        for batch in BATCHES:
            for beams in BEAMS:
                logits = random_logits(catalog, batch, beams)
                scorer = Given(logits)
                mine = identifiers(catalog)[search(index, scorer, beams).leaves].astype(np.int64)
                same.append(float((mine == other(logits, beams).numpy()).all(-1).mean()))
                found = seconds({
                    "ours": lambda: search(index, scorer, beams),  # noqa: B023
                    "static": lambda: other(logits, beams),  # noqa: B023
                })  # fmt: skip
                ratios[f"{catalog} {batch}x{beams}"] = found["static"] / found["ours"]
    return measured(ratios, median(ratios.values()), f"same identifier in the same place: {min(same):.3f} or more")


def dict_trie(rows: np.ndarray) -> dict[int, Any]:
    """A trie of Python dictionaries; the last codes are in a dictionary too."""
    root: dict[int, Any] = {}
    for a, b, c, d in rows.tolist():
        root.setdefault(a, {}).setdefault(b, {}).setdefault(c, {})[d] = None
    return root


@torch.inference_mode()
def hf_search(trie: dict[int, Any], logits: list[torch.Tensor], beams: int) -> torch.Tensor:
    """Beam search with transformers' processor, its state read from the sequence."""
    from transformers import PrefixConstrainedLogitsProcessor

    def allowed(_: int, prefix: torch.Tensor) -> list[int]:
        node = trie
        for code in prefix.tolist():
            node = node[code]
        return list(node)

    batch = len(logits[0])
    codes, score = torch.zeros((batch, 1, 0), dtype=torch.int64), torch.zeros(batch, 1)
    for each in logits:
        width = each.shape[1]
        processor = PrefixConstrainedLogitsProcessor(allowed, width)
        logp = processor(codes.flatten(0, 1), each.flatten(0, 1).log_softmax(-1)).view(each.shape)
        scores = (score[..., None] + logp).flatten(1)
        score, column = scores.topk(min(beams, scores.shape[1]))
        parent, code = column // each.shape[2], column % each.shape[2]
        codes = torch.cat([codes.gather(1, parent[..., None].expand(-1, -1, codes.shape[2])), code[..., None]], 2)
    return codes


def against_hf(options: Options) -> Measured:
    """How many times longer the dictionary trie takes, median."""
    ratios, same = {}, []
    for catalog in HF_CATALOGS:
        index, trie = index_of(catalog), dict_trie(identifiers(catalog))
        for batch in BATCHES:
            for beams in BEAMS:
                logits = random_logits(catalog, batch, beams)
                scorer = Given(logits)
                mine = identifiers(catalog)[search(index, scorer, beams).leaves].astype(np.int64)
                same.append(float((mine == hf_search(trie, logits, beams).numpy()).all(-1).mean()))
                found = seconds({
                    "ours": lambda: search(index, scorer, beams),  # noqa: B023
                    "hf": lambda: hf_search(trie, logits, beams),  # noqa: B023
                })  # fmt: skip
                ratios[f"{catalog} {batch}x{beams}"] = found["hf"] / found["ours"]
    return measured(ratios, median(ratios.values()), f"same identifier in the same place: {min(same):.3f} or more")


def filtered(share: float) -> Measured:
    """The worst ratio of a search under a filter of random items to one without, 20 beams, 1e7 items."""
    ratios = {}
    for catalog in CATALOGS[-2:]:
        index = index_of(catalog)
        mask = np.random.default_rng(1).random(catalog.n_items) < share
        kept = RankFilter.of(ItemFilter.of_mask(mask), index.host)
        for batch in BATCHES:
            scorer = Given(random_logits(catalog, batch, 20))
            found = seconds({
                "all": lambda: search(index, scorer, 20),  # noqa: B023
                "kept": lambda: search(index, scorer, 20, kept),  # noqa: B023
            })  # fmt: skip
            ratios[f"{catalog} {batch}x20"] = found["kept"] / found["all"]
    return measured(ratios, max(ratios.values()), f"worst of {len(ratios)}")


class RandomLogits:
    """A scorer that draws its logits and keeps the prefixes it was asked to continue."""

    device = CPU

    def __init__(self, sizes: list[int], seed: int) -> None:
        self.sizes, self.generator = sizes, torch.Generator().manual_seed(seed)

    def start(self, prompts: Prompts, normalize: str) -> SimpleNamespace:
        """Empty prefixes."""
        self.prefixes = torch.zeros((len(prompts), 1, 0), dtype=torch.int64)
        return SimpleNamespace()

    def step(self, state: SimpleNamespace, parents: torch.Tensor | None, codes: torch.Tensor | None) -> StepScores:
        """Other logits at every call."""
        if parents is not None and codes is not None:
            before = self.prefixes.gather(1, parents[..., None].expand(-1, -1, self.prefixes.shape[2]))
            self.prefixes = torch.cat([before, codes[..., None]], 2)
        shape = (*self.prefixes.shape[:2], self.sizes[self.prefixes.shape[2]])
        return StepScores(torch.randn(shape, generator=self.generator))


def invalid(n_decodes: int, *, n_items: int = 3000, n_codes: int = 12, beams: int = 10) -> int:
    """Results of random searches that are no allowed item or missing, counted without the index.

    In turn: no limit, a filter, a narrow filter, denied items, denied items under a filter. A result is wrong if no
    beam that the model was asked to continue is the beginning of its item, if it repeats, or if its item is not
    allowed; and so is one that is not there although an allowed identifier is left.
    """
    random = np.random.default_rng(0)
    rows = random.integers(0, n_codes, (n_items, LEVELS))  # some share an identifier
    index = CatalogIndex.build(ItemCodes.from_int(rows, (n_codes,) * LEVELS, "c"))
    masks = [random.random(n_items) < share for share in (0.5, 0.002)]
    kept = [RankFilter.of(ItemFilter.of_mask(mask), index) for mask in masks]
    key = rows @ n_codes ** np.arange(LEVELS)[::-1]
    device, wrong, batch = DeviceIndex(index, CPU), 0, min(500, n_decodes)
    for number in range(-(-n_decodes // batch)):
        which = (None, 0, 1, None, 0)[number % 5]
        denied = random.choice(n_items, 20, replace=False) if number % 5 > 2 else np.zeros(0, dtype=np.int64)
        mask = np.ones(n_items, dtype=bool) if which is None else masks[which].copy()
        mask[denied] = False
        scorer = RandomLogits([n_codes] * LEVELS, number)
        found = beam_search(
            scorer, device, Prompts(np.zeros((batch, 1), np.int64), np.ones((batch, 1), bool)), n_beams=beams,
            normalize=("level", "children")[number % 2], deny=Histories.from_lists([denied.tolist()] * batch),
            filters=RowFilters.of([None if which is None else kept[which]] * batch),
        )  # fmt: skip
        leaf = found.leaves
        real = leaf >= 0
        wrong += int((real != (np.arange(leaf.shape[1]) < min(beams, len(np.unique(key[mask]))))).sum())
        allowed_keys = np.unique(key[mask])
        own = key[index.items[index.first_rank(np.where(real, leaf, 0))]]
        begun = scorer.prefixes.numpy() @ n_codes ** np.arange(LEVELS - 1)[::-1]
        good = np.isin(own, allowed_keys) & (own[..., None] // n_codes == begun[:, None, :]).any(-1)
        ordered = np.sort(np.where(real, own, -1 - np.arange(own.shape[1])), axis=1)
        wrong += int((real & ~good).sum()) + int((ordered[:, 1:] == ordered[:, :-1]).sum())
    return wrong


def count_invalid(options: Options) -> Measured:
    n_decodes = 20_000 if options.quick else 1_000_000
    return Measured(float(invalid(n_decodes)), None, f"{n_decodes} random searches of 10 beams")


FIGURES = [
    Figure("select_ratio_b8", "x floor", lambda options: against_floor(BATCHES[1:]), "<= 1.0", "unconstrained top-k"),
    Figure("select_ratio_b1", "x floor", lambda options: against_floor(BATCHES[:1]), "<= 1.3", "unconstrained top-k"),
    Figure("static_ratio_median", "x", against_static, ">= 2.5", "STATIC, PyTorch"),
    Figure("hf_ratio_median", "x", against_hf, ">= 30", "PrefixConstrainedLogitsProcessor, dict trie"),
    Figure("filter_ratio_90", "x", lambda options: filtered(0.9), "<= 1.3", "no filter"),
    Figure("filter_ratio_10", "x", lambda options: filtered(0.1), "<= 1.4", "no filter"),
    Figure("filter_ratio_0p1", "x", lambda options: filtered(0.001), "<= 3", "no filter"),
    Figure("invalid_items", "results", count_invalid, "0", "", quick=True),
]
