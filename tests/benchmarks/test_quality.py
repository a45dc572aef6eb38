"""benchmarks/quality.py and real_data.py on a tiny shop: the values of the reports, the budgets in words."""

import json
from pathlib import Path

import pytest


def options(shop):
    return shop.run.Options(quick=False, data=shop.data)


def read(path):
    return json.loads(Path(path).read_text())


def test_a_figure_is_the_mean_of_its_reports_and_states_rule_training_and_threads(shop):
    quality = shop.quality
    found = quality.beauty(options(shop), "sasrec", (0, 1), "evaluate sasrec")
    reports = [read(shop.root / f"runs/quality/beauty-neutral-decoder-{s}/eval/sasrec/report.json") for s in (0, 1)]
    values = [report["intervals"]["recall@10"]["mean"] for report in reports]
    assert found.spread["runs"] == values and found.value == pytest.approx(sum(values) / 2)
    assert found.budget.startswith(
        "item-exact, seen excluded, leave_one_out, ties neutral, seeds 0, 1; a run: 1 epochs in float32, "
    )
    assert found.budget.endswith(" CPU-minutes, one thread")
    kept = quality.beauty(options(shop), "item_knn", (0,), "evaluate item_knn", ties="file")
    assert "ties file, seed 0; a run: 0." in kept.budget and kept.budget.endswith("CPU-minutes, one thread")
    threads = {call.env[f"{name}_NUM_THREADS"] for call in shop.calls for name in ("OMP", "MKL", "OPENBLAS")}
    assert threads == {"1"} and "PATH" in shop.calls[0].env


def test_costs_are_those_of_the_current_stages_and_a_second_call_only_reads(shop):
    first = shop.quality.stage_costs(options(shop))
    run = shop.root / "runs/quality/beauty-neutral-decoder-0"
    ledger = read(run / "ledger.json")
    assert list(first.spread) == [
        "prepare", "split", "embed", "tokenize", "sasrec", "evaluate item_knn", "evaluate sasrec", "train", "evaluate",
        "report",
    ]  # fmt: skip
    assert first.value == max(line["peak_bytes"] for line in ledger.values()) / 2**30
    ledger["evaluate markov"] = ledger["train"] | {"peak_bytes": 2**50}  # of an earlier recipe
    (run / "ledger.json").write_text(json.dumps(ledger))
    assert shop.quality.stage_costs(options(shop)) == first
    precision = "bfloat16" if read(run / "training/genrec.json")["meta"]["bf16"] else "float32"
    assert f"2 epochs in {precision}, " in first.budget and first.budget.endswith("one thread")


def test_a_ratio_states_the_slice_and_the_rule(shop):
    found = shop.quality.games(options(shop), "warm", "item_knn")
    report = read(shop.root / "runs/quality/games-decoder-0/eval/decoder/report.json")
    assert found.spread["decoder"] == report["intervals"]["warm.recall@10"]["mean"]
    assert found.value == found.spread["decoder"] / found.spread["item_knn"]
    rule = "warm targets, item-exact, seen excluded, leave_one_out, ties neutral, seed 0, 5 beams; 2 epochs in "
    assert found.budget.startswith(rule)


def test_a_training_without_a_recorded_precision_says_so(shop, tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "log.json").write_text('[{"epoch": 1.0}, {"epoch": 2.5}]')
    meta = {"wall_seconds": 120.0, "cpu_seconds": 90.0}
    (tmp_path / "training" / "genrec.json").write_text(json.dumps({"meta": meta}))
    expected = {"epochs": 2.5, "precision": None, "wall_minutes": 2.0, "cpu_minutes": 1.5}
    assert shop.real_data.training(tmp_path, "train") == expected
    assert "2.5 epochs in unrecorded precision, 1.5 CPU-minutes" in shop.real_data.cost_text(tmp_path, "train")


def test_without_data_the_option_is_named(bench):
    with pytest.raises(SystemExit, match="--data FOLDER or set GENREC_DATA"):
        bench.real_data.bring_up_to_date(None, "beauty.yaml", "amazon-beauty-2014", "x")


def test_the_table_has_every_model_and_the_paired_tests_of_every_run(shop, monkeypatch):
    monkeypatch.setattr(shop.quality, "SEEDS", (0, 1))
    found = shop.quality.ndcg_ratio_to_sasrec(options(shop))
    table = found.spread["table"]
    assert set(table) == {"decoder", "sasrec", "item_knn"}
    reports = [read(shop.root / f"runs/quality/beauty-neutral-decoder-{s}/eval/decoder/report.json") for s in (0, 1)]
    values = [report["intervals"]["ndcg@10"]["mean"] for report in reports]
    assert table["decoder"]["ndcg@10"]["mean"] == pytest.approx(sum(values) / 2)
    assert found.value == pytest.approx(table["decoder"]["ndcg@10"]["mean"] / table["sasrec"]["ndcg@10"]["mean"])
    pairs = found.spread["decoder against sasrec"]
    assert [pair["run"] for pair in pairs] == ["beauty-neutral-decoder-0", "beauty-neutral-decoder-1"]
    assert pairs[0]["ndcg@10"]["mean_a"] == pytest.approx(values[0])
    json.dumps(found.spread)
