"""``genrec compare`` on run folders that hold nothing but evaluations, a catalog and a log."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from genrec.cli.main import main
from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.data.interactions import Interactions
from genrec.data.splits import leave_one_out
from genrec.evaluation import EvalSettings, evaluate

N = 12
CATALOG = ItemCatalog(tuple(f"item-{n}" for n in range(N)), {"title": [f"t{n}" for n in range(N)]})


class Noise:
    n_items = N

    def __init__(self, seed: int) -> None:
        self.scores = np.random.default_rng(seed).random((6, N), dtype=np.float32)

    def score_all(self, histories: Histories, users: np.ndarray | None = None) -> np.ndarray:
        return self.scores[users]


def make_run(folder: Path, *, seed: int = 0, ks: tuple[int, ...] = (5, 10), ties: str = "neutral") -> Path:
    users = [f"user-{u}" for u in range(6) for _ in range(4)]
    items = np.concatenate([np.random.default_rng(u).permutation(N)[:4] for u in range(6)])
    log = Interactions.from_arrays(users, items, None, n_items=N, catalog=CATALOG.fingerprint)
    cut = leave_one_out(log)
    CATALOG.save(folder / "catalog")
    log.save(folder / "interactions")
    (folder / "recipe.json").write_text(json.dumps({"baselines": ["popularity"], "model": {"kind": "decoder"}}))
    for number, name in enumerate(("popularity", "decoder")):
        found = evaluate(
            Noise(10 * seed + number),
            cut.queries("test"),
            settings=EvalSettings(ks=ks, n_bootstrap=10),
            name=name,
            catalog=CATALOG.fingerprint,
            context={"part": "test", "split": cut.rule, "ties": ties, "seed": seed},
        )
        found.save(folder / "eval" / name)
    return folder


def compare(*args: object) -> tuple[int, str, str]:
    """Exit code, output and errors of ``genrec compare``."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = mock.patch.object(sys, "argv", ["genrec", "compare", *map(str, args)])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def test_other_list_lengths_are_compared_and_averaged(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), seed=seed, ks=(1, 5)) for seed in (0, 1)]
    code, out, err = compare(runs[0])
    assert code == 0, err
    assert "recall@5" in out and "ndcg@5 " in out and "@10" not in out
    code, out, err = compare(*runs, "--average")
    assert code == 0, err
    columns = ["model", "recall@5", "ndcg@5", "mrr@5", "coverage@5", "repetitions"]
    assert out.splitlines()[0].split() == columns and "±" in out
    code, out, err = compare(runs[0], "--metric", "ndcg@10")
    assert code == 1 and "ndcg@10" in err and "ndcg@5" in err and "Traceback" not in err


def test_both_tables_and_averages_print_their_rule(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    for args, ties in (((runs[0],), "permuted, seed 0."), ((*runs, "--average"), "permuted, seeds 0, 1.")):
        _, out, err = compare(*args)
        assert ties in out and "Seen items excluded" in out and "6 queries of test (leave_one_out)" in out, err


def test_runs_with_other_orders_of_ties_are_not_averaged(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / ties, ties=ties) for ties in ("neutral", "file")]
    code, _, err = compare(*runs, "--average")
    assert code == 1 and "different rules" in err and "order of the file" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "said", "hint"),
    [
        (["run/catalog"], "run/catalog: no run there, but 'catalog'", "give the run folder: {}/run"),
        (["run/eval"], "run/eval: no run there", "give the run folder: {}/run"),
        (["nowhere"], "nowhere: no run there", "a run folder has recipe.json"),
        (["half"], "half: nothing is evaluated there yet", "`genrec run PIPELINE.yaml --out {}/half` goes on"),
        (["run", "--metric", "ndgc@5"], "metric 'ndgc@5'", "did you mean ndcg@5"),
        (["run", "--metric", "foo@3"], "metric 'foo@3'", "there are: hit_rate, mrr, "),
        (["run", "--trec", "file"], "file/run-popularity: Not a directory", "a file is in the way"),
    ],
)
def test_errors_say_what_to_give(tmp_path: Path, args: list[str], said: str, hint: str) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "recipe.json").write_text((run / "recipe.json").read_text())
    (tmp_path / "file").touch()
    places = ("run", "run/catalog", "run/eval", "nowhere", "half", "file")
    code, _, err = compare(*(tmp_path / arg if arg in places else arg for arg in args))
    assert code == 1
    first, second = err.splitlines()
    assert first.startswith("error: ") and said in first
    assert second.startswith(f"hint: {hint.format(tmp_path)}") and len(second) < 200 + len(str(tmp_path))


@pytest.mark.parametrize("given", ["run", "evaluation"])
def test_trec_files_hold_ids_of_users_and_items(tmp_path: Path, given: str) -> None:
    run = make_run(tmp_path / "run")
    code, _, err = compare(run if given == "run" else run / "eval" / "decoder", "--trec", tmp_path / "out")
    assert code == 0, err
    lines = (tmp_path / "out" / "run-decoder" / "qrels.trec").read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == [f"user-{u}" for u in range(6)]
    first = (tmp_path / "out" / "run-decoder" / "run.trec").read_text().split()
    assert first[0] == "user-0" and first[2].startswith("item-")
