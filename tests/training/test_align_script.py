"""train/align_lora.py as accelerate starts it, on a tiny prepared run with a tiny language model."""

import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from genrec import recipes
from genrec.data.synthetic import tiny
from genrec.embeddings.text import LsaSettings
from genrec.models.adapters import LoraSettings
from genrec.models.bundle import load_bundle
from genrec.models.pretrained import PretrainedSettings
from genrec.pipeline import runner
from genrec.pipeline.recipe import Block, DataSettings, PipelineRecipe
from genrec.pipeline.stages import stages, stages_until
from genrec.prompts.mixture import MixedTask, MixtureSettings
from genrec.testing.text_models import tiny_text_model
from genrec.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
LAUNCHERS = {
    name: ["accelerate.commands.launch", "--config_file", f"train/launch/{name}.yaml", "--main_process_port", "0"]
    for name in ("one", "ddp")
}


@pytest.fixture
def prepared(tmp_path):
    """A run folder with identifiers, and its recipe."""
    for each in tiny_text_model("qwen3"):
        each.save_pretrained(tmp_path / "base")
    recipe = PipelineRecipe(
        data=DataSettings(synthetic=tiny()),
        embeddings=(Block(lsa=LsaSettings(dim=8)),),
        tokenizer={"kind": "rqkmeans", "n_levels": 2, "level_size": 8, "collisions": "reassign"},
        model=PretrainedSettings(str(tmp_path / "base")),
        lora=LoraSettings(r=2),
        alignment=MixtureSettings((MixedTask("sequential", samples=40), MixedTask("item_from_text", samples=24))),
        train=TrainSettings(epochs=1, batch_size=32, warmup_steps=1, eval_users=5, save_every=0, bf16=False),
        baselines=(),
    )
    folder = tmp_path / "run"
    runner.run(folder, stages_until(stages(recipe, folder), "tokenize"), lambda *_: None, recipes.to_json(recipe))
    return folder, recipe


def start(launcher, folder, *options):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(folder.parent)}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "train/align_lora.py", str(folder), *options]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def check(folder, recipe):
    """What the script wrote is what `genrec run` would have written: it goes on from there."""
    planned = {each.stage.name: each for each in runner.plan(folder, stages(recipe, folder))}
    assert planned["train"].status == "run"  # not in the ledger, but
    runner.run(folder, stages(recipe, folder), lambda *_: None)
    assert json.loads((folder / "training" / "genrec.json").read_text())["meta"]["steps"] == 2
    bundle = load_bundle(folder)
    assert bundle.recommender.prompts is not None and (folder / "bundle" / "model" / "adapter").is_dir()


@pytest.mark.slow
def test_one_process_in_two_pieces(prepared):
    folder, recipe = prepared
    stopped = start("one", folder, "--max-seconds", "1e-6")
    assert "run the same command" in stopped.stderr, stopped.stderr[-3000:]
    done = start("one", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on from step 1 of 2" in done.stderr and done.stdout.count("bundle:") == 1
    made = (folder / "bundle" / "genrec.json").read_bytes()
    check(folder, recipe)
    assert (folder / "bundle" / "genrec.json").read_bytes() == made  # and trains nothing again


@pytest.mark.slow
def test_two_processes_write_one_bundle(prepared):
    folder, recipe = prepared
    done = start("ddp", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("bundle:") == 1
    check(folder, recipe)


def run_here(folder):
    """The script in this process, which takes no time to start."""
    argv = mock.patch.object(sys, "argv", ["align_lora.py", str(folder)])
    with argv, mock.patch.object(sys, "path", list(sys.path)), pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "train" / "align_lora.py"), run_name="__main__")
    return end.value.code


def test_the_sequence(prepared):
    folder, recipe = prepared
    assert run_here(folder) == 0
    check(folder, recipe)
    (folder / "recipe.json").write_text(json.dumps(recipes.to_json(replace(recipe, alignment=None))))
    assert "no block `alignment`" in run_here(folder)
