"""Packed rows: every sample as if it were alone, on the attention that training uses."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.batching import pack, packed_padding_share, random_batches
from genrec.errors import ConfigError
from genrec.models.adapters import LoraSettings, add_lora
from genrec.models.pretrained import extend_rows
from genrec.testing.text_models import tiny_text_model
from genrec.testing.walks import tiny_model, walks
from genrec.training.collate import Collator
from genrec.training.dataset import Plan, window_samples
from genrec.training.finetune import finetune
from genrec.training.losses import CodeLoss
from genrec.training.module import TrainingModule, trainable
from genrec.training.packing import PackedBatches, packed
from genrec.training.settings import TrainSettings
from genrec.vocab.text_vocabulary import extend_vocabulary


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60).map(np.array))
def test_documents_fill_rows_without_touching(lengths):
    found = pack(lengths)
    cells = np.zeros((found.n_rows, found.width), np.int64)
    for row, first, length in zip(found.row, found.first, lengths, strict=True):
        cells[row, first : first + length] += 1
    assert cells.max() == 1 and cells.sum() == lengths.sum() and (cells.sum(1) > 0).all()
    assert found.width == lengths.max()
    # best fit never leaves two rows that are half empty or more
    assert (2 * cells.sum(1) <= found.width).sum() <= 1
    share = packed_padding_share(lengths, [np.arange(len(lengths))])
    assert share == pytest.approx(1 - cells.sum() / cells.size)


def test_random_batches_hold_every_row_once():
    batches = random_batches(50, 8, seed=1, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(50)) and [len(b) for b in batches] == [8] * 6 + [2]
    assert not np.array_equal(batches[0], random_batches(50, 8, seed=1, epoch=1)[0])


def prepared(kind, softmax, lora=False, attention="sdpa", ragged=True):
    """Module in training mode without dropout, collator, and samples of unequal lengths."""
    data = walks(ragged)
    if kind == "scratch":
        model = tiny_model("decoder", data, dropout=0.0)
    else:
        model, words = tiny_text_model(kind)
        vocabulary = extend_vocabulary(words, data.codes)
        data = dataclasses.replace(data, token_map=vocabulary.token_map)
        extend_rows(model, vocabulary)
    model.set_attn_implementation(attention)
    if lora:
        model = add_lora(model, data.token_map, LoraSettings(r=2, dropout=0.0))
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zeros, so that the adapter would say nothing
                torch.nn.init.normal_(weight, std=0.2)
    module = TrainingModule(model, CodeLoss(data.token_map, softmax, 0.1, data.codes)).train()
    return module, Collator(data, "decoder"), window_samples(data.histories, 5).take(np.arange(11))


def one_by_one(module, collate, samples):
    return torch.stack([module(**collate(samples.take(np.array([b]))), scale=1.0) for b in range(len(samples))])


def of_each(module, batch, packed_batch):
    """The loss of every sample of a packed batch: that of its own positions."""
    sample_P = batch["positions"] // batch["input_ids"].shape[1]
    level_P = torch.repeat_interleave(torch.tensor(batch["level_counts"]))
    losses = []
    for b in range(len(batch["input_ids"])):
        own = sample_P == b
        part = {name: packed_batch[name][own] for name in ("positions", "targets", "nodes")}
        counts = torch.bincount(level_P[own], minlength=len(batch["level_counts"])).tolist()
        losses.append(module(**{**packed_batch, **part, "level_counts": counts}, scale=1.0))
    return torch.stack(losses)


KINDS = [
    ("scratch", "vocab", False, "sdpa"),
    ("scratch", "level", False, "eager"),
    ("scratch", "children", False, "sdpa"),
    ("qwen3", "vocab", True, "sdpa"),
    ("qwen2", "children", True, "sdpa"),
    ("llama", "level", True, "sdpa"),
    ("llama", "vocab", False, "eager"),
]


@pytest.mark.parametrize(("kind", "softmax", "lora", "attention"), KINDS)
def test_every_sample_of_a_packed_batch_has_the_loss_and_gradient_it_has_alone(kind, softmax, lora, attention):
    module, collate, samples = prepared(kind, softmax, lora, attention)
    assert module.model.config._attn_implementation == attention
    batch = collate(samples)
    dense = packed(batch)
    n_rows, width = dense["input_ids"].shape
    assert n_rows < len(samples) and width == batch["input_ids"].shape[1]
    want = one_by_one(module, collate, samples)
    torch.testing.assert_close(of_each(module, batch, dense), want, rtol=1e-5, atol=1e-5)

    def gradients(loss):
        module.zero_grad()
        loss.backward()
        return {name: weight.grad.clone() for name, weight in trainable(module).items()}

    scale = 1 / collate.n_targets(samples)
    alone, together = gradients(want.sum() * scale), gradients(module(**dense, scale=scale))
    for name in alone:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-4, atol=1e-5)
    # without the positions that begin anew, samples do see each other
    mixed = of_each(module, batch, {k: v for k, v in dense.items() if k != "position_ids"})
    assert ((mixed - want).abs() > 1e-3).sum() >= len(samples) - n_rows


@pytest.mark.parametrize("kind", ["scratch", "qwen2"])
def test_another_document_in_the_row_changes_no_bit(kind):
    module, collate, samples = prepared(kind, "level")
    batch = collate(samples)
    dense = packed(batch)
    before = of_each(module, batch, dense)
    ids_BT = batch["input_ids"].clone()
    ids_BT[3] = torch.where(ids_BT[3] > 0, batch["input_ids"][3].max() - (ids_BT[3] % 3), 0)
    assert not torch.equal(ids_BT, batch["input_ids"])
    after = of_each(module, batch, packed({**batch, "input_ids": ids_BT}))
    assert torch.equal(before != after, torch.arange(len(samples)) == 3)


def test_an_epoch_holds_every_sample_once_and_tells_its_padding():
    data = walks(n_users=200)
    samples, collate = window_samples(data.histories, 7), PackedBatches(Collator(data, "decoder"))
    lengths_N = np.full(data.codes.n_items, data.codes.n_levels)
    rule = TrainSettings(batch_size=32, packing=True, seed=3)
    plan = Plan(samples, lengths_N, rule)
    ends, cells, real = [], 0, 0
    for step in range(plan.steps_per_epoch):
        part = plan.batch(step)
        ends += part.ends.tolist()
        batch = collate(part)
        cells, real = cells + batch["input_ids"].numel(), real + collate.n_targets(part)
        assert np.array_equal(part.ends, Plan(samples, lengths_N, rule).batch(step).ends)
    assert sorted(ends) == sorted(samples.ends.tolist())
    assert plan.padding_share() == pytest.approx(1 - real / cells, abs=0.02) and plan.padding_share() < 0.12
    lengths = [plan.batch(step).ends - plan.batch(step).starts for step in range(plan.steps_per_epoch - 1)]
    assert min(len(set(each.tolist())) for each in lengths) >= 4  # of any length, not of like length


def test_where_samples_cannot_share_rows_it_is_said(tmp_path):
    rule = TrainSettings(packing=True, max_steps=1, eval_every=0)
    data = walks()
    with pytest.raises(ConfigError, match="packing: an encoder-decoder"):
        finetune(tiny_model("t5", data), data, rule, tmp_path)
    model = tiny_model("decoder", data)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="packing: expected attention by one of sdpa, eager, flex_attention"):
        finetune(model, data, rule, tmp_path)
