from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as SklearnKMeans

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.quantizers.kmeans import _lloyd, _refill, first_equal, kmeans, nearest, squared_error


def blobs(n, dim, n_blobs, seed, spread=1.0):
    generator = np.random.default_rng(seed)
    centres = 2 * generator.normal(size=(n_blobs, dim))
    return (centres[generator.integers(n_blobs, size=n)] + spread * generator.normal(size=(n, dim))).astype("f4")


@pytest.mark.parametrize(("n", "dim", "k"), [(3000, 16, 32), (5000, 8, 64), (1500, 33, 7)])
def test_inertia_is_as_low_as_sklearns(n, dim, k):
    ours, theirs = [], []
    for seed in range(3):
        x = blobs(n, dim, k, seed, spread=2.0)  # overlapping: plain blobs measure the luck of the start
        ours.append(kmeans(x, k, seed=seed).inertia)
        theirs.append(SklearnKMeans(k, n_init=1, random_state=seed).fit(x).inertia_)
    assert np.mean(ours) <= 1.02 * np.mean(theirs)


def test_labels_and_inertia_equal_a_loop():
    x = blobs(5000, 6, 10, 0)  # more than one chunk
    found = kmeans(x, 16, seed=1)
    gap = x[:, None, :].astype(np.float64) - found.centroids_KD[None]
    distance = (gap**2).sum(axis=2)
    own = distance[np.arange(len(x)), found.labels]
    assert (own <= distance.min(axis=1) + 1e-4).all()
    assert found.inertia == pytest.approx(own.sum(), rel=1e-5)
    assert nearest(x, found.centroids_KD).tolist() == found.labels.tolist()


def test_centroids_are_means_of_their_rows():
    x = blobs(800, 4, 8, 0)
    found = kmeans(x, 8, seed=0, stop_share=0.0, max_iterations=200)
    for code in range(8):
        np.testing.assert_allclose(found.centroids_KD[code], x[found.labels == code].mean(axis=0), atol=1e-4)


def test_same_seed_same_bytes_and_seed_matters():
    x = blobs(2000, 8, 20, 0)
    first, again, other = (kmeans(x, 20, seed=seed) for seed in (5, 5, 6))
    assert first.centroids_KD.tobytes() == again.centroids_KD.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert first.centroids_KD.tobytes() != other.centroids_KD.tobytes()


def test_sample_is_enough_for_plain_clusters():
    x = blobs(4000, 8, 5, 0, spread=0.1)
    sampled = kmeans(x, 5, seed=0, rows_per_code=40)
    assert len(sampled.labels) == 4000
    assert sampled.inertia < 1.1 * kmeans(x, 5, seed=0).inertia


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 12), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_few_distinct_rows(n, n_distinct, k, seed):
    """More codes than distinct rows: exact, finite, equal rows get equal codes, copies are never used."""
    generator = np.random.default_rng(seed)
    rows = np.round(generator.normal(size=(n_distinct, 3)), 1).astype(np.float32)
    x = rows[generator.integers(n_distinct, size=n)]
    found = kmeans(x, k, seed=seed)
    assert np.isfinite(found.centroids_KD).all()
    assert found.centroids_KD.shape == (k, 3)
    distinct, number = np.unique(x + 0.0, axis=0, return_inverse=True)
    pairs = set(zip(number.ravel().tolist(), found.labels.tolist(), strict=True))
    assert len(pairs) == len(distinct)
    if k >= len(distinct):
        assert found.inertia == 0
        assert len(np.unique(found.labels)) == len(distinct)


def test_empty_clusters_take_far_rows():
    x = blobs(600, 2, 60, 1)
    start = np.full((40, 2), 1e3, dtype=np.float32)
    start[0] = x.mean(axis=0)  # nothing is near the other 39
    centroids, _ = _lloyd(x, start, max_iterations=100, stop_share=0.0)
    assert len(np.unique(nearest(x, centroids))) == 40


@pytest.mark.parametrize(("n_codes", "dim"), [(2, 2), (9, 33), (17, 33), (9, 100)])
def test_copies_of_a_centroid_are_never_chosen(n_codes, dim):
    # equal columns of a matrix product may differ in the last bit, so argmin alone would choose copies
    generator = np.random.default_rng(0)
    centroids = np.tile(generator.normal(size=(n_codes, dim)), (3, 1)).astype(np.float32)[: 2 * n_codes + 3]
    x = generator.normal(size=(300, dim)).astype(np.float32)
    assert nearest(x, centroids).max() < n_codes


def test_negative_zero_equals_zero():
    x = np.array([[2.0, 3.0], [0.0, 1.0], [-0.0, 1.0]], dtype=np.float32)
    assert first_equal(x).tolist() == [0, 1, 1]


def test_squared_error_does_not_cancel():
    x = np.full((4, 3), 1e4, dtype=np.float32)
    centroids = x[:1] + np.float32(0.5)
    assert squared_error(x, centroids, np.zeros(4, dtype=np.int32)) == pytest.approx(4 * 3 * 0.25)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 3)), "non-empty"),
        (np.zeros(3), "non-empty"),
        (np.array([[0.0], [np.nan], [np.inf]]), "row 1 of 3 is not finite"),
    ],
)
def test_unusable_rows_are_refused(x, message):
    with pytest.raises(DataError, match=message):
        kmeans(x.astype(np.float32), 2, seed=0)


def test_no_codes_are_refused():
    with pytest.raises(ConfigError, match="n_codes"):
        kmeans(np.zeros((2, 2), dtype=np.float32), 0, seed=0)


def test_empty_centroids_move_to_different_rows_of_different_clusters():
    # errors: 21.25 around 0, halved by each row taken; 10.25 around 100
    x = np.array([[-3.0], [0.0], [3.5], [98.0], [102.5]], dtype=np.float32)
    labels = np.array([0, 0, 0, 1, 1], dtype=np.int32)
    centroids = np.array([[0.0], [100.0], [7.0], [7.0], [7.0]], dtype=np.float32)
    distance = ((x - centroids[labels]) ** 2)[:, 0]
    _refill(x, centroids, np.array([2, 3, 4]), labels, distance)
    assert centroids[:, 0].tolist() == [0.0, 100.0, 3.5, -3.0, 102.5]
