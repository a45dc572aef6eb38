"""train/finetune.py as a user starts it, on a machine that has neither pydantic nor pyarrow nor datasets."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from genrec import artifacts
from genrec.data.splits import Split
from genrec.decoding.index import CatalogIndex
from genrec.models.bundle import load_bundle
from genrec.testing.walks import N_ITEMS, walk_codes

SCRIPT = Path(__file__).parents[2] / "train" / "finetune.py"
WITHOUT = """
import importlib.machinery
found = importlib.machinery.PathFinder.find_spec.__func__

def find_spec(cls, name, path=None, target=None):
    hidden = name.partition(".")[0] in ("pydantic", "pydantic_core", "pyarrow", "datasets")
    return None if hidden else found(cls, name, path, target)

importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
"""


@pytest.fixture
def run_folder(tmp_path):
    """What `genrec run --until tokenize` leaves, as far as the script needs it."""
    random, codes, folder = np.random.default_rng(0), walk_codes(), tmp_path / "run"
    lengths = random.integers(4, 9, 20)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate([(s + np.arange(n)) % N_ITEMS for s, n in enumerate(lengths)]).astype(np.int32)
    Split(items, offsets, offsets[1:] - 2, offsets[1:] - 1, N_ITEMS, codes.catalog).save(folder / "split")
    codes.save(folder / "codes")
    CatalogIndex.build(codes).save(folder / "index")
    recipe = {
        "data": {"synthetic": {}},
        "model": {"kind": "decoder", "hidden_size": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16},
        "train": {
            "epochs": 2,
            "batch_size": 20,
            "warmup_steps": 1,
            "eval_users": 5,
            "betas": [0.9, 0.98],
            "max_seconds": 1e-6,
        },
    }
    artifacts.save_json(folder / "recipe.json", recipe)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT)
    return folder


def start(folder, *options):
    path = os.pathsep.join([str(folder.parent / "site"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *options], env=env, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_trains_in_two_pieces_and_writes_a_bundle(run_folder):
    stopped = start(run_folder)  # the recipe's limit
    assert stopped.returncode == 75, stopped.stderr
    assert "run the same command" in stopped.stderr
    done = start(run_folder, "--max-seconds", "600")
    assert done.returncode == 0, done.stderr
    assert "going on from step 1 of 2" in done.stderr
    recommender = load_bundle(run_folder / "bundle").recommender
    assert recommender.settings.loss == "level" and recommender.settings.max_items == 20
    log = json.loads((run_folder / "training" / "log.json").read_text())
    assert [entry["step"] for entry in log] == [1, 2] and "recall@10" in log[0]


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_write_one_bundle(launcher, run_folder):
    # HF_HOME: a configuration of accelerate that the user has is not read
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(run_folder.parent)}
    launch = [sys.executable, "-m", *LAUNCHERS[launcher]]
    command = [*launch, str(SCRIPT), str(run_folder), "--max-seconds", "600"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("bundle:") == 1
    assert load_bundle(run_folder / "bundle").recommender.n_items == N_ITEMS
    (newest,) = (run_folder / "checkpoints").glob("*/checkpoint-00000002")
    assert len(list(newest.glob("random-*"))) == 2  # one of each process


def test_tasks_of_the_users_own_are_looked_for_where_the_script_is_started(tmp_path, monkeypatch):
    """As `genrec run` looks for them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["finetune.py", "nowhere"])
    with pytest.raises((SystemExit, OSError)):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert str(tmp_path) in sys.path
