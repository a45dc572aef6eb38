"""Adapters and new rows: what is trained, what the loss and the search see of it."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer

from genrec.data.histories import Histories
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import SearchOptions
from genrec.errors import ConfigError
from genrec.models.adapters import LoraSettings, add_lora, quiet_peft
from genrec.models.backbone import layout_of
from genrec.models.head import output_weight
from genrec.models.pretrained import extend_rows
from genrec.models.prompting import build_prompts, item_tokens
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.models.trained_rows import RowsInPlace
from genrec.testing.text_models import tiny_text_model
from genrec.testing.walks import walks
from genrec.training.collate import Collator
from genrec.training.dataset import prefix_samples, window_samples
from genrec.training.losses import CodeLoss
from genrec.training.module import TrainingModule, trainable
from genrec.vocab.text_vocabulary import extend_vocabulary

KINDS = ["qwen3", "qwen2", "llama", "t5", "t5-gated"]
SETTINGS = {
    "attention": LoraSettings(r=3, dropout=0.0),
    "all": LoraSettings(r=2, dropout=0.0, target_modules="all-linear"),
    "rows": LoraSettings(r=0),
    "fixed rows": LoraSettings(r=2, dropout=0.0, train_rows=False),
}


def adapted(kind, settings=SETTINGS["attention"], *, n_user_tokens=0, ragged=False):
    data = walks(ragged, n_user_tokens)
    model, words = tiny_text_model(kind)
    vocabulary = extend_vocabulary(words, data.codes, n_user_tokens=n_user_tokens)
    extend_rows(model, vocabulary)
    before = deepcopy(model)
    return add_lora(model, vocabulary.token_map, settings), before, vocabulary, data


def stirred(model, scale=0.3):
    """The same model with adapters and rows as after a training."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trainable(model).values():
            weight += scale * torch.randn(weight.shape, generator=random)
    return model


def module_of(model, data, token_map, softmax="level"):
    data = type(data)(**{**vars(data), "token_map": token_map})
    layout = layout_of(model)
    cut = prefix_samples if layout == "encoder" else window_samples
    samples = cut(data.histories, 5).take(np.arange(8))
    return TrainingModule(model, CodeLoss(token_map, softmax, 0.0, data.codes)), Collator(data, layout)(samples)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_changes_adapters_and_item_rows_and_nothing_else(kind, name):
    model, before, vocabulary, data = adapted(kind, SETTINGS[name], n_user_tokens=2)
    tokens, first = vocabulary.token_map, vocabulary.token_map.first_item_id
    frozen = {n: w.detach().clone() for n, w in model.named_parameters() if not w.requires_grad}
    module, batch = module_of(model, data, tokens, "vocab")
    optimizer = torch.optim.AdamW(trainable(module).values(), lr=0.1, weight_decay=0.1)
    for _ in range(2):  # the second low-rank factor starts at zero, so the first one has no gradient in step one
        module(**batch, scale=0.1).backward()
        optimizer.step()
    for n, w in model.named_parameters():
        if not w.requires_grad:
            assert torch.equal(w, frozen[n]), n
        elif "embed" not in n or "delta" in n:
            assert w.grad is not None and (w.grad != 0).any(), n
    size = sum(w.numel() for w in trainable(model).values())
    rows = (tokens.vocab_size - first) * 16 * (2 if kind in ("qwen2", "llama") else 1)
    assert (size == rows) if name == "rows" else (size > rows) if name != "fixed rows" else size > 0
    own, out = model.get_input_embeddings(), output_weight(model)
    seen = own(torch.arange(len(out)))
    for now, was in ((seen, before.get_input_embeddings().weight), (out, before.get_output_embeddings().weight)):
        assert torch.equal(now[:first], was[:first]) and torch.equal(now[tokens.vocab_size :], was[tokens.vocab_size :])
        changed = (now[first : tokens.vocab_size] != was[first : tokens.vocab_size]).any(1)
        assert not changed.any() if name == "fixed rows" else changed.float().mean() > 0.9


@pytest.mark.parametrize("name", ["attention", "rows"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_wrapped_models_own_forward(kind, name):
    """Value and gradients, with trained rows in the output layer."""
    model, _, vocabulary, data = adapted(kind, SETTINGS[name])
    stirred(model)
    module, batch = module_of(model, data, vocabulary.token_map, "vocab")
    got = module(**batch, scale=1.0)
    inputs = {n: batch[n] for n in ("input_ids", "attention_mask", "decoder_input_ids") if n in batch}
    logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[batch["positions"]]
    level = np.repeat(np.arange(3), batch["level_counts"])
    target = batch["targets"] + torch.tensor(vocabulary.token_map.level_offset)[level]
    want = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    weights = list(trainable(model).values())
    for a, b in zip(torch.autograd.grad(got, weights), torch.autograd.grad(want, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "normalize"),
    [("attention", "vocab"), ("attention", "level"), ("attention", "children"), ("all", "level"), ("rows", "vocab")],
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_search_over_adapters_is_brute_force_over_their_logits_and_over_the_merged_model(kind, name, normalize):
    model, _, vocabulary, data = adapted(kind, SETTINGS[name])
    stirred(model)
    tokens, codes = vocabulary.token_map, data.codes
    histories = Histories.from_lists([[1, 2, 3], [5], [], [20, 3, 9, 0]])
    index = CatalogIndex.build(codes)
    settings = DecodingSettings(n_beams=codes.n_items, loss=normalize)

    def lists(of):
        recommender = GenerativeRecommender(of, tokens, codes, index, settings)
        found = recommender.recommend(histories, SearchOptions(top_k=codes.n_items, exclude_seen=False))
        return recommender, found

    recommender, found = lists(model)
    want = brute_force(model, tokens, codes, histories, normalize)
    for row in range(len(histories)):
        np.testing.assert_allclose(found.scores[row], want[row][found.items[row]], atol=2e-4)
        np.testing.assert_allclose(found.scores[row], np.sort(want[row])[::-1], atol=2e-4)
    np.testing.assert_allclose(recommender.score(histories), want, atol=2e-4)
    with quiet_peft():
        merged = deepcopy(model).merge_and_unload().eval()
    _, again = lists(merged)
    np.testing.assert_allclose(again.scores, found.scores, atol=2e-4)


def brute_force(model, tokens, codes, histories, normalize):
    """Log-probability of every item by whole forwards of the wrapped model."""
    rows, layout = codes.as_int(), layout_of(model)
    prompts = build_prompts(layout, histories, item_tokens(codes, tokens), tokens)
    out = np.zeros((len(histories), codes.n_items))
    for u in range(len(histories)):
        prompt = torch.from_numpy(prompts.tokens_BT[u][prompts.mask_BT[u]])
        ids = torch.from_numpy(tokens.token_ids(rows))
        repeated = prompt.expand(len(ids), -1)
        with torch.no_grad():
            if layout == "encoder":
                start = torch.zeros(len(ids), 1, dtype=torch.int64)
                logits = model(input_ids=repeated, decoder_input_ids=torch.cat([start, ids[:, :-1]], 1)).logits
            else:
                logits = model(input_ids=torch.cat([repeated, ids[:, :-1]], 1)).logits[:, len(prompt) - 1 :]
        for n in range(len(rows)):
            for level in range(3):
                row = logits[n, level].double()
                first, size = tokens.level_offset[level], tokens.level_sizes[level]
                if normalize == "children":
                    same = (rows[:, :level] == rows[n, :level]).all(1)
                    total = row[first + np.unique(rows[same, level])].logsumexp(0)
                else:
                    total = (row if normalize == "vocab" else row[first : first + size]).logsumexp(0)
                out[u, n] += float(row[ids[n, level]] - total)
    return out


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "t5"])
def test_generate_sees_the_trained_rows(kind):
    model, _, vocabulary, _ = adapted(kind)
    stirred(model)
    with quiet_peft():
        merged = deepcopy(model).merge_and_unload().eval()
    ids = torch.tensor([vocabulary.item_ids([[1, 2, 0], [2, 1, 1]]).ravel().tolist()])
    options = {"input_ids": ids, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    assert model.generate(**options).tolist() == merged.generate(**options).tolist()


def test_the_same_seed_gives_the_same_adapters_and_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    made = [adapted("qwen3")[0] for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    one, two = (trainable(each) for each in made)
    assert one and all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"r": -1}, "r: expected"),
        ({"alpha": 0}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"target_modules": ()}, "target_modules"),
        ({"r": 0, "train_rows": False}, "nothing to train"),
    ],
)
def test_impossible_settings_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        LoraSettings(**values)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("q_proj", "lm_head"), "output layer"),
        (("embed_tokens",), "embedding"),
        (("qproj",), "no linear layer 'qproj'"),
    ],
)
def test_layers_that_cannot_have_an_adapter_are_refused(names, said):
    with pytest.raises(ConfigError, match=said):
        adapted("qwen3", LoraSettings(target_modules=names))


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "t5"])
def test_rows_in_place_are_pefts_trained_tokens(kind):
    """Loss, gradients and two steps of training against PEFT's own layer, which makes a new table every time."""
    made = []
    for in_place in (True, False):
        model, before, vocabulary, data = adapted(kind, n_user_tokens=2)
        layers = [m for m in model.modules() if isinstance(m, RowsInPlace)]
        assert len(layers) == (4 if kind == "t5" else 2)  # encoder and decoder have their own around one table
        for layer in layers if not in_place else ():
            layer.__class__ = TrainableTokensLayer
        module, batch = module_of(model, data, vocabulary.token_map, "vocab")
        optimizer, losses = torch.optim.AdamW(trainable(module).values(), lr=0.1), []
        for _ in range(3):
            optimizer.zero_grad()
            loss = module(**batch, scale=0.1)
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
        grads = {name: weight.grad for name, weight in trainable(module).items()}
        ids = torch.arange(vocabulary.token_map.vocab_size)[None]
        more = {"decoder_input_ids": ids} if kind == "t5" else {}
        with torch.no_grad(), model.disable_adapter():
            off = model(input_ids=ids, **more).logits
        with torch.no_grad():
            torch.testing.assert_close(off, before(input_ids=ids, **more).logits)
            again = model(input_ids=ids, **more).logits
        made.append((losses, grads, again))
    (one, grads, after), (two, wanted, of_peft) = made
    np.testing.assert_allclose(one, two, rtol=1e-5)
    torch.testing.assert_close(after, of_peft, rtol=1e-4, atol=1e-4)
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-5)
