from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, FingerprintMismatch
from genrec.item_tokenizers.base import Scaling, TokenizerSource, load_state, save_state
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings, residual_codes
from genrec.testing.tokenizer_contract import CATALOG, TokenizerContract, planted_source

SMALL = RqKMeansSettings(n_levels=2, level_size=8)


class TestSuffix(TokenizerContract):
    def make(self):
        return RqKMeans(SMALL)


class TestReassign(TokenizerContract):
    def make(self):
        return RqKMeans(replace(SMALL, level_size=16, collisions="reassign", standardize=True))


class TestShared(TokenizerContract):
    def make(self):
        return RqKMeans(replace(SMALL, collisions="shared", rows_per_code=4))


class TestBalanced(TokenizerContract):
    def make(self):
        return RqKMeans(replace(SMALL, level_size=(12, 8), balance="last", rows_per_code=4))


@pytest.mark.parametrize("sizes", [(7, 7, 7), (9, 4, 2)])
def test_codes_equal_a_loop_of_argmins(sizes):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(100, 5)).astype(np.float32)
    books = [generator.normal(size=(size, 5)).astype(np.float32) for size in sizes]
    expected = []
    for row in x:
        left, codes = row.astype(np.float64), []
        for book in books:
            codes.append(min(range(len(book)), key=lambda k: ((left - book[k]) ** 2).sum()))
            left = left - book[codes[-1]]
        expected.append(codes)
    assert residual_codes(x, books).tolist() == expected


@pytest.mark.parametrize(("n_levels", "n_codes"), [(1, 9), (3, 5)])
def test_copies_of_a_codeword_are_never_chosen(n_levels, n_codes):
    books = np.tile(np.random.default_rng(0).normal(size=(n_levels, n_codes, 33)), (1, 3, 1))
    x = np.random.default_rng(1).normal(size=(300, 33)).astype(np.float32)
    assert residual_codes(x, books[:, : 2 * n_codes + 3].astype(np.float32)).max() < n_codes


def test_first_level_finds_planted_groups():
    source = planted_source(n_groups=6)
    codes = RqKMeans(RqKMeansSettings(n_levels=2, level_size=6, collisions="shared")).fit(source, seed=0)
    vectors = source.embeddings.vectors
    for code in range(6):
        members = vectors[codes.codes[:, 0] == code]
        assert members.std(axis=0).mean() < 2  # within a group 1, over all groups 6


def test_each_level_leaves_less():
    tokenizer = RqKMeans(RqKMeansSettings(n_levels=4, level_size=8, collisions="shared"))
    tokenizer.fit(planted_source(), seed=0)
    left = tokenizer.report["mean_square_left"]
    assert len(left) == 5
    assert all(after < before for before, after in pairwise(left))


def test_enough_codes_leave_nothing():
    source = planted_source(n_items=40)
    tokenizer = RqKMeans(RqKMeansSettings(n_levels=1, level_size=64, collisions="shared"))
    codes = tokenizer.fit(source, seed=0)
    assert tokenizer.report["mean_square_left"][-1] == 0
    distinct = len(np.unique(source.embeddings.vectors, axis=0))
    assert codes.report()["distinct_share"] == distinct / 40


def test_fit_and_encode_agree():
    source = planted_source(n_items=300)
    for standardize in (False, True):
        tokenizer = RqKMeans(replace(SMALL, collisions="shared", standardize=standardize))
        codes = tokenizer.fit(source, seed=0)
        assert tokenizer.encode(source).codes.tolist() == codes.codes.tolist()


@pytest.mark.parametrize("rows_per_code", [None, 8])
@pytest.mark.parametrize(("balance", "balanced"), [("none", ()), ("last", (2,)), ("all", (0, 1, 2))])
def test_balanced_levels_have_codes_of_equal_size(balance, balanced, rows_per_code):
    source = planted_source(n_items=310, n_groups=5)
    options = {"n_levels": 3, "level_size": 16, "balance": balance, "rows_per_code": rows_per_code}
    tokenizer = RqKMeans(RqKMeansSettings(**options, collisions="shared"))
    codes = tokenizer.fit(source, seed=0)
    spread = [int(np.ptp(counts)) for counts in codes.level_counts()]
    assert [level for level in range(3) if spread[level] <= 1] == list(balanced)
    left = tokenizer.report["mean_square_left"]
    assert all(after < before for before, after in pairwise(left))
    near = tokenizer.encode(source).codes  # plain nearest centroids, so not balanced
    moved = float((near != codes.codes).any(axis=1).mean())
    assert tokenizer.report.get("moved_by_balance", 0.0) == moved
    assert (moved > 0) == bool(balanced)


def test_balance_does_not_look_at_the_order_of_items():
    source = planted_source(n_items=300)
    order = np.random.default_rng(0).permutation(300)
    turned = TokenizerSource(
        CATALOG, source.item_keys[order], ItemEmbeddings(source.embeddings.vectors[order], CATALOG, {})
    )
    settings = replace(SMALL, balance="all", level_size=16, collisions="shared")
    plain, other = (RqKMeans(settings).fit(s, seed=0).codes for s in (source, turned))
    assert other.tolist() == plain[order].tolist()


def test_errors_left_are_those_of_the_codes():
    source = planted_source(n_items=200)
    for balance in ("none", "all"):
        tokenizer = RqKMeans(replace(SMALL, balance=balance, collisions="shared", rows_per_code=6))
        codes = tokenizer.fit(source, seed=0)
        x = source.embeddings.vectors.astype(np.float64)
        left, expected = x - x.mean(axis=0), []
        for book, code in zip([None, *codes.codebooks], [None, *codes.codes.T], strict=True):
            left = left if book is None else left - book[code]
            expected.append((left**2).sum(axis=1).mean())
        np.testing.assert_allclose(tokenizer.report["mean_square_left"], expected, rtol=1e-5)


def test_every_level_may_have_its_own_size(tmp_path):
    source = planted_source(n_items=200)
    tokenizer = RqKMeans(RqKMeansSettings(level_size=(32, 8, 4), collisions="reassign"))
    codes = tokenizer.fit(source, seed=0)
    assert codes.level_sizes == (32, 8, 4)
    assert [len(book) for book in codes.codebooks] == [32, 8, 4]
    assert codes.collisions() == []
    tokenizer.save(tmp_path / "saved")
    back = RqKMeans.load(tmp_path / "saved")
    assert back.settings == tokenizer.settings
    assert back.encode(source).codes.tolist() == tokenizer.encode(source).codes.tolist()


def test_standardising_makes_scale_irrelevant():
    source = planted_source()
    vectors = source.embeddings.vectors
    factors = np.array([2**-8, 1, 2**8] * 4, dtype=np.float32)  # powers of two: no rounding
    scaled = replace(source, embeddings=ItemEmbeddings(vectors * factors, CATALOG, {}))
    plain, other = (RqKMeans(replace(SMALL, standardize=True)).fit(s, seed=0).codes.tolist() for s in (source, scaled))
    assert plain == other
    assert plain != RqKMeans(SMALL).fit(scaled, seed=0).codes.tolist()


def test_constant_dimensions_become_zero():
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    x[:, 1] = 0.1
    scaled = Scaling.fit(x, standardize=True).apply(x)
    assert np.abs(scaled[:, 1]).max() < 1e-6
    np.testing.assert_allclose(scaled[:, [0, 2]].std(axis=0), 1, rtol=1e-5)


def test_source_checks_its_parts():
    source = planted_source()
    with pytest.raises(FingerprintMismatch):
        replace(source, embeddings=replace(source.embeddings, catalog="0" * 32))
    with pytest.raises(ValueError, match="90 rows"):
        replace(source, embeddings=replace(source.embeddings, vectors=source.embeddings.vectors[:5]))
    with pytest.raises(ValueError, match="uint64"):
        TokenizerSource(CATALOG, np.arange(4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"level_size": 1},
        {"level_size": (8, 8)},
        {"level_size": (8, 8, 1)},
        {"rows_per_code": 0},
        {"collisions": "none"},
        {"balance": "first"},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RqKMeansSettings(**wrong)


def test_codebooks_saved_as_one_array_still_load(tmp_path):
    source, tokenizer = planted_source(), RqKMeans(SMALL)
    tokenizer.fit(source, seed=0)
    tokenizer.save(tmp_path / "now")
    state = load_state(tmp_path / "now", kind="rqkmeans", catalog=None)
    books = [state.arrays.pop(f"codebook.{level}") for level in range(2)]
    save_state(tmp_path / "then", replace(state, arrays={**state.arrays, "codebooks": np.stack(books)}))
    back = RqKMeans.load(tmp_path / "then")
    assert back.encode(source).codes.tolist() == tokenizer.encode(source).codes.tolist()
