from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, FingerprintMismatch
from genrec.item_tokenizers.base import Scaling, TokenizerSource
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


def test_codes_equal_a_loop_of_argmins():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(100, 5)).astype(np.float32)
    books = generator.normal(size=(3, 7, 5)).astype(np.float32)
    expected = []
    for row in x:
        left, codes = row.astype(np.float64), []
        for book in books:
            codes.append(min(range(7), key=lambda k: ((left - book[k]) ** 2).sum()))
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


@pytest.mark.parametrize("wrong", [{"level_size": 1}, {"rows_per_code": 0}, {"collisions": "none"}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RqKMeansSettings(**wrong)
