"""The command line as a user meets it: a tiny pipeline end to end, its second run, its errors."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from genrec.cli.main import main

PIPELINE = """
name: tiny
data:
  synthetic: {n_items: 60, n_users: 80, n_departments: 2, n_subcategories: 3, n_brands: 6, n_tastes: 3,
    max_length: 12, mean_length: 8}
embeddings:
  - lsa: {dim: 8}
tokenizer: {kind: rqkmeans, n_levels: 2, level_size: 8, collisions: reassign}
model: {kind: decoder, hidden_size: 16, n_layers: 1, n_heads: 2, d_ff: 32, dropout: 0.0}
train: {epochs: 2, batch_size: 32, warmup_steps: 2, eval_every: 1, eval_users: 20}
evaluate: {n_beams: 10, n_bootstrap: 20}
baselines: [popularity, item_knn, oracle]
"""


def genrec(*args: object) -> subprocess.CompletedProcess[str]:
    """The command in this process: importing torch anew for every call would take seconds."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = mock.patch.object(sys, "argv", ["genrec", *map(str, args)])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(PIPELINE)
    done = genrec("run", folder / "tiny.yaml", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    assert "oracle" in done.stdout and "is offered" in done.stdout
    return folder


def test_the_report_says_what_was_measured(run: Path) -> None:
    text = (run / "out" / "report" / "report.md").read_text()
    results = json.loads((run / "out" / "report" / "results.json").read_text())
    assert [m["model"] for m in results["models"]] == ["popularity", "item_knn", "oracle", "decoder"]
    for word in ("item_knn", "Seen items excluded", "identifier level", "paired"):
        assert word in text


def test_a_second_run_does_nothing_and_a_change_only_what_it_must(run: Path) -> None:
    planned = genrec("run", run / "tiny.yaml", "--out", run / "out", "--plan")
    assert planned.returncode == 0, planned.stderr
    verbs = {line.split()[0]: line for line in planned.stdout.splitlines()[2:-1]}
    assert all(" skip " in line for line in verbs.values()), planned.stdout
    changed = genrec("run", run / "tiny.yaml", "--out", run / "out", "--plan", "--set", "train.epochs=3")
    running = [line.split("  ")[0] for line in changed.stdout.splitlines()[2:-1] if " run " in line]
    assert running == ["train", "evaluate", "report"]


def test_recommend_for_a_history_and_for_a_user(run: Path) -> None:
    unknown = genrec("recommend", run / "out", "--user", "nobody", "--top-k", 3)
    assert unknown.returncode == 1 and "nobody" in unknown.stderr
    user = unknown.stderr.split("look like ")[1].split("'")[1]
    shown = genrec("recommend", run / "out", "--user", user, "--top-k", 3)
    assert shown.returncode == 0, shown.stderr
    assert "<a_" in shown.stdout
    found = genrec("recommend", run / "out", "--user", user, "--top-k", 3, "--json")
    answer = json.loads(found.stdout)
    assert len(answer["items"]) == 3
    seen = set(answer["history"])
    assert not seen & {item["item_id"] for item in answer["items"]}
    again = genrec("recommend", run / "out", "--history", ",".join(answer["history"]), "--top-k", 3, "--json")
    assert json.loads(again.stdout)["items"] == answer["items"]


def test_compare_and_trec(run: Path, tmp_path: Path) -> None:
    shown = genrec("compare", run / "out", "--trec", tmp_path / "trec")
    assert shown.returncode == 0, shown.stderr
    assert "item_knn" in shown.stdout
    assert len(list((tmp_path / "trec").glob("*/run.trec"))) == 4


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--set", "train.epoch=3"], "epochs"),
        (["--set", "split.ties=random"], "split.ties"),
        (["--set", "baselines=[nothing]"], "nothing"),
        (["--until", "trian"], "--until"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(run: Path, args: list[str], expected: str) -> None:
    done = genrec("run", run / "tiny.yaml", "--out", run / "other", *args)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (run / "other").exists()


def test_missing_data_says_how_to_get_it(run: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    done = genrec("run", root / "train" / "pipelines" / "office.yaml", "--data", run / "nowhere", "--out", run / "o")
    assert done.returncode == 1
    assert "nowhere" in done.stderr and "hint:" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor(run: Path) -> None:
    done = genrec("doctor", "--json")
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert found["packages"]["torch"] and found["extras"]["plots"]["adds"]
    assert genrec("doctor").stdout.startswith("genrec ")


def test_init_copies_the_workbench_once(tmp_path: Path) -> None:
    assert genrec("init", tmp_path / "mine").returncode == 0
    assert (tmp_path / "mine" / "train" / "pipelines" / "demo.yaml").exists()
    again = genrec("init", tmp_path / "mine")
    assert again.returncode == 1 and "Traceback" not in again.stderr


def test_help_teaches_and_needs_no_torch() -> None:
    code = "import sys\nfrom genrec.cli.main import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "run", "--help"], capture_output=True, text=True, check=True)
    assert "--plan" in done.stdout and "--set" in done.stdout
    assert done.stdout.strip().endswith("False")


def test_two_runs_are_told_apart_and_the_trained_models_compared(run: Path) -> None:
    other = run / "second"
    if not other.exists():
        shutil.copytree(run / "out", other)
    shown = genrec("compare", run / "out", other)
    assert shown.returncode == 0, shown.stderr
    assert "out/decoder" in shown.stdout and "second/decoder" in shown.stdout
    assert "ours: out/decoder" in shown.stdout
    averaged = genrec("compare", run / "out", other, "--average")
    assert "± 0.0000" in averaged.stdout


def test_a_bundle_has_no_users(run: Path) -> None:
    done = genrec("recommend", run / "out" / "bundle", "--user", "U0000")
    assert done.returncode == 1 and "--history" in done.stderr
