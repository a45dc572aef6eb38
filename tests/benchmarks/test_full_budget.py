"""benchmarks/full_budget.py on a tiny prepared run: in pieces, on machine after machine, without the extras."""

import dataclasses
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from genrec import artifacts
from genrec.data.splits import Split
from genrec.decoding.index import CatalogIndex
from genrec.errors import ArtifactError, ConfigError
from genrec.pipeline import baseline_stages, model_stages, recipe
from genrec.recipes import from_dict
from genrec.testing.walks import N_ITEMS, walk_codes

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "full_budget.py"
BLOCKED = ("pydantic", "pydantic_core", "pyarrow", "datasets")
KEYS = ["figure", "value", "unit", "target", "baseline", "source"]
KEYS += ["budget", "spread", "note", "command", "machine", "git"]
STEPS, USERS = 3, 20


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("full_budget", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "full_budget", module)  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def prepared(tmp_path):
    """A folder with the run ``tiny`` as `genrec run --until tokenize` leaves it, as far as it is read."""
    random, codes, folder = np.random.default_rng(0), walk_codes(), tmp_path / "prepared" / "tiny"
    lengths = random.integers(4, 9, USERS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate([(s + np.arange(n)) % N_ITEMS for s, n in enumerate(lengths)]).astype(np.int32)
    items[items == N_ITEMS - 1] = 0
    items[-1] = N_ITEMS - 1  # a cold target, in the last piece only
    Split(items, offsets, offsets[1:] - 2, offsets[1:] - 1, N_ITEMS, codes.catalog).save(folder / "split")
    codes.save(folder / "codes")
    CatalogIndex.build(codes).save(folder / "index")
    settings = {
        "data": {"synthetic": {}},
        "model": {"kind": "decoder", "hidden_size": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16},
        "train": {"epochs": STEPS, "batch_size": USERS, "warmup_steps": 1, "eval_users": 5, "betas": [0.9, 0.98]},
        "evaluate": {"n_bootstrap": 50, "n_beams": 5},
    }
    artifacts.save_json(folder / "recipe.json", settings)
    return folder.parent


class Clock:
    """A clock that stands still."""

    def __call__(self):
        return 0.0


def machine(prepared, name):
    """The prepared runs on another machine."""
    return Path(shutil.copytree(prepared, prepared.parent / name))


def call(script, runs, rows, *options, seconds="0"):
    arguments = ["--runs", str(runs), "--rows", str(rows), "--seconds", seconds, *options]
    return script.main(arguments, clock=Clock())


def read_rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def weights(folder):
    return (folder / "tiny" / "bundle" / "model" / "model.safetensors").read_bytes()


def whole(script, prepared, tmp_path):
    """An uninterrupted run: its weights and its row."""
    runs, rows = machine(prepared, "whole"), tmp_path / "whole.jsonl"
    assert call(script, runs, rows, seconds="1000") == 0
    (row,) = read_rows(rows)
    return weights(runs), row


def test_pieces_on_machine_after_machine_give_the_weights_and_the_row_of_one_run(script, prepared, tmp_path):
    one, expected = whole(script, prepared, tmp_path)
    script.SHARD = 4000
    rows, state, ends, seen = tmp_path / "rows.jsonl", tmp_path / "state", [], set()
    while ends[-1:] != [0]:
        runs = machine(prepared, f"machine{len(ends)}")
        ends.append(call(script, runs, rows, "--state", str(state)))
        steps = [path.name for path in runs.glob("tiny/checkpoints/*/checkpoint-*")]
        seen |= {max(steps)} if steps else set()
        if (runs / "tiny" / "bundle").exists():
            assert weights(runs) == one
    # a step per call, the last of them writes the bundle; then 16 queries, then 4
    assert ends == [75] * (STEPS + 1) + [0]
    assert seen == {f"checkpoint-{step:08d}" for step in range(1, STEPS + 1)}
    (row,) = read_rows(rows)
    assert {k: row[k] for k in ("figure", "value", "unit", "note")} == {
        k: expected[k] for k in ("figure", "value", "unit", "note")
    }
    assert row["spread"] == expected["spread"]


def test_the_row_is_that_of_the_pipeline_s_own_evaluation(script, prepared, tmp_path):
    _, row = whole(script, prepared, tmp_path)
    assert list(row) == KEYS
    folder = tmp_path / "whole" / "tiny"
    model_stages.evaluate_model(folder, from_dict(recipe.PipelineRecipe, artifacts.load_json(folder / "recipe.json")))
    found = artifacts.load_json(folder / "eval" / "decoder" / "report.json")["intervals"]
    assert row["figure"] == "full_budget_tiny_recall10" and row["value"] == found["recall@10"]["mean"]
    assert row["spread"]["interval"] == [found["recall@10"]["low"], found["recall@10"]["high"]]
    for name in ("ndcg@10", "warm.recall@10", "cold.recall@10", "identifier.ndcg@10"):
        assert row["spread"][name] == pytest.approx(found[name]["mean"], abs=1e-12)
    assert f"{STEPS} epochs, {STEPS} steps" in row["budget"] and "on cpu" in row["budget"]


def ask_for_sasrec(folder, **change):
    """SASRec of 2 epochs of 3 steps, and the model of one step."""
    settings = artifacts.load_json(folder / "recipe.json")
    settings["train"]["epochs"] = 1
    own = {"epochs": 2, "batch_size": 7, "dim": 8, "n_layers": 1, "n_heads": 1, "device": "cpu"}
    artifacts.save_json(folder / "recipe.json", settings | {"baselines": ["sasrec"], "sasrec": own} | change)


def test_sasrec_in_pieces_gives_the_row_of_the_pipeline_s_own_stages(script, prepared, tmp_path):
    ask_for_sasrec(prepared / "tiny")
    rows, state, ends, steps = tmp_path / "rows.jsonl", tmp_path / "state", [], []
    while ends[-1:] != [0]:
        runs = machine(prepared, f"machine{len(ends)}")
        ends.append(call(script, runs, rows, "--state", str(state)))
        assert len(ends) < 20, "it does not get on"
        if (runs / "tiny" / "sasrec_checkpoint").exists():
            steps.append(artifacts.read(runs / "tiny" / "sasrec_checkpoint").meta["step"])
    assert steps == [1, 2, 3, 4, 5, 6]
    folder = machine(prepared, "stages") / "tiny"
    asked = from_dict(recipe.PipelineRecipe, artifacts.load_json(folder / "recipe.json"))
    baseline_stages.fit_sasrec(folder, asked)
    baseline_stages.evaluate_baseline(folder, asked, "sasrec")
    found = artifacts.load_json(folder / "eval" / "sasrec" / "report.json")["intervals"]
    row = next(row for row in read_rows(rows) if row["figure"] == "full_budget_tiny_sasrec_recall10")
    assert list(row) == KEYS and row["value"] == found["recall@10"]["mean"]
    assert row["spread"]["interval"] == [found["recall@10"]["low"], found["recall@10"]["high"]]
    assert row["spread"]["cold.recall@10"] == pytest.approx(found["cold.recall@10"]["mean"], abs=1e-12)
    assert row["budget"].startswith("2 epochs, 6 steps, ") and row["budget"].endswith("20 test queries")
    assert json.loads(row["note"])["dim"] == 8
    left = Path(shutil.copytree(prepared, tmp_path / "after"))
    script.train = script.fit_sasrec = script.evaluate = None  # any work would fail
    assert call(script, left, tmp_path / "other.jsonl", "--state", str(state)) == 0
    assert read_rows(tmp_path / "other.jsonl") == read_rows(rows) and len(read_rows(rows)) == 2
    assert not (left / "tiny" / "sasrec").exists() and not (left / "tiny" / "bundle").exists()


def test_sasrec_is_trained_once_per_permutation(script, prepared):
    ask_for_sasrec(prepared / "tiny")
    for name, change in (("same", {"model": {"kind": "t5"}}), ("seed", {"seed": 1}), ("without", {"baselines": []})):
        shutil.copytree(prepared / "tiny", prepared / name)
        ask_for_sasrec(prepared / name, **change)
    folders = script.prepared(prepared)
    assert [folder.name for folder in folders] == ["same", "seed", "tiny", "without"]
    found = [job.figure.removeprefix("full_budget_").removesuffix("_recall10") for job in script.jobs(folders)]
    assert found == ["same", "same_sasrec", "seed", "seed_sasrec", "tiny", "without"]
    cut = Split.load(prepared / "tiny" / "split")
    valid_end = cut.valid_end - 1
    other = Split(cut.items, cut.offsets, cut.train_end - 1, valid_end, cut.n_items, cut.catalog)
    other.save(prepared / "tiny" / "split", overwrite=True)
    assert "full_budget_tiny_sasrec_recall10" in [job.figure for job in script.jobs(folders)]


def test_a_sasrec_of_the_preparation_gives_way_to_that_of_the_state(script, prepared, tmp_path):
    ask_for_sasrec(prepared / "tiny")
    old = from_dict(recipe.PipelineRecipe, artifacts.load_json(prepared / "tiny" / "recipe.json"))
    runs, rows, state = machine(prepared, "first"), tmp_path / "rows.jsonl", tmp_path / "state"
    while not (runs / "tiny" / "sasrec").exists():
        assert call(script, runs, rows, "--state", str(state)) == 75
    trained = artifacts.read(runs / "tiny" / "sasrec").digest
    baseline_stages.fit_sasrec(prepared / "tiny", dataclasses.replace(old, seed=5))  # with other settings
    again = machine(prepared, "second")
    assert call(script, again, rows, "--state", str(state)) in (0, 75)
    assert artifacts.read(again / "tiny" / "sasrec").digest == trained


def test_a_finished_run_is_skipped_and_its_row_comes_back_from_the_state(script, prepared, tmp_path):
    runs, rows, state = machine(prepared, "first"), tmp_path / "rows.jsonl", tmp_path / "state"
    assert call(script, runs, rows, "--state", str(state), seconds="1000") == 0
    script.train = script.evaluate = None  # any work would fail
    assert call(script, runs, rows, seconds="1000") == 0 and len(read_rows(rows)) == 1
    again = machine(prepared, "second")
    assert call(script, again, tmp_path / "other.jsonl", "--state", str(state)) == 0
    assert read_rows(tmp_path / "other.jsonl") == read_rows(rows)
    assert not (again / "tiny" / "bundle").exists()  # no longer needed, so not carried


def test_another_recipe_trains_again(script, prepared, tmp_path):
    runs = machine(prepared, "runs")
    assert call(script, runs, tmp_path / "a.jsonl", seconds="1000") == 0
    first = weights(runs)
    shutil.rmtree(runs / "tiny" / "full_budget")
    settings = artifacts.load_json(runs / "tiny" / "recipe.json")
    artifacts.save_json(runs / "tiny" / "recipe.json", settings | {"seed": 1})
    assert call(script, runs, tmp_path / "b.jsonl", seconds="1000") == 0
    assert weights(runs) != first


def test_state_is_in_small_parts_and_replaced(script, prepared, tmp_path):
    runs, rows, state = machine(prepared, "runs"), tmp_path / "rows.jsonl", tmp_path / "state"
    script.SHARD = 4000
    files = []
    for _ in range(2):
        assert call(script, runs, rows, "--state", str(state)) == 75
        files.append({file.name for file in state.iterdir()})
        assert files[-1] == {"state.json", *artifacts.load_json(state / "state.json")}
        assert len(files[-1]) > 2 and all(f.stat().st_size <= 4000 for f in state.glob("state-*"))
    assert files[0] != files[1]
    with tarfile.open(fileobj=io.BytesIO(b"".join(f.read_bytes() for f in sorted(state.glob("state-*"))))) as tar:
        names = tar.getnames()
    steps = {part for name in names for part in Path(name).parts if part.startswith("checkpoint-")}
    assert steps == {"checkpoint-00000002"}  # the newest only


def test_a_damaged_or_wicked_state_is_refused(script, prepared, tmp_path):
    state, rows = tmp_path / "state", tmp_path / "rows.jsonl"
    assert call(script, machine(prepared, "a"), rows, "--state", str(state)) == 75
    part = next(state.glob("state-*"))
    good = part.read_bytes()
    part.write_bytes(good[:-1] + b"x")
    with pytest.raises(ArtifactError, match="damaged"):
        call(script, machine(prepared, "b"), rows, "--state", str(state))

    with tarfile.open(part, "w") as tar:
        tar.addfile(tarfile.TarInfo("../../outside"))
    artifacts.save_json(state / "state.json", {part.name: script.hashlib.sha256(part.read_bytes()).hexdigest()})
    with pytest.raises(tarfile.OutsideDestinationError):
        call(script, machine(prepared, "c"), rows, "--state", str(state))


def test_a_piece_that_does_not_fit_is_not_started(script):
    now = [0.0]
    budget = script.Budget(10, lambda: now[0])
    assert budget.grant(100) == 10  # the first work of a call always is
    now[0] = 4.0
    assert budget.grant(5) == 6
    with pytest.raises(script.TrainingPaused, match="6 s are left, the next piece needs 7 s"):
        budget.grant(7)


def test_what_cannot_run_is_said(script, prepared, tmp_path):
    with pytest.raises(ConfigError, match="no prepared run other"):
        call(script, prepared, tmp_path / "rows.jsonl", "--only", "other")
    settings = artifacts.load_json(prepared / "tiny" / "recipe.json")
    artifacts.save_json(prepared / "tiny" / "recipe.json", settings | {"n_user_tokens": 4})
    with pytest.raises(ConfigError, match="n_user_tokens"):
        call(script, prepared, tmp_path / "rows.jsonl")


def test_what_is_skipped_is_named_with_what_it_lacks(script, prepared, tmp_path, capsys):
    other = Path(shutil.copytree(prepared / "tiny", prepared / "other"))
    shutil.rmtree(other / "codes")
    (other / "index" / "genrec.json").unlink()
    assert call(script, prepared, tmp_path / "rows.jsonl", seconds="1000") == 0
    assert [row["figure"] for row in read_rows(tmp_path / "rows.jsonl")] == ["full_budget_tiny_recall10"]
    skipped = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped")]
    assert skipped == [f"skipped {other}: no complete codes, index; prepare it (--help)"]


@pytest.mark.slow
def test_runs_from_a_source_tree_without_pydantic_pyarrow_and_datasets(prepared, tmp_path):
    """As a command; genrec itself is found only through what the script adds to the path, installed or not."""
    hide = (
        "import importlib.machinery, sys\n"
        f"sys.path[:] = [entry for entry in sys.path if entry != {str(SCRIPT.parents[1])!r}]\n"
        "installed = set(sys.path)\n"
        "found = importlib.machinery.PathFinder.find_spec.__func__\n"
        "def find_spec(cls, name, path=None, target=None):\n"
        "    if name == 'genrec':\n"
        "        path = [entry for entry in sys.path if entry not in installed]\n"
        f"    return None if name.partition('.')[0] in {BLOCKED} else found(cls, name, path, target)\n"
        "importlib.machinery.PathFinder.find_spec = classmethod(find_spec)\n"
    )
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(hide)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    rows = tmp_path / "rows.jsonl"
    command = [sys.executable, str(SCRIPT), "--runs", str(prepared), "--rows", str(rows), "--git", "abc1234"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(rows)
    assert row["git"] == "abc1234" and "cpu" in row["machine"] and str(SCRIPT.name) in row["command"]
