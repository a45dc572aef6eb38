"""Losses of parallel models against their formulas, and training by the trainer of all models."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.errors import ConfigError, DataError, FingerprintMismatch
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.fsq import Fsq, FsqSettings
from genrec.item_tokenizers.slots import ItemSlots
from genrec.models.adapters import LoraSettings
from genrec.models.parallel_inputs import ParallelItems
from genrec.models.parallel_model import ParallelModel
from genrec.models.parallel_recommender import ParallelDecoding, ParallelRecommender, unseen_catalog
from genrec.models.parallel_settings import preset
from genrec.models.pretrained import PretrainedSettings
from genrec.testing.parallel_cases import CASES, DECODER, N_ITEMS, NAMES, parallel_model, shared_structure
from genrec.testing.text_models import tiny_text_model
from genrec.training.dataset import Plan, prefix_samples, window_samples
from genrec.training.module import trainable
from genrec.training.parallel_training import (
    ParallelCollator,
    ParallelData,
    ParallelLoss,
    choose_beta,
    train_parallel,
)
from genrec.training.progress import snapshot
from genrec.training.settings import TrainSettings
from genrec.training.trainer import StepBatches

HISTORIES = Histories.from_lists([[3, 4, 5], [7, 8], [1, 2, 3, 4, 5, 6]])
SHORT = TrainSettings(
    epochs=4, batch_size=8, warmup_steps=3, learning_rate=5e-3, eval_every=0, save_every=0, bf16=False, weight_decay=0.0
)


def batch_of(model, histories=HISTORIES):
    encodes = model.body.encodes
    samples = (prefix_samples if encodes else window_samples)(histories, 20)
    collator = ParallelCollator(model.shape, encodes)
    return {**collator(samples), "scale": 1 / collator.n_targets(samples)}


def walks(n_users=40, seed=0, n_items=N_ITEMS):
    """Users who go through the catalog from a random item: the next item is determined."""
    random = np.random.default_rng(seed)
    rows = [(start + np.arange(6)) % n_items for start in random.integers(0, n_items, n_users)]
    train, targets = Histories.from_lists([row[:-1] for row in rows]), Histories.from_lists([row[-1:] for row in rows])
    return train, EvalSet(np.arange(n_users, dtype=np.int32), train, targets)


def test_every_place_has_the_next_item_for_a_target():
    model, _ = parallel_model("recgpt")
    batch = batch_of(model, Histories.from_lists([[10, 11, 12]]))
    assert batch["items"].tolist() == [[10, 11]] and batch["targets"].tolist() == [10, 11, 12]
    assert batch["after"].tolist() == [[0, 1, 2]] and batch["positions"].tolist() == [0, 1, 2]
    assert batch["scale"] == 1 / 9
    model, _ = parallel_model("rpg-t5")
    batch = batch_of(model, Histories.from_lists([[10, 11, 12]]))
    assert batch["items"].tolist() == [[10, 0], [10, 11]] and batch["targets"].tolist() == [11, 12]
    assert batch["after"].tolist() == [[1], [2]]


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_loss_is_the_mean_cross_entropy_of_all_parts(name, eps):
    """Written out: every prefix alone, every part alone, softmax over the codes or over all items."""
    model, items = parallel_model(name, scale=3)
    tables, total, count = items.tables(model.settings), 0.0, 0
    for history in HISTORIES:
        for place in range(int(model.body.encodes), len(history)):
            grid, length = torch.tensor(history[:place][None].astype(np.int64)), torch.tensor([place])
            states = model.states(model.parts(tables, grid), length, length[:, None])[0, 0]
            for part in range(3):
                if model.settings.target == "codes":
                    logits = model.code_logits(states[None])[part][0]
                    target = int(items.identifiers.codes[history[place], part])
                else:
                    logits, target = model.item_vectors(tables)[:, part] @ states[part], int(history[place])
                logp = logits.log_softmax(0)
                total += float(-(1 - eps) * logp[target] - eps * logp.mean())
                count += 1
    expected = total / count
    if name == "setrec-joint":
        coder, seen = model.parts.autoencoder, np.concatenate([h[:-1] for h in HISTORIES])
        content = torch.from_numpy(items.content[seen])
        expected += 0.7 * float(coder.loss(content))
    found = ParallelLoss(model, items, eps)(**batch_of(model))
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_loss_begins_at_that_of_a_uniform_guess(name):
    changes = {"temperature": 1.0} if name.startswith("rpg") else {"reconstruction": 0.0}
    model, items = parallel_model(name, **changes)
    uniform = math.log(8) if model.settings.target == "codes" else math.log(N_ITEMS)
    assert float(ParallelLoss(model, items, 0.0)(**batch_of(model))) == pytest.approx(uniform, abs=0.15)


@pytest.mark.parametrize("name", CASES)
def test_gradient_reaches_every_weight_that_is_trained(name):
    model, items = parallel_model(name, scale=2, **({"reconstruction": 0.0} if name == "setrec-joint" else {}))
    loss = ParallelLoss(model, items, 0.0)
    loss(**batch_of(model)).backward()
    assert not loss.vectors.requires_grad if loss.vectors is not None else loss.codes is not None
    still = {n for n, w in trainable(model).items() if w.numel() and (w.grad is None or not w.grad.abs().sum() > 0)}
    # nothing to weigh for the one position that a query of a T5 sees of the queries; the decoder of the autoencoder
    # learns from reconstruction alone
    assert all("decoder.block" in n or "decoders" in n or (n == "body.start" and "t5" in name) for n in still), still
    assert not any(n.startswith("parts.autoencoder.encoder") for n in still)
    frozen = [n for n, w in model.named_parameters() if not w.requires_grad]
    unused = ("shared", "embed_tokens", "autoencoder.decoders")
    assert frozen and all(any(part in n for part in unused) for n in frozen)
    if name == "setrec-joint":  # data parallelism waits for the gradient of every trained weight
        assert all(w.grad is not None for w in trainable(loss).values())


@torch.no_grad()
def test_losses_of_the_parts_of_a_batch_add_up():
    """Accumulation and processes: some items have no content, and the parts have unequally many that do."""
    model, items = parallel_model("setrec-joint", scale=3)
    loss = ParallelLoss(model, items, 0.1)
    loss.known[::3] = False
    histories, _ = walks(7)
    samples = window_samples(histories, 20)
    sizes = np.full(N_ITEMS, model.body.arrangement.per_item, dtype=np.int64)
    plan = Plan(samples, sizes, dataclasses.replace(SHORT, batch_size=7), target_apart=True)
    collator = ParallelCollator(model.shape, False, loss.known_N)

    def total(world, n_parts):
        shares = [StepBatches(plan, collator, 1, rank, world, n_parts)[0] for rank in range(world)]
        return float(sum(loss(**part) for share in shares for part in share)) / world

    whole = total(1, 1)
    for world, n_parts in ((1, 3), (3, 1), (2, 2)):
        assert total(world, n_parts) == pytest.approx(whole, rel=1e-5)


def test_both_ways_of_the_gradient_to_the_autoencoder():
    """Through the history, and through the vectors that are scored."""
    model, items = parallel_model("setrec-joint", reconstruction=0.0)
    weight = model.parts.autoencoder.encoder.networks[0][0].weight
    tables, batch = items.tables(model.settings), batch_of(model)
    vectors = model.item_vectors(tables)
    for given, scored in ((vectors, vectors.detach()), (vectors.detach(), vectors)):
        states = model.states(given[batch["items"]], batch["lengths"], batch["after"]).flatten(0, 1)[batch["positions"]]
        loss = torch.nn.functional.cross_entropy(states[:, 1] @ scored[:, 1].T, batch["targets"])
        (found,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert found.abs().sum() > 0


@pytest.mark.parametrize("name", ["setrec", "rpg-t5"])
def test_resumed_training_has_the_bits_of_an_uninterrupted_one(name, tmp_path):
    histories, valid = walks(16)
    backbone = {"backbone": dataclasses.replace(parallel_model(name)[0].settings.backbone, dropout=0.2)}
    settings = dataclasses.replace(SHORT, max_steps=6, ema_decay=0.9, prefix_drop=0.3)

    def run(folder, **changes):
        model, items = parallel_model(name, **backbone)
        return train_parallel(
            model, ParallelData(histories, items, valid), dataclasses.replace(settings, **changes), folder
        )

    whole = run(tmp_path / "whole")
    for step in range(1, 4):
        assert run(tmp_path / "parts", max_seconds=1e-9).steps == step
    again = run(tmp_path / "parts")
    assert again.steps == whole.steps == 6 and again.status == "finished"
    for one, other in zip(
        snapshot(trainable(whole.model)).values(), snapshot(trainable(again.model)).values(), strict=True
    ):
        assert torch.equal(one, other)
    with pytest.raises(ConfigError, match="trained with"):
        run(tmp_path / "parts", label_smoothing=0.1)


@pytest.mark.parametrize("name", ["setrec", "recgpt", "rpg"])
def test_learns_what_determines_the_next_item(name, tmp_path):
    histories, valid = walks()
    model, items = parallel_model(name)
    settings = dataclasses.replace(SHORT, epochs=40, batch_size=20, learning_rate=1e-2, eval_every=20)
    result = train_parallel(model, ParallelData(histories, items, valid), settings, tmp_path)
    assert result.best > 0.9 and len(result.log) == 2 and not result.model.training
    found = ParallelRecommender(result.model, items).recommend(valid.histories, top(1)).items[:, 0]
    assert (found == valid.targets.items).mean() > 0.6


def top(k):
    from genrec.decoding.interface import SearchOptions

    return SearchOptions(top_k=k)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["setrec", "setrec-t5", "recgpt", "rpg", "rpg-t5"])
def test_learns_200_users_by_heart(name, tmp_path):
    """The last item that was trained on, from those before it."""
    histories, _ = walks(200)
    model, items = parallel_model(name)
    settings = dataclasses.replace(SHORT, epochs=100, batch_size=64, learning_rate=5e-3, warmup_steps=20)
    result = train_parallel(model, ParallelData(histories, items), settings, tmp_path)
    ends = histories.offsets[1:] - 1
    asked = Histories.from_slices(histories.items, histories.offsets[:-1], ends)
    found = ParallelRecommender(result.model, items).recommend(asked, top(1)).items[:, 0]
    assert (found == histories.items[ends]).mean() > 0.98


def test_beta_is_chosen_on_validation(tmp_path):
    """Only the collaborative slot says which item comes next; the others are alike for all items but for noise."""
    histories, valid = walks(60)
    random = np.random.default_rng(0)
    vectors = random.normal(size=(1, 3, 6)) + 0.01 * random.normal(size=(N_ITEMS, 3, 6))
    vectors[:, 0] = random.normal(size=(N_ITEMS, 6))
    items = ParallelItems(ItemSlots(vectors.astype(np.float32), NAMES, "catalog"))
    model = ParallelModel.of(preset("setrec", DECODER), items, seed=0)
    settings = dataclasses.replace(SHORT, epochs=30, batch_size=30, learning_rate=1e-2)
    train_parallel(model, ParallelData(histories, items), settings, tmp_path)
    found = ParallelRecommender(model, items)
    hits = {
        beta: (found.with_beta(beta).recommend(valid.histories, top(10)).items == valid.targets.items[:, None]).sum()
        for beta in (0.0, 1.0)
    }
    assert hits[0.0] > hits[1.0]
    assert choose_beta(found, valid, betas=(0.0, 1.0)).settings.beta == 0.0
    model, items = parallel_model("rpg")
    plain = ParallelRecommender(model, items)
    assert choose_beta(plain, valid) is plain


def test_zero_shot_beats_chance_on_a_catalog_never_seen(tmp_path):
    """RecGPT's protocol: tokenizer and model learn one catalog and recommend in another that shares its structure."""
    vectors, histories = shared_structure(seed=0)
    fsq = Fsq(FsqSettings(n_tokens=4, levels=(4, 4), dim=16, n_heads=2, hidden=16, epochs=30))
    known = TokenizerSource.of_vectors(vectors)
    items = ParallelItems(fsq.fit(known, seed=0, progress=False), known.vectors())
    model = ParallelModel.of(preset("recgpt", DECODER), items, seed=0)
    settings = dataclasses.replace(SHORT, epochs=8, batch_size=32, learning_rate=5e-3)
    train_parallel(model, ParallelData(histories, items), settings, tmp_path)
    new_vectors, new_histories = shared_structure(seed=1)
    assert not np.isin(new_vectors, vectors).any()
    other = unseen_catalog(ParallelRecommender(model, items), fsq, TokenizerSource.of_vectors(new_vectors))
    before = Histories.from_slices(new_histories.items, new_histories.offsets[:-1], new_histories.offsets[1:] - 1)
    targets = new_histories.items[new_histories.offsets[1:] - 1]
    asked = np.array([target not in history for target, history in zip(targets, before, strict=True)])
    lists = other.recommend(before.take(asked), top(10)).items
    recall = (lists == targets[asked][:, None]).any(axis=1).mean()
    assert recall > 2.5 * 10 / 60  # of ten items of the next group, all ten would be 1.0


def test_what_does_not_fit_together(tmp_path):
    model, items = parallel_model("rpg")
    with pytest.raises(DataError, match=r"0\.\.39"):
        ParallelData(Histories.from_lists([[40, 1]]), items)
    with pytest.raises(FingerprintMismatch):
        ParallelData(HISTORIES, items, catalog="another")
    with pytest.raises(DataError, match="two items"):
        train_parallel(model, ParallelData(Histories.from_lists([[1]]), items), SHORT, tmp_path)
    with pytest.raises(FingerprintMismatch, match="sizes"):
        train_parallel(model, ParallelData(HISTORIES, parallel_model("setrec")[1]), SHORT, tmp_path)
    with pytest.raises(ConfigError, match="batch_size"):
        ParallelDecoding(batch_size=0)


def test_adapters_of_a_pretrained_model_learn_and_its_own_weights_stay(tmp_path):
    kind, (base, words) = "qwen2", tiny_text_model("qwen2")
    base.save_pretrained(tmp_path / kind)
    words.save_pretrained(tmp_path / kind)
    items = parallel_model("setrec")[1]
    backbone, lora = PretrainedSettings(str(tmp_path / kind)), LoraSettings(r=2, alpha=4, dropout=0.1)
    model = ParallelModel.of(preset("setrec", backbone, lora=lora, instruction="red wool scarf"), items, seed=0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train, valid = walks()

    def run(folder, **changes):
        fresh = ParallelModel.of(model.settings, items, seed=0)
        settings = dataclasses.replace(SHORT, max_steps=6, **changes)
        return fresh, train_parallel(fresh, ParallelData(train, items, valid), settings, tmp_path / folder)

    whole, result = run("whole")
    assert result.complete
    own = base.state_dict()
    for name, weight in whole.named_parameters():
        moved = not torch.equal(weight, before[name])
        assert moved == weight.requires_grad, name
        if name.endswith("q_proj.base_layer.weight"):
            assert torch.equal(weight, own["model." + name.split("model.")[-1].replace("base_layer.", "")])
    run("parts", save_every=3, max_seconds=1e-9)
    parts, result = run("parts")
    assert result.complete
    for (name, one), two in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, two), name
    tiny_text_model("qwen2", seed=1)[0].save_pretrained(tmp_path / kind)  # another model at the same place
    run_again = ParallelModel.of(model.settings, items, seed=0)
    with pytest.raises(ConfigError, match="frozen"):
        settings = dataclasses.replace(SHORT, max_steps=6)
        train_parallel(run_again, ParallelData(train, items, valid), settings, tmp_path / "parts")
