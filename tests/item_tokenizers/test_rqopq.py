from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.collisions import Quantized
from genrec.item_tokenizers.product import Product
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings
from genrec.item_tokenizers.rqopq import RqOpq, RqOpqSettings
from genrec.seeding import id_hash
from genrec.testing.tokenizer_contract import CATALOG, TokenizerContract, planted_source

SMALL = RqOpqSettings(n_levels=2, level_size=8, n_blocks=2, block_size=8, iterations=4)


class TestReassign(TokenizerContract):
    def make(self):
        return RqOpq(SMALL)


class TestSuffix(TokenizerContract):
    def make(self):
        # 12 dimensions in 5 blocks: unequal widths
        return RqOpq(replace(SMALL, n_blocks=5, block_size=4, collisions="suffix", standardize=True))


class TestBalanced(TokenizerContract):
    def make(self):
        return RqOpq(replace(SMALL, level_size=(12, 8), balance="last", collisions="shared", rows_per_code=6))


def gaussian_source(n=1200, dim=12, seed=0):
    """Correlated vectors in groups, so that residual levels leave something in every direction."""
    generator = np.random.default_rng(seed)
    turn = np.linalg.qr(generator.normal(size=(dim, dim)))[0]
    centres = 3 * generator.normal(size=(10, dim))
    x = (generator.normal(size=(n, dim)) * 0.75 ** np.arange(dim)) @ turn + centres[generator.integers(10, size=n)]
    keys = id_hash([f"item-{i}" for i in range(n)], 0)
    return TokenizerSource(CATALOG, keys, ItemEmbeddings(x.astype(np.float32), CATALOG, {"kind": "drawn"}))


def centred(source):
    vectors = source.embeddings.vectors.astype(np.float64)
    return vectors - vectors.mean(axis=0)


def left_by(codes, source):
    """Mean squared error of the reconstruction, from its definition."""
    sums = [sum(book[code] for book, code in zip(codes.codebooks, row, strict=False)) for row in codes.as_int()]
    return ((centred(source) - np.array(sums)) ** 2).sum(axis=1).mean()


@pytest.mark.parametrize("balance", ["none", "last"])
def test_the_residual_levels_are_those_of_rqkmeans(balance):
    source = gaussian_source(n=300)
    codes = RqOpq(replace(SMALL, collisions="shared", balance=balance)).fit(source, seed=5)
    alone = RqKMeans(RqKMeansSettings(n_levels=2, level_size=8, balance=balance, collisions="shared"))
    before = alone.fit(source, seed=5)
    assert (codes.codes[:, :2] == before.codes).all()
    for mine, theirs in zip(codes.codebooks, before.codebooks, strict=False):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(("n_blocks", "standardize"), [(2, False), (5, True)])
def test_codes_equal_a_slow_loop(n_blocks, standardize):
    source = gaussian_source(n=150)
    tokenizer = RqOpq(replace(SMALL, n_blocks=n_blocks, standardize=standardize, collisions="shared"))
    codes = tokenizer.fit(source, seed=0)
    x = centred(source)
    x = x / x.std(axis=0) if standardize else x
    books = [book.astype(np.float64) for book in tokenizer.quantized(source).codebooks]
    # greedily over the residual levels, then over every pair of block codes together
    for row, found in zip(x, codes.as_int().tolist(), strict=True):
        for level in range(2):
            code = min(range(8), key=lambda k: ((row - books[level][k]) ** 2).sum())
            assert code == found[level]
            row = row - books[level][code]
        if n_blocks == 2:
            sums = {(a, b): ((row - books[2][a] - books[3][b]) ** 2).sum() for a in range(8) for b in range(8)}
            assert sums[tuple(found[2:])] == pytest.approx(min(sums.values()), rel=1e-4)


def test_blocks_are_orthogonal_directions_of_the_item_space():
    codes = RqOpq(replace(SMALL, n_blocks=3)).fit(gaussian_source(n=300), seed=0)
    blocks = codes.codebooks[2:]
    assert [book.shape for book in blocks] == [(8, 12)] * 3
    for a in range(3):
        for b in range(a):
            np.testing.assert_allclose(blocks[a] @ blocks[b].T, 0, atol=1e-4)


def test_codebooks_add_up_to_the_reported_error():
    source = gaussian_source(n=300)
    tokenizer = RqOpq(replace(SMALL, collisions="shared"))
    codes = tokenizer.fit(source, seed=0)
    left = tokenizer.report["mean_square_left"]
    assert len(left) == 5
    assert left == sorted(left, reverse=True)
    assert left[-1] == pytest.approx(left_by(codes, source), rel=1e-4)
    assert left[0] == pytest.approx((centred(source) ** 2).sum(axis=1).mean(), rel=1e-4)


def test_more_codes_than_items_lose_nothing():
    source = planted_source(n_items=40)
    settings = RqOpqSettings(n_levels=1, level_size=4, n_blocks=2, block_size=64, collisions="shared")
    codes = RqOpq(settings).fit(source, seed=0)
    assert left_by(codes, source) < 1e-6


def test_against_residual_levels_alone_and_as_many_of_them():
    """Less error and fewer collisions than without the blocks; about what as many residual levels reach."""
    source = gaussian_source()
    mixed = RqOpq(replace(SMALL, level_size=8, block_size=8, iterations=20, collisions="shared"))
    codes = mixed.fit(source, seed=0)
    error, distinct = {}, {}
    for n_levels in (2, 4):
        alone = RqKMeans(RqKMeansSettings(n_levels=n_levels, level_size=8, collisions="shared"))
        raw = alone.fit(source, seed=0)
        error[n_levels], distinct[n_levels] = left_by(raw, source), len(np.unique(raw.as_int(), axis=0))
    found = left_by(codes, source)
    assert found < 0.7 * error[2]
    assert 0.8 * error[4] < found < 1.1 * error[4]
    assert len(np.unique(codes.as_int(), axis=0)) > 4 * distinct[2]
    assert mixed.report["residual_levels"]["distinct_share"] < mixed.report["raw"]["distinct_share"]


def test_reassign_moves_the_last_code_only_and_reports_the_distance():
    source = gaussian_source(n=600)
    settings = replace(SMALL, n_levels=1, block_size=64)
    tokenizer = RqOpq(settings)
    codes = tokenizer.fit(source, seed=0)
    raw = tokenizer.encode(source).as_int()
    assert len(np.unique(codes.as_int(), axis=0)) == 600 > len(np.unique(raw, axis=0))
    assert tokenizer.report["collisions"]["n_moved_to_another_prefix"] == 0
    assert (codes.as_int()[:, :2] == raw[:, :2]).all()
    assert tokenizer.report["collisions"]["distortion_after"] == pytest.approx(left_by(codes, source), rel=1e-4)


def test_the_price_of_a_move_is_known_to_a_growing_catalog():
    source = gaussian_source(n=100)
    tokenizer = RqOpq(SMALL)
    codes = tokenizer.fit(source, seed=0)
    found = tokenizer.quantized(source)
    assert isinstance(found, Quantized)
    assert found.distortion(codes.codes) == pytest.approx(left_by(codes, source), rel=1e-4)


def test_a_sample_is_fitted_and_all_items_are_coded():
    source = gaussian_source()
    few = RqOpq(replace(SMALL, collisions="shared", rows_per_code=30))
    codes = few.fit(source, seed=0)
    assert len(codes) == 1200
    all_rows = RqOpq(replace(SMALL, collisions="shared")).fit(source, seed=0)
    assert left_by(all_rows, source) < left_by(codes, source) < 1.4 * left_by(all_rows, source)


@pytest.mark.parametrize(
    "wrong",
    [{"n_blocks": 0}, {"block_size": 1}, {"level_size": 1}, {"iterations": -1}, {"collisions": "no"}, {"balance": "x"}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RqOpqSettings(**wrong)


def test_more_blocks_than_dimensions_are_refused():
    with pytest.raises(DataError, match=r"n_blocks \(13\), got 12"):
        RqOpq(replace(SMALL, n_blocks=13)).fit(planted_source(), seed=0)


@pytest.mark.parametrize("kind", [RqKMeans, Product, RqOpq])
def test_codebooks_are_of_the_item_vectors_whatever_the_scaling(kind):
    """A report, or the first rows of a model's tokens, adds them up beside vectors that nobody has scaled."""
    generator = np.random.default_rng(0)
    x = (generator.normal(size=(300, 6)) * [0.2, 0.7, 1, 1.5, 3, 9] + 4).astype(np.float32)
    tokenizer = kind(kind.Settings(n_levels=2, level_size=9, collisions="shared", standardize=True))
    codes = tokenizer.fit(TokenizerSource.of_vectors(x), seed=0)
    made = x.mean(axis=0) + sum(book[codes.codes[:, level]] for level, book in enumerate(codes.codebooks))
    left = (((x - made) / x.std(axis=0)) ** 2).sum(axis=1).mean()
    assert left == pytest.approx(tokenizer.report["mean_square_left"][-1], rel=1e-3)
