"""Training on a mixture of tasks by the trainer that is there: it goes on to the bit, and asks as it was trained."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, T5Config, T5ForConditionalGeneration

from genrec.data.splits import leave_one_out
from genrec.data.synthetic import make, tiny
from genrec.errors import ConfigError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.prompts.data import TaskData
from genrec.prompts.dataset import AlignmentPlan
from genrec.prompts.mixture import MixedTask, MixtureSettings, TaskMixture
from genrec.testing.text_models import byte_level_tokenizer, unigram_tokenizer
from genrec.training.alignment import AlignmentCollator, AlignmentLoss
from genrec.training.dataset import TrainingData
from genrec.training.module import TrainingModule
from genrec.training.settings import TrainSettings
from genrec.training.tasks import Tasks, finetune_on_tasks, task_encoder, task_prompts
from genrec.vocab.text_vocabulary import extend_vocabulary

MIXTURE = MixtureSettings(
    tuple(MixedTask(n, samples=k) for n, k in (("sequential", 12), ("item_from_text", 8), ("text_from_item", 4))),
    max_items=5, max_text=60,
)  # fmt: skip
SHORT = TrainSettings(
    epochs=1, batch_size=8, learning_rate=3e-3, warmup_steps=2, max_items=5, eval_every=1, eval_users=20,
    softmax="level", bf16=False, prefix_drop=0.0, eval_beams=10,
)  # fmt: skip


@functools.cache  # learning a unigram vocabulary twice does not give the same ids
def text_tokenizer(kind: str):
    return byte_level_tokenizer() if kind == "decoder" else unigram_tokenizer()


def prepared(kind: str, mixture: MixtureSettings = MIXTURE):
    shop = make(tiny(n_users=20))
    numbers, cut = np.arange(60), leave_one_out(shop.interactions)
    codes = ItemCodes(np.stack([numbers // 8, numbers % 8], axis=1), (8, 8), catalog=shop.catalog.fingerprint)
    vocabulary = extend_vocabulary(text_tokenizer(kind), codes)
    size = vocabulary.token_map.vocab_size
    torch.manual_seed(0)
    if kind == "decoder":
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
        config = Qwen3Config(
            vocab_size=size, num_attention_heads=2, num_key_value_heads=1, attention_dropout=0.1, **shape
        )
        model = Qwen3ForCausalLM(config)
    else:
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
        )
    data = TrainingData(
        cut.train(), codes, vocabulary.token_map, cut.queries("valid"), catalog=shop.catalog.fingerprint
    )
    return model, data, Tasks(shop.catalog, vocabulary, mixture)


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_a_training_in_pieces_has_the_bits_of_one_in_one(kind, tmp_path):
    model, data, tasks = prepared(kind)
    whole = finetune_on_tasks(model, data, tasks, SHORT, tmp_path / "whole")
    assert (whole.status, whole.steps) == ("finished", 3)
    assert set(whole.log[-1]) >= {"loss", "recall@10", "ndcg@10"}
    hurried = dataclasses.replace(SHORT, max_seconds=1e-9)
    for _ in range(3):
        again, data, tasks = prepared(kind)
        pieces = finetune_on_tasks(again, data, tasks, hurried, tmp_path / "pieces")
    assert pieces.complete
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, pieces.model.state_dict()[name]), name


def test_packed_examples_have_the_loss_of_padded_ones(tmp_path):
    rule = dataclasses.replace(SHORT, packing=True, max_steps=1, eval_every=0, batch_size=20)
    mixture = dataclasses.replace(MIXTURE, tasks=(*MIXTURE.tasks, MixedTask("explanation", samples=8)), max_text=400)
    model, data, tasks = prepared("decoder", mixture)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.0
    encoder = task_encoder(model, data, tasks)
    source = TaskData(tasks.catalog, data.histories)
    rows = AlignmentPlan(TaskMixture(mixture, source, seed=0), encoder, batch_size=20, seed=0, packing=True).batch(0)
    collate = AlignmentCollator(data.codes, data.token_map, "decoder")
    loss = AlignmentLoss(data.token_map, rule.softmax, 0.0, data.codes)
    want = TrainingModule(model, loss)(**collate(rows), scale=1 / collate.n_targets(rows)).item()
    shapes = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    found = finetune_on_tasks(model, data, tasks, rule, tmp_path)
    assert found.log[-1]["loss"] == pytest.approx(want, rel=1e-4)
    assert len(shapes) == 1 and shapes[0][0] < 20


def test_another_mixture_does_not_go_on(tmp_path):
    short = dataclasses.replace(SHORT, max_steps=1, eval_every=0)
    finetune_on_tasks(*prepared("decoder"), short, tmp_path)
    other = dataclasses.replace(MIXTURE, wrapper="instruction")
    with pytest.raises(ConfigError):
        finetune_on_tasks(*prepared("decoder", other), short, tmp_path)


def test_what_does_not_go_with_tasks_is_refused(tmp_path):
    for changed, message in (
        ({"max_items": 6}, "max_items"),
        ({"prefix_drop": 0.5}, "prefix_drop"),
    ):
        with pytest.raises(ConfigError, match=message):
            finetune_on_tasks(*prepared("decoder"), dataclasses.replace(SHORT, **changed), tmp_path)
    without = dataclasses.replace(MIXTURE, tasks=(MixedTask("search"),))
    with pytest.raises(ConfigError, match="'sequential' among them"):
        finetune_on_tasks(*prepared("decoder", without), SHORT, tmp_path)


def test_tasks_of_queries_are_kept_with_the_prompts():
    searching = dataclasses.replace(MIXTURE, tasks=(*MIXTURE.tasks, MixedTask("search")), max_text=33)
    for mixture, kept in ((MIXTURE, []), (searching, ["search"])):
        model, data, tasks = prepared("decoder", mixture)
        prompts = task_prompts(tasks, task_encoder(model, data, tasks))
        assert list(prompts.searches) == kept and prompts.max_text == mixture.max_text
