import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.metrics import codes_vectors
from genrec.metrics.codes_vectors import (
    UnitRows,
    additive_reconstruction,
    hit_rate,
    implied_codebooks,
    mean_cosine,
    neighbour_prefix_rate,
    neighbours_kept,
    relative_error,
)
from genrec.testing import code_oracles as slow

quick = settings(max_examples=40, deadline=None)
# all of length 2 (or 0): float32 cosines are exact, and many of them tie
rows = st.lists(st.sampled_from([-1, 1]), min_size=4, max_size=4) | st.just([0] * 4)


@st.composite
def vectors(draw, n):
    return np.array(draw(st.lists(rows, min_size=n, max_size=n)), dtype=np.float32)


@given(st.data(), st.integers(2, 9))
@quick
def test_neighbours_kept_equals_the_expectation_over_ties(data, n):
    z, quantised = data.draw(vectors(n)), data.draw(vectors(n))
    found = neighbours_kept(z, quantised, (1, 3, 50))
    for k, value in found.items():
        assert value == pytest.approx(slow.neighbours_kept(z, quantised, k), abs=1e-6)


@given(st.data(), st.integers(2, 9))
@quick
def test_hit_rate_equals_the_expectation_over_ties(data, n):
    z = data.draw(vectors(n))
    pairs = np.array(data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), min_size=1)))
    found = hit_rate(z, pairs, (1, 2, 50))
    for k, value in found.items():
        if (pairs[:, 0] == pairs[:, 1]).all():
            assert np.isnan(value)
        else:
            assert value == pytest.approx(slow.hit_rate(z, pairs.tolist(), k), abs=1e-6)


@given(st.data(), st.integers(2, 9))
@quick
def test_neighbour_prefix_rate_equals_a_loop(data, n):
    z = data.draw(vectors(n))
    codes = np.array(data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 1)), min_size=n, max_size=n)))
    found = neighbour_prefix_rate(codes, z)
    for depth in (1, 2):
        expected = sum(
            share * (tuple(codes[i][:depth]) == tuple(codes[j][:depth]))
            for i in range(n)
            for j, share in enumerate(slow.membership(z, i, 1))
        )
        assert found[depth - 1] == pytest.approx(expected / n)


def test_general_vectors_and_chunks(monkeypatch):
    generator = np.random.default_rng(0)
    z = generator.normal(size=(60, 5)).astype(np.float32)
    quantised = generator.normal(size=(12, 5))[generator.integers(12, size=60)]
    pairs = generator.integers(60, size=(80, 2))
    monkeypatch.setattr(codes_vectors, "_CHUNK_ELEMENTS", 200)  # three rows at a time
    assert neighbours_kept(z, quantised, (5,))[5] == pytest.approx(slow.neighbours_kept(z, quantised, 5), abs=1e-6)
    assert hit_rate(z, pairs, (5,))[5] == pytest.approx(slow.hit_rate(z, pairs.tolist(), 5), abs=1e-6)


def test_identical_vectors_keep_all_neighbours_and_random_ones_chance():
    generator = np.random.default_rng(0)
    z, other = generator.normal(size=(2, 400, 8)).astype(np.float32)
    pairs = generator.integers(400, size=(4000, 2))
    assert neighbours_kept(z, z, (10,))[10] == 1
    assert neighbours_kept(z, other, (40,))[40] == pytest.approx(40 / 399, abs=0.01)
    assert hit_rate(z, pairs, (40,))[40] == pytest.approx(40 / 399, abs=0.015)


def test_all_equal_vectors_hit_by_chance_exactly():
    same = np.ones((11, 3), dtype=np.float32)
    assert hit_rate(same, np.array([[0, 1], [4, 2]]), (3, 20)) == {3: 3 / 10, 20: 1.0}


def test_equal_rows_are_found_whatever_the_sign_of_their_zeros():
    unit = UnitRows.of(np.array([[2.0, -0.0], [0.0, 3.0], [2.0, 0.0]]))
    assert unit.sizes_G.tolist() in ([1, 2], [2, 1]) and unit.group_N[0] == unit.group_N[2]
    np.testing.assert_array_equal(unit.distinct_GD[unit.group_N], [[1, 0], [0, 1], [1, 0]])


def test_asked_rows_only():
    z = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    codes = np.array([[0], [0], [1], [2]])
    assert neighbour_prefix_rate(codes, z, np.array([0, 1])).tolist() == [1.0]
    assert neighbour_prefix_rate(codes, z, np.array([2])).tolist() == [0.0]
    assert neighbours_kept(z, z[[2, 1, 0, 3]], (1,), np.array([0]))[1] == pytest.approx(1 / 3)


def test_reconstruction_adds_the_codewords():
    generator = np.random.default_rng(0)
    books = [generator.normal(size=(3, 4)).astype(np.float32) for _ in range(2)]
    codes = np.array([[0, 2, 1], [1, -1, -1], [2, 0, 0]])
    expected = [books[0][0] + books[1][2], books[0][1], books[0][2] + books[1][0]]
    np.testing.assert_allclose(additive_reconstruction(codes, books), expected, rtol=1e-6)


def test_relative_error_and_cosine_by_hand():
    z = np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    assert relative_error(z, z) == 0
    assert relative_error(z, np.full((3, 2), [2.0, 0.0])) == 1
    assert relative_error(z, [[0, 0], [2, 0], [3, 0]]) == 1 / (4 + 0 + 4)
    assert relative_error(z[2:], [[3, 0]], mean_D=[2.0, 0.0]) == 1 / 4
    assert np.isnan(relative_error(z[:1], z[:1]))
    assert mean_cosine(z[1:], [[1.0, 1.0], [5.0, 0.0]]) == pytest.approx((1 / np.sqrt(2) + 1) / 2)


@given(st.integers(0, 1000))
@quick
def test_implied_codebooks_equal_a_loop_of_means(seed):
    generator = np.random.default_rng(seed)
    codes = generator.integers(3, size=(12, 3))
    codes[generator.random(12) < 0.3, 2] = -1
    z = generator.normal(size=(12, 4)).astype(np.float32)
    books = implied_codebooks(codes, (4, 4, 4), z)
    left = z.astype(np.float64) - z.mean(axis=0)
    for level, book in enumerate(books):
        for k in range(4):
            members = codes[:, level] == k
            expected = left[members].mean(axis=0) if members.any() else np.zeros(4)
            np.testing.assert_allclose(book[k], expected, atol=1e-5)
            left[members] -= expected


def test_implied_codebooks_are_those_of_converged_residual_kmeans():
    from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings
    from genrec.testing.tokenizer_contract import planted_source

    source = planted_source(n_items=60)
    codes = RqKMeans(RqKMeansSettings(n_levels=2, level_size=4, collisions="shared", max_iterations=200)).fit(
        source, seed=0
    )
    for own, implied in zip(codes.codebooks, implied_codebooks(codes.as_int(), (4, 4), source.vectors()), strict=True):
        np.testing.assert_allclose(implied, own, atol=1e-4)


def test_too_few_items_or_no_pairs_are_nan():
    one = np.ones((1, 2), dtype=np.float32)
    assert np.isnan(neighbours_kept(one, one, (1,))[1])
    assert np.isnan(neighbour_prefix_rate(np.zeros((1, 2), int), one)).all()
    assert np.isnan(hit_rate(one, np.zeros((0, 2), int), (1,))[1])
