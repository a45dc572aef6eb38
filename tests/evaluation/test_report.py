from dataclasses import replace

import numpy as np
import pytest

from genrec import artifacts
from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.errors import ArtifactError, DataError
from genrec.evaluation import (
    EvalReport,
    EvalSettings,
    compare,
    comparison_table,
    evaluate,
    write_trec,
)

N, Q = 30, 40


class Noise:
    n_items = N

    def __init__(self, seed, boost=None):
        random = np.random.default_rng(seed)
        self.scores = np.stack([random.permutation(N) for _ in range(Q)]).astype(np.float32)
        if boost is not None:
            self.scores[np.arange(Q), boost] += 1000.5

    def score_all(self, histories, users=None):
        return self.scores[users]


def queries(seed=0):
    random = np.random.default_rng(seed)
    order = [random.permutation(N) for _ in range(Q)]
    return EvalSet(
        np.arange(Q, dtype=np.int32),
        Histories.from_lists([o[: 1 + i % 3] for i, o in enumerate(order)]),
        Histories.from_lists([o[5 : 6 + i % 4] for i, o in enumerate(order)]),
    )


def report(seed=1, name="noise", boost=None, catalog="c" * 32, part="test", **values):
    rule = EvalSettings(ks=(1, 5, 10, 20), n_bootstrap=values.pop("n_bootstrap", 30), **values)
    train = Histories.from_lists([[0, 1, 2], [2, 3]])
    return evaluate(
        Noise(seed, boost),
        queries(),
        settings=rule,
        train=train,
        name=name,
        identifier_of=np.arange(N) // 2,
        catalog=catalog,
        context={"part": part},
    )


def test_saved_and_loaded_reports_are_equal(tmp_path):
    before = report(n_bootstrap=0)  # intervals of nan must survive too
    before.save(tmp_path / "eval")
    after = EvalReport.load(tmp_path / "eval")
    for name in (
        "name", "settings", "context", "definitions", "queries", "n_items", "catalog", "history_cap", "figures",
    ):  # fmt: skip
        assert getattr(after, name) == getattr(before, name), name
    for name in ("users", "targets", "target_rows", "ranks", "lists"):
        a, b = getattr(after, name), getattr(before, name)
        assert np.array_equal(a, b) and a.dtype == b.dtype, name
    assert after.values.keys() == before.values.keys()
    assert all(np.array_equal(after.values[k], v, equal_nan=True) for k, v in before.values.items())
    assert repr({k: after.intervals[k] for k in before.intervals}) == repr(before.intervals)
    with pytest.raises(ArtifactError):
        before.save(tmp_path / "eval")
    before.save(tmp_path / "eval", overwrite=True)


def test_a_report_from_before_history_caps_were_recorded_loads(tmp_path, monkeypatch):
    write = artifacts.save_json
    monkeypatch.setattr(
        artifacts, "save_json", lambda file, obj: write(file, {k: v for k, v in obj.items() if k != "history_cap"})
    )
    report().save(tmp_path / "eval")
    assert EvalReport.load(tmp_path / "eval").history_cap == 0


def test_summary_tells_cold_targets_apart_where_they_matter():
    known = report()
    whole = f"recall@10 {known.mean('recall@10'):.4f}"
    ndcg = f", ndcg@10 {known.mean('ndcg@10'):.4f}"
    apart = f" (warm {known.mean('warm.recall@10'):.4f}, cold {known.mean('cold.recall@10'):.4f})"
    assert known.figures["cold.share_of_targets"] > 0.05 and known.summary() == whole + apart + ndcg
    few = {**known.figures, "cold.share_of_targets": 0.04}
    for kind, shown in (("leave_one_out", ""), ("time_split", apart), ("predefined", apart)):
        split = replace(known, context={"split": {"kind": kind}}, figures=few)
        assert split.summary() == whole + shown + ndcg, kind
    warm = replace(known, context={"split": {"kind": "time_split"}}, figures={})
    assert warm.summary() == whole + ndcg


def test_summary_of_other_list_lengths():
    rule = EvalSettings(ks=(1, 5), n_bootstrap=0)
    known = evaluate(Noise(1), queries(), settings=rule)
    assert known.summary() == f"recall@5 {known.mean('recall@5'):.4f}, ndcg@5 {known.mean('ndcg@5'):.4f}"


def test_rows_name_slice_metric_and_k():
    rows = report().to_rows()
    index = {(r["slice"], r["metric"], r["k"]): r for r in rows}
    assert len(index) == len(rows)
    found = index["all", "recall", 5]
    assert found["low"] <= found["mean"] <= found["high"] and found["n"] == Q
    assert ("identifier", "ndcg", 10) in index and ("cold", "mrr", 20) in index
    assert index["all", "coverage", 5]["low"] is None and index["all", "exposed_targets", None]["mean"] == 1


def test_unknown_metric_is_named():
    with pytest.raises(DataError, match="precision@3"):
        report().mean("precision@3")


def test_compare_finds_a_planted_difference_and_none_where_there_is_none():
    first_target = queries().targets.items[queries().targets.offsets[:-1]]
    good, bad = report(1, "good", boost=first_target), report(2, "bad")
    found = compare(good, bad, "recall@5", n_resamples=2000)
    assert found.difference.mean == pytest.approx(found.mean_a - found.mean_b)
    assert found.difference.low > 0 and found.t_test.p_value < 0.001 and found.randomization.p_value < 0.01
    same = compare(bad, report(2, "again"), "recall@5")
    assert same.difference.mean == 0 and same.t_test.p_value == same.randomization.p_value == 1
    shown = comparison_table(good, [bad])
    assert "ours: good" in shown
    assert any(line.startswith("bad") and " +" in line for line in shown.splitlines())
    assert "Seen items excluded" in shown and "randomization" in shown


def test_compare_refuses_other_queries_rules_and_metrics():
    a = report()
    other = evaluate(Noise(1), queries(9), settings=EvalSettings(ks=(1, 5, 10), n_bootstrap=0))
    with pytest.raises(DataError, match="different queries"):
        compare(a, other)
    with pytest.raises(DataError, match="exclude_seen"):
        compare(a, report(exclude_seen=False))
    with pytest.raises(DataError, match="different catalogs"):
        compare(a, report(catalog="d" * 32))
    with pytest.raises(DataError, match="ndcg@7"):
        compare(a, report(2), "ndcg@7")


def test_compare_on_a_slice_uses_the_queries_that_have_it():
    warm = compare(report(1), report(2), "warm.recall@20")
    assert warm.t_test.n == np.isfinite(report(1).values["warm.recall@20"]).sum() < Q


def test_trec_files_give_pytrec_eval_our_numbers(tmp_path):
    import pytrec_eval

    ours = report(seed=5)
    items, users = [f"item-{i}" for i in range(N)], [f"user-{i}" for i in range(Q)]
    run_file, qrels_file = write_trec(ours, tmp_path / "trec", item_ids=items, user_ids=users)
    with run_file.open() as file:
        run = pytrec_eval.parse_run(file)
    with qrels_file.open() as file:
        qrels = pytrec_eval.parse_qrel(file)
    found = pytrec_eval.RelevanceEvaluator(qrels, {"recall.5,20", "ndcg_cut.10", "recip_rank"}).evaluate(run)
    for q, user in enumerate(users):
        assert found[user]["recall_5"] == pytest.approx(ours.values["recall@5"][q])
        assert found[user]["recall_20"] == pytest.approx(ours.values["recall@20"][q])
        assert found[user]["ndcg_cut_10"] == pytest.approx(ours.values["ndcg@10"][q])
        assert found[user]["recip_rank"] == pytest.approx(ours.values["mrr@20"][q])  # the run holds 20 items
    assert run_file.read_text().split("\n")[0].split() == [
        "user-0",
        "Q0",
        f"item-{ours.lists[0, 0]}",
        "1",
        "20",
        "noise",
    ]


def test_trec_refuses_ids_it_cannot_hold(tmp_path):
    with pytest.raises(DataError, match="white space"):
        write_trec(report(), tmp_path, item_ids=["an item"] + ["x"] * (N - 1))
    with pytest.raises(DataError, match="at least"):
        write_trec(report(), tmp_path, user_ids=["u"])
    write_trec(report(), tmp_path)
