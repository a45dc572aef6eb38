import json

import numpy as np
import pytest

from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.errors import ArtifactError, DataError
from genrec.evaluation import (
    EvalReport,
    EvalSettings,
    average_rows,
    compare,
    comparison_table,
    evaluate,
    reports_json,
    results_table,
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
    for name in ("name", "settings", "context", "definitions", "queries", "n_items", "catalog", "figures"):
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


def test_rows_name_slice_metric_and_k():
    rows = report().to_rows()
    index = {(r["slice"], r["metric"], r["k"]): r for r in rows}
    assert len(index) == len(rows)
    found = index["all", "recall", 5]
    assert found["low"] <= found["mean"] <= found["high"] and found["n"] == Q
    assert ("identifier", "ndcg", 10) in index and ("cold", "mrr", 20) in index
    assert index["all", "coverage", 5]["low"] is None and index["all", "exposed_targets", None]["mean"] == 1


def test_table_is_aligned_and_says_the_rule():
    table = results_table([report(), report(2, "another model")], ("recall@5", "nothing@1", "coverage@5"))
    head, rule, first, second, empty, note, end = table.split("\n")
    assert head.split() == ["model", "recall@5", "nothing@1", "coverage@5"] and set(rule) == {"-", " "}
    assert len(head) == len(first) == len(second) and first.split()[2] == "-" and not empty and not end
    assert f"{Q} queries" in note and "Seen items excluded" in note and "expected rank" in note


def test_markdown_has_one_cell_per_column():
    lines = results_table([report()], style="markdown", intervals=True).split("\n")
    assert [line.count("|") for line in lines[:3]] == [6, 6, 6] and "±" in lines[2] and set(lines[1]) == {*"|-:"}


def test_reports_under_different_rules_do_not_share_a_table():
    with pytest.raises(DataError, match="different rules"):
        results_table([report(), report(exclude_seen=False)])
    with pytest.raises(DataError, match="40 queries of valid"):
        results_table([report(), report(part="valid")])
    with pytest.raises(DataError, match="at least one"):
        results_table([])
    with pytest.raises(DataError, match="style"):
        results_table([report()], style="latex")


def test_json_is_strict_and_complete():
    (found,) = json.loads(reports_json([report(n_bootstrap=0)]))
    assert found["model"] == "noise" and found["context"] == {"part": "test"}
    assert {row["metric"] for row in found["rows"]} >= {"recall", "ndcg", "mrr", "coverage", "validity"}
    assert found["rows"][0]["low"] is None and "recall" in found["definitions"]


def test_unknown_metric_is_named():
    with pytest.raises(DataError, match="precision@3"):
        report().mean("precision@3")


def test_average_over_repetitions():
    reports = [report(seed) for seed in (1, 2, 3)]
    row = next(r for r in average_rows(reports) if (r["slice"], r["metric"], r["k"]) == ("all", "recall", 10))
    means = [r.mean("recall@10") for r in reports]
    assert row["mean"] == pytest.approx(sum(means) / 3) and row["n"] == 3
    assert row["sd"] == pytest.approx(np.std(means, ddof=1)) and row["low"] == min(means)
    assert np.isnan(average_rows(reports[:1])[0]["sd"])
    with pytest.raises(DataError, match="one model expected, got reports of noise, other"):
        average_rows([*reports, report(4, "other")])


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
