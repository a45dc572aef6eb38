from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec import artifacts
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.fsq import Fsq, FsqSettings
from genrec.item_tokenizers.fsq_training import FsqModel
from genrec.testing.tokenizer_contract import CATALOG, TokenizerContract, planted_source
from genrec.vocab.token_map import TokenMap

SMALL = FsqSettings(
    n_tokens=3,
    levels=(4, 3),
    dim=8,
    n_layers=1,
    n_heads=2,
    hidden=16,
    epochs=2,
    batch_size=32,
    dropout=0.2,
    input_dropout=0.1,
    device="cpu",
)


class TestShared(TokenizerContract):
    def make(self):
        return Fsq(SMALL)


class TestSuffix(TokenizerContract):
    def make(self):
        return Fsq(replace(SMALL, collisions="suffix", standardize=False))


class TestReassign(TokenizerContract):
    def make(self):
        # 12 dimensions in 5 pieces: unequal widths
        return Fsq(replace(SMALL, n_tokens=5, collisions="reassign"))


def unit_norm_source(n_items=500, dim=48, seed=0):
    """Unit vectors of a few factors that share most of their length, as text vectors do."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(6, dim))  # the same for every seed: one text encoder
    base = np.random.default_rng(98).normal(size=dim)
    vectors = base / np.linalg.norm(base) + 0.3 * generator.normal(size=(n_items, 6)) @ mixing / dim**0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keys = np.arange(n_items, dtype=np.uint64)
    return TokenizerSource(CATALOG, keys, ItemEmbeddings(vectors.astype(np.float32), CATALOG, {}))


@pytest.fixture(scope="module")
def trained():
    """Unit-norm vectors, standardised or not, at equal budget."""
    found = {}
    for standardize in (True, False):
        settings = replace(SMALL, levels=(5, 4, 3), dim=16, hidden=64, batch_size=64, standardize=standardize)
        found[standardize] = Fsq(replace(settings, epochs=12, learning_rate=6e-3, dropout=0.0, input_dropout=0.0))
        found[standardize].fit(unit_norm_source(), seed=0)
    return found


def test_standardising_spreads_unit_norm_vectors_over_the_grid(trained):
    plain, scaled = trained[False], trained[True]
    assert scaled.report["raw"]["distinct_share"] > 0.8
    assert plain.report["raw"]["distinct_share"] < 0.1
    assert scaled.history[-1]["perplexity"] > 4 * plain.history[-1]["perplexity"]


def test_reconstruction_beats_the_mean(trained):
    last = trained[True].history[-1]
    assert last["loss"] < 0.8 * last["floor"]
    x = unit_norm_source().embeddings.vectors
    rebuilt = trained[True].reconstruct(trained[True].encode(unit_norm_source()))
    assert rebuilt.dtype == np.float32
    assert np.abs(rebuilt - x).mean() < 0.8 * np.abs(x - x.mean(axis=0)).mean()


def test_a_catalog_never_seen_gets_useful_codes(trained):
    other = unit_norm_source(n_items=300, seed=5)
    other = replace(other, catalog="f" * 32, embeddings=replace(other.embeddings, catalog="f" * 32))
    codes = trained[True].encode(other)
    assert codes.catalog == "f" * 32
    assert codes.report()["distinct_share"] > 0.7
    x = other.embeddings.vectors
    assert np.abs(trained[True].reconstruct(codes) - x).mean() < 0.85 * np.abs(x - x.mean(axis=0)).mean()


def test_training_moves_the_projection_and_lowers_the_loss(trained):
    history = trained[True].history
    assert [row["epoch"] for row in history] == list(range(1, 13))
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FsqModel(48, trained[True].settings)
    found = model.quantizer(torch.randn(16, 48, generator=torch.Generator().manual_seed(0)))
    model.decoder(found.quantized_BLH).abs().mean().backward()
    assert model.quantizer.project_in.weight.grad.abs().max() > 0  # nothing but the rounding is in its way


def test_history_numbers_agree_with_a_count():
    tokenizer = Fsq(replace(SMALL, epochs=1, batch_size=1000, learning_rate=1e-12))  # one step that changes nothing
    source = planted_source()
    codes = tokenizer.fit(source, seed=0).codes
    row = tokenizer.history[0]
    counts = np.bincount(codes.flatten(), minlength=12)
    share = counts[counts > 0] / counts.sum()
    assert row["usage"] == pytest.approx((counts > 0).mean(), rel=1e-5)
    assert row["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)
    ends = [[digit in (0, n - 1) for digit, n in ((code % 4, 4), (code // 4, 3))] for code in codes.flatten()]
    assert row["ends"] == pytest.approx(np.mean(ends), rel=1e-4)
    x = source.embeddings.vectors
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    assert row["floor"] == pytest.approx(np.abs(scaled).mean(), rel=1e-4)


def test_positions_share_one_vocabulary_and_one_codebook():
    codes = Fsq(SMALL).fit(planted_source(), seed=0)
    assert codes.shared_vocabulary
    assert codes.level_sizes == (12, 12, 12)
    assert [book.shape for book in codes.codebooks] == [(12, 8)]
    assert TokenMap.of(codes).vocab_size == 3 + 12
    moved = Fsq(replace(SMALL, n_tokens=5, collisions="reassign")).fit(planted_source(), seed=0)
    assert moved.shared_vocabulary
    assert len(moved.codebooks) == 1


def test_a_suffix_ends_the_sharing():
    codes = Fsq(replace(SMALL, collisions="suffix")).fit(planted_source(), seed=0)
    assert not codes.shared_vocabulary
    assert codes.n_levels == 4
    assert [book.shape for book in codes.codebooks] == [(12, 8)] * 3


def test_the_suffix_may_be_as_large_as_the_grid():
    """A suffix level of the grid's size is still a level of its own."""
    source = planted_source(n_items=12)
    same = np.repeat(source.embeddings.vectors[:1], 12, axis=0)
    source = replace(source, embeddings=replace(source.embeddings, vectors=same))
    codes = Fsq(replace(SMALL, collisions="suffix")).fit(source, seed=0)
    assert codes.level_sizes == (12, 12, 12, 12)
    assert not codes.shared_vocabulary


def test_reassigned_items_stay_near_their_scalars():
    source = planted_source()
    tokenizer = Fsq(replace(SMALL, levels=(4, 4, 3), collisions="reassign"))
    codes = tokenizer.fit(source, seed=0)
    raw = tokenizer.encode(source)
    report = tokenizer.report["collisions"]
    assert 0 < report["n_moved"] == (raw.codes != codes.codes).any(axis=1).sum()
    assert (raw.codes[:, :-1] == codes.codes[:, :-1]).all()  # only the last position, where there is room
    assert report["distortion_before"] < report["distortion_after"]
    # the cost is the squared distance of the bounded scalars to the grid, added over the positions
    quantizer = tokenizer._model.quantizer
    x = torch.from_numpy(tokenizer._scaling.apply(source.embeddings.vectors))
    bounded = quantizer(x).bounded_BLC.detach()
    for name, found in (("distortion_before", raw), ("distortion_after", codes)):
        points = quantizer.grid.points(torch.from_numpy(found.codes.astype(np.int64)))
        assert report[name] == pytest.approx((bounded - points).square().sum(dim=(1, 2)).mean().item(), rel=1e-4)


def test_torch_random_state_is_left_alone(tmp_path):
    before = torch.random.get_rng_state().tolist()
    tokenizer = Fsq(SMALL)
    tokenizer.fit(planted_source(), seed=0)
    tokenizer.save(tmp_path / "t")
    Fsq.load(tmp_path / "t")
    assert torch.random.get_rng_state().tolist() == before


def test_training_ignores_the_global_random_state(tmp_path):
    digests = []
    for state in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            tokenizer = Fsq(SMALL)  # with dropout
            tokenizer.fit(planted_source(), seed=0)
        tokenizer.save(tmp_path / str(state))
        digests.append(artifacts.read(tmp_path / str(state)).files)
    assert digests[0] == digests[1]


def test_history_survives(tmp_path):
    tokenizer = Fsq(SMALL)
    tokenizer.fit(planted_source(), seed=0)
    tokenizer.save(tmp_path / "t")
    back = Fsq.load(tmp_path / "t")
    assert back.history == tokenizer.history
    codes = tokenizer.encode(planted_source())
    np.testing.assert_array_equal(back.reconstruct(codes), tokenizer.reconstruct(codes))
    np.testing.assert_array_equal(back.encode(planted_source()).codebooks[0], codes.codebooks[0])
    manifest = artifacts.read(tmp_path / "t")
    assert manifest.meta["last_epoch"] == tokenizer.history[-1]
    assert json.loads(json.dumps(manifest.recipe)) == manifest.recipe


def test_useless_codes_are_reported(caplog):
    source = unit_norm_source(n_items=60)
    Fsq(replace(SMALL, learning_rate=1e-9)).fit(source, seed=0)
    assert "no better than the mean" in caplog.text


def test_vectors_narrower_than_the_pieces_are_refused():
    with pytest.raises(DataError, match=r"n_tokens \(13\), got 12"):
        Fsq(replace(SMALL, n_tokens=13)).fit(planted_source(), seed=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": ()},
        {"levels": (4, 1)},
        {"levels": (1 << 13, 1 << 12)},
        {"n_tokens": 0},
        {"n_layers": 0},
        {"dim": 9},
        {"dropout": 1.0},
        {"input_dropout": -0.1},
        {"learning_rate": 0.0},
        {"collisions": "none"},
        {"device": "tpu"},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(SMALL, **wrong)


def test_the_decoder_reads_the_last_position():
    """As published: attention brings what the other pieces say there; nothing else of them is read."""
    decoder = FsqModel(12, replace(SMALL, n_layers=1)).decoder.eval()
    decoder.layers = torch.nn.ModuleList()
    pieces = torch.randn(5, 3, 8)
    expected = decoder.head(pieces[:, 2] + decoder.position_LH[2])
    torch.testing.assert_close(decoder(pieces), expected)


def test_the_loss_is_the_mean_absolute_error():
    source, still = planted_source(), {"epochs": 1, "batch_size": 90, "learning_rate": 1e-12}
    tokenizer = Fsq(replace(SMALL, dropout=0.0, input_dropout=0.0, **still))
    codes = tokenizer.fit(source, seed=0)
    left = (tokenizer.reconstruct(codes) - source.vectors()) / source.vectors().std(axis=0)
    assert tokenizer.history[0]["loss"] == pytest.approx(np.abs(left).mean(), rel=1e-4)
