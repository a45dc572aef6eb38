"""benchmarks/training.py in small: what is compared is equal, a missing data set is said, kills lose nothing."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genrec.data.export import export_neutral
from genrec.data.synthetic import make, tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("run", "training", "training_speed", "training_adapters", "training_runs")


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def data(suite, tmp_path):
    shop = make(tiny())
    export_neutral(tmp_path / "amazon-beauty-2014", shop.catalog, shop.interactions)
    return tmp_path


def test_without_the_data_a_figure_says_so(suite, tmp_path):
    options = suite["run"].Options(False, tmp_path)
    for figure in suite["training"].FIGURES[:3]:
        found = figure.measure(options)
        assert found.value is None and "no folder amazon-beauty-2014" in found.note


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_the_trainer_is_given_what_ours_learns(suite, data, kind):
    """The same samples; their mean loss over a batch that is not shuffled is ours."""
    speed = suite["training_speed"]
    shop = speed.beauty(data / "amazon-beauty-2014")
    model = speed.build(speed.MODELS[kind], shop.token_map, seed=0)
    samples, rows = speed.samples_of(model, shop), speed.rows_of(model, shop)
    chosen = range(0, len(samples), max(1, len(samples) // 7))
    loss = model(**speed.padded([rows[i] for i in chosen])).loss
    part = samples.take(torch.tensor(list(chosen)).numpy())
    collate = speed.Collator(shop, speed.layout_of(model))
    module = speed_module(shop, model)
    torch.testing.assert_close(module(**collate(part), scale=1 / collate.n_targets(part)), loss, rtol=1e-5, atol=1e-5)
    shares = speed.padding(shop)
    assert shares["decoder, packed"] < 0.1 < shares["decoder, at random"]


def speed_module(data, model):
    from genrec.training.losses import CodeLoss
    from genrec.training.module import TrainingModule

    return TrainingModule(model, CodeLoss(data.token_map, "vocab"))


@pytest.mark.slow
def test_every_candidate_trains(suite, data, monkeypatch):
    speed = suite["training_speed"]
    monkeypatch.setattr(speed, "STEPS", 2)
    options = suite["run"].Options(False, data)
    monkeypatch.setattr(suite["training"], "ROUNDS", 1)
    found = suite["training"].tokens_ratio(options, "plain Trainer")
    assert found.value > 0 and set(found.spread["ratios"]) == {
        "decoder, like length",
        "decoder, packed",
        "t5, like length",
    }


@pytest.mark.slow
def test_three_kills_lose_nothing():
    command = [sys.executable, str(BENCHMARKS / "training_runs.py"), "--kills", "3"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=300)
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["trials"], found["failures"]) == (3, []) and found["killed"] >= 1


def test_the_adapter_of_a_published_shape_is_megabytes(suite):
    """r = 16 on the four projections of 28 layers, and 768 rows of 1024, in float32."""
    sides = (1024 + 2048) + 2 * (1024 + 1024) + (2048 + 1024)
    assert suite["training_adapters"].of_qwen3_06b() == pytest.approx(4 * (16 * 28 * sides + 768 * 1024) / 1e6)
