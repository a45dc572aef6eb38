"""Alignment examples through the collator and the loss, against the stock model's logits, one example at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, T5Config, T5ForConditionalGeneration

from genrec.data.splits import leave_one_out
from genrec.data.synthetic import make, tiny
from genrec.item_tokenizers.codes import ItemCodes
from genrec.prompts.data import TaskData
from genrec.prompts.dataset import AlignmentPlan
from genrec.prompts.encode import ExampleEncoder
from genrec.prompts.mixture import MixedTask, MixtureSettings, TaskMixture
from genrec.testing.text_models import byte_level_tokenizer, unigram_tokenizer
from genrec.training.alignment import AlignmentCollator, AlignmentLoss
from genrec.training.losses import level_symbols
from genrec.training.module import TrainingModule, trainable
from genrec.training.packing import packed
from genrec.training.trainer import StepBatches
from genrec.vocab.text_vocabulary import extend_vocabulary

TASKS = ("sequential", "item_from_text", "text_from_item", "explanation")


def shop_codes(shop, ragged: bool) -> ItemCodes:
    numbers = np.arange(len(shop.catalog))
    rows = np.stack([numbers // 8, numbers % 8], axis=1)
    if ragged:
        rows[8 * (numbers // 8) == numbers] = np.stack([numbers[::8] // 8 + 8, np.full(len(numbers[::8]), -1)], axis=1)
        return ItemCodes.from_int(rows, (16, 8), catalog=shop.catalog.fingerprint)
    return ItemCodes(rows, (8, 8), catalog=shop.catalog.fingerprint)


def prepared(kind: str, softmax: str, *, ragged: bool = False, samples: int = 6):
    shop = make(tiny(n_users=20))
    codes = shop_codes(shop, ragged)
    decoder = kind == "decoder"
    vocabulary = extend_vocabulary(byte_level_tokenizer() if decoder else unigram_tokenizer(), codes)
    layout, size = ("decoder" if decoder else "encoder"), vocabulary.token_map.vocab_size + 3
    data = TaskData(shop.catalog, leave_one_out(shop.interactions).train(), max_items=4)
    tasks = tuple(MixedTask(name, samples=samples) for name in TASKS)
    mixture = TaskMixture(MixtureSettings(tasks, max_items=4, max_text=60), data, seed=0)
    plan = AlignmentPlan(mixture, ExampleEncoder(vocabulary, codes, layout=layout), batch_size=10, seed=0)
    torch.manual_seed(0)
    shape = {"vocab_size": size, "num_attention_heads": 2, "num_hidden_layers": 1}
    if decoder:
        model = Qwen3ForCausalLM(
            Qwen3Config(**shape, hidden_size=16, intermediate_size=32, num_key_value_heads=1, head_dim=8)
        )
    else:
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
        )
    module = TrainingModule(model, AlignmentLoss(vocabulary.token_map, softmax, 0.0, codes)).eval()
    return vocabulary.token_map, codes, plan, AlignmentCollator(codes, vocabulary.token_map, layout), module


def supports(tokens, codes, softmax, item, level, prefix):
    """Ids that a target token is told apart from."""
    if item < 0 or softmax == "vocab":
        return None
    if softmax == "level":
        return level_symbols(tokens)[level].tolist()
    others = tokens.token_ids(codes.as_int())
    return sorted({int(row[level]) for row in others if row[:level].tolist() == prefix})


@pytest.mark.parametrize("kind", ["decoder", "t5"])
@pytest.mark.parametrize(("softmax", "ragged"), [("vocab", False), ("level", True), ("children", True)])
def test_the_loss_is_the_sum_over_target_tokens(kind, softmax, ragged):
    tokens, codes, plan, collate, module = prepared(kind, softmax, ragged=ragged)
    rows = plan.batch(0)
    got = module(**collate(rows), scale=1.0)
    want, n = 0.0, 0
    for b in range(len(rows)):
        one = rows.take([b])
        start = int(one.starts[0])
        prompt, target = torch.tensor(one.ids[None, :start].astype(np.int64)), one.ids[start:].astype(np.int64)
        with torch.no_grad():
            if kind == "decoder":
                logits = module.model(torch.tensor(one.ids[None].astype(np.int64))).logits[0, start - 1 : -1]
            else:
                fed = torch.tensor([[0, *target[:-1]]])
                logits = module.model(input_ids=prompt, decoder_input_ids=fed).logits[0]
        items, levels = one.items[start:], one.levels[start:]
        for j, token in enumerate(target.tolist()):
            prefix = target[j - max(levels[j], 0) : j].tolist()
            allowed = supports(tokens, codes, softmax, items[j], levels[j], prefix)
            row = logits[j] if allowed is None else logits[j][allowed]
            place = token if allowed is None else allowed.index(token)
            want -= float(row.double().log_softmax(0)[place])
            n += 1
    assert n == collate.n_targets(rows)
    assert float(got.detach()) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_padding_and_neighbours_change_nothing(kind):
    *_, plan, collate, module = prepared(kind, "children")
    rows = plan.batch(0)
    whole = module(**collate(rows), scale=1.0).item()
    alone = sum(module(**collate(rows.take([b])), scale=1.0).item() for b in range(len(rows)))
    assert whole == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_the_decoded_targets_are_targets_and_end(kind):
    """Label test: the tokens at the positions of the loss, in row order, are the targets of the rows."""
    tokens, _, plan, collate, _ = prepared(kind, "level", ragged=True)
    rows, batch = plan.batch(0), collate(plan.batch(0))
    names = [*level_symbols(tokens), None]
    found, start = {}, 0
    for symbols, count in zip(names, batch["level_counts"], strict=True):
        for at in range(start, start + count):
            target = int(batch["targets"][at])
            found[int(batch["positions"][at])] = target if symbols is None else int(symbols[target])
        start += count
    assert [found[at] for at in sorted(found)] == [
        int(t) for b in range(len(rows)) for t in rows.ids[rows.starts[b] : rows.offsets[b + 1]]
    ]


def test_processes_share_a_batch():
    """Two halves, as two processes have them, have the mean loss of the whole."""
    *_, plan, collate, module = prepared("decoder", "level")
    whole = module(**StepBatches(plan, collate, 3)[1][0])
    halves = [module(**StepBatches(plan, collate, 3, rank, 2)[1][0]) for rank in range(2)]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole)


def test_examples_that_share_rows_have_the_loss_they_have_alone():
    *_, plan, collate, module = prepared("decoder", "level")
    rows = plan.batch(1)
    batch = collate(rows)
    dense = packed(batch)
    assert dense["input_ids"].numel() <= batch["input_ids"].numel()
    alone = [module(**collate(rows.take(np.array([b]))), scale=1.0) for b in range(len(rows))]
    torch.testing.assert_close(module(**dense, scale=1.0), torch.stack(alone).sum(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_it_learns(kind):
    *_, plan, collate, module = prepared(kind, "level", samples=3)
    module.train()
    step = torch.optim.AdamW(trainable(module).values(), lr=1e-2)
    losses = []
    batches = [StepBatches(plan, collate, 99)[n][0] for n in range(2)]
    for n in range(40):
        loss = module(**batches[n % 2])
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
