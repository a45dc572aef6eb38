"""The runner: what runs, what is kept, what an interruption leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from genrec import artifacts
from genrec.cli.console import estimate_table
from genrec.errors import ArtifactError, ConfigError
from genrec.pipeline import runner
from genrec.pipeline.runner import Stage


def writing(name: str, calls: list[str], content: str = "x"):
    def run(folder: Path) -> None:
        calls.append(name)
        with artifacts.write(folder / name, kind="thing", overwrite=True) as draft:
            (draft.dir / "file.txt").write_text(content)

    return run


def chain(calls: list[str]) -> list[Stage]:
    return [
        Stage("a", ("a",), writing("a", calls), recipe={"x": 1}),
        Stage("b", ("b",), writing("b", calls), needs=("a",)),
        Stage("c", ("c",), writing("c", calls), needs=("b",)),
    ]


def silent(*_: object) -> None:
    pass


def statuses(folder: Path, stages: list[Stage]) -> list[str]:
    return [p.status for p in runner.plan(folder, stages)]


def test_everything_runs_once(tmp_path: Path) -> None:
    calls: list[str] = []
    assert statuses(tmp_path, chain(calls)) == ["run", "run", "run"]
    runner.run(tmp_path, chain(calls), silent)
    assert calls == ["a", "b", "c"]
    runner.run(tmp_path, chain(calls), silent)
    assert calls == ["a", "b", "c"]
    assert statuses(tmp_path, chain(calls)) == ["done", "done", "done"]


def test_plan_writes_nothing(tmp_path: Path) -> None:
    runner.plan(tmp_path / "new", chain([]))
    assert not (tmp_path / "new").exists()


def test_a_changed_recipe_runs_the_stage_and_what_depends_on_its_output(tmp_path: Path) -> None:
    calls: list[str] = []
    runner.run(tmp_path, chain(calls), silent)
    changed = chain(calls)
    changed[0] = replace(changed[0], recipe={"x": 2}, run=writing("a", calls, "other"))
    calls.clear()
    runner.run(tmp_path, changed, silent)
    assert calls == ["a", "b"]  # b's output has the same bytes as before, so c is still right


def test_changed_inputs_and_versions_run_again(tmp_path: Path) -> None:
    for change in ({"inputs": {"data": "abc"}}, {"version": 2}):
        calls: list[str] = []
        folder = tmp_path / next(iter(change))
        runner.run(folder, chain(calls), silent)
        stages = chain(calls)
        stages[1] = replace(stages[1], **change)
        calls.clear()
        runner.run(folder, stages, silent)
        assert calls == ["b"]


def test_the_plan_says_what_changed(tmp_path: Path) -> None:
    calls: list[str] = []
    runner.run(tmp_path, chain(calls), silent)

    def reason(at: int, **change: object) -> str:
        stages = chain(calls)
        stages[at] = replace(stages[at], **change)
        return runner.plan(tmp_path, stages)[at].reason

    assert reason(0) == "unchanged"
    assert reason(0, recipe={"x": 2}) == "x: 1 -> 2"
    assert reason(0, recipe={"x": 1, "y": {"z": [0, 5]}}) == "y.z.0: None -> 0 and 1 more"
    assert reason(0, inputs={"data": "abc"}) == "the files it reads changed"
    assert reason(0, version=2) == "its code or input changed"
    ledger = runner.read_ledger(tmp_path)
    runner.run(tmp_path, [replace(chain(calls)[0], recipe={"x": 2}, run=writing("a", calls, "new"))], silent)
    kept = runner.read_ledger(tmp_path)
    assert ledger["b"] == kept["b"] and runner.plan(tmp_path, chain(calls))[1].reason == "after a"
    changed = chain(calls)
    changed[0] = replace(changed[0], recipe={"x": 2})
    assert runner.plan(tmp_path, changed)[1].reason == "the output of a changed"


def test_an_interruption_keeps_what_was_finished(tmp_path: Path) -> None:
    calls: list[str] = []

    def stop(folder: Path) -> None:
        raise KeyboardInterrupt

    stages = chain(calls)
    broken = [stages[0], replace(stages[1], run=stop), stages[2]]
    with pytest.raises(KeyboardInterrupt):
        runner.run(tmp_path, broken, silent)
    assert statuses(tmp_path, chain(calls)) == ["done", "run", "run"]
    runner.run(tmp_path, chain(calls), silent)
    assert calls == ["a", "b", "c"]


def test_removed_or_replaced_outputs_are_noticed(tmp_path: Path) -> None:
    calls: list[str] = []
    runner.run(tmp_path, chain(calls), silent)
    (tmp_path / "b" / "genrec.json").unlink()
    assert statuses(tmp_path, chain(calls)) == ["done", "run", "changed"]
    writing("b", [], "something else")(tmp_path / "elsewhere")
    calls.clear()
    import shutil

    shutil.rmtree(tmp_path / "b")
    runner.run(tmp_path, chain(calls), silent)
    assert calls == ["b"]


def test_a_stage_that_does_not_write_its_outputs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="did not write"):
        runner.run(tmp_path, [Stage("a", ("a",), lambda folder: None)], silent)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    def again(folder: Path) -> None:
        with pytest.raises(ConfigError, match="in use"):
            runner.run(folder, chain([]), silent, recipe={"which": "second"})
        writing("a", [])(folder)

    runner.run(tmp_path, [Stage("a", ("a",), again)], silent, recipe={"which": "first"})
    assert artifacts.load_json(tmp_path / "recipe.json") == {"which": "first"}


def test_what_a_stage_lacks_is_said_before_any_runs_unless_it_ran_before(tmp_path: Path) -> None:
    def lacking() -> None:
        raise ConfigError("no such file")

    calls: list[str] = []
    stages = chain(calls)
    stages[2] = replace(stages[2], check=lacking)
    planned = runner.plan(tmp_path, stages)
    assert planned[2].reason == "after b; it will fail: no such file"
    told = estimate_table(planned, tmp_path).splitlines()
    assert told[4].endswith("after b, and will fail") and told[-1] == "c will fail: no such file"
    with pytest.raises(ConfigError, match="no such file"):
        runner.run(tmp_path, stages, silent)
    assert calls == []
    runner.run(tmp_path, chain(calls), silent)
    runner.run(tmp_path, stages, silent)  # done, wherever it was done
    stages[2] = replace(stages[2], recipe={"x": 3})
    assert runner.plan(tmp_path, stages)[2].reason == "x: None -> 3; it will fail: no such file"


@pytest.mark.parametrize("why", ["version", "needs", "output", "upstream"])
def test_whatever_has_to_run_again_is_asked_first(tmp_path: Path, why: str) -> None:
    def lacking() -> None:
        raise ConfigError("no such file")

    calls: list[str] = []
    runner.run(tmp_path, chain(calls), silent)
    stages = chain(calls)
    stages[2] = replace(stages[2], check=lacking)
    runner.run(tmp_path, stages, silent)  # done: not asked
    if why == "version":
        stages[2] = replace(stages[2], version=2)
    elif why == "needs":
        stages[2] = replace(stages[2], needs=("a", "b"))
    elif why == "output":
        (tmp_path / "c" / "genrec.json").unlink()
    else:
        stages[0] = replace(stages[0], version=2)
    calls.clear()
    assert "it will fail: no such file" in runner.plan(tmp_path, stages)[2].reason
    with pytest.raises(ConfigError, match="no such file"):
        runner.run(tmp_path, stages, silent)
    assert calls == []


def test_the_ledger_has_time_and_memory(tmp_path: Path) -> None:
    ledger = runner.run(tmp_path, chain([]), silent)
    says = {"key", "recipe", "inputs", "needs", "outputs", "wall_seconds", "cpu_seconds", "peak_bytes"}
    assert set(ledger["a"]) == says
    assert ledger["a"]["peak_bytes"] > 1e6  # a Python process is larger


def test_file_digest_follows_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("1")
    first = runner.file_digest(tmp_path)
    (tmp_path / "one.txt").rename(tmp_path / "two.txt")
    second = runner.file_digest(tmp_path)
    (tmp_path / "two.txt").write_text("2")
    assert len({first, second, runner.file_digest(tmp_path)}) == 3
    assert runner.file_digest(tmp_path / "none") == "missing"


def test_file_digest_of_a_folder_leaves_out_what_decides_nothing(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "model"  # a hidden folder above it does not matter
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text("{}")
    first = runner.file_digest(folder)
    for name in (".git/objects/ab", ".cache/huggingface/x.lock", "__pycache__/a.pyc", "README.md", ".gitattributes"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert runner.file_digest(folder) == first
    (folder / "model.safetensors").write_text("x")
    assert runner.file_digest(folder) != first
    assert runner.file_digest(folder / ".gitattributes") != runner.file_digest(folder / "1_Pooling" / "config.json")


def test_damaged_outputs_are_made_again(tmp_path: Path) -> None:
    calls: list[str] = []
    runner.run(tmp_path, chain(calls), silent)
    (tmp_path / "b" / "file.txt").write_text("y")  # same size, other bytes
    assert statuses(tmp_path, chain(calls))[1] == "run"
    calls.clear()
    runner.run(tmp_path, chain(calls), silent)
    assert calls == ["b"]


def test_a_ledger_that_is_no_json_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / runner.LEDGER).write_text("{half")
    with pytest.raises(ArtifactError) as error:
        runner.plan(tmp_path, chain([]))
    assert "delete the file" in str(error.value.hint)
