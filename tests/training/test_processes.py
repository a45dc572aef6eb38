"""Signals, kills and several processes: training in child processes."""

import dataclasses
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

from genrec.errors import ConfigError
from genrec.testing.walks import tiny_model, walks
from genrec.training.finetune import finetune
from genrec.training.settings import TrainSettings

CHILD = Path(__file__).with_name("run_walks.py")
SETTINGS = {
    "epochs": 30,
    "batch_size": 8,
    "warmup_steps": 3,
    "prefix_drop": 0.4,
    "ema_decay": 0.9,
    "eval_every": 1,
    "eval_unit": "steps",
    "save_every": 1,
}


def command(folder, settings, *more, kind="decoder"):
    return [sys.executable, str(CHILD), str(folder), kind, json.dumps(settings), *map(str, more)]


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def run_here(folder, settings):
    """The training of the child, in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data = walks(tied=True)
        return finetune(tiny_model("decoder", data), data, settings, folder, evaluate=lambda _: {"recall@10": 0.0})
    finally:
        torch.set_num_threads(threads)


def kills(tmp_path, n_kills, seed):
    """Kill -9 at random moments (most of the time of a step is its save), go on, and compare the bits."""
    moments = random.Random(seed)
    settings = TrainSettings(**SETTINGS)
    whole = run_here(tmp_path / "whole", dataclasses.replace(settings, save_every=0))
    n_killed = 0
    for _ in range(n_kills):
        child = subprocess.Popen(
            command(tmp_path / "parts", SETTINGS),
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()  # its first step is done
        time.sleep(moments.uniform(0.0, 0.1))
        n_killed += child.poll() is None
        child.kill()
        child.communicate()
    assert n_killed == n_kills
    parts = run_here(tmp_path / "parts", settings)
    assert (parts.status, parts.steps) == ("finished", whole.steps)
    assert [e["loss"] for e in parts.log] == [e["loss"] for e in whole.log]
    # what the last step left behind: the weights that are returned are those of the first validation, before any kill
    first, second = (max((tmp_path / name).glob("checkpoint-*")) for name in ("whole", "parts"))
    tensors = sorted(file.name for file in first.glob("*.safetensors"))
    assert "weights.safetensors" in tensors and tensors == sorted(file.name for file in second.glob("*.safetensors"))
    for name in tensors:
        one, two = load_file(first / name), load_file(second / name)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), name
    left = [p.name for p in (tmp_path / "parts").iterdir() if p.name != ".lock"]
    assert len(left) == 2 and all(name.startswith("checkpoint-") for name in left)


def test_a_second_training_in_the_folder_is_refused_while_the_first_runs(tmp_path):
    settings = TrainSettings(**{**SETTINGS, "epochs": 1})
    data = walks(tied=True)
    tried = []

    def meanwhile(_):
        if not tried:
            tried.append(1)
            with pytest.raises(ConfigError, match="in use by another training"):
                finetune(tiny_model("decoder", data), data, settings, tmp_path)
        return {"recall@10": 0.0}

    first = finetune(tiny_model("decoder", data), data, settings, tmp_path, evaluate=meanwhile)
    assert tried and first.status == "finished"
    assert run_here(tmp_path, settings).status == "finished"  # afterwards the folder is free


@pytest.mark.slow
def test_two_kills_lose_nothing(tmp_path):
    kills(tmp_path, 2, seed=0)


@pytest.mark.slow
def test_twelve_kills_lose_nothing(tmp_path):
    """The figure resume_failures of the training benchmark is of thirty."""
    kills(tmp_path, 12, seed=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_training_after_the_step_with_a_checkpoint(number, tmp_path):
    data = walks(tied=True)
    settings = TrainSettings(**{**SETTINGS, "save_every": 0, "epochs": 4})
    handler = signal.getsignal(number)

    def interrupted(_):
        os.kill(os.getpid(), number)
        return {"recall@10": 0.0}

    result = finetune(tiny_model("decoder", data), data, settings, tmp_path, evaluate=interrupted)
    assert (result.status, result.steps, result.complete) == ("interrupted", 1, False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "checkpoint-00000001"]
    assert signal.getsignal(number) == handler
    assert run_here(tmp_path, settings).status == "finished"


def child(n_processes, folder, settings, kind, **more):
    """The training in child processes: what the first one says at its end."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n_processes), "--standalone"]
    own = command(folder, settings, kind=kind)
    done = subprocess.run(
        own if n_processes == 1 else [*launch, *own[1:]],
        env=environment(GENREC_TEST_DROPOUT="0", **more), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def last_weights(folder):
    return load_file(max(folder.glob("checkpoint-*")) / "weights.safetensors")


FEW = {**SETTINGS, "save_every": 0, "max_steps": 12, "prefix_drop": 0.0, "bf16": False}
SHARDED = {"fsdp": True, "accumulation_steps": 2, "gradient_checkpointing": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shared", "own"),
    [
        ("decoder", {"ema_decay": None}, {}),
        ("decoder", {"packing": True}, {"accumulation_steps": 3}),
        ("lora", {}, {"accumulation_steps": 2}),
        ("decoder", {"sam_rho": 0.3}, {"accumulation_steps": 2}),
        ("decoder", {}, SHARDED),
        ("t5", {}, SHARDED),
        ("lora", {"packing": True}, SHARDED),
    ],
)
def test_two_processes_learn_what_one_does(kind, shared, own, tmp_path):
    """The same global batches: losses agree to rounding (no dropout, which differs between processes)."""
    late = {"GENREC_TEST_SECOND_RANK_SAVES": "1e-9"}
    one = child(1, tmp_path / "one", FEW | shared, kind, **late)
    if own != {}:  # stopped after a step, and gone on with
        assert child(2, tmp_path / "two", FEW | shared | own | {"max_seconds": 1e-6}, kind)["status"] == "out_of_time"
    two = child(2, tmp_path / "two", FEW | shared | own, kind, **late)
    assert one["steps"] == two["steps"] == 12 == len(two["log"])
    # the processes agree to save when one of them finds the last checkpoint old
    assert [len(list((tmp_path / name).glob("checkpoint-*"))) for name in ("one", "two")] == [1, 2]
    for first, second in zip(one["log"], two["log"], strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    first, second = last_weights(tmp_path / "one"), last_weights(tmp_path / "two")
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)


def test_sharding_needs_processes(tmp_path):
    data = walks()
    with pytest.raises(ConfigError, match="fsdp: expected several processes, got one"):
        finetune(tiny_model("decoder", data), data, TrainSettings(fsdp=True, eval_every=0), tmp_path)


LEFT = """
import os
import torch.distributed as dist
from genrec.training.processes import leave_process_group

leave_process_group()  # alone: nothing to do
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
dist.barrier()
holder = {"group": dist.group.WORLD}  # as a trainer holds it, in a cycle
holder["itself"] = holder
del holder
threads = lambda: [open(f"/proc/self/task/{each}/comm").read().strip() for each in os.listdir("/proc/self/task")]
assert any("gloo" in name for name in threads()), threads()
leave_process_group()
assert not any("gloo" in name for name in threads()), threads()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs the threads of a process as Linux lists them")
def test_no_thread_of_the_process_group_outlives_it():
    # such a thread aborted a process that had finished its work, at the interpreter's end
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LEFT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
