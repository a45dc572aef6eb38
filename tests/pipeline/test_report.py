"""The report of a run and its pictures, from reports of made-up models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrec import artifacts
from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.data.synthetic import tiny
from genrec.evaluation import EvalReport, EvalSettings, evaluate
from genrec.item_tokenizers.codes import ItemCodes
from genrec.metrics.significance import Interval
from genrec.pipeline import figures, report_stage
from genrec.pipeline.recipe import BASELINES, DataSettings, PipelineRecipe

N, Q = 40, 60
RECIPE = PipelineRecipe(data=DataSettings(synthetic=tiny()), baselines=("popularity", "item_knn"))
CODES = ItemCodes(np.arange(2 * N, dtype=np.uint8).reshape(N, 2) % 16, (16, 16), "c" * 32)
TRAINING = {
    "steps": 2, "wall_seconds": 1.0, "cpu_seconds": 1.0, "metric": "recall@10", "best": None, "padding_share": 0.0,
}  # fmt: skip


class Noise:
    n_items = N

    def __init__(self, name: str) -> None:
        self.scores = np.random.default_rng(len(name)).random((Q, N), dtype=np.float32)

    def score_all(self, histories: Histories, users: np.ndarray | None = None) -> np.ndarray:
        return self.scores[users]


def reports(
    ks: tuple[int, ...] = (5, 10, 20), n_seen: int = N, n_bootstrap: int = 10, **context: Any
) -> list[EvalReport]:
    draws = np.random.default_rng(0)
    order = [draws.permutation(N) for _ in range(Q)]
    queries = EvalSet(
        np.arange(Q, dtype=np.int32),
        Histories.from_lists([o[:2] for o in order]),
        Histories.from_lists([o[2:3] for o in order]),
    )
    usual = {"part": "test", "split": {"kind": "leave_one_out"}, "ties": "neutral", "seed": 0}
    return [
        evaluate(
            Noise(name),
            queries,
            settings=EvalSettings(ks=ks, n_bootstrap=n_bootstrap),
            train=Histories.from_lists([list(range(n_seen))]),
            identifier_of=np.arange(N) if name == "decoder" else None,
            name=name,
            context=usual | context,
        )
        for name in ("popularity", "item_knn", "decoder")
    ]


def markdown(found: list[EvalReport]) -> str:
    return report_stage._markdown(RECIPE, found, CODES, TRAINING, "", [])


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures instead of files, to look at."""
    kept: list[Any] = []
    monkeypatch.setattr(figures, "_save", lambda plt, figure, file: (kept.append(figure), plt.close(figure)))
    return kept


@pytest.mark.parametrize(
    ("context", "sentence"),
    [
        ({}, "Events at the same time: permuted, seed 0."),
        ({"has_ties": False}, "No two events of a user at the same time."),
        ({"ties": "file"}, "Events at the same time: order of the file (literature)."),
    ],
)
def test_the_report_says_the_order_of_ties_in_its_head(context: dict[str, Any], sentence: str) -> None:
    assert markdown(reports(**context)).splitlines()[2] == f"Seed 0; split leave_one_out. {sentence}"


def test_the_report_shows_warm_and_cold_recall_and_tests_both() -> None:
    text = markdown(reports(n_seen=N // 2))
    assert "warm.recall@10 | cold.recall@10 |" in text and "% of all; warm: the others" in text
    assert sum(line.startswith("item_knn  ") and "cold.recall@10" in line for line in text.splitlines()) == 1
    assert "warm.recall" not in markdown(reports()).split("## What the numbers mean")[0]


def test_the_report_explains_every_name_it_shows() -> None:
    text = markdown(reports(n_seen=N // 2))
    explained = text.split("## What the numbers mean")[1]
    names = ["popularity", "item_knn", "decoder", "name@k", "recall", "ndcg", "mrr", "coverage", "warm", "cold"]
    for name in [*names, "identifier", "seen", "history", "interval"]:
        assert f"- **{name}**: " in explained, name


def test_rows_that_were_left_out_are_in_the_report(tmp_path: Path) -> None:
    counts = {"rows_in": 43, "rows_kept": 40, "rows_rejected": 3, "reasons": {"empty id": 1, "wrong type": 2}}
    with artifacts.write(tmp_path / "interactions", kind="interactions", meta={"rejected": {"log.csv": counts}}):
        pass
    lines = report_stage.left_out(tmp_path)
    assert lines == ["left out 3 of 43 rows of log.csv: 1 x empty id, 2 x wrong type"]
    text = report_stage._markdown(RECIPE, reports(), CODES, TRAINING, "", [], lines)
    assert "\nLeft out 3 of 43 rows of log.csv: 1 x empty id, 2 x wrong type.\n" in text.split("## Results")[0]
    assert "eft out" not in markdown(reports()).split("## Results")[0]


def test_every_baseline_and_model_is_explained() -> None:
    assert report_stage.MODELS.keys() == {*BASELINES, "decoder", "t5"}


def test_a_report_of_other_list_lengths(tmp_path: Path) -> None:
    found = reports(ks=(1, 5))
    text = markdown(found)
    assert "| recall@5 " in text and "lists shorter than 5" in text and "ndcg@10" not in text
    (line,) = report_stage.headline(found, "decoder")
    assert line.startswith("recall@5 of the decoder: ") and line.endswith("that of item-kNN")
    pictures = dict(report_stage._pictures(tmp_path, found, CODES, [], RECIPE))
    assert pictures["recall.png"] == "recall@5 of every model"
    assert {file.name for file in tmp_path.iterdir()} == pictures.keys() == {"recall.png", "slices.png", "codes.png"}


def test_our_model_has_one_colour_that_nothing_else_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.colors import to_hex

    kept, found = drawn(monkeypatch), reports()
    figures.recall_bars(found, "decoder", Path("x"), "recall@10")
    bars = dict(zip([t.get_text() for t in kept[-1].axes[0].get_yticklabels()], kept[-1].axes[0].patches, strict=True))
    assert [name for name, bar in bars.items() if to_hex(bar.get_facecolor()) == figures.OURS] == ["decoder"]
    figures.slice_bars(found, "decoder", Path("x"), "recall@10")
    legend = kept[-1].legends[0]
    shown = {t.get_text(): to_hex(h.get_facecolor()) for t, h in zip(legend.texts, legend.legend_handles, strict=True)}
    assert [name for name, color in shown.items() if color == figures.OURS] == ["decoder"]
    assert len(set(shown.values())) == 3
    figures.training_curve([{"seconds": 1.0, "recall@10": 0.1, "loss": 2.0}], "recall@10", Path("x"))
    assert kept[-1].axes[0].lines[0].get_color() == figures.OURS
    wide = replace(CODES, codes=np.zeros((N, 8), np.uint8), level_sizes=(16,) * 8)
    figures.codebook_usage(wide, Path("x"))
    hues = np.array([np.array(line.get_color())[:3] for line in kept[-1].axes[0].lines])
    assert len(np.unique(hues, axis=0)) == 8 and not ((hues[:, 0] > 0.7) & (hues[:, 1] < 0.5)).any()  # none like ours


@pytest.mark.parametrize("per_code", [2, 9, 30, 3000])
def test_numbers_on_the_axis_of_codes_are_plain(monkeypatch: pytest.MonkeyPatch, per_code: int) -> None:
    kept = drawn(monkeypatch)
    even = ItemCodes((np.arange(4 * per_code) % 4).astype(np.uint8)[:, None], (4,), "c" * 32)
    figures.codebook_usage(even, Path("x"))
    axis = kept[-1].axes[0]
    low, high = axis.get_ylim()
    labels = [t.get_text() for t in axis.get_yticklabels() if low <= t.get_position()[1] <= high]
    assert len(labels) >= 3 and all(label.isdigit() for label in labels), labels


def test_pictures_of_models_that_hit_nothing_and_of_no_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = drawn(monkeypatch)
    zero = Interval(0.0, 0.0, 0.0, Q, 0.95)
    nothing = [replace(r, intervals=dict.fromkeys(r.intervals, zero)) for r in reports()]
    figures.recall_bars(nothing, "decoder", Path("x"), "recall@10")
    assert "interval" in kept[-1].axes[0].get_xlabel()
    figures.recall_bars(reports(n_bootstrap=0), "decoder", Path("x"), "recall@10")
    assert kept[-1].axes[0].get_xlabel() == "recall@10 (test)"
