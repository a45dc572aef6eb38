# Axes: B batch, K codes
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from genrec.errors import ConfigError
from genrec.item_tokenizers.quantizers.sinkhorn import transport_plan, uniform_codes


def by_the_book(distance_BK, epsilon=0.003, n_iterations=50):
    """The published procedure on the whole table, in place."""
    d = distance_BK.astype(np.float64)
    middle, half = (d.max() + d.min()) / 2, (d.max() - d.min()) / 2
    q = np.exp(-((d - middle) / (half + 1e-5)) / epsilon)
    q /= q.sum()
    n_rows, n_codes = q.shape
    for _ in range(n_iterations):
        q /= q.sum(axis=1, keepdims=True)
        q /= n_rows
        q /= q.sum(axis=0, keepdims=True)
        q /= n_codes
    return q * n_rows


def distances(n_rows, n_codes, *, seed=0, dim=8, far=1.0, copies=False):
    generator = np.random.default_rng(seed)
    x, books = generator.normal(size=(n_rows, dim)), generator.normal(size=(n_codes, dim))
    books[0] *= far  # a codeword far from everything
    x[-1] *= far
    if copies:
        x[n_rows // 2 :] = x[: n_rows - n_rows // 2]
    return ((x[:, None] - books[None]) ** 2).sum(axis=2).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    n_rows=st.integers(1, 60),
    n_codes=st.integers(1, 20),
    seed=st.integers(0, 10**6),
    far=st.sampled_from([0.0, 1.0, 30.0]),
    copies=st.booleans(),
)
def test_plan_is_the_published_one(n_rows, n_codes, seed, far, copies):
    d = distances(n_rows, n_codes, seed=seed, far=far, copies=copies)
    expected = by_the_book(d)
    found = transport_plan(torch.from_numpy(d)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    # rows that hesitate between codes (copies among codewords, say) may go either way
    picked = expected[np.arange(n_rows), uniform_codes(torch.from_numpy(d)).numpy()]
    np.testing.assert_allclose(picked, expected.max(axis=1), rtol=1e-6)


def test_columns_sum_to_their_share_and_stay_finite_in_float64():
    plan = transport_plan(torch.from_numpy(distances(300, 32)))
    assert plan.dtype == torch.float64  # float32 overflows at this epsilon
    assert torch.isfinite(plan).all()
    torch.testing.assert_close(plan.sum(dim=0), torch.full((32,), 300 / 32, dtype=torch.float64), rtol=0, atol=1e-6)


def test_much_entropy_is_the_uniform_plan():
    plan = transport_plan(torch.from_numpy(distances(50, 10)), epsilon=1e6)
    torch.testing.assert_close(plan, torch.full((50, 10), 0.1, dtype=torch.float64), rtol=0, atol=1e-5)


def test_little_entropy_is_the_cheapest_assignment():
    d = distances(48, 6, seed=3)
    copies = np.repeat(d, 8, axis=1)  # eight places per code
    rows, columns = linear_sum_assignment(copies)
    cheapest = copies[rows, columns].sum()
    cost = float((transport_plan(torch.from_numpy(d), n_iterations=3000) * torch.from_numpy(d)).sum())
    assert cheapest * 0.999 < cost < cheapest * 1.01
    nearest = d.min(axis=1).sum()
    assert nearest < 0.97 * cheapest  # the capacity costs something here


@pytest.mark.parametrize("per_code", [4, 10])
def test_codes_share_the_batch(per_code):
    d = distances(per_code * 256, 256, dim=32)
    code = uniform_codes(torch.from_numpy(d)).numpy()
    load = np.bincount(code, minlength=256)
    assert load.min() > 0
    assert load.max() <= 2 * per_code
    rank = (d < d[np.arange(len(d)), code][:, None]).sum(axis=1)
    assert rank.mean() < 5
    crowded = np.bincount(d.argmin(axis=1), minlength=256)
    assert crowded.min() == 0 and crowded.max() > 2 * per_code  # which the nearest codeword does not give


def test_input_is_left_as_it_is():
    d = torch.from_numpy(distances(20, 5)).double()
    copy = d.clone()
    uniform_codes(d)
    assert torch.equal(d, copy)


def test_an_epsilon_that_overflows_is_refused():
    with pytest.raises(ConfigError, match=r"epsilon: expected 0\.003 or more"):
        uniform_codes(torch.zeros(3, 3), epsilon=0.002)
