from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.collisions import Quantized, reassign
from genrec.item_tokenizers.product import Product, ProductSettings
from genrec.item_tokenizers.quantizers.product import (
    alternate,
    balanced_axes,
    blocks,
    fit_product,
    in_blocks,
    procrustes,
)
from genrec.testing.tokenizer_contract import CATALOG, TokenizerContract, planted_source

SMALL = ProductSettings(n_levels=3, level_size=8, iterations=4)


class TestSuffix(TokenizerContract):
    def make(self):
        return Product(SMALL)


class TestReassign(TokenizerContract):
    def make(self):
        # 12 dimensions in 5 blocks: unequal widths
        return Product(replace(SMALL, n_levels=5, collisions="reassign", rotation="pca", standardize=True))


class TestShared(TokenizerContract):
    def make(self):
        return Product(replace(SMALL, collisions="shared", rotation="none", rows_per_code=4))


def correlated(n=400, dim=8, seed=0):
    """Gaussian rows of falling variance along axes that no block is aligned with."""
    generator = np.random.default_rng(seed)
    turn = np.linalg.qr(generator.normal(size=(dim, dim)))[0]
    x = (generator.normal(size=(n, dim)) * 0.6 ** np.arange(dim)) @ turn
    return (x - x.mean(axis=0)).astype(np.float32)


def error(x, quantizer):
    codes = quantizer.codes(x)
    return Quantized(x, quantizer.codebooks()).distortion(codes)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_blocks_cover_the_width_evenly(width, n_blocks):
    if n_blocks > width:
        return
    parts = [list(range(width))[span] for span in blocks(width, n_blocks)]
    assert parts == [part.tolist() for part in np.array_split(np.arange(width), n_blocks)]


@pytest.mark.parametrize("dim", [6, 7])
def test_codes_are_the_nearest_of_all_sums(dim):
    x = correlated(n=60, dim=dim)
    quantizer = fit_product(x, 3, 4, rotation="opq", seed=0, iterations=3)
    books = [book.astype(np.float64) for book in quantizer.codebooks()]
    for row, found in zip(x, quantizer.codes(x), strict=True):
        sums = {
            codes: ((row - sum(book[k] for book, k in zip(books, codes, strict=True))) ** 2).sum()
            for codes in product(range(4), repeat=3)
        }
        assert sums[tuple(found.tolist())] == pytest.approx(min(sums.values()), rel=1e-4)


def slow_opq(x, turn, books, n_iterations):
    """Alternation from its definition, float64, loops over rows and codes; returns the error after every update."""
    x, turn, books = x.astype(np.float64), turn.astype(np.float64), [book.astype(np.float64) for book in books]
    errors = []
    for step in range(n_iterations + 1):
        y, approx = x @ turn, np.zeros_like(x)
        for span, book in zip(blocks(x.shape[1], len(books)), books, strict=True):
            codes = [min(range(len(book)), key=lambda k: ((row[span] - book[k]) ** 2).sum()) for row in y]
            for k in range(len(book)):
                members = [row[span] for row, code in zip(y, codes, strict=True) if code == k]
                if members:
                    book[k] = np.mean(members, axis=0)
            approx[:, span] = book[codes]
        errors.append(((y - approx) ** 2).sum() / len(x))
        if step < n_iterations:
            u, _, vt = np.linalg.svd(x.T @ approx)
            turn = u @ vt
    return errors, turn


def test_alternation_equals_a_slow_loop():
    x = correlated(n=120, dim=7)
    start = fit_product(x, 3, 4, rotation="none", seed=0)
    # a codeword that no row is near: it stays
    start = replace(start, books=(np.vstack([start.books[0], np.full((1, 3), 99, np.float32)]), *start.books[1:]))
    found = alternate(x, start, 5)
    errors, turn = slow_opq(x, start.rotation_DD, start.books, 5)
    np.testing.assert_allclose(found.errors, errors, rtol=1e-4)
    np.testing.assert_allclose(found.rotation_DD, turn, atol=1e-3)
    assert found.books[0][-1].tolist() == [99, 99, 99]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 100), st.integers(4, 9), st.integers(1, 4))
def test_rotation_stays_orthonormal_and_the_error_falls(seed, dim, n_levels):
    x = correlated(n=150, dim=dim, seed=seed)
    quantizer = fit_product(x, n_levels, 6, rotation="opq", seed=seed, iterations=8)
    np.testing.assert_allclose(quantizer.rotation_DD.T @ quantizer.rotation_DD, np.eye(dim), atol=1e-5)
    assert len(quantizer.errors) == 9
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(quantizer.errors))
    assert error(x, quantizer) <= quantizer.errors[-1] * (1 + 1e-5)


def test_rotations_pay_on_correlated_vectors():
    x = correlated(n=1500, dim=12)
    left = {rotation: error(x, fit_product(x, 4, 16, rotation=rotation, seed=0)) for rotation in ("none", "pca", "opq")}
    assert left["opq"] < left["pca"] < 0.9 * left["none"]


def test_procrustes_finds_the_rotation_back():
    x = correlated(n=50, dim=5)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0].astype(np.float32)
    np.testing.assert_allclose(procrustes(x, x @ turn), turn, atol=1e-4)
    # no small turn away from the answer is better
    y = x @ turn + np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    best = procrustes(x, y).astype(np.float64)
    for i, j in ((0, 1), (1, 3), (2, 4)):
        for angle in (-0.05, 0.05):
            tilt = np.eye(5)
            tilt[[i, j], [i, j]] = np.cos(angle)
            tilt[i, j], tilt[j, i] = np.sin(angle), -np.sin(angle)
            assert ((x @ best @ tilt - y) ** 2).sum() > ((x @ best - y) ** 2).sum()


def test_balanced_axes_balance_the_products_of_variances():
    x = correlated(n=2000, dim=8)
    axes = balanced_axes(x / 1000, 2)  # all variances below 1
    np.testing.assert_allclose(axes.T @ axes, np.eye(8), atol=1e-5)
    y = (x @ axes).astype(np.float64)
    covariance = y.T @ y / len(y)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-5)
    products = [np.log(np.diag(covariance)[span]).sum() for span in blocks(8, 2)]
    assert abs(products[0] - products[1]) < np.log(2)  # in falling order they would differ by a factor of 4000


def test_reassign_moves_by_the_additive_distance():
    """On embedded codebooks the residual form of the policy is exact: brute force over the free last codes."""
    generator = np.random.default_rng(0)
    books = tuple(generator.normal(size=(k, width)).astype(np.float32) for k, width in ((2, 3), (5, 2)))
    x = np.concatenate([books[0][[0, 0, 0]], books[1][[1, 1, 1]]], axis=1)
    x += 0.01 * generator.normal(size=x.shape).astype(np.float32)
    quantized = Quantized(x, in_blocks(books))
    raw = np.array([[0, 1]] * 3)
    # distances add up over the blocks, whatever order they are taken in
    for n in range(3):
        separate = ((x[n, :3] - books[0][0]) ** 2).sum() + ((x[n, 3:] - books[1][1]) ** 2).sum()
        assert (quantized.residuals(raw)[n] ** 2).sum() == pytest.approx(separate, rel=1e-5)
    after = reassign(ItemCodes(raw, (2, 5), CATALOG), np.arange(3, dtype=np.uint64), quantized).codes.codes
    keeper = int((quantized.residuals(raw) ** 2).sum(axis=1).argmin())
    movers = [n for n in range(3) if n != keeper]
    cost = ((x[:, None, 3:] - books[1][None]) ** 2).sum(axis=2)
    free = [0, 2, 3, 4]
    cheapest = min(((a, b) for a in free for b in free if a != b), key=lambda ab: cost[movers, list(ab)].sum())
    assert after[:, 0].tolist() == [0, 0, 0]
    assert after[keeper, 1] == 1
    assert after[movers, 1].tolist() == list(cheapest)


def test_reassign_of_a_rotated_catalog_adds_the_distance_it_reports():
    source = planted_source(n_items=200)
    tokenizer = Product(replace(SMALL, collisions="reassign", n_levels=2, level_size=16))
    codes = tokenizer.fit(source, seed=0)
    centred = source.embeddings.vectors - source.embeddings.vectors.mean(axis=0)
    approx = sum(book[codes.codes[:, level]] for level, book in enumerate(codes.codebooks))
    expected = ((centred - approx) ** 2).sum(axis=1).mean()
    assert tokenizer.report["collisions"]["distortion_after"] == pytest.approx(expected, rel=1e-4)
    assert tokenizer.report["collisions"]["distortion_before"] < expected


@pytest.mark.parametrize("rotation", ["none", "opq"])
def test_codebooks_add_up_to_the_item(rotation):
    source = planted_source(n_items=30)
    codes = Product(ProductSettings(n_levels=2, level_size=64, rotation=rotation)).fit(source, seed=0)
    centred = source.embeddings.vectors - source.embeddings.vectors.mean(axis=0)
    assert [book.shape for book in codes.codebooks] == [(64, 12)] * 2
    found = sum(book[codes.codes[:, level]] for level, book in enumerate(codes.codebooks))
    np.testing.assert_allclose(found, centred, atol=1e-4)  # more codes than items: nothing is lost


def test_blocks_do_not_depend_on_each_other():
    source = planted_source(n_items=120)
    tokenizer = Product(replace(SMALL, rotation="none", collisions="shared"))
    before = tokenizer.fit(source, seed=0).codes
    other = source.embeddings.vectors.copy()
    other[:, :4] += 50  # the first of three blocks
    moved = tokenizer.encode(TokenizerSource.of_vectors(other)).codes
    assert (moved[:, 1:] == before[:, 1:]).all()
    assert (moved[:, 0] != before[:, 0]).any()


def test_close_to_faiss():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its bindings
        faiss = pytest.importorskip("faiss")
    faiss.omp_set_num_threads(1)
    x = correlated(n=1000, dim=16)
    matrix = faiss.OPQMatrix(16, 4)
    matrix.pq = faiss.ProductQuantizer(16, 4, 4)
    matrix.train(x)
    y = matrix.apply(x)
    plain = faiss.ProductQuantizer(16, 4, 4)
    plain.train(y)
    theirs = ((y - plain.decode(plain.compute_codes(y))) ** 2).sum(axis=1).mean()
    ours = error(x, fit_product(x, 4, 16, rotation="opq", seed=0, iterations=50))
    assert ours < 1.05 * theirs


@pytest.mark.parametrize("wrong", [{"rotation": "random"}, {"level_size": 1}, {"iterations": -1}, {"collisions": "no"}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ProductSettings(**wrong)


def test_more_blocks_than_dimensions_are_refused():
    with pytest.raises(DataError, match=r"n_levels \(13\), got 12"):
        Product(replace(SMALL, n_levels=13)).fit(planted_source(), seed=0)


def test_sample_is_fitted_and_all_rows_are_coded():
    x = correlated(n=500)
    few = fit_product(x, 2, 8, rotation="opq", seed=0, rows_per_code=10)
    assert few.codes(x).shape == (500, 2)
    assert error(x, few) < 1.3 * error(x, fit_product(x, 2, 8, rotation="opq", seed=0))
    assert few.errors[-1] != fit_product(x, 2, 8, rotation="opq", seed=0).errors[-1]
