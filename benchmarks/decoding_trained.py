"""What beams, certificates, filters and cold drafts are worth on trained models: Amazon Beauty 2014 and Games.

The runs are those of the quality suite (runs/quality/; brought up to date first). Times are process CPU-milliseconds of
one thread, users one by one, the candidates of a user one after another.

    python benchmarks/decoding_trained.py --plot docs/recall-per-ms.svg   # the curve from benchmarks/results/
    python benchmarks/decoding_trained.py --cold runs/quality/games-decoder-0   # a figure of a finished run, as it is
    python benchmarks/decoding_trained.py --filtered runs/quality/beauty-neutral-t5-0
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality import beauty_run, games_run
from real_data import cost_text
from run import Figure, Measured, Options, committed

from genrec.baselines.counting import ContentKnn
from genrec.data.histories import Histories
from genrec.data.splits import EvalSet, Split
from genrec.decoding import small
from genrec.decoding.dense import recommend_dense
from genrec.decoding.filters import ItemFilter
from genrec.decoding.interface import SearchOptions
from genrec.embeddings.base import ItemEmbeddings
from genrec.evaluation.run import evaluate
from genrec.evaluation.settings import EvalSettings
from genrec.models.bundle import load_bundle
from genrec.models.cold import ColdDrafting, ColdSettings
from genrec.models.recommender import GenerativeRecommender
from genrec.models.whole_catalog import WholeCatalog

TOP_K = 10
BEAMS = (5, 10, 20, 50, 100, 200)
ALLOWED = (0.1, 0.01, 0.001)
QUOTAS = (0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Sizes:
    """Users that are asked, that are timed, that get filtered lists, and that get cold drafts (all)."""

    asked: int = 2000
    timed: int = 200
    filtered: int = 300
    cold: int = 10**9


SIZES = Sizes()


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    run: Path

    @cached_property
    def split(self) -> Split:
        """Its split."""
        return Split.load(self.run / "split")

    def model(self, dtype: torch.dtype | None = None) -> GenerativeRecommender:
        """Its model."""
        return load_bundle(self.run / "bundle", dtype=dtype).recommender

    def queries(self, size: int, part: str = "test") -> EvalSet:
        """A fixed sample of its queries."""
        return self.split.queries(part).sample(size, seed=0)

    @property
    def text(self) -> str:
        """What it cost."""
        return f"{self.run.name}: {cost_text(self.run, 'train')}"


def certified(run: Path) -> Measured:
    """Share of users whose list of ten is proven at 50 beams; beside it 20 and 100, and what proving all costs."""
    trained = Trained(run)
    model, asked = trained.model(), trained.queries(SIZES.asked).histories
    timed = trained.queries(SIZES.timed).histories
    shares = {}
    for n_beams in (20, 50, 100):
        found = model.recommend(asked, SearchOptions(top_k=TOP_K, n_beams=n_beams))
        shares[f"{n_beams} beams"] = float(found.certified.mean())
    proven = model.recommend(asked, SearchOptions(top_k=TOP_K, n_beams=20, exact=True))
    shares["exact"] = float(proven.certified.mean())
    candidates = {f"{n} beams": SearchOptions(top_k=TOP_K, n_beams=n) for n in (20, 50, 100)}
    candidates |= {f"exact from {n}": SearchOptions(top_k=TOP_K, n_beams=n, exact=True) for n in (10, 20, 50)}
    spread = {"certified": shares, "cpu_ms": times(model, timed, candidates)}
    return Measured(shares["50 beams"], spread=spread, budget=f"{len(asked)} test users; {trained.text}")


def filtered_overlap(run: Path) -> Measured:
    """Overlap of the list of ten under a random filter of 1 % of the items (50 beams) with the exact list.

    Beside it 10 and 0.1 %, 20 beams, and other limits of the small-set rule (0 = without it), with their CPU time.
    """
    trained = Trained(run)
    model, histories = trained.model(), trained.queries(SIZES.filtered).histories
    scores = WholeCatalog(model).score_all(histories)
    spread: dict[str, Any] = {}
    model.recommend(histories.take([0]), SearchOptions(top_k=TOP_K))  # what is loaded once is not timed
    for share in ALLOWED:
        filters = random_filters(model.n_items, share, len(histories))
        best = recommend_dense(Known(scores), histories, SearchOptions(top_k=TOP_K, filter=filters), batch_size=10**9)
        asked = {f"{n} beams": SearchOptions(top_k=TOP_K, n_beams=n, filter=filters) for n in (20, 50)}
        rows = [(f"{name}, small set {limit}", limit, asked[name]) for limit in (0, 256, 1024) for name in asked]
        rows.append(("exact from 20, small set 0", 0, replace(asked["20 beams"], exact=True)))
        for name, limit, options in rows:
            with small_set(limit):
                start = time.process_time()
                found = model.recommend(histories, options)
                spent = 1e3 * (time.process_time() - start) / len(histories)
            spread[f"{100 * share:g} % allowed, {name}"] = {
                "overlap": overlap(found.items, best.items),
                "certified": float(found.certified.mean()),
                "cpu_ms": round(spent, 2),
            }
    value = spread["1 % allowed, 50 beams, small set 256"]["overlap"]
    budget = f"{len(histories)} test users in batches, 10 random filters per share; {trained.text}"
    return Measured(value, spread=spread, budget=budget)


def recall_curve(runs: dict[str, Path]) -> Measured:
    """Recall@10 of an exact decoder over that of 20 beams; beside it recall and CPU time of every setting."""
    warnings.filterwarnings("ignore", message="n_beams=5 ")  # a short list is what five beams cost
    rows = []
    for name, run in runs.items():
        trained = Trained(run)
        asked, timed = trained.queries(SIZES.asked), trained.queries(SIZES.timed).histories
        candidates = {str(n): SearchOptions(top_k=TOP_K, n_beams=n) for n in BEAMS}
        candidates["exact"] = SearchOptions(top_k=TOP_K, n_beams=20, exact=True)
        for kind, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            model = trained.model(dtype)
            spent = times(model, timed, candidates)
            for beams, options in candidates.items():
                recall = recall_at_10(model, asked, options)
                rows.append({"model": name, "dtype": kind, "beams": beams, "recall@10": recall, **spent[beams]})
    first = next(iter(runs))
    of = {(row["model"], row["dtype"], row["beams"]): row["recall@10"] for row in rows}
    ratio = of[first, "float32", "exact"] / max(of[first, "float32", "20"], 1e-12)
    text = "; ".join(Trained(run).text for run in runs.values())
    return Measured(ratio, spread=rows, budget=f"recall of {SIZES.asked}, times of {SIZES.timed} test users; {text}")


def cold(run: Path, part: str = "test") -> dict[str, dict[str, Any]]:
    """Recall@10 on cold, warm and all targets: without drafts, with them, and of content-kNN on unseen items.

    Beside it, of the model's own list and of content-kNN's: the share of users whose item at each place is a target.
    """
    trained = Trained(run)
    split, model, queries = trained.split, trained.model(), trained.queries(SIZES.cold, part)
    train = split.train()
    seen = np.bincount(train.items, minlength=split.n_items) > 0
    vectors = ItemEmbeddings.load(run / "text_embeddings")
    settings = EvalSettings(ks=(1, 2, TOP_K), n_bootstrap=0)
    content = ContentKnn(vectors.vectors, candidates="unseen").fit(train, split.n_items)
    models: dict[str, Any] = {"no drafts": model, "content-kNN": content}
    for quota in QUOTAS:
        models[f"quota {quota:g}"] = ColdDrafting(model, vectors, ~seen, ColdSettings(quota=quota))
    models["quota 0.2, with the model's score"] = ColdDrafting(model, vectors, ~seen, ColdSettings(score_weight=0.2))
    found = {}
    for name, each in models.items():
        report = evaluate(each, queries, settings=settings, train=train, progress=False)
        means = {key: interval.mean for key, interval in report.intervals.items()}
        wanted = ["recall@10", "warm.recall@10", "cold.recall@10", "cold.recall@2"]
        found[name] = {key: float(means.get(key, np.nan)) for key in wanted}
    asked = SearchOptions(top_k=TOP_K)
    lists = {
        "no drafts": model.recommend(queries.histories, asked),
        "content-kNN": recommend_dense(content, queries.histories, asked),
    }
    for name, each in lists.items():
        found[name] |= {"hits by place": hits_by_place(each.items, queries.targets)}
    return found


def hits_by_place(items: np.ndarray, targets: Histories) -> list[float]:
    """Share of users whose item at each place is one of their targets."""
    hit = np.zeros(items.shape, dtype=bool)
    np.logical_or.at(hit, targets.rows(), items[targets.rows()] == targets.items[:, None])
    return [float(share) for share in hit.mean(axis=0)]


def cold_figure(options: Options, value: str) -> Measured:
    """One of the two figures; both are read from one evaluation."""
    run = [games_run(options, stage) for stage in ("content", "train")][-1]
    if "cold" not in options.cache:
        options.cache["cold"] = cold(run)
    return cold_measured(options.cache["cold"], run, value)


def cold_measured(found: dict[str, dict[str, Any]], run: Path, value: str) -> Measured:
    """The warm loss or the cold ratio of a run's drafts; everything that was measured in ``spread``."""
    drafted, plain, content = found["quota 0.2"], found["no drafts"], found["content-kNN"]
    ratio = drafted["cold.recall@10"] / content["cold.recall@10"]
    loss = 1 - drafted["warm.recall@10"] / plain["warm.recall@10"]
    spread = {
        **found,
        "ratio at equal places": drafted["cold.recall@10"] / content["cold.recall@2"],
        "all targets, with over without drafts": drafted["recall@10"] / plain["recall@10"],
    }
    note = "two of ten places are drafts; content-kNN fills all ten with cold items"
    return Measured({"ratio": ratio, "loss": loss}[value], spread=spread, budget=Trained(run).text, note=note)


def times(
    model: GenerativeRecommender, histories: Histories, candidates: dict[str, SearchOptions]
) -> dict[str, dict[str, float]]:
    """CPU-milliseconds per user, users one by one, the candidates in turn."""
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    for row in range(-1, len(histories)):  # the first one warms up
        one = histories.take([max(row, 0)])
        for name, options in candidates.items():
            start = time.process_time()
            model.recommend(one, options)
            if row >= 0:
                spent[name].append(1e3 * (time.process_time() - start))
    return {
        name: {
            "mean": round(statistics.mean(values), 2),
            "p50": round(float(np.percentile(values, 50)), 2),
            "p99": round(float(np.percentile(values, 99)), 2),
        }
        for name, values in spent.items()
    }


def recall_at_10(model: GenerativeRecommender, queries: EvalSet, options: SearchOptions) -> float:
    """Share of the targets that are listed, item-exact, mean over users."""
    found = model.recommend(queries.histories, options)
    hit = (found.items[queries.targets.rows()] == queries.targets.items[:, None]).any(axis=1)
    hits = np.bincount(queries.targets.rows(), weights=hit, minlength=len(queries))
    return float((hits / queries.targets.lengths).mean())


def random_filters(n_items: int, share: float, n_rows: int) -> list[ItemFilter]:
    """Ten random filters, one after another; each allows ``share`` of the items."""
    random = np.random.default_rng(0)
    size = max(1, round(share * n_items))
    drawn = [ItemFilter.of_items(random.choice(n_items, size, replace=False), n_items) for _ in range(10)]
    return [drawn[row % 10] for row in range(n_rows)]


def overlap(items: np.ndarray, best: np.ndarray) -> float:
    """Mean share of the best items that are listed."""
    shares = [len(set(a) & set(b)) / len(b) for a, b in zip(_lists(items), _lists(best), strict=True) if b]
    return float(np.mean(shares))


def _lists(items: np.ndarray) -> list[list[int]]:
    return [row[row >= 0].tolist() for row in items]


@dataclass(frozen=True)
class Known:
    """Scores that were computed before, as a dense recommender for exactly these users."""

    scores: np.ndarray

    @property
    def n_items(self) -> int:
        """Number of items."""
        return self.scores.shape[1]

    def score_all(self, histories: Histories, users: object = None) -> np.ndarray:
        """All of them."""
        assert len(histories) == len(self.scores)
        return self.scores


@contextmanager
def small_set(limit: int) -> Iterator[None]:
    """Another limit of the small-set rule for a while."""
    before = small.SMALL_SET
    small.SMALL_SET = limit
    try:
        yield
    finally:
        small.SMALL_SET = before


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Recall against time, a line for every model and precision (needs the ``plots`` extra)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for model, dtype in dict.fromkeys((row["model"], row["dtype"]) for row in rows):
        own = [row for row in rows if (row["model"], row["dtype"]) == (model, dtype)]
        line = [row for row in own if row["beams"] != "exact"]
        drawn = axes.plot(
            [r["p50"] for r in line], [r["recall@10"] for r in line], "o-", ms=3, label=f"{model} {dtype}"
        )
        for row in own:
            if row["beams"] == "exact":
                axes.plot(row["p50"], row["recall@10"], "*", color=drawn[0].get_color())
            axes.annotate(
                row["beams"], (row["p50"], row["recall@10"]), fontsize=6, xytext=(2, 3), textcoords="offset points"
            )
    axes.set(xlabel="CPU-milliseconds per user, median, one thread", ylabel="recall@10, Beauty test users")
    axes.set_xlim(0)
    axes.set_ylim(0, 1.1 * max(row["recall@10"] for row in rows))
    axes.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def _quietly(measure: Any, *args: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="decoding with normalize")
        return measure(*args)


def _of_beauty(options: Options, model: str = "decoder") -> Path:
    return beauty_run(options, 0, model=model, until="train")


FIGURES = [
    Figure("certified_share_beam50", "share", lambda o: _quietly(certified, _of_beauty(o))),
    Figure("certified_share_beam50_t5", "share", lambda o: _quietly(certified, _of_beauty(o, "t5"))),
    Figure("filtered_overlap_1", "overlap", lambda o: _quietly(filtered_overlap, _of_beauty(o)), target=">= 0.99"),
    Figure("filtered_overlap_1_t5", "overlap", lambda o: _quietly(filtered_overlap, _of_beauty(o, "t5")), ">= 0.99"),
    Figure(
        "recall10_exact_to_beam20", "ratio",
        lambda o: _quietly(recall_curve, {"decoder": _of_beauty(o), "t5": _of_beauty(o, "t5")}),
    ),
    Figure(
        "cold_recall10_ratio_to_contentknn", "ratio", lambda o: _quietly(cold_figure, o, "ratio"), target=">= 1.0",
        baseline="content_knn_unseen",
    ),
    Figure("cold_warm_loss", "share", lambda o: _quietly(cold_figure, o, "loss"), target="<= 0.03"),
]  # fmt: skip


def main() -> None:
    """Plot the committed curve, or print what a finished run gives, without bringing it up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--plot", type=Path, help="the file to write: .svg or .png")
    what.add_argument("--cold", type=Path, metavar="RUN", help="what drafts do; the run must have text_embeddings")
    what.add_argument("--filtered", type=Path, metavar="RUN", help="lists under filters beside exact ones")
    args = parser.parse_args()
    if args.cold:
        print(json.dumps(asdict(cold_measured(_quietly(cold, args.cold), args.cold, "ratio")), indent=1))
    elif args.filtered:
        print(json.dumps(asdict(_quietly(filtered_overlap, args.filtered)), indent=1))
    else:
        plot(committed("decoding")["recall10_exact_to_beam20"]["spread"], args.plot)


if __name__ == "__main__":
    main()
