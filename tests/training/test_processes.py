"""Signals, kills and several processes: training in child processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CHILD = Path(__file__).with_name("run_walks.py")
SETTINGS = {
    "epochs": 30,
    "batch_size": 8,
    "warmup_steps": 3,
    "prefix_drop": 0.4,
    "ema_decay": 0.9,
    "eval_every": 7,
    "eval_unit": "steps",
    "save_every": 1,
}


def command(folder, settings, *more, kind="decoder"):
    return [sys.executable, str(CHILD), str(folder), kind, json.dumps(settings), *map(str, more)]


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def finish(folder, settings, result):
    done = subprocess.run(
        command(folder, settings, result), env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def start(folder, settings):
    """A child that has begun to train: its first checkpoint, complete or not, is on the disk."""
    child = subprocess.Popen(
        command(folder, settings), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline and not begun(folder):
        time.sleep(0.005)
    return child


def begun(folder):
    return any(Path(folder).glob("*checkpoint-*"))


def kills(tmp_path, n_kills, seed):
    """Kill -9 at random moments (a save is going on during most of a step), go on, and compare the bits."""
    moments = random.Random(seed)
    whole = finish(tmp_path / "whole", {**SETTINGS, "save_every": 0}, tmp_path / "whole.safetensors")
    n_killed = 0
    for _ in range(n_kills):
        child = start(tmp_path / "parts", SETTINGS)
        time.sleep(moments.uniform(0.0, 0.3))
        n_killed += child.poll() is None
        child.kill()
        child.communicate()
    assert n_killed > 0
    parts = finish(tmp_path / "parts", SETTINGS, tmp_path / "parts.safetensors")
    assert parts["steps"] == whole["steps"] and parts["status"] == "finished"
    assert [e["loss"] for e in parts["log"]] == [e["loss"] for e in whole["log"]]
    first, second = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "parts.safetensors")
    for name in first:
        assert torch.equal(first[name], second[name]), name
    left = [p.name for p in (tmp_path / "parts").iterdir()]
    assert len(left) == 2 and all(name.startswith("checkpoint-") for name in left)


def test_two_kills_lose_nothing(tmp_path):
    kills(tmp_path, 2, seed=0)


@pytest.mark.slow
def test_thirty_kills_lose_nothing(tmp_path):
    kills(tmp_path, 30, seed=1)


def test_sigterm_saves_and_the_next_call_goes_on(tmp_path):
    settings = {**SETTINGS, "save_every": 0, "epochs": 2000}
    child = subprocess.Popen(
        command(tmp_path / "run", settings), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(0)
    assert child.stdout is not None and child.stdout.readline() == b"started\n"
    stop_when_training(child, tmp_path / "run")
    out, error = child.communicate(timeout=60)
    assert child.returncode == 0, error
    stopped = json.loads(out.splitlines()[-1])
    assert stopped["status"] == "interrupted"
    assert [p.name for p in (tmp_path / "run").iterdir()] == [f"checkpoint-{stopped['steps']:08d}"]
    going_on = {**settings, "max_seconds": 0.001}
    assert finish(tmp_path / "run", going_on, tmp_path / "w.safetensors")["steps"] == stopped["steps"] + 1


def stop_when_training(child, folder):
    """SIGTERM once the handler is installed: the folder is made just before."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not folder.exists():
        time.sleep(0.01)
    time.sleep(1.0)
    child.send_signal(signal.SIGTERM)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    """The same global batches: losses agree to rounding (no dropout, which differs between processes)."""
    settings = {**SETTINGS, "save_every": 4, "epochs": 3, "prefix_drop": 0.0, "ema_decay": None}
    env = environment(GENREC_TEST_DROPOUT="0")
    alone = subprocess.run(
        command(tmp_path / "one", settings, tmp_path / "one.safetensors"),
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    both = subprocess.run(
        [*launch, *command(tmp_path / "two", settings, tmp_path / "two.safetensors")[1:]],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert alone.returncode == 0 and both.returncode == 0, both.stderr[-3000:]
    one = json.loads(alone.stdout.splitlines()[-1])
    two = json.loads([line for line in both.stdout.splitlines() if line.startswith("{")][-1])
    assert one["steps"] == two["steps"]
    for first, second in zip(one["log"], two["log"], strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    first, second = load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "two.safetensors")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)
