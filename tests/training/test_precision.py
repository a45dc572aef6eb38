import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend

from genrec.errors import ConfigError
from genrec.testing.walks import tiny_model, walks
from genrec.training import trainer
from genrec.training.collate import Collator
from genrec.training.dataset import window_samples
from genrec.training.finetune import finetune
from genrec.training.losses import CodeLoss
from genrec.training.module import TrainingModule
from genrec.training.precision import has_bf16
from genrec.training.settings import TrainSettings
from genrec.training.trainer import arguments

SHORT = TrainSettings(epochs=3, batch_size=8, eval_every=0, save_every=2, max_steps=4)
KERNELS = {
    SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled,
    SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled,
    SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled,
}


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, False),
        ({"avx512_f": True, "avx2": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
        ({"avx512_bf16": False, "amx_bf16": False, "bf16": False}, False),
    ],
)
def test_a_cpu_has_it_if_one_of_its_instruction_sets_does(found, expected, no_gpu, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert has_bf16() is expected


def test_a_torch_that_cannot_tell_means_no(no_gpu, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_bf16() is False


@pytest.mark.parametrize("real", [True, False])
def test_a_gpu_that_emulates_it_does_not_count(real, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or real)
    assert has_bf16() is real
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: real)  # a build without the argument
    assert has_bf16() is real


@pytest.mark.parametrize("has", [True, False])
def test_unset_means_what_the_machine_has_and_set_means_set(has, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "has_bf16", lambda: has)
    for given, expected in ((None, has), (True, True), (False, False)):
        assert arguments(TrainSettings(bf16=given), 1, tmp_path).bf16 is expected


@pytest.mark.parametrize("autocast", [True, False])
def test_training_on_a_cpu_in_bfloat16_takes_the_plain_attention_kernel(autocast, monkeypatch):
    data, seen = walks(), []
    module = TrainingModule(tiny_model("decoder", data), CodeLoss(data.token_map, "level"))
    batch = Collator(data, "decoder")(window_samples(data.histories, 5).take(np.arange(4)))
    before = {kernel for kernel, enabled in KERNELS.items() if enabled()}
    hidden = module.hidden

    def watch(**inputs):
        seen.append({kernel for kernel, enabled in KERNELS.items() if enabled()})
        return hidden(**inputs)

    monkeypatch.setattr(module, "hidden", watch)
    with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
        module(**batch, scale=1.0)
    assert len(before) == 3 and seen == [{SDPBackend.MATH} if autocast else before]


def train(folder, **change):
    data = walks()
    return finetune(tiny_model("decoder", data), data, dataclasses.replace(SHORT, **change), folder)


def test_a_training_does_not_go_on_in_another_precision_unless_told(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "has_bf16", lambda: True)
    assert train(tmp_path, max_seconds=1e-6).bf16 is True
    monkeypatch.setattr(trainer, "has_bf16", lambda: False)
    with pytest.raises(ConfigError, match="trained with bf16=True, now bf16=False") as error:
        train(tmp_path)
    assert "set bf16 (train.bf16) explicitly" in str(error.value.hint)
    result = train(tmp_path, bf16=True)  # as the hint says
    assert (result.status, result.steps, result.bf16) == ("finished", 4, True)


def test_the_result_says_which_precision_it_was(tmp_path):
    assert [train(tmp_path / str(n), bf16=bool(n)).bf16 for n in (0, 1)] == [False, True]
    assert train(tmp_path / "1", bf16=True).bf16 is True  # also where there was nothing left to do
