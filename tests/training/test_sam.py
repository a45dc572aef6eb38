"""Sharpness-aware steps: on a quadratic, against steps written out, and in parts."""

import dataclasses

import pytest
import torch

from genrec.errors import ConfigError
from genrec.testing.walks import tiny_model, walks
from genrec.training.collate import Collator
from genrec.training.dataset import Plan, window_samples
from genrec.training.finetune import finetune
from genrec.training.losses import CodeLoss
from genrec.training.module import TrainingModule, trainable
from genrec.training.progress import snapshot
from genrec.training.sam import ascended
from genrec.training.settings import TrainSettings

SHORT = TrainSettings(
    batch_size=11, max_steps=3, warmup_steps=1, learning_rate=5e-3, schedule="constant", eval_every=0, save_every=0,
    bf16=False, sam_rho=0.3,
)  # fmt: skip


def quadratic(*starts):
    weights = {f"w{n}": torch.nn.Parameter(torch.tensor(start)) for n, start in enumerate(starts)}
    scale = [torch.tensor([1.0, 10.0]), torch.tensor([0.5])]

    def backward():
        loss = sum((s * w**2).sum() / 2 for s, w in zip(scale, weights.values(), strict=True))
        loss.backward()
        return loss

    return weights, backward


def test_the_first_step_moves_by_rho_along_the_gradient_and_the_second_comes_back():
    weights, backward = quadratic([3.0, 0.4], [-2.0])
    gradient = torch.tensor([3.0, 4.0, -1.0])  # scale x weight
    backward()
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with ascended(weights, 0.1) as norm:
        assert norm == pytest.approx(float(gradient.norm()))
        moved = torch.cat([weights[n].detach() - before[n] for n in weights])
        torch.testing.assert_close(moved, 0.1 * gradient / gradient.norm())
        assert all(weight.grad is None for weight in weights.values())
        backward()
    assert all(torch.equal(weights[n], before[n]) for n in weights)
    there = torch.cat([before["w0"], before["w1"]]) + moved
    torch.testing.assert_close(torch.cat([w.grad for w in weights.values()]), torch.tensor([1.0, 10, 0.5]) * there)


def test_a_gradient_of_zero_and_one_that_is_not_finite_move_nothing():
    for start, expected in (([0.0, 0.0], 0.0), ([float("nan"), 1.0], float("nan"))):
        weights, backward = quadratic(start, [0.0])
        backward()
        with ascended(weights, 0.1) as norm:
            assert norm == pytest.approx(expected, nan_ok=True) and weights["w1"].item() == 0


def by_hand(data, model, settings):
    """The training without a trainer: AdamW on the gradient at the worst place nearby."""
    collator = Collator(data, "decoder")
    plan = Plan(window_samples(data.histories, settings.max_items), collator.item_lengths_N, settings)
    module = TrainingModule(model.train(), CodeLoss(data.token_map, settings.softmax))
    weights = list(trainable(module).values())
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
    for step in range(settings.max_steps):
        samples = plan.batch(step)
        batch = {**collator(samples), "scale": 1 / collator.n_targets(samples)}
        gradient = torch.autograd.grad(module(**batch), weights)
        size = torch.cat([g.flatten() for g in gradient]).norm()
        with torch.no_grad():
            old = [w.clone() for w in weights]
            for w, g in zip(weights, gradient, strict=True):
                w += settings.sam_rho * g / size
        optimizer.zero_grad()
        module(**batch).backward()
        with torch.no_grad():
            for w, value in zip(weights, old, strict=True):
                w.copy_(value)
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.step()
    return trainable(model)


def test_training_takes_these_steps_also_in_parts(tmp_path):
    data = walks()
    made = []
    for folder, parts in (("whole", 1), ("parts", 4)):
        settings = dataclasses.replace(SHORT, accumulation_steps=parts)
        made.append(finetune(tiny_model("decoder", data, dropout=0.0), data, settings, tmp_path / folder))
    expected = by_hand(data, tiny_model("decoder", data, dropout=0.0), SHORT)
    plain = finetune(
        tiny_model("decoder", data, dropout=0.0), data, dataclasses.replace(SHORT, sam_rho=0.0), tmp_path / "plain"
    )
    far = 0.0
    for name, value in expected.items():
        for result in made:
            torch.testing.assert_close(trainable(result.model)[name], value, rtol=1e-3, atol=1e-4, msg=name)
        far = max(far, float((value - trainable(plain.model)[name]).abs().max().detach()))
    assert far > 1e-3  # the plain steps lead elsewhere
    assert made[1].log[0]["loss"] == pytest.approx(made[0].log[0]["loss"], rel=1e-5)


def test_resumed_training_has_the_same_bits(tmp_path):
    data, settings = walks(), dataclasses.replace(SHORT, max_steps=4, save_every=2)
    whole = snapshot(trainable(finetune(tiny_model("decoder", data), data, settings, tmp_path / "whole").model))
    paused = finetune(
        tiny_model("decoder", data), data, dataclasses.replace(settings, max_seconds=1e-6), tmp_path / "a"
    )
    assert not paused.complete
    again = finetune(tiny_model("decoder", data, seed=1), data, settings, tmp_path / "a")
    assert again.steps == 4 and all(torch.equal(value, whole[n]) for n, value in trainable(again.model).items())


def test_it_is_refused_where_no_process_has_the_whole_gradient():
    with pytest.raises(ConfigError, match="sam_rho: expected 0 with fsdp"):
        TrainSettings(sam_rho=0.1, fsdp=True)
    with pytest.raises(ConfigError, match="sam_rho"):
        TrainSettings(sam_rho=-0.1)
