"""The stage that trains SASRec: what it passes on, and that an interruption costs little."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from genrec import artifacts, recipes
from genrec.baselines import sasrec_training
from genrec.baselines.sasrec import SasRec, SasRecSettings
from genrec.data.splits import Split
from genrec.data.synthetic import tiny
from genrec.errors import GenrecError, TrainingPaused
from genrec.pipeline import runner
from genrec.pipeline.baseline_stages import fit_sasrec, sasrec_trained
from genrec.pipeline.recipe import DataSettings, PipelineRecipe

SETTINGS = SasRecSettings(
    dim=8, n_layers=1, n_heads=1, epochs=2, batch_size=8, warmup_steps=2, patience=0, device="cpu"
)
RECIPE = PipelineRecipe(data=DataSettings(synthetic=tiny()), seed=3, sasrec=SETTINGS)
CHILD = """
import json, sys
from functools import partial
from pathlib import Path
from genrec import recipes
from genrec.pipeline import runner
from genrec.pipeline.baseline_stages import fit_sasrec
from genrec.pipeline.recipe import PipelineRecipe

recipe = recipes.from_dict(PipelineRecipe, json.loads(sys.argv[2]))
stage = runner.Stage("sasrec", ("sasrec",), partial(fit_sasrec, recipe=recipe))
runner.run(Path(sys.argv[1]), [stage], lambda *_: None)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with a split of 24 users (3 batches), in which events are tied."""
    some_split("catalog").save(tmp_path / "split")
    return tmp_path


def some_split(catalog: str) -> Split:
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(random.integers(5, 12, 24))])
    tied = random.random(offsets[-1]) < 0.6
    tied[offsets[:-1]] = False
    items = random.integers(0, 40, offsets[-1]).astype(np.int32)
    return Split(items, offsets, offsets[1:] - 2, offsets[1:] - 1, 40, catalog, tied=tied)


def weights(model: SasRec) -> dict[str, torch.Tensor]:
    return model.encoder.state_dict()


def same(first: SasRec, second: SasRec) -> bool:
    return all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())


def fitted(folder: Path) -> SasRec:
    """What SASRec itself learns from the split, with the seed of the pipeline."""
    cut = Split.load(folder / "split")
    settings = replace(SETTINGS, seed=3)
    return SasRec.fit(cut.train(), cut.n_items, settings, cut.queries("valid"), tied=cut.train_ties())


def test_ties_seed_and_validation_reach_the_training(folder: Path) -> None:
    fit_sasrec(folder, RECIPE)
    model = SasRec.load(folder / "sasrec")
    assert same(model, fitted(folder))
    cut = Split.load(folder / "split")
    untied = SasRec.fit(cut.train(), cut.n_items, replace(SETTINGS, seed=3), cut.queries("valid"))
    assert not same(model, untied)
    assert artifacts.read(folder / "sasrec").catalog == "catalog"


def test_it_pauses_with_a_checkpoint_and_goes_on(folder: Path) -> None:
    for step in (1, 2, 3, 4):
        with pytest.raises(TrainingPaused, match="out of time") as paused:
            fit_sasrec(folder, RECIPE, pause_after=0)
        assert "go on" in str(paused.value.hint)
        assert artifacts.read(folder / "sasrec_checkpoint").meta["step"] == step
    before = artifacts.read(folder / "sasrec_checkpoint").meta
    fit_sasrec(folder, RECIPE)
    assert not (folder / "sasrec_checkpoint").exists()
    model = SasRec.load(folder / "sasrec")
    assert same(model, fitted(folder))
    meta = artifacts.read(folder / "sasrec").meta
    assert meta["wall_seconds"] > before["wall_seconds"] > 0 and meta["cpu_seconds"] > before["cpu_seconds"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_step(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own, handler = sasrec_training.batch_loss, signal.getsignal(number)

    def interrupted(*given):
        os.kill(os.getpid(), number)
        return own(*given)

    monkeypatch.setattr(sasrec_training, "batch_loss", interrupted)
    with pytest.raises(TrainingPaused, match="a signal"):
        fit_sasrec(folder, RECIPE)
    assert artifacts.read(folder / "sasrec_checkpoint").meta["step"] == 1
    assert signal.getsignal(number) == handler


def test_a_finished_training_is_kept_and_another_one_begins_anew(folder: Path) -> None:
    def steps(recipe: PipelineRecipe = RECIPE) -> int:
        """Steps that the stage takes, up to 2."""
        try:
            fit_sasrec(folder, recipe, pause_after=0)
        except GenrecError:
            return artifacts.read(folder / "sasrec_checkpoint").meta["step"]
        return 0

    fit_sasrec(folder, RECIPE)
    assert sasrec_trained(folder, RECIPE) and steps() == 0
    assert steps(replace(RECIPE, sasrec=replace(SETTINGS, save_seconds=5.0))) == 0
    assert steps(replace(RECIPE, seed=4)) == 1
    assert steps(replace(RECIPE, sasrec=replace(SETTINGS, dim=16))) == 1
    assert steps(replace(RECIPE, sasrec=replace(SETTINGS, dim=16))) == 2
    assert steps() == 0 and not (folder / "sasrec_checkpoint").exists()
    weights_file = folder / "sasrec" / "sasrec.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"x")
    assert steps() == 1  # damaged
    fit_sasrec(folder, RECIPE)
    some_split("other").save(folder / "split", overwrite=True)
    assert steps() == 1


def test_a_checkpoint_that_was_half_deleted_is_no_obstacle(folder: Path) -> None:
    with pytest.raises(TrainingPaused):
        fit_sasrec(folder, RECIPE, pause_after=0)
    (folder / "sasrec_checkpoint" / "genrec.json").unlink()
    with pytest.raises(TrainingPaused):
        fit_sasrec(folder, RECIPE, pause_after=0)
    assert artifacts.read(folder / "sasrec_checkpoint").meta["step"] == 1


def test_kill_9_loses_what_is_after_the_last_checkpoint_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPE, sasrec=replace(SETTINGS, epochs=60, save_seconds=1e-9))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    checkpoint = folder / "sasrec_checkpoint"

    def step() -> int:
        return int(artifacts.read(checkpoint).meta["step"]) if artifacts.exists(checkpoint) else 0

    command = [sys.executable, "-c", CHILD, str(folder), json.dumps(recipes.to_json(recipe))]
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while step() < 4:
        assert child.poll() is None, child.communicate()[1].decode()
        time.sleep(0.01)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    first = step()
    taken, own = [], sasrec_training.batch_loss
    monkeypatch.setattr(sasrec_training, "batch_loss", lambda *given: taken.append(1) or own(*given))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runner.run(folder, [runner.Stage("sasrec", ("sasrec",), partial(fit_sasrec, recipe=recipe))], lambda *_: None)
        assert len(taken) == 180 - first
        cut = Split.load(folder / "split")
        settings = replace(recipe.sasrec, seed=3)
        whole = SasRec.fit(cut.train(), cut.n_items, settings, cut.queries("valid"), tied=cut.train_ties())
    finally:
        torch.set_num_threads(threads)
    assert same(SasRec.load(folder / "sasrec"), whole)
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == ["ledger.json", "sasrec", "split"]
