"""train/parallel.py as a user starts it, on a tiny prepared run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genrec.data.splits import leave_one_out
from genrec.data.synthetic import make, tiny
from genrec.embeddings.text import LsaSettings, lsa
from genrec.errors import ConfigError
from genrec.models.parallel_bundle import load_parallel
from genrec.pipeline.parallel_stages import ParallelRecipe, evaluate_stage, tokenize_parallel, train_stage
from genrec.recipes import load
from genrec.testing.text_models import tiny_text_model

ROOT = Path(__file__).parents[2]
SMALL = [
    "model={kind: decoder, hidden_size: 16, n_layers: 1, n_heads: 2, d_ff: 32}", "train.max_steps=2", "train.epochs=1",
    "train.warmup_steps=1", "train.batch_size=32", "train.eval_users=20", "evaluate.n_bootstrap=10", "train.bf16=false",
]  # fmt: skip
OF = {
    "setrec": ["tokenizer.epochs=1", "tokenizer.dim=8", "collaborative_dim=8", "tokenizer.hidden=[16]"],
    "recgpt": ["tokenizer.epochs=1", "tokenizer.levels=[4, 4]"],
    "rpg": ["tokenizer.level_size=8", "tokenizer.n_levels=4"],
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What `genrec run --until embed` leaves, as far as it is read."""
    folder, shop = tmp_path_factory.mktemp("run"), make(tiny())
    shop.catalog.save(folder / "catalog")
    leave_one_out(shop.interactions).save(folder / "split")
    lsa(shop.catalog, LsaSettings(dim=16)).save(folder / "embeddings")
    return folder


def recipe_of(method, *more):
    return load(ROOT / "train" / "parallel" / f"{method}.yaml", ParallelRecipe, [*SMALL, *OF[method], *more]).value


@pytest.mark.slow
def test_script(run_folder, tmp_path):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    command = [sys.executable, str(ROOT / "train" / "parallel.py"), str(run_folder)]
    command += [str(ROOT / "train" / "parallel" / "rpg.yaml"), "--out", str(tmp_path / "out")]
    for change in [*SMALL, *OF["rpg"]]:
        command += ["--set", change]

    def start(*more):
        return subprocess.run([*command, *more], env=env, capture_output=True, text=True, timeout=300, check=False)

    stopped = start("--max-seconds", "1e-6")
    assert stopped.returncode == 75 and "run the same command" in stopped.stderr, stopped.stderr
    done = start()
    assert done.returncode == 0, done.stderr
    assert "going on from step 1 of 2" in done.stderr and "recall@10" in done.stdout
    assert load_parallel(tmp_path / "out" / "bundle").model.settings.temperature == 0.07


@pytest.mark.parametrize(("method", "more"), [("setrec", ["joint=false"]), ("setrec", []), ("recgpt", [])])
def test_stages(method, more, run_folder, tmp_path):
    recipe = recipe_of(method, *more)
    first = train_stage(run_folder, tmp_path, recipe)
    report = evaluate_stage(run_folder, tmp_path, recipe, first)
    assert report.name == method and report.context["beta"] == first.settings.beta
    before = (tmp_path / "bundle" / "genrec.json").read_bytes()
    again = train_stage(run_folder, tmp_path, recipe)
    assert before == (tmp_path / "bundle" / "genrec.json").read_bytes()  # read, not trained again
    assert (again.recommend([[1, 2]]).items == first.recommend([[1, 2]]).items).all()
    assert again.catalog is not None and json.loads(before)["recipe"]["method"] == method
    assert len(tokenize_parallel(run_folder, tmp_path, recipe).identifiers) == 60


@pytest.mark.slow
def test_on_a_language_model(run_folder, tmp_path):
    base, words = tiny_text_model("qwen2")
    base.save_pretrained(tmp_path / "qwen")
    words.save_pretrained(tmp_path / "qwen")
    changes = [f"model.path={tmp_path / 'qwen'}", "model.weights=float32", "train.accumulation_steps=2"]
    small = [change for change in SMALL if not change.startswith("model=")]
    ready = ROOT / "train" / "parallel" / "setrec-qwen.yaml"
    recipe = load(ready, ParallelRecipe, [*small, *OF["setrec"], *changes]).value
    first = train_stage(run_folder, tmp_path / "out", recipe)
    report = evaluate_stage(run_folder, tmp_path / "out", recipe, first)
    assert report.name == "setrec" and first.model.body.text is not None
    before = (tmp_path / "out" / "bundle" / "genrec.json").read_bytes()
    again = train_stage(run_folder, tmp_path / "out", recipe)
    assert before == (tmp_path / "out" / "bundle" / "genrec.json").read_bytes()
    assert (again.recommend([[1, 2]]).items == first.recommend([[1, 2]]).items).all()
    tiny_text_model("qwen2", seed=1)[0].save_pretrained(tmp_path / "qwen")  # another model: trained again
    train_stage(run_folder, tmp_path / "out", recipe)
    assert before != (tmp_path / "out" / "bundle" / "genrec.json").read_bytes()


def test_one_process_and_the_published_weight(run_folder, tmp_path, monkeypatch):
    recipe = load(ROOT / "train" / "parallel" / "setrec-qwen.yaml", ParallelRecipe).value
    assert recipe.settings().reconstruction == 0.5 and recipe_of("setrec").settings().reconstruction == 0.7
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        train_stage(run_folder, tmp_path, recipe_of("rpg"))


def test_what_is_missing_is_said(run_folder, tmp_path):
    with pytest.raises(ConfigError, match="sasrec"):
        train_stage(run_folder, tmp_path, recipe_of("setrec", "collaborative=sasrec"))
    with pytest.raises(ConfigError, match="joint"):
        recipe_of("rpg", "joint=true")
    with pytest.raises(ConfigError, match="slots"):
        train_stage(run_folder, tmp_path, recipe_of("recgpt", "method=setrec"))
