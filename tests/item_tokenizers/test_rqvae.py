from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from genrec import artifacts, recipes
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.rqvae import RqVae, RqVaeSettings
from genrec.item_tokenizers.rqvae_codebooks import revive, start_codebooks
from genrec.item_tokenizers.rqvae_losses import squared_error
from genrec.item_tokenizers.rqvae_model import RqVaeModel
from genrec.item_tokenizers.rqvae_training import make_optimizer
from genrec.testing.tokenizer_contract import CATALOG, TokenizerContract, planted_source
from genrec.vocab.token_map import TokenMap

FOLDER = Path(__file__).parents[2] / "tokenizers"
SMALL = RqVaeSettings(
    n_levels=2,
    level_size=8,
    dim=4,
    hidden=(16,),
    epochs=4,
    warmup_epochs=1,
    batch_size=32,
    learning_rate=3e-3,
    revive_every=1,
    device="cpu",
)


class TestSuffix(TokenizerContract):
    def make(self):
        return RqVae(SMALL)


class TestReassign(TokenizerContract):
    def make(self):
        return RqVae(replace(SMALL, level_size=12, collisions="reassign", hidden=()))


class TestOtherWays(TokenizerContract):
    """Everything that needs vectors only, at once; batches are larger than the codebooks."""

    def make(self):
        return RqVae(
            replace(
                SMALL,
                batch_norm=True,
                gradient="rotation",
                sinkhorn_epsilon=0.003,
                shared_codebook=True,
                reduction="mean",
                collisions="reassign",
                level_size=12,
            )
        )


def unit_norm_source(spread, n_items=400, dim=48):
    """Unit vectors that share almost all of their length, as text vectors do, around 40 centres."""
    generator = np.random.default_rng(0)
    base = generator.normal(size=dim)
    centres = generator.normal(size=(40, dim))
    own = centres[generator.integers(40, size=n_items)] + 0.5 * generator.normal(size=(n_items, dim))
    vectors = base / np.linalg.norm(base) + spread * own / np.sqrt(dim)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return TokenizerSource(
        CATALOG, np.arange(n_items, dtype=np.uint64), ItemEmbeddings(vectors.astype(np.float32), CATALOG, {})
    )


@pytest.fixture(scope="module")
def trained():
    """Unit-norm vectors, standardised or not, nothing else to keep codes alive."""
    source = unit_norm_source(spread=0.03)
    settings = replace(
        SMALL,
        level_size=32,
        dim=8,
        hidden=(64,),
        epochs=25,
        warmup_epochs=4,
        revive_every=0,
        collisions="shared",
    )
    found = {}
    for standardize in (True, False):
        found[standardize] = RqVae(replace(settings, standardize=standardize))
        found[standardize].fit(source, seed=0)
    return found


def test_unit_norm_vectors_collapse(trained):
    report, last = trained[False].report["raw"], trained[False].history[-1]
    assert max(report["perplexity"]) < 3
    assert last["reconstruction"] > 0.99 * last["floor"]


def test_standardising_cures_the_collapse(trained):
    report, last = trained[True].report["raw"], trained[True].history[-1]
    assert min(report["level_usage"]) >= 0.8
    assert last["reconstruction"] < 0.5 * last["floor"]


def test_residuals_get_shorter_from_level_to_level(trained):
    commitment = trained[True].history[-1]["commitment"]
    assert commitment[1] < commitment[0]


def test_collapse_is_reported(caplog):
    settings = replace(SMALL, standardize=False, collisions="shared", revive_every=0)
    RqVae(settings).fit(unit_norm_source(spread=0.001), seed=0)
    assert "predicting the mean" in caplog.text


def test_floor_is_the_error_of_the_mean(trained):
    assert trained[True].history[0]["floor"] == pytest.approx(48, rel=1e-4)  # 48 dimensions of variance 1


def test_history_has_a_row_per_epoch_and_survives(tmp_path):
    tokenizer = RqVae(SMALL)
    tokenizer.fit(planted_source(), seed=0)
    assert [row["epoch"] for row in tokenizer.history] == [1, 2, 3, 4]
    assert tokenizer.history[0]["usage"] == []  # warming up
    assert all(0 < u <= 1 for row in tokenizer.history[1:] for u in row["usage"])
    tokenizer.save(tmp_path / "t")
    assert RqVae.load(tmp_path / "t").history == tokenizer.history
    manifest = artifacts.read(tmp_path / "t")
    assert manifest.meta["last_epoch"] == tokenizer.history[-1]
    assert json.loads(json.dumps(manifest.recipe)) == manifest.recipe


def model_and_data(n=60, level_size=8):
    settings = replace(SMALL, level_size=level_size)
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    return RqVaeModel(6, settings), x


def test_codebooks_start_on_what_the_levels_before_leave():
    model, x = model_and_data()
    start_codebooks(model, x, seed=0)
    z = model.encoder(x)
    found = model.quantizer(z)
    left = z
    for level, book in enumerate(model.quantizer.codebooks):
        for code in range(8):
            members = left[found.codes_BL[:, level] == code]
            if len(members):
                torch.testing.assert_close(book[code], members.mean(dim=0), atol=0.05, rtol=0.1)
        left = left - book[found.codes_BL[:, level]]


def test_codes_for_every_item_reconstruct_latents_exactly():
    model, x = model_and_data(n=20, level_size=32)
    start_codebooks(model, x, seed=0)
    z = model.encoder(x)
    torch.testing.assert_close(model.quantizer(z).quantized_BD, z, atol=1e-6, rtol=0)


def test_unused_codes_come_back():
    model, x = model_and_data(n=200)
    start_codebooks(model, x, seed=0)
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.no_grad():
        for book in model.quantizer.codebooks:
            book[2:] = 1e3
    far = [(book.detach() == 1e3).all(dim=1).sum().item() for book in model.quantizer.codebooks]
    assert far == [6, 6]
    for book in model.quantizer.codebooks:
        optimizer.state[book] = {"exp_avg": torch.ones_like(book), "step": torch.tensor(1.0)}
    kept = [book[:2].detach().clone() for book in model.quantizer.codebooks]
    assert revive(model, x, optimizer, torch.Generator().manual_seed(0)) == 12
    used = model.quantizer(model.encoder(x)).codes_BL
    first, second = (book.detach() for book in model.quantizer.codebooks)
    left = model.encoder(x).detach() - first[used[:, 0]]
    # what came back at level 1 are residuals that the revived level 0 leaves
    assert (torch.cdist(second[2:], left).min(dim=1).values < 1e-5).all()
    for level, book in enumerate(model.quantizer.codebooks):
        assert len(used[:, level].unique()) > 5
        torch.testing.assert_close(book[:2].detach(), kept[level])
        assert optimizer.state[book]["exp_avg"].sum(dim=1).tolist() == [4.0] * 2 + [0.0] * 6


def test_training_revives_at_its_epochs_and_then_lets_codes_settle():
    # more codes than items: some are always unused
    settings = replace(SMALL, level_size=128, epochs=8, revive_every=2, revive_share=0.75, collisions="shared")
    tokenizer = RqVae(settings)
    tokenizer.fit(planted_source(), seed=0)
    assert [row["epoch"] for row in tokenizer.history if row["revived"]] == [2, 4, 6]


def test_torch_random_state_is_left_alone():
    before = torch.random.get_rng_state().tolist()
    RqVae(replace(SMALL, epochs=2)).fit(planted_source(), seed=0)
    assert torch.random.get_rng_state().tolist() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"warmup_epochs": 4},
        {"hidden": (0,)},
        {"device": "tpu"},
        {"revive_share": 1.5},
        {"batch_size": 0},
        {"gradient": "gumbel"},
        {"reduction": "max"},
        {"sinkhorn_epsilon": 0.001},
        {"collaborative": -1.0},
        {"diversity": -1.0},
        {"diversity_every": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(SMALL, **wrong)


@pytest.mark.parametrize("collisions", ["shared", "reassign", "suffix"])
def test_levels_share_their_tokens_when_they_share_a_codebook(collisions):
    tokenizer = RqVae(replace(SMALL, level_size=16, shared_codebook=True, collisions=collisions))
    codes = tokenizer.fit(planted_source(), seed=0)
    assert tokenizer.encode(planted_source()).shared_vocabulary
    if collisions == "suffix":  # numbers of a group are other symbols
        assert not codes.shared_vocabulary
        assert codes.level_sizes[:2] == (16, 16)
        assert len(codes.codebooks) == 2
        np.testing.assert_array_equal(*codes.codebooks)
    else:
        assert codes.shared_vocabulary
        assert [book.shape for book in codes.codebooks] == [(16, 4)]
        assert len(set(TokenMap.of(codes).level_offset)) == 1


def shared_model(n, level_size):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    return RqVaeModel(6, replace(SMALL, level_size=level_size, shared_codebook=True)), x


def test_a_shared_codebook_starts_on_the_residuals_of_all_levels():
    model, x = shared_model(300, 32)
    start_codebooks(model, x, seed=0)
    z = model.encoder(x).detach()
    codes = model.quantizer(z).codes_BL
    used = [set(codes[:, level].tolist()) for level in range(2)]
    assert len(used[0] | used[1]) > 28
    assert used[1] - used[0]  # words for small residuals that no whole vector is near to
    first = model.quantizer.codebooks[0].detach()
    left = z - first[codes[:, 0]]
    assert (left - first[codes[:, 1]]).square().sum() < 0.6 * left.square().sum()
    kept = sorted(used[0] | used[1])
    before = first[kept].clone()
    moved = revive(model, x, torch.optim.AdamW(model.parameters()), torch.Generator().manual_seed(0))
    assert moved == 32 - len(kept)
    assert torch.equal(model.quantizer.codebooks[0].detach()[kept], before)  # one level's use is enough


def test_unused_codes_of_a_shared_codebook_come_back():
    model, x = shared_model(200, 8)
    start_codebooks(model, x, seed=0)
    book = model.quantizer.codebooks[0]
    with torch.no_grad():
        book[2:] = 1e3
    old, z = book[:2].detach().clone(), model.encoder(x).detach()
    code = torch.cdist(z, old).argmin(dim=1)
    left = torch.cat([z, z - old[code]])
    n_unused = 8 - len(model.quantizer(z).codes_BL.unique())
    optimizer = torch.optim.AdamW(model.parameters())
    assert revive(model, x, optimizer, torch.Generator().manual_seed(0)) == n_unused >= 6
    assert (torch.cdist(book[2:].detach(), left).min(dim=1).values < 1e-3).all()


def test_means_are_averages_over_dimensions_and_levels():
    tokenizer = RqVae(replace(SMALL, reduction="mean", commitment=0.5))
    tokenizer.fit(planted_source(), seed=0)
    for row in tokenizer.history[1:]:
        # the codebook loss has the value of the commitment loss; 12 inputs, 2 levels of 4 dimensions
        expected = row["reconstruction"] / 12 + 1.5 * sum(row["commitment"]) / (2 * 4)
        assert row["loss"] == pytest.approx(expected, rel=1e-4)


def test_batch_norm_sits_before_each_hidden_activation():
    model = RqVaeModel(6, replace(SMALL, hidden=(16, 8), batch_norm=True))
    expected = ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert [type(layer).__name__ for layer in model.encoder] == expected
    assert [type(layer).__name__ for layer in model.decoder] == expected


def test_statistics_of_batches_come_from_training_steps_only():
    tokenizer = RqVae(replace(SMALL, batch_norm=True, batch_size=89))  # 90 items: one is left over
    tokenizer.fit(planted_source(), seed=0)
    assert not tokenizer._model.training
    assert tokenizer._model.encoder[1].num_batches_tracked == 4  # one per epoch; none by k-means, revival, encoding


@pytest.mark.parametrize("variant", ["lcrec", "letter"])
def test_a_published_variant_fits(variant):
    settings = recipes.load(FOLDER / f"rqvae-{variant}.yaml", RqVaeSettings).value
    quick = replace(settings, hidden=(16,), epochs=2, warmup_epochs=1, level_size=24, dim=8, device="cpu")
    source = planted_source()
    vectors = np.random.default_rng(0).normal(size=(source.n_items, 8)).astype(np.float32)
    source = replace(source, collaborative=ItemEmbeddings(vectors, source.catalog, {}))
    assert RqVae(quick).fit(source, seed=0).n_levels == settings.n_levels + (settings.collisions == "suffix")


def test_uniform_last_level_leaves_fewer_items_with_equal_codes():
    source = unit_norm_source(spread=0.03)
    settings = replace(SMALL, level_size=32, dim=8, epochs=20, batch_size=128, revive_every=0, collisions="shared")
    found = {}
    for epsilon in (0.0, 0.003):
        tokenizer = RqVae(replace(settings, sinkhorn_epsilon=epsilon))
        found[epsilon] = tokenizer.fit(source, seed=0).report()
        assert (tokenizer.history[-1]["perplexity"][-1] > 31) == (epsilon > 0)  # of the batches' assignments
    # of the nearest codewords, which are the identifiers
    assert found[0.003]["perplexity"][-1] > 1.2 * found[0.0]["perplexity"][-1]
    assert found[0.003]["distinct_share"] > 1.1 * found[0.0]["distinct_share"]


def test_a_uniform_assignment_needs_batches_of_a_row_per_code():
    with pytest.raises(ConfigError, match="batch_size: expected at least level_size"):
        replace(SMALL, sinkhorn_epsilon=0.003, level_size=64)


@pytest.mark.parametrize("n_rows", [1024, 837])  # a division by either rounds differently
def test_squared_error_has_the_bits_of_autograd(n_rows):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(n_rows, 30, generator=generator)
    one = torch.randn(n_rows, 30, generator=generator).requires_grad_(True)
    two = one.detach().clone().requires_grad_(True)
    expected = (target - two).square().sum(dim=1).mean()
    found = squared_error(one, target)
    assert torch.equal(found, expected)
    (0.7 * found).backward()
    (0.7 * expected).backward()
    assert torch.equal(one.grad, two.grad)


def test_codebooks_are_not_decayed_and_networks_are():
    """Decay would pull codewords away from the residuals they stand for."""
    for shared in (False, True):
        model = RqVaeModel(6, replace(SMALL, shared_codebook=shared))
        groups = make_optimizer(model, replace(SMALL, weight_decay=0.3)).param_groups
        decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
        books = {id(book) for book in model.quantizer.codebooks}
        assert {id(parameter) for parameter in model.parameters()} == set(decay)
        assert all(value == (0.0 if key in books else 0.3) for key, value in decay.items())
