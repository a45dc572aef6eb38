import numpy as np
import pytest
import torch
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

from genrec.data.histories import Histories
from genrec.decoding.beam import beam_search
from genrec.decoding.index import CatalogIndex
from genrec.decoding.listing import list_items
from genrec.decoding.select import DeviceIndex
from genrec.models.backbone import scorer_of
from genrec.models.prompting import build_prompts, item_tokens
from genrec.testing.walks import tiny_model, walks
from genrec.training.collate import Collator
from genrec.training.dataset import Plan, prefix_samples, window_samples
from genrec.training.losses import CodeLoss
from genrec.training.module import TrainingModule, trainable
from genrec.training.settings import TrainSettings
from genrec.training.trainer import StepBatches

CUT = {"decoder": ("decoder", window_samples), "t5": ("encoder", prefix_samples)}


def prepared(kind, softmax, ragged=False, n_user_tokens=0):
    data = walks(ragged, n_user_tokens)
    layout, cut = CUT[kind]
    samples = cut(data.histories, 5).take(np.arange(12))
    module = TrainingModule(tiny_model(kind, data), CodeLoss(data.token_map, softmax, 0.0, data.codes)).eval()
    return data, samples, Collator(data, layout), module


@pytest.mark.parametrize("kind", ["decoder", "t5"])
@pytest.mark.parametrize("ragged", [False, True])
def test_vocab_loss_is_that_of_the_stock_model_with_labels(kind, ragged):
    """Hugging Face's own forward with labels, one sample at a time, gives the same sum."""
    data, samples, collate, module = prepared(kind, "vocab", ragged, n_user_tokens=3)
    tokens, codes = data.token_map, data.codes.as_int()
    got = module(**collate(samples), scale=1.0)
    want = torch.zeros(())
    users = tokens.user_tokens(data.user_ids)

    def spelled(items):
        return [int(t) for item in items for t in tokens.token_ids(codes[item]) if t != tokens.pad_id]

    for row, start, end in zip(samples.rows, samples.starts, samples.ends, strict=True):
        items, user = data.histories.items[start:end], int(users[row])
        if kind == "decoder":
            ids = [tokens.bos_id, user, *spelled(items)]
            labels = [-100, -100, *spelled(items)]
            inputs = {"input_ids": torch.tensor([ids])}
        else:
            inputs = {"input_ids": torch.tensor([[user, *spelled(items[:-1]), tokens.eos_id]])}
            labels = spelled(items[-1:])
        mean = module.model(**inputs, labels=torch.tensor([labels]), use_cache=False).loss
        want = want + mean * sum(t != -100 for t in labels)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["decoder", "t5"])
@pytest.mark.parametrize("softmax", ["vocab", "level", "children"])
@pytest.mark.parametrize("ragged", [False, True])
def test_loss_is_minus_the_score_of_the_search(kind, softmax, ragged):
    """The loss of one (history, item) is minus the log-probability by which the recommender ranks it."""
    data, samples, collate, module = prepared(kind, softmax, ragged)
    samples = samples.take(np.arange(4))
    index = CatalogIndex.build(data.codes)
    device_index = DeviceIndex(index, torch.device("cpu"))
    layout = CUT[kind][0]
    tokens = item_tokens(data.codes, data.token_map)
    items = data.histories.items
    want = 0.0
    for start, end in zip(samples.starts, samples.ends, strict=True):
        first = end - 1 if kind == "t5" else start
        for target in range(first, end):
            known = Histories.from_lists([items[start:target]])
            prompts = build_prompts(layout, known, tokens, data.token_map)
            found = beam_search(
                scorer_of(module.model, data.token_map), device_index, prompts, n_beams=99, normalize=softmax
            )
            listed = list_items(index, found.leaves, found.scores, top_k=None, normalize=softmax)
            want -= float(listed.scores[0][listed.items[0] == items[target]][0])
    got = module(**collate(samples), scale=1.0)
    assert got.item() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("family", [(T5Config, T5ForConditionalGeneration), (MT5Config, MT5ForConditionalGeneration)])
def test_hidden_states_are_what_the_output_layer_of_the_stock_model_gets(family):
    """T5 scales them, mT5 does not."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    model = family[1](family[0](**sizes, decoder_start_token_id=0)).eval()
    module = TrainingModule(model, CodeLoss(walks().token_map, "vocab"))
    inputs = {"input_ids": torch.tensor([[4, 5, 1]]), "decoder_input_ids": torch.tensor([[0, 7]])}
    got = module.hidden(**inputs) @ model.get_output_embeddings().weight.T
    torch.testing.assert_close(got, model(**inputs).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_every_trainable_parameter_gets_a_gradient(kind):
    _, samples, collate, module = prepared(kind, "level")
    module.train()
    module(**collate(samples), scale=0.1).backward()
    for name, weight in trainable(module).items():
        assert weight.grad is not None and torch.isfinite(weight.grad).all(), name
        assert (weight.grad != 0).any(), name


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_padding_a_batch_changes_nothing(kind):
    _, samples, collate, module = prepared(kind, "level", ragged=True)
    whole = module(**collate(samples), scale=1.0)
    parts = sum(module(**collate(samples.take(np.array([r]))), scale=1.0) for r in range(len(samples)))
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("world", "n_parts"), [(2, 1), (3, 2), (8, 1), (1, 4), (1, 6), (2, 9)])
def test_processes_and_parts_share_a_batch_and_its_loss(world, n_parts):
    """The mean over processes of the sums over parts; also with fewer samples: the idle take part at weight zero."""
    _, samples, collate, module = prepared("decoder", "level", ragged=True)
    plan = Plan(samples.take(np.arange(9)), collate.item_lengths_N, TrainSettings(batch_size=6))
    for step in range(plan.steps_per_epoch):
        n_samples = len(plan.batch(step))
        [whole] = StepBatches(plan, collate, 2)[step]
        shares = [StepBatches(plan, collate, 2, rank, world, n_parts)[step] for rank in range(world)]
        # every process computes as often, and only where there is something to compute
        assert {len(share) for share in shares} == {min(n_parts, -(-n_samples // world))}
        losses = [module(**part) for share in shares for part in share]
        torch.testing.assert_close(sum(losses) / world, module(**whole), rtol=1e-5, atol=1e-6)
        assert sum(float(loss.detach()) != 0 for loss in losses) == min(n_samples, len(losses))


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_bfloat16_gives_nearly_the_same_loss_and_gradients(kind):
    """Under autocast on a CPU, where attention takes its plain form."""
    _, samples, collate, module = prepared(kind, "level")
    batch = collate(samples)
    found = []
    for enabled in (False, True):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = module(**batch, scale=1 / collate.n_targets(samples))
        loss.backward()
        found.append((loss.item(), torch.cat([w.grad.flatten() for w in trainable(module).values()])))
    (exact, want), (rough, got) = found
    assert rough == pytest.approx(exact, rel=0.02) and rough != exact
    assert torch.nn.functional.cosine_similarity(want, got, dim=0) > 0.995
