"""The figures of the decoder on trained models, on tiny runs."""

import numpy as np
import pytest

from genrec.data.histories import Histories


@pytest.fixture
def trained(shop, monkeypatch):
    monkeypatch.setattr(shop.decoding_trained, "SIZES", shop.decoding_trained.Sizes(20, 2, 12))
    options = shop.run.Options(quick=False, data=shop.data)
    pipeline = shop.root / "train" / "pipelines" / "games.yaml"
    pipeline.write_text(pipeline.read_text().replace("[item_knn, sasrec]", "[content_knn_unseen]"))
    folder = shop.decoding_trained.games_run(options, "train")
    # one run serves all
    monkeypatch.setattr(shop.decoding_trained, "_of_beauty", lambda options, model="decoder": folder)
    return shop, options, folder


def test_every_figure_is_measured(trained):
    shop, options, folder = trained
    found = {figure.name: figure.measure(options) for figure in shop.decoding_trained.FIGURES}
    share = found["certified_share_beam50"].spread
    assert share["certified"]["exact"] == 1.0 and set(share["cpu_ms"]) >= {"50 beams", "exact from 20"}
    rows = found["filtered_overlap_1"].spread
    assert len(rows) == 3 * (3 * 2 + 1) and all(
        row["overlap"] == 1 for name, row in rows.items() if "set 1024" in name or "exact" in name
    )
    curve = found["recall10_exact_to_beam20"]
    assert len(curve.spread) == 2 * 2 * 7 and all(row["p50"] <= row["p99"] for row in curve.spread)
    drafts = found["cold_warm_loss"].spread
    assert drafts["no drafts"]["warm.recall@10"] >= 0
    assert len(drafts["no drafts"]["hits by place"]) == len(drafts["content-kNN"]["hits by place"]) == 10
    shop.decoding_trained.plot(curve.spread, folder / "curve.svg")
    assert (folder / "curve.svg").stat().st_size > 1000


def test_hits_by_place(bench):
    targets = Histories.from_lists([[5, 3, 5], [7], [1, 2]])
    items = np.array([[3, 4, 5], [8, 7, -1], [9, 8, 7]])
    assert bench.decoding_trained.hits_by_place(items, targets) == [1 / 3, 1 / 3, 1 / 3]


def test_overlap_and_filters(bench):
    items, best = np.array([[1, 2, -1], [3, 4, 5]]), np.array([[2, 7, -1], [5, 4, 3]])
    assert bench.decoding_trained.overlap(items, best) == (1 / 2 + 1) / 2
    filters = bench.decoding_trained.random_filters(1000, 0.01, 13)
    assert len(filters) == 13 and filters[0] is filters[10] and all(len(each) == 10 for each in filters)
