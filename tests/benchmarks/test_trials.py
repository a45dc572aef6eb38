"""benchmarks/trials.py on a tiny shop: what is judged again, what is only read, what the log says."""

import json
import sys

import pytest


@pytest.fixture
def trials(shop, monkeypatch):
    monkeypatch.setattr(shop.trials, "TRIALS", {"sasrec": [[], ["sasrec.epochs=2"]], "decoder": [[]]})
    shop.judged = []
    judge = shop.trials.judge
    monkeypatch.setattr(shop.trials, "judge", lambda run, *more: shop.judged.append(run.name) or judge(run, *more))
    return shop


def log_of(trials, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["trials.py", "--data", str(trials.data), *options])
    trials.trials.main()
    return json.loads((trials.root / "results" / "trials.json").read_text())


def test_the_log_says_what_was_trained_and_a_second_call_only_reads(trials, monkeypatch):
    first = log_of(trials, monkeypatch)
    assert [(r["model"], r["trial"], r["settings"], r["epochs"]) for r in first["trials"]] == [
        ("decoder", 0, [], 2),
        ("sasrec", 0, [], 1),
        ("sasrec", 1, ["sasrec.epochs=2"], 2),
    ]
    decoder, *sasrec = first["trials"]
    bundle = json.loads((trials.root / "runs/quality/beauty-neutral-decoder-0/training/genrec.json").read_text())
    assert decoder["precision"] == ("bfloat16" if bundle["meta"]["bf16"] else "float32")
    assert [row["precision"] for row in sasrec] == ["float32"] * 2
    assert all(row["wall_minutes"] >= 0 and row["cpu_minutes"] >= 0 for row in first["trials"])
    assert decoder["chosen"] and [row["chosen"] for row in sasrec].count(True) == 1
    assert max(sasrec, key=lambda row: row["ndcg@10"])["chosen"]
    assert trials.judged == ["beauty-neutral-decoder-0", "beauty-neutral-decoder-0", "sasrec-1"]
    assert log_of(trials, monkeypatch) == first and len(trials.judged) == 3


def test_trials_that_are_there_can_be_read_without_running_anything(trials, monkeypatch):
    first = log_of(trials, monkeypatch)
    runs = len(trials.calls)
    assert log_of(trials, monkeypatch, "--read") == first and len(trials.calls) == runs
    trials.trials.TRIALS["sasrec"][1] = ["sasrec.epochs=3"]
    with pytest.raises(SystemExit, match=r"sasrec-1 was made with other settings \(sasrec\)"):
        log_of(trials, monkeypatch, "--read")


def test_another_training_rule_or_split_is_judged_again(trials, monkeypatch):
    before = log_of(trials, monkeypatch, "--model", "sasrec")["trials"]
    trials.trials.TRIALS["sasrec"][1] = ["sasrec.epochs=3", "sasrec.learning_rate=0.1"]
    after = log_of(trials, monkeypatch, "--model", "sasrec")["trials"]
    assert trials.judged == ["beauty-neutral-decoder-0", "sasrec-1", "sasrec-1"]
    assert after[0]["ndcg@10"] == before[0]["ndcg@10"] and after[1]["ndcg@10"] != before[1]["ndcg@10"]
    assert after[1]["epochs"] == 3
    settings = trials.trials.EvalSettings
    monkeypatch.setattr(trials.trials, "EvalSettings", lambda **given: settings(**given | {"exclude_seen": False}))
    log_of(trials, monkeypatch, "--model", "sasrec")
    assert trials.judged[3:] == ["beauty-neutral-decoder-0", "sasrec-1"]


def test_none_is_chosen_where_all_are_over_the_budget(bench, capsys):
    rows = [
        {"model": model, "cpu_minutes": minutes, "ndcg@10": ndcg}
        for model, minutes, ndcg in [("a", 61.0, 0.9), ("a", 60.0, 0.1), ("a", 59.0, 0.2), ("b", 60.1, 0.5)]
    ]
    bench.trials.choose(rows)
    assert [row["chosen"] for row in rows] == [False, False, True, False]
    assert capsys.readouterr().err == "b: none is chosen, every trial took more than 60 CPU-minutes\n"


def test_one_trial_leaves_the_other_rows(trials, monkeypatch):
    first = log_of(trials, monkeypatch)
    count = len(trials.judged)
    (trials.root / "runs/trials/sasrec-1/validation-sasrec.json").unlink()
    assert log_of(trials, monkeypatch, "--model", "sasrec", "--trial", "1") == first
    assert trials.judged[count:] == ["sasrec-1"]
