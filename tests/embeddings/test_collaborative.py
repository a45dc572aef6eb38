"""Factors against the written-out formulas on dense matrices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.data.synthetic import make, tiny
from genrec.embeddings.collaborative import PpmiSettings, SvdSettings, ppmi, svd
from genrec.embeddings.linear import principal, truncated_svd
from genrec.errors import ConfigError, DataError

N = 9
rows = st.lists(st.lists(st.integers(0, N - 2), max_size=7), min_size=1, max_size=8)  # item N-1 is never seen


def dense_ppmi(histories: list[list[int]], window: int, decay: float, shift: float) -> np.ndarray:
    counts = np.zeros((N, N))
    for row in histories:
        for a in range(len(row)):
            for b in range(len(row)):
                if a != b and abs(a - b) <= window and row[a] != row[b]:
                    counts[row[a], row[b]] += decay ** (abs(a - b) - 1)
    out = np.zeros((N, N))
    for i in range(N):
        for j in range(N):
            if counts[i, j] > 0:
                information = np.log(counts[i, j] * counts.sum() / (counts[i].sum() * counts[:, j].sum()))
                out[i, j] = max(0.0, information - shift)
    return out


@given(rows, st.integers(1, 4), st.sampled_from([0.0, 0.1]))
@settings(max_examples=60, deadline=None)
def test_ppmi_equals_the_formula(histories, window, shift):
    matrix = dense_ppmi(histories, window, 0.7, shift)
    if matrix.max() < 1e-9:
        return
    made = ppmi(
        Histories.from_lists(histories),
        N,
        PpmiSettings(dim=N, window=window, shift=shift, value_power=1),
        "x",
    )
    # with all directions and power 1, P diag(s): inner products are those of the rows of M
    np.testing.assert_allclose(made.vectors @ made.vectors.T, matrix @ matrix.T, atol=1e-4)
    assert not made.vectors[N - 1].any()


@given(rows)
@settings(max_examples=40, deadline=None)
def test_svd_equals_the_formula(histories):
    x = np.zeros((len(histories), N))
    for u, row in enumerate(histories):
        for i in row:
            x[u, i] += 1
    if not x.any():
        return
    n_u, n_i = np.maximum(x.sum(1, keepdims=True), 1), np.maximum(x.sum(0, keepdims=True), 1)
    x = x / (n_u**0.5 * n_i**0.25)
    made = svd(Histories.from_lists(histories), N, SvdSettings(dim=N, item_power=0.25, value_power=1), "x")
    np.testing.assert_allclose(made.vectors @ made.vectors.T, x.T @ x, atol=1e-5)
    assert np.array_equal(made.known, x.any(axis=0))


@pytest.mark.parametrize("make_vectors", [svd, ppmi])
def test_same_input_same_bytes_and_order_of_users_is_irrelevant(make_vectors):
    kind = SvdSettings if make_vectors is svd else PpmiSettings
    train = make(tiny(n_users=300)).interactions.histories()
    one = make_vectors(train, 60, kind(dim=8), "x")
    assert one.vectors.shape == (60, 8)
    assert one.vectors.tobytes() == make_vectors(train, 60, kind(dim=8), "x").vectors.tobytes()
    shuffled = make_vectors(train.take(np.arange(300)[::-1]), 60, kind(dim=8), "x")
    np.testing.assert_allclose(shuffled.vectors, one.vectors, atol=1e-5)


def test_ppmi_puts_the_clusters_of_the_walk_together():
    data = make(tiny(n_users=600, noise=0.01, stay=0.9))
    vectors = ppmi(data.interactions.histories(), 60, PpmiSettings(dim=8), "x").vectors
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -1)
    assert np.mean(data.truth.cluster[likeness.argmax(axis=1)] == data.truth.cluster) > 0.9


def test_lanczos_equals_the_dense_svd():
    matrix = np.random.default_rng(0).normal(size=(620, 560)) * 0.9 ** np.arange(560)
    import scipy.sparse as sp

    found = truncated_svd(sp.csr_matrix(matrix), 12, seed=1)
    left, values, right_t = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(found.values, values[:12], rtol=1e-9)
    np.testing.assert_allclose(np.abs(found.right), np.abs(right_t[:12].T), atol=1e-7)
    peak = np.abs(found.right).argmax(axis=0)
    assert np.all(found.right[peak, np.arange(12)] > 0)
    np.testing.assert_allclose(
        (found.left * found.values) @ found.right.T, (left[:, :12] * values[:12]) @ right_t[:12], atol=1e-7
    )
    other = truncated_svd(sp.csr_matrix(matrix), 12, seed=2)
    np.testing.assert_allclose(other.right, found.right, atol=1e-7)


def test_missing_directions_are_dropped_and_said(caplog):
    low = np.outer(np.arange(1, 8), np.ones(5))
    assert len(truncated_svd(low, 4, seed=0).values) == 1
    assert "only 1 of the 4" in caplog.text


def test_principal_keeps_the_most_variance():
    x = np.random.default_rng(1).normal(size=(50, 6)) * [5, 4, 3, 2, 1, 0.5]
    x -= x.mean(axis=0)
    values = np.linalg.svd(x, compute_uv=False)
    np.testing.assert_allclose((principal(x, 3) ** 2).sum(axis=0), values[:3] ** 2)


@pytest.mark.parametrize("make_vectors", [svd, ppmi])
def test_bad_training_data_is_refused(make_vectors):
    options = SvdSettings() if make_vectors is svd else PpmiSettings()
    with pytest.raises(DataError, match="at least one event"):
        make_vectors(Histories.from_lists([[], []]), 3, options, "x")
    with pytest.raises(DataError, match="0 to 2, got 1 to 3"):
        make_vectors(Histories.from_lists([[1, 3]]), 3, options, "x")


def test_ppmi_needs_neighbours():
    with pytest.raises(DataError, match="near each other"):
        ppmi(Histories.from_lists([[0], [1], [1, 1]]), 3, PpmiSettings(), "x")


@pytest.mark.parametrize("bad", [{"dim": 0}, {"window": 0}, {"decay": 0.0}, {"decay": 1.1}, {"shift": -1.0}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        PpmiSettings(**bad)
