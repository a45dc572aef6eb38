"""benchmarks/run.py with a suite of two figures: measured, read, written, committed."""

import json
import sys
from types import ModuleType

import pytest

ROW = ["figure", "value", "unit", "target", "baseline", "source", "budget", "spread", "note", "command"]
ROW += ["machine", "git"]
OLD = {"figure": "long", "value": 7.0, "unit": "s", "target": "", "source": "measured"}


@pytest.fixture
def run(bench, tmp_path, monkeypatch):
    """run.py with the suite ``fake``: a quick figure and a long one, which count how often they are measured."""
    run, suite, run_calls = bench.run, ModuleType("fake"), []

    def measure(name, value):
        return lambda options: run_calls.append((name, options.data)) or run.Measured(value, [1, 2], "one thread")

    suite.FIGURES = [
        run.Figure("short", "s", measure("short", 0.5), target="<= 1", quick=True),
        run.Figure("long", "s", measure("long", 9.0)),
    ]
    monkeypatch.setitem(sys.modules, "fake", suite)
    monkeypatch.setitem(run.SUITES, "fake", "a suite for tests")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.delenv("GENREC_DATA", raising=False)
    run.calls = run_calls
    return run


def call(run, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
    return run.main()


def commit(run, rows):
    run.RESULTS.mkdir(exist_ok=True)
    (run.RESULTS / "fake.json").write_text(json.dumps(rows))


def test_without_a_name_the_suites_are_listed(run, monkeypatch, capsys):
    assert call(run, monkeypatch) == 0 and run.calls == []
    assert "fake        a suite for tests" in capsys.readouterr().out


def test_every_figure_is_measured_and_appended_as_a_row(run, monkeypatch, tmp_path, capsys):
    for _ in range(2):
        assert call(run, monkeypatch, "--name", "fake", "--data", tmp_path, "--json", tmp_path / "rows.jsonl") == 0
    assert run.calls == [("short", tmp_path), ("long", tmp_path)] * 2
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["figure"] for row in rows] == ["short", "long"] * 2
    assert list(rows[0]) == ROW and rows[0]["command"] == "make bench NAME=fake"
    expected = {"value": 0.5, "target": "<= 1", "source": "measured", "budget": "one thread", "spread": [1, 2]}
    assert expected.items() <= rows[0].items()
    assert "0.5" in capsys.readouterr().out and not run.RESULTS.exists()  # nothing is committed unasked


def test_quick_measures_the_short_ones_and_reads_the_rest(run, monkeypatch, tmp_path, capsys):
    assert call(run, monkeypatch, "--name", "fake", "--quick", "--json", tmp_path / "rows.jsonl") == 0
    assert "long: not committed yet and too long for --quick" in capsys.readouterr().err
    commit(run, [OLD])
    assert call(run, monkeypatch, "--name", "fake", "--quick", "--json", tmp_path / "rows.jsonl") == 0
    assert [name for name, _ in run.calls] == ["short"] * 2
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["figure"] for row in rows] == ["short", "short", "long"]
    assert rows[2] == OLD | {"source": "committed"}


def test_commit_keeps_the_rows_that_were_not_measured(run, monkeypatch):
    commit(run, [OLD, OLD | {"figure": "gone"}])
    assert call(run, monkeypatch, "--name", "fake", "--quick", "--commit") == 0
    assert run.committed("fake")["long"] == OLD  # read, not measured: as it was
    assert run.committed("fake")["short"]["value"] == 0.5
    assert call(run, monkeypatch, "--name", "fake", "--figure", "long", "--commit") == 0
    found = run.committed("fake")
    assert list(found) == ["long", "gone", "short"] and found["long"]["value"] == 9.0
    assert [name for name, _ in run.calls] == ["short", "long"]


def test_every_suite_has_its_module_and_names_no_library(bench):
    """A suite's file must not hide an installed package when benchmarks/ is first on the path."""
    files = {bench.run.MODULES.get(name, name) for name in bench.run.SUITES}
    for name in files:
        assert (bench.run.HERE / f"{name}.py").is_file()
        assert name not in ("tokenizers", "datasets", "accelerate", "peft", "transformers")
