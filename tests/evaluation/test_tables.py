import json
from dataclasses import replace

import numpy as np
import pytest

from genrec.baselines.counting import Popularity
from genrec.data.histories import Histories
from genrec.data.splits import EvalSet, held_out_items
from genrec.data.synthetic import make, tiny
from genrec.errors import DataError
from genrec.evaluation import (
    EvalSettings,
    average_rows,
    average_table,
    comparison_table,
    evaluate,
    reports_json,
    results_table,
)
from genrec.evaluation.tables import HEADLINE, table_metrics

N, Q = 30, 40
ALL_SEEN = Histories.from_lists([list(range(N))])
HALF_SEEN = Histories.from_lists([list(range(N // 2))])


class Noise:
    n_items = N

    def __init__(self, seed):
        self.scores = np.random.default_rng(seed).random((Q, N), dtype=np.float32)

    def score_all(self, histories, users=None):
        return self.scores[users]


def report(seed=1, name="noise", asked=0, train=ALL_SEEN, ks=(1, 5, 10, 20), cap=None, context=None, **rule):
    """``asked``: seed of the queries, ``cap``: of the model itself, ``context``: added to the usual one."""
    random = np.random.default_rng(asked)
    order = [random.permutation(N) for _ in range(Q)]
    queries = EvalSet(
        np.arange(Q, dtype=np.int32),
        Histories.from_lists([o[:2] for o in order]),
        Histories.from_lists([o[5:7] for o in order]),
    )
    model = Noise(seed)
    model.history_cap = cap
    usual = {"part": "test", "split": {"kind": "leave_one_out"}, "ties": "neutral", "seed": 0}
    return evaluate(
        model,
        queries,
        settings=EvalSettings(ks=ks, n_bootstrap=rule.pop("n_bootstrap", 10), **rule),
        train=train,
        identifier_of=np.arange(N) // 2 if name == "noise" else None,
        name=name,
        context=usual | (context or {}),
    )


def header(table):
    return table.splitlines()[0].split()


def test_table_is_aligned_and_says_the_rule():
    other = report(2, "another model")
    table = results_table([report(), other], ("recall@5", "identifier.recall@5", "coverage@5"))
    head, rule, first, second, empty, *notes, end = table.split("\n")
    assert head.split() == ["model", "recall@5", "identifier.recall@5", "coverage@5"] and set(rule) == {"-", " "}
    assert len(head) == len(first) == len(second) and second.split()[3] == "-" and not empty and not end
    for word in (f"{Q} queries of test (leave_one_out)", "Seen items excluded", "expected rank", "entire history"):
        assert word in " ".join(notes)


def test_markdown_has_one_cell_per_column():
    lines = results_table([report()], style="markdown", intervals=True).split("\n")
    assert [line.count("|") for line in lines[:3]] == [8, 8, 8] and "±" in lines[2] and set(lines[1]) == {*"|-:"}


def test_reports_under_different_rules_do_not_share_a_table():
    for other in (
        report(exclude_seen=False),
        report(history_cap=1),
        report(context={"part": "valid"}),
        report(context={"split": {"kind": "time_split"}}),
        report(context={"ties": "file"}),
        report(asked=5, context={"ties": "file"}),
    ):
        for together in (results_table, average_rows, average_table):
            with pytest.raises(DataError, match="different rules"):
                together([report(), other])
    with pytest.raises(DataError, match=r"40 queries of valid .*Seen items excluded"):
        results_table([report(), report(context={"part": "valid"})])
    with pytest.raises(DataError, match=r"permuted, seed 0.*order of the file"):
        average_rows([report(), report(context={"ties": "file"})])
    with pytest.raises(DataError, match="at least one"):
        results_table([])
    with pytest.raises(DataError, match="style"):
        results_table([report()], style="latex")


def test_only_averages_take_other_queries_and_none_takes_another_catalog():
    first, other = report(), report(2, asked=5)
    assert len(first) == len(other) and first.queries != other.queries
    with pytest.raises(DataError, match=f"different queries.*40 queries of test .*digest {other.queries[:8]}"):
        results_table([first, other])
    with pytest.raises(DataError, match="different queries"):
        comparison_table(first, [other])
    assert "40 queries of test" in average_table([first, other])
    shops = [replace(first, catalog="a" * 32), replace(report(2), catalog="b" * 32)]
    for together in (results_table, average_rows, average_table):
        with pytest.raises(DataError, match=r"different catalogs .*aaaaaaaa; noise: catalog bbbbbbbb"):
            together(shops)
        assert together([shops[0], report(2)])  # a report without a catalog fits any


def test_held_out_items_are_averaged_over_seeds():
    log = make(tiny(seed=3)).interactions
    found = []
    for seed in (0, 1, 2):
        cut = held_out_items(log, 0.1, seed)
        context = {"part": "test", "split": cut.rule, "ties": "neutral", "seed": seed}
        model = Popularity().fit(cut.train(), cut.n_items)
        found.append(evaluate(model, cut.queries("test"), name="popularity", catalog=cut.catalog, context=context))
    counts = [len(r) for r in found]
    assert len(set(counts)) > 1
    assert f"{min(counts)} to {max(counts)} queries of test (held_out_items)" in average_table(found)
    assert {row["n"] for row in average_rows(found)} == {3}
    with pytest.raises(DataError, match="different queries"):
        results_table(found)


def test_what_a_seed_decides_is_no_other_rule():
    held = {"kind": "held_out_items", "fraction": 0.1, "seed": 0, "held_out_items": [3], "dropped_queries": {"test": 0}}
    again = held | {"seed": 1, "held_out_items": [4], "dropped_queries": {"test": 1}}
    both = [report(context={"split": held}), report(2, asked=1, context={"split": again, "seed": 1})]
    assert "permuted, seeds 0, 1." in average_table(both)
    with pytest.raises(DataError, match="different rules"):
        average_table([both[0], report(context={"split": again | {"fraction": 0.2}})])


@pytest.mark.parametrize(
    ("context", "sentence"),
    [
        ({}, "Events at the same time: permuted, seed 0."),
        ({"has_ties": True}, "Events at the same time: permuted, seed 0."),
        ({"ties": "file", "has_ties": None}, "Events at the same time: order of the file (literature)."),
        ({"has_ties": False}, "No two events of a user at the same time."),
        ({"ties": None}, "Events at the same time: order not stated."),
    ],
)
def test_every_table_says_the_order_of_ties(context, sentence):
    for table in (results_table([report(context=context)]), average_table([report(context=context)] * 2)):
        assert sentence in table


def test_where_there_are_no_ties_their_order_does_not_keep_reports_apart():
    none = report(context={"has_ties": False})
    assert "order of the file" in results_table([none, report(2, context={"ties": "file"})])
    assert "No two events" in results_table([none, report(2, context={"has_ties": False, "ties": "file"})])


def test_the_history_seen_is_named_where_models_differ():
    reports = [report(name="knn"), report(name="sasrec", cap=50), report(name="decoder", cap=20)]
    assert "History seen, newest events: sasrec 50, decoder 20, others all." in results_table(reports)
    assert "History seen, newest events: sasrec 50, decoder 20." in results_table(reports[1:])
    assert "The model sees the last 20 events." in results_table([report(cap=20), report(cap=20)])
    assert "knn not recorded" in results_table([replace(reports[0], history_cap=0), reports[1]])
    assert "History seen: not recorded." in results_table([replace(reports[0], history_cap=0)])
    with pytest.raises(DataError, match=r"history seen differs \(20, 50\)"):
        average_rows([report(cap=20), report(2, cap=50)])
    assert json.loads(reports_json(reports))[2]["history_cap"] == 20


def test_cold_targets_are_never_hidden_in_one_number():
    columns = ["warm.recall@10", "cold.recall@10"]
    cold = report(train=HALF_SEEN)
    for table in (results_table([cold]), average_table([cold, report(2, train=HALF_SEEN)])):
        assert [c for c in header(table) if c in columns] == columns
        assert f"{100 * cold.figures['cold.share_of_targets']:.1f} % of all" in table
    shown = results_table([cold], ("recall@10",)).splitlines()[2].split()
    assert shown == ["noise", *(f"{cold.mean(m):.4f}" for m in ("recall@10", *columns))]
    assert header(results_table([report()])) == ["model", *HEADLINE]
    all_cold = report(train=Histories.from_lists([[]]))
    assert table_metrics([all_cold], ("recall@10",)) == ["recall@10", "cold.recall@10"]


def test_columns_are_what_was_measured():
    short = report(ks=(1, 5))
    columns = ["model", "recall@5", "ndcg@5", "mrr@5", "coverage@5"]
    assert header(results_table([short])) == columns
    assert table_metrics([short], ("recall@10", "mrr@20", "coverage@10")) == ["recall@5", "mrr@5", "coverage@5"]
    assert table_metrics([report(ks=(10, 20))], ("recall@5",)) == ["recall@10"]
    assert header(average_table([short, report(2, ks=(1, 5))])) == [*columns, "repetitions"]
    with pytest.raises(DataError, match="metric 'precision'"):
        results_table([short], ("precision@3",))
    with pytest.raises(DataError, match="all of the 2 reports"):
        table_metrics([report(ks=(1,)), report(ks=(2,))], ("recall@10",))


def test_json_is_strict_and_complete():
    (found,) = json.loads(reports_json([report(n_bootstrap=0)]))
    assert found["model"] == "noise" and found["context"]["part"] == "test"
    assert {row["metric"] for row in found["rows"]} >= {"recall", "ndcg", "mrr", "coverage", "validity"}
    assert found["rows"][0]["low"] is None and "recall" in found["definitions"]


def test_average_over_repetitions():
    reports = [report(seed) for seed in (1, 2, 3)]
    row = next(r for r in average_rows(reports) if (r["slice"], r["metric"], r["k"]) == ("all", "recall", 10))
    means = [r.mean("recall@10") for r in reports]
    assert row["mean"] == pytest.approx(sum(means) / 3) and row["n"] == 3
    assert row["sd"] == pytest.approx(np.std(means, ddof=1)) and row["low"] == min(means)
    assert np.isnan(average_rows(reports[:1])[0]["sd"])
    with pytest.raises(DataError, match="one model expected, got reports of noise, other"):
        average_rows([*reports, report(4, "other")])


def test_the_table_of_averages_has_a_line_per_model():
    repeated = [report(1), report(2), report(3, "other")]
    _, _, first, second, *notes = average_table(repeated, ("recall@10", "identifier.recall@10")).splitlines()
    means = [r.mean("recall@10") for r in repeated[:2]]
    assert first.split()[:4] == ["noise", f"{np.mean(means):.4f}", "±", f"{np.std(means, ddof=1):.4f}"]
    assert second.split() == ["other", f"{repeated[2].mean('recall@10'):.4f}", "-", "1"] and first.split()[-1] == "2"
    assert "Seen items excluded" in " ".join(notes)
