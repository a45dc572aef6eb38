from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import linprog

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.quantizers import capacity, prices
from genrec.item_tokenizers.quantizers.balanced import balanced_kmeans, balanced_labels, capacity_assign
from genrec.item_tokenizers.quantizers.kmeans import kmeans
from genrec.seeding import id_hash


def blobs(n, dim, n_blobs, seed):
    generator = np.random.default_rng(seed)
    centres = 2 * generator.normal(size=(n_blobs, dim))
    at = generator.choice(n_blobs, size=n, p=(p := 1 / np.arange(1, n_blobs + 1)) / p.sum())
    return (centres[at] + generator.normal(size=(n, dim))).astype("f4")


def optimum(cost_NK, low, high):
    """The transport problem as a linear programme (its vertices are whole numbers)."""
    n, k = cost_NK.shape
    columns = sparse.kron(np.ones(n), sparse.eye(k))
    scale = float(np.abs(cost_NK).max()) or 1.0
    found = linprog(
        cost_NK.ravel() / scale,
        A_eq=sparse.kron(sparse.eye(n), np.ones(k)),
        b_eq=np.ones(n),
        A_ub=sparse.vstack([columns, -columns]),
        b_ub=np.concatenate([np.broadcast_to(high, k), -np.broadcast_to(low, k)]),
    )
    assert found.status == 0
    return scale * found.fun


@st.composite
def problems(draw):
    n, k = draw(st.integers(1, 40)), draw(st.integers(1, 9))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    cost = generator.normal(size=(n, k)) * draw(st.sampled_from([1e-3, 1.0, 1e3]))
    kind = draw(st.sampled_from(["plain", "ties", "alike", "skewed"]))
    if kind == "ties":
        cost = np.round(cost)
    if kind == "alike":
        cost[:] = cost[0]
    if kind == "skewed":
        cost[:, 0] -= 2 * np.abs(cost).max()
    low = generator.integers(0, n // k + 1, size=k)
    high = low + generator.integers(0, 8, size=k)
    high[generator.integers(k)] += max(n - high.sum(), 0)
    return cost.astype("f4"), low, high


def check_optimal(cost, low, high, labels):
    sizes = np.bincount(labels, minlength=cost.shape[1])
    assert (sizes >= low).all()
    assert (sizes <= high).all()
    total = cost[np.arange(len(cost)), labels].astype(float).sum()
    assert total == pytest.approx(
        optimum(cost.astype(float), low, high), rel=1e-6, abs=1e-6 * float(np.abs(cost).max())
    )


@pytest.mark.parametrize("seats", [True, False])  # one call of scipy; prices and repair
@given(problem=problems())
@settings(max_examples=50, deadline=None)
def test_assignment_is_the_cheapest_within_the_limits(seats, problem):
    cost, low, high = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capacity, "_SMALL", 1 << 30 if seats else 0)
        check_optimal(cost, low, high, capacity_assign(cost, low, high))


@pytest.mark.parametrize(("low", "high"), [(15, 16), (0, 18), (10, 40), (5, 19)])
def test_larger_problems_are_exact_too(low, high):
    x = blobs(470, 6, 12, 0)
    cost = ((x[:, None] - x[:30]) ** 2).sum(axis=2)
    check_optimal(cost, low, high, capacity_assign(cost, low, high))


@pytest.mark.parametrize("stalled", [True, False])
def test_repair_mends_any_prices(stalled, monkeypatch):
    """The optimum does not depend on how good the first prices are, nor on the sample they come from."""
    x = blobs(700, 5, 6, 1)
    cost = ((x[:, None] - x[:9]) ** 2).sum(axis=2)
    expected = cost[np.arange(700), capacity_assign(cost, 77, 78)].sum()
    monkeypatch.setattr(prices, "_MAX_SWEEPS", 0 if stalled else 40)
    monkeypatch.setattr(capacity, "_SAMPLE_ROWS_PER_CODE", 4)
    low, high = capacity.size_limits(700, 9, 77, 78)
    found = capacity.assign(cost, low, high)
    assert cost[np.arange(700), found.labels].sum() == pytest.approx(expected, rel=1e-6)
    # the prices say why: no row would rather pay another cluster's price
    paid = (cost + found.prices_K)[np.arange(700), found.labels]
    assert (paid <= (cost + found.prices_K).min(axis=1) + 1e-4).all()


@pytest.mark.parametrize("n", [30, 400])
def test_which_of_two_alike_rows_goes_where_is_decided_by_keys(n):
    generator = np.random.default_rng(0)
    cost = generator.normal(size=(10, 6)).astype("f4")[generator.integers(10, size=n)]
    keys = id_hash(map(str, range(n)))
    labels = capacity_assign(cost, n // 6, -(-n // 6), keys)
    order = generator.permutation(n)
    assert capacity_assign(cost[order], n // 6, -(-n // 6), keys[order]).tolist() == labels[order].tolist()
    assert capacity_assign(cost, n // 6, -(-n // 6), keys[::-1].copy()).tolist() != labels.tolist()


def test_limits_that_cannot_be_kept_are_refused():
    cost = np.zeros((10, 3))
    with pytest.raises(DataError, match=r"10 rows do not fit 3 clusters of 4 \.\. 5 rows: expected 12 \.\. 15"):
        capacity_assign(cost, 4, 5)
    with pytest.raises(DataError, match="10 rows"):
        capacity_assign(cost, 0, [3, 3, 3])
    with pytest.raises(ConfigError, match="min_size"):
        capacity_assign(cost, 5, 4)
    with pytest.raises(ConfigError, match="min_size"):
        capacity_assign(cost, -1, 4)
    with pytest.raises(DataError, match="finite"):
        capacity_assign(np.full((2, 2), np.nan), 1, 1)
    with pytest.raises(DataError, match="keys"):
        capacity_assign(cost, 3, 4, np.zeros(3, dtype=np.uint64))


@pytest.mark.parametrize(
    ("n", "k", "low", "high", "sizes"),
    [
        (1000, 7, None, None, (142, 143)),
        (256, 10, 10, 60, (10, 60)),
        (640, 32, None, 32, (0, 32)),
        (90, 4, 20, None, (20, 30)),
    ],
)
def test_clusters_keep_their_limits_and_centroids_are_means(n, k, low, high, sizes):
    x = blobs(n, 5, 9, 0)
    found = balanced_kmeans(x, k, seed=0, min_size=low, max_size=high)
    counts = np.bincount(found.labels, minlength=k)
    assert counts.min() >= sizes[0]
    assert counts.max() <= sizes[1]
    for code in np.flatnonzero(counts):
        np.testing.assert_allclose(found.centroids_KD[code], x[found.labels == code].mean(axis=0), atol=1e-4)
    assert found.inertia == pytest.approx(((x - found.centroids_KD[found.labels]) ** 2).sum(), rel=1e-4)


def test_more_iterations_never_leave_more():
    x = blobs(600, 4, 5, 3)
    inertia = [balanced_kmeans(x, 8, seed=1, max_iterations=n).inertia for n in range(1, 8)]
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(inertia))
    assert inertia[-1] < 0.98 * inertia[0]


def test_better_than_clusters_taking_turns():
    """Against the greedy rule (each cluster in turn takes its nearest N/K of what is left), and near plain k-means."""
    x, k = blobs(1200, 8, 30, 0), 24
    centroids = x[np.random.default_rng(0).choice(len(x), k, replace=False)]
    for _ in range(20):
        left, labels = np.arange(len(x)), np.empty(len(x), dtype=int)
        for code in range(k):
            nearest = np.argsort(((x[left] - centroids[code]) ** 2).sum(axis=1))[: len(x) // k]
            labels[left[nearest]] = code
            left = np.delete(left, nearest)
        centroids = np.stack([x[labels == code].mean(axis=0) for code in range(k)])
    greedy = ((x - centroids[labels]) ** 2).sum()
    ours = balanced_kmeans(x, k, seed=0).inertia
    assert ours < 0.95 * greedy
    assert kmeans(x, k, seed=0).inertia < ours < 1.2 * kmeans(x, k, seed=0).inertia


def test_the_order_of_rows_does_not_matter():
    x = np.repeat(blobs(150, 4, 5, 0), 3, axis=0)
    keys = id_hash(map(str, range(len(x))))
    order = np.random.default_rng(0).permutation(len(x))
    plain = balanced_kmeans(x, 16, seed=2, keys=keys)
    again = balanced_kmeans(x[order], 16, seed=2, keys=keys[order])
    assert again.centroids_KD.tobytes() == plain.centroids_KD.tobytes()
    assert again.labels.tolist() == plain.labels[order].tolist()
    labels = balanced_labels(x, plain.centroids_KD, keys=keys)
    assert balanced_labels(x[order], plain.centroids_KD, keys=keys[order]).tolist() == labels[order].tolist()
    assert np.ptp(np.bincount(labels)) <= 1


@pytest.mark.parametrize("n", [1, 5, 12])
def test_fewer_rows_than_codes_take_one_code_each(n):
    x = blobs(n, 3, 2, 0)
    x[: n // 2] = x[0]
    found = balanced_kmeans(x, 12, seed=0)
    assert sorted(found.labels.tolist()) == list(range(n))
    assert found.inertia == pytest.approx(0, abs=1e-6)
    assert found.centroids_KD.shape == (12, 3)
    assert np.isfinite(found.centroids_KD).all()
    if n < 12:
        with pytest.raises(DataError, match="rows do not fit"):
            balanced_kmeans(x, 12, seed=0, min_size=1)


def test_equal_rows_are_spread_over_all_codes():
    found = balanced_kmeans(np.ones((500, 2), dtype="f4"), 30, seed=0)
    assert set(np.bincount(found.labels).tolist()) == {16, 17}
    assert found.inertia == 0


def test_unusable_input_is_refused():
    with pytest.raises(ConfigError, match="n_codes"):
        balanced_kmeans(np.zeros((2, 2), dtype="f4"), 0, seed=0)
    with pytest.raises(DataError, match="keys"):
        balanced_kmeans(np.zeros((2, 2), dtype="f4"), 1, seed=0, keys=np.zeros(3, dtype=np.uint64))
    with pytest.raises(DataError, match="not finite"):
        balanced_kmeans(np.full((2, 2), np.inf, dtype="f4"), 1, seed=0)
