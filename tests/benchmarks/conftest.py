"""A checkout of the benchmarks with tiny pipelines and a tiny data set; `genrec run` stays in this process."""

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from genrec.cli import main as cli
from genrec.data.export import export_neutral
from genrec.data.synthetic import make, tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PIPELINE = """
name: tiny
data:
  reader: {format: neutral, path: given by --data}
split: {ties: neutral}
embeddings:
  - lsa: {dim: 8}
tokenizer: {kind: rqkmeans, n_levels: 2, level_size: 8, collisions: reassign}
model: {kind: decoder, hidden_size: 16, n_layers: 1, n_heads: 2, d_ff: 32, dropout: 0.0}
train: {epochs: 2, batch_size: 32, warmup_steps: 2, eval_every: 1, eval_users: 20}
evaluate: {n_beams: 5, n_bootstrap: 20}
sasrec: {epochs: 1, dim: 8, n_layers: 1, n_heads: 1}
baselines: [item_knn, sasrec]
"""


@pytest.fixture
def bench(monkeypatch):
    """The modules of the benchmarks folder by name, as its scripts see them."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    names = ("run", "real_data", "quality", "trials", "decoding_trained", "serving_processes", "serving")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def shop(bench, tmp_path, monkeypatch):
    """``bench`` in a checkout of its own: .root, .data (both data sets), .calls (`genrec run` as it was called)."""
    shop, root = make(tiny()), tmp_path / "checkout"
    data = tmp_path / "data"
    for name in ("amazon-beauty-2014", "amazon-games-2014-timesplit"):
        export_neutral(data / name, shop.catalog, shop.interactions)
    (root / "train" / "pipelines").mkdir(parents=True)
    for name in ("beauty", "beauty-t5", "games"):
        (root / "train" / "pipelines" / f"{name}.yaml").write_text(PIPELINE)
    monkeypatch.setattr(bench.real_data, "ROOT", root)
    monkeypatch.setattr(bench.real_data, "RUNS", root / "runs")
    monkeypatch.setattr(bench.trials, "RESULTS", root / "results")
    (root / "results").mkdir()
    calls = []

    def start(command, *, check, env, stdout):
        """What the command would do, without importing torch anew."""
        assert command[:3] == [sys.executable, "-m", "genrec.cli.main"] and check and stdout is sys.stderr
        calls.append(SimpleNamespace(argv=command[3:], env=env))
        with mock.patch.object(sys, "argv", ["genrec", *command[3:]]), mock.patch.dict(os.environ):
            try:
                cli.main()
            except SystemExit as stop:
                assert not stop.code

    monkeypatch.setattr(bench.real_data, "subprocess", SimpleNamespace(run=start))
    bench.root, bench.data, bench.calls = root, data, calls
    return bench
