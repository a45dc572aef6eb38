"""The command line as a user meets it: a tiny pipeline end to end, its second run, its errors."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import typer

from genrec import artifacts
from genrec.cli.console import padded
from genrec.cli.main import main
from genrec.data.interactions import Interactions
from genrec.decoding.interface import SearchOptions
from genrec.models.bundle import load_bundle
from genrec.pipeline import replacement

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


def plan_lines(printed: str) -> list[str]:
    """The lines of stages of a printed plan."""
    lines = printed.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("plan for "))
    return lines[start + 2 : -1]


def test_a_second_run_does_nothing_and_a_change_only_what_it_must(run: Path) -> None:
    planned = genrec("run", run / "tiny.yaml", "--out", run / "out", "--plan")
    assert planned.returncode == 0, planned.stderr
    verbs = {line.split()[0]: line for line in plan_lines(planned.stdout)}
    assert all(" skip " in line for line in verbs.values()), planned.stdout
    changed = genrec("run", run / "tiny.yaml", "--out", run / "out", "--plan", "--set", "train.epochs=3")
    running = [line.split("  ")[0] for line in plan_lines(changed.stdout) if " run " in line]
    assert running == ["train", "evaluate", "report"]


def test_recommend_only_items_that_meet_conditions(run: Path) -> None:
    from genrec.data.catalog import ItemCatalog

    catalog = ItemCatalog.load(run / "out" / "catalog")
    brand = next(each for each in catalog.fields["brand"] if each)
    asked = ("recommend", run / "out", "--history", catalog.ids[0], "--json", "--top-k", 50)
    found = genrec(*asked, "--where", f"brand = {brand}")
    items = [row["item_id"] for row in json.loads(found.stdout)["items"]]
    allowed = {i for i, each in zip(catalog.ids, catalog.fields["brand"], strict=True) if each == brand}
    assert items and set(items) == allowed - {catalog.ids[0]} and "note: " in found.stderr
    nothing = genrec(*asked, "--where", "brand = nobody")
    assert nothing.returncode and "no item meets brand = nobody" in nothing.stderr
    wrong = genrec(*asked, "--where", "colour = red")
    assert wrong.returncode and "'colour' is not in the catalog" in wrong.stderr
    for two in (f"brand = {brand} and price < 30", "price < 30, brand = nobody", "price < 30 & colour = red"):
        several = genrec(*asked, "--where", two)
        assert several.returncode == 1
        assert ("expected one condition" in several.stderr) == ("colour" not in two), several.stderr


def test_recommend_without_denied_items_proven_and_scores_of_given_items(run: Path) -> None:
    ids = artifacts.load_table(run / "out" / "catalog" / "items.parquet").column(0).to_pylist()
    asked = ("recommend", run / "out", "--history", ids[0], "--json", "--top-k", 3)
    plain = json.loads(genrec(*asked, "--exact").stdout)
    best, last = plain["items"][0]["item_id"], plain["items"][-1]["item_id"]
    assert plain["certified"] is True
    denied = json.loads(genrec(*asked, "--exact", "--deny", f"{best},{ids[1]}").stdout)
    left = [row["item_id"] for row in denied["items"]]
    assert len(left) == 3 and not {best, ids[1]} & set(left)
    assert left[:2] == [row["item_id"] for row in plain["items"] if row["item_id"] not in (best, ids[1])][:2]
    for wrong, said in ((("--deny", "nope"), "--deny: "), (("--deny", ","), "--deny: expected item ids")):
        refused = genrec(*asked, *wrong)
        assert refused.returncode == 1 and said in refused.stderr
    one = ["--where", f"title = {plain['items'][0]['title']}"]
    everything = genrec(*asked, *one, "--deny", ",".join(ids))
    assert everything.returncode == 1 and "--deny: no item is left" in everything.stderr
    scored = genrec(*asked, "--scores", f"{last},{best},{last}")
    rows = json.loads(scored.stdout)["items"]
    assert [row["item_id"] for row in rows] == [best, last]
    expected = {row["item_id"]: row["score"] for row in plain["items"]}
    assert all(abs(row["score"] - expected[row["item_id"]]) < 1e-4 for row in rows)
    beside = genrec(*asked, "--scores", best, "--exact", "--deny", last)
    assert beside.returncode == 1 and "--deny and --exact beside it" in beside.stderr
    assert "best first (score: log-probability" in genrec(*asked[:4], "--scores", best).stdout


def test_recommend_says_how_each_item_was_reached(run: Path) -> None:
    ids = artifacts.load_table(run / "out" / "catalog" / "items.parquet").column(0).to_pylist()
    asked = ("recommend", run / "out", "--history", ",".join(ids[:2]), "--top-k", 3, "--explain")
    rows = json.loads(genrec(*asked, "--json").stdout)["items"]
    for row in rows:
        assert " ".join(step["token"] for step in row["path"]) == row["identifier"]
        assert abs(row["path"][-1]["score"] - row["score"]) < 1e-4
    shown = genrec(*asked).stdout.split("how each was reached")[1]
    assert shown.count("<a_") == shown.count("<b_") == 3 and "no such identifier" in shown
    for other in (("--sample", 1), ("--max-per", "brand:1"), ("--scores", ids[3])):
        refused = genrec(*asked, *other)
        assert refused.returncode == 1 and "--explain" in refused.stderr


def test_recommend_under_a_cap_and_by_chance(run: Path) -> None:
    from genrec.data.catalog import ItemCatalog

    catalog = ItemCatalog.load(run / "out" / "catalog")
    brand = dict(zip(catalog.ids, catalog.fields["brand"], strict=True))
    asked = ("recommend", run / "out", "--history", catalog.ids[0], "--top-k", 8)
    found = genrec(*asked, "--json", "--max-per", "brand:1")
    assert found.returncode == 0, found.stderr
    brands = [brand[row["item_id"]] for row in json.loads(found.stdout)["items"]]
    assert brands and len(set(brands)) == len(brands)
    assert len(brands) == 8 or "no more were found under --max-per" in found.stderr
    draws = [genrec(*asked, "--sample", seed).stdout for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2] and "drawn, in this order" in draws[0]
    for wrong, said in (("brand", "FIELD:M"), ("brand:0", "FIELD:M"), ("colour:1", "'colour' is not in the catalog")):
        refused = genrec(*asked, "--max-per", wrong)
        assert refused.returncode == 1 and said in refused.stderr
    both = genrec(*asked, "--max-per", "brand:1", "--sample", 1)
    assert both.returncode == 1 and "are for recommend" in both.stderr


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
    assert "personal" not in again.stderr  # the model has no user tokens
    assert json.loads(again.stdout)["items"] == answer["items"]


@pytest.mark.parametrize(
    ("folder", "args", "expected"),
    [
        ("out", ["--user", "a", "--history", "b"], "--user or --history, got both"),
        ("out", [], "--user or --history, got neither"),
        ("out", ["--history", ","], "hint: for example --history {id},"),
        ("out", ["--history", "{id}x"], "hint: did you mean {id!r}? ids look like "),
        ("out", ["--history", "?"], "hint: ids look like {id!r}"),
        ("nowhere", ["--user", "a"], "nowhere does not exist"),
    ],
)
def test_a_wrong_question_is_told_how_to_ask(run: Path, folder: str, args: list[str], expected: str) -> None:
    first = artifacts.load_table(run / "out" / "catalog" / "items.parquet").column(0)[0].as_py()
    done = genrec("recommend", run / folder, *(arg.format(id=first) for arg in args))
    assert done.returncode == 1
    assert expected.format(id=first) in done.stderr


@pytest.mark.parametrize("option", ["--top-k", "--n-beams"])
def test_lengths_begin_at_one(run: Path, option: str) -> None:
    done = genrec("recommend", run / "out", "--history", "a", option, 0)
    assert done.returncode == 2 and option in done.stderr


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
        (["--until", "trian"], "hint: did you mean 'train'?"),
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


def test_help_is_shown_as_it_was_written() -> None:
    from genrec.cli.main import app

    for verb in app.registered_commands:
        assert verb.help and "\n" not in verb.help.replace("\n\n", ""), verb.name
        for option in inspect.signature(verb.callback).parameters.values():
            if option.annotation in ("typer.Context", typer.Context):
                continue
            assert "[" not in option.default.help, f"{verb.name} {option.name}: brackets are markup, and are left out"


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


def test_the_recipe_that_runs_is_printed_with_the_origin_of_its_values(run: Path) -> None:
    asked = ("run", run / "tiny.yaml", "--out", run / "other", "--set", "seed=3", "--until", "prepare")
    short, shown = genrec(*asked).stdout, genrec(*asked, "--plan").stdout
    assert "lsa: dim=8" in short and "train: seed=3" in short and "schedule=" not in short
    given, rest = shown.split("    derived from the seed:")
    derived, defaults = rest.split("    defaults")
    assert "train: epochs=2, batch_size=32" in given and "lsa: dim=8" in given
    assert "train: seed=3" in derived
    assert "schedule=cosine" in defaults and "epochs=" not in defaults and "max_iterations=" in defaults
    assert max(map(len, shown.splitlines())) <= 120


def test_the_epochs_of_an_rqvae_are_seen(run: Path) -> None:
    settings = "{kind: rqvae, n_levels: 2, level_size: 8, epochs: 2, warmup_epochs: 1, hidden: [16], dim: 8}"
    done = genrec(
        "run", run / "tiny.yaml", "--out", run / "rqvae", "--until", "tokenize", "--set", f"tokenizer={settings}"
    )
    assert done.returncode == 0, done.stderr
    assert "rqvae epoch 2 of 2: " in done.stderr and "perplexity" in done.stderr


def test_a_history_without_a_user_is_asked_as_an_unknown_user_s(run: Path) -> None:
    shutil.copytree(run / "out", run / "users")
    done = genrec("run", run / "tiny.yaml", "--out", run / "users", "--set", "n_user_tokens=5", "--until", "train")
    assert done.returncode == 0, done.stderr
    history = artifacts.load_table(run / "out" / "catalog" / "items.parquet").column(0).to_pylist()[:3]
    found = genrec("recommend", run / "users", "--history", ",".join(history), "--top-k", 3, "--json")
    assert found.returncode == 0, found.stderr
    assert "warning: this list is not personal" in found.stderr and "give --user USER" in found.stderr
    user = Interactions.load(run / "users" / "interactions").user_ids[0]
    assert "personal" not in genrec("recommend", run / "users", "--user", user, "--top-k", 3).stderr
    model = load_bundle(run / "users" / "bundle").recommender
    expected = model.recommend([[0, 1, 2]], SearchOptions(top_k=3), users=[""])
    scores = [item["score"] for item in json.loads(found.stdout)["items"]]
    assert scores == pytest.approx(expected.scores[0].tolist())


def test_a_log_of_another_catalog_is_refused(run: Path) -> None:
    other = ["--set", "data.synthetic.seed=1", "--until", "prepare"]
    assert genrec("run", run / "tiny.yaml", "--out", run / "elsewhere", *other).returncode == 0
    mixed = Path(shutil.copytree(run / "out", run / "mixed"))
    shutil.rmtree(mixed / "interactions")
    shutil.copytree(run / "elsewhere" / "interactions", mixed / "interactions")
    done = genrec("recommend", mixed, "--user", "U00", "--top-k", 3)
    assert done.returncode == 1 and "interactions belongs to catalog" in done.stderr


def test_another_run_or_a_long_training_is_not_replaced_without_being_asked(run: Path, monkeypatch) -> None:
    out = Path(shutil.copytree(run / "out", run / "kept"))
    before = artifacts.read(out / "bundle").digest
    changed = ["run", run / "tiny.yaml", "--out", out, "--until", "train", "--set", "train.max_steps=1"]
    monkeypatch.setattr(replacement, "FREE_SECONDS", 0.0)
    planned = genrec(*changed, "--plan")
    assert "note: this run replaces a finished model (trained in" in planned.stdout
    assert "train.max_steps: 0 -> 1 (stage train) (only with --replace)" in planned.stdout
    refused = genrec(*changed)
    assert refused.returncode == 1 and "hint: give another --out to keep it; or --replace" in refused.stderr
    assert not refused.stdout  # the settings would hide it
    other = genrec("run", run / "tiny.yaml", "--out", out, "--set", "name=other", "--until", "split")
    assert other.returncode == 1 and f"{out} holds the run 'tiny', got the run 'other'" in other.stderr
    assert artifacts.read(out / "bundle").digest == before
    done = genrec(*changed, "--replace")
    assert done.returncode == 0, done.stderr
    assert "warning: this run replaces a finished model" in done.stdout
    assert artifacts.read(out / "bundle").digest != before


def test_a_half_replaced_folder_is_told_from_a_whole_one(run: Path) -> None:
    out = Path(shutil.copytree(run / "out", run / "half"))
    ids = artifacts.load_table(out / "catalog" / "items.parquet").column(0).to_pylist()[:3]
    asked = ["recommend", out, "--history", ",".join(ids), "--top-k", 3]
    assert not genrec(*asked).stderr
    coarser = ["--set", "tokenizer.level_size=16", "--until", "tokenize"]
    assert genrec("run", run / "tiny.yaml", "--out", out, *coarser).returncode == 0
    older = genrec(*asked)
    assert older.returncode == 0 and "older than the identifiers beside it" in older.stderr
    assert not genrec("recommend", out / "bundle", *asked[2:]).stderr
    shutil.rmtree(out / "catalog")
    (out / "ledger.json").unlink()  # which would refuse other data
    other = ["--set", "data.synthetic.seed=1", "--until", "prepare"]
    assert genrec("run", run / "tiny.yaml", "--out", out, *other).returncode == 0
    done = genrec(*asked)
    assert done.returncode == 1 and "catalog belongs to catalog" in done.stderr


def test_fewer_beams_than_places_and_what_is_printed(run: Path) -> None:
    out = Path(shutil.copytree(run / "out", run / "titles"))
    ids = artifacts.load_table(out / "catalog" / "items.parquet").column(0).to_pylist()[:2]
    few = genrec("recommend", out, "--history", ",".join(ids), "--top-k", 5, "--n-beams", 2)
    assert few.returncode == 0 and "warning: n_beams=2 finds 2 identifiers" in few.stderr
    enough = genrec("recommend", out, "--history", ",".join(ids), "--top-k", 5, "--n-beams", 5)
    assert not enough.stderr and "(score: log-probability of the identifier among the codes" in enough.stdout


def test_titles_fill_the_columns_that_they_take() -> None:
    assert padded("abc", 5) == "abc  " and padded("abcdef", 5) == "abcde"
    assert padded("日本語", 5) == "日本 " and padded("日本", 6) == "日本  "
    assert padded("e\u0301", 3) == "e\u0301  "


def test_a_folder_that_cannot_be_made_is_one_line() -> None:
    done = genrec("demo", "--out", "/proc/nowhere/run")
    assert done.returncode == 1 and "error: /proc/nowhere/run: cannot make this folder" in done.stderr


@pytest.mark.slow
def test_a_run_killed_at_three_moments_ends_with_the_bundle_of_an_uninterrupted_one(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(PIPELINE)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    changes = ["--set", "train.epochs=30", "--set", "train.save_every=1", "--set", "train.eval_every=10"]

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "genrec.cli.main", "run", str(tmp_path / "tiny.yaml"), *changes]
        return subprocess.Popen(
            [*command, "--out", str(tmp_path / name)],
            env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def killed(started: str, n_checkpoints: int = 0) -> str:
        """Kill -9 once the stage has started and so many checkpoints are there; what was printed until then."""
        child, shown = start("killed"), ""
        assert child.stdout is not None
        while f"] {started}:" not in shown:
            assert child.poll() is None, "it ended before the kill"
            shown += child.stdout.readline()
        while len(list((tmp_path / "killed").glob("checkpoints/*/checkpoint-*"))) < n_checkpoints:
            assert child.poll() is None, "it ended before the kill"
            time.sleep(0.01)
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        return shown

    killed("tokenize")
    killed("train", n_checkpoints=2)
    assert "going on from step" in killed("evaluate")
    for name in ("killed", "whole"):
        child = start(name)
        out, _ = child.communicate(timeout=300)
        assert child.returncode == 0, out
        kept = "train: train the decoder to write identifiers (unchanged, kept)" in out
        assert kept == (name == "killed")
    bundles = [artifacts.read(tmp_path / name / "bundle") for name in ("killed", "whole")]
    for bundle in bundles:
        for part in ("catalog", "codes", "index"):
            del bundle.files[f"{part}/genrec.json"]  # says when it was written
    assert bundles[0].digest == bundles[1].digest
    assert "model/model.safetensors" in bundles[0].files
