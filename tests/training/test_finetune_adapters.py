"""Fine-tuning of adapters: what checkpoints hold, and the bits of a resumed run."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from genrec.errors import ConfigError
from genrec.models.adapters import ROWS, LoraSettings, add_lora
from genrec.models.pretrained import extend_rows
from genrec.testing.text_models import tiny_text_model
from genrec.testing.walks import walks
from genrec.training.finetune import finetune
from genrec.training.module import trainable
from genrec.training.settings import TrainSettings
from genrec.vocab.text_vocabulary import extend_vocabulary

SETTINGS = TrainSettings(
    epochs=9, batch_size=8, warmup_steps=3, learning_rate=5e-3, eval_every=0, save_every=5, max_steps=13, bf16=False
)


def run(kind, folder, lora, base=0, **changes):
    data = walks()
    model, words = tiny_text_model(kind, seed=base)
    vocabulary = extend_vocabulary(words, data.codes)
    data = dataclasses.replace(data, token_map=vocabulary.token_map)
    extend_rows(model, vocabulary)
    if lora is not None:
        model = add_lora(model, vocabulary.token_map, lora)
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    result = finetune(model, data, dataclasses.replace(SETTINGS, **changes), folder)
    assert all(torch.equal(weight, frozen[n]) for n, weight in model.named_parameters() if n in frozen)
    return result


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "t5"])
@pytest.mark.parametrize(
    "lora", [LoraSettings(r=2, dropout=0.3), LoraSettings(r=0), None], ids=["lora", "rows", "full"]
)
def test_resumed_training_has_the_bits_of_an_uninterrupted_one(kind, lora, tmp_path):
    whole = run(kind, tmp_path / "whole", lora)
    first = run(kind, tmp_path / "parts", lora, max_seconds=1e-6)
    assert first.status == "out_of_time" and not first.complete
    again = run(kind, tmp_path / "parts", lora)
    assert again.complete and again.steps == whole.steps == 13
    one, two = trainable(whole.model), trainable(again.model)
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    saved = load_file(next((tmp_path / "whole").glob("checkpoint-00000013")) / "weights.safetensors")
    assert {n.removeprefix("model.") for n in saved} == set(one)


def test_rows_come_first_and_adapters_later(tmp_path):
    lora = LoraSettings(r=2, dropout=0.3)
    short = run("qwen3", tmp_path / "short", lora, max_steps=7, rows_first=7)
    start = run("qwen3", tmp_path / "start", lora, max_steps=1, learning_rate=1e-30)
    before = trainable(start.model)
    for name, weight in trainable(short.model).items():
        assert torch.allclose(weight, before[name], rtol=0, atol=1e-20) == (ROWS not in name), name
    whole = run("qwen3", tmp_path / "whole", lora, rows_first=7)
    run("qwen3", tmp_path / "parts", lora, rows_first=7, max_steps=13, max_seconds=1e-6)
    parts = run("qwen3", tmp_path / "parts", lora, rows_first=7)
    one, two, alone = trainable(whole.model), trainable(parts.model), trainable(short.model)
    assert all(torch.equal(one[n], two[n]) for n in one) and not any(torch.equal(one[n], alone[n]) for n in one)
    for other in (LoraSettings(r=0), LoraSettings(r=2, train_rows=False), None):
        with pytest.raises(ConfigError, match="rows_first: expected a model with adapters and trained rows"):
            run("qwen3", tmp_path / "other", other, rows_first=7)


def test_a_checkpoint_is_not_gone_on_from_over_another_base_or_with_other_adapters(tmp_path):
    """The trained weights have the same shapes in all of these."""
    lora = LoraSettings(r=2, dropout=0.3)
    run("qwen3", tmp_path, lora, max_seconds=1e-6)
    with pytest.raises(ConfigError, match="trained with frozen="):
        run("qwen3", tmp_path, lora, base=1)
    for other in (dataclasses.replace(lora, alpha=64), dataclasses.replace(lora, dropout=0.0)):
        with pytest.raises(ConfigError, match="trained with adapters="):
            run("qwen3", tmp_path, other)


@pytest.mark.parametrize("kind", ["qwen3", "t5"])
def test_adapters_learn(kind, tmp_path):
    lora = LoraSettings(r=4, target_modules="all-linear")
    steps = {"eval_unit": "steps", "eval_every": 15, "eval_users": 5, "max_steps": 90, "epochs": 99, "save_every": 0}
    result = run(kind, tmp_path, lora, learning_rate=2e-2, **steps)
    assert len(result.log) > 1 and result.log[-1]["loss"] < 0.85 * result.log[0]["loss"]
