"""Optimiser and random streams come back from safetensors and JSON to the bit; what is damaged is named."""

from __future__ import annotations

import logging
import random
import shutil

import numpy as np
import pytest
import torch

from genrec import artifacts
from genrec.errors import ArtifactError
from genrec.testing.walks import tiny_model, walks
from genrec.training import checkpoints
from genrec.training.finetune import finetune
from genrec.training.settings import TrainSettings
from genrec.training.state_files import load_optimizer, random_state, save_optimizer, set_random_state


def test_optimiser_and_schedule_come_back(tmp_path):
    weights = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]

    def made():
        optimizer = torch.optim.AdamW([{"params": weights[:1]}, {"params": weights[1:], "weight_decay": 0.0}], lr=0.1)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 3))

    optimizer, schedule = made()
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
        schedule.step()
    save_optimizer(optimizer.state_dict(), schedule.state_dict(), tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}
    again, its_schedule = made()
    state, of_schedule = load_optimizer(tmp_path)
    again.load_state_dict(state)
    its_schedule.load_state_dict(of_schedule)
    one, other = optimizer.state_dict(), again.state_dict()
    assert one["param_groups"] == other["param_groups"] and schedule.state_dict() == its_schedule.state_dict()
    for number, values in one["state"].items():
        for name, value in values.items():
            assert torch.equal(value, other["state"][number][name]), (number, name)


def test_random_streams_come_back(tmp_path):
    def draws():
        return random.random(), random.gauss(0, 1), float(np.random.rand()), torch.rand(2).tolist()  # noqa: NPY002

    random.gauss(0, 1)  # half a pair of normal numbers is kept back
    artifacts.save_json(tmp_path / "random.json", random_state())
    first = draws()
    draws()
    set_random_state(artifacts.load_json(tmp_path / "random.json"), tmp_path / "random.json")
    assert draws() == first
    with pytest.raises(ArtifactError, match=r"random\.json: not a random state"):
        set_random_state({"python": [3, [1], None]}, tmp_path / "random.json")


@pytest.mark.parametrize("file", ["optimizer.safetensors", "optimizer.json"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_counts(file, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = walks()
    settings = TrainSettings(max_steps=4, batch_size=8, warmup_steps=1, save_every=2, eval_every=0, bf16=False)
    finetune(tiny_model("decoder", data), data, settings, tmp_path)
    newest, _ = checkpoints._folders(tmp_path)
    assert {each.suffix for each in newest.rglob("*") if each.is_file()} <= {".safetensors", ".json"}
    loose = shutil.copytree(newest, tmp_path / "loose")
    for folder in (newest, loose):
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: len(content) // 2])
    finetune(tiny_model("decoder", data), data, settings, tmp_path)
    assert "checkpoint skipped" in caplog.text and file in caplog.text and "going on from step 2" in caplog.text
    with pytest.raises(ArtifactError, match=file.replace(".", r"\.")):
        load_optimizer(loose)
