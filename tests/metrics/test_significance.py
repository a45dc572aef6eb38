import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.metrics import significance
from genrec.metrics.significance import (
    _incomplete_beta,
    bootstrap_mean,
    bootstrap_means,
    paired_randomization_test,
    paired_t_test,
)


def test_bootstrap_interval_is_near_the_normal_one_and_repeats():
    values = np.random.default_rng(0).random(4000)
    found = bootstrap_mean(values, n_resamples=2000, seed=3)
    half = 1.96 * values.std(ddof=1) / np.sqrt(4000)
    assert found.mean == pytest.approx(values.mean())
    assert found.mean - found.low == pytest.approx(half, rel=0.1)
    assert found.high - found.mean == pytest.approx(half, rel=0.1)
    assert bootstrap_mean(values, n_resamples=2000, seed=3) == found
    assert bootstrap_mean(values, n_resamples=2000, seed=4) != found


def test_bootstrap_leaves_nan_out_and_treats_columns_alike(monkeypatch):
    values = np.random.default_rng(1).random((60, 2))
    values[::3, 1] = np.nan
    both = bootstrap_means(values, n_resamples=200)
    assert both[1].n == 40 and both[1].mean == pytest.approx(np.nanmean(values[:, 1]))
    assert both[0] == bootstrap_mean(values[:, 0], n_resamples=200)
    monkeypatch.setattr(significance, "_CHUNK_ELEMENTS", 700)  # several pieces, the same draws
    assert bootstrap_means(values, n_resamples=200) == both


def test_bootstrap_of_nothing_is_nan():
    empty, full = bootstrap_means(np.array([[np.nan, 1.0], [np.nan, 1.0]]), n_resamples=50)
    assert np.isnan([empty.mean, empty.low, empty.high]).all() and empty.n == 0
    assert (full.mean, full.low, full.high) == (1, 1, 1)
    assert np.isnan(bootstrap_means(np.zeros((0, 1)))[0].mean)
    without = bootstrap_mean(np.array([1.0, 3.0]), n_resamples=0)
    assert without.mean == 2 and np.isnan(without.low)


@given(st.floats(0, 1), st.floats(0.5, 2e4), st.floats(0.5, 50))
@settings(max_examples=80, deadline=None)
def test_incomplete_beta_is_scipys(x, a, b):
    assert _incomplete_beta(x, a, b) == pytest.approx(scipy.special.betainc(a, b, x), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("n", [2, 5, 40, 3000])
def test_paired_t_is_scipys(n):
    random = np.random.default_rng(n)
    a, b = random.random(n), random.random(n) + 0.02
    expected = scipy.stats.ttest_rel(a, b)
    found = paired_t_test(a, b)
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.difference == pytest.approx((a - b).mean()) and found.n == n


def test_paired_t_without_variance():
    same = np.array([0.1, 0.7, 0.4])
    assert paired_t_test(same, same).p_value == 1
    assert paired_t_test(same + 0.5, same).p_value == 0
    assert np.isnan(paired_t_test(np.array([1.0]), np.array([0.0])).p_value)


def test_randomization_is_exact_for_few_pairs():
    a, b = np.array([3.0, 1.0, 2.0, 5.0]), np.zeros(4)
    assert paired_randomization_test(a, b).p_value == 2 / 2**4  # all plus, all minus
    assert paired_randomization_test(-a, b).p_value == 2 / 2**4
    signs = np.array([1.0, 1.0, -1.0])
    assert paired_randomization_test(signs, np.zeros(3)).p_value == 1.0  # |sum| is at least 1 in every pattern


def test_randomization_ignores_pairs_without_difference_and_nan():
    a, b = np.array([3.0, 1.0, 2.0, 5.0, 9.0, np.nan]), np.array([0.0, 0.0, 0.0, 0.0, 9.0, 1.0])
    found = paired_randomization_test(a, b)
    assert found.p_value == 2 / 2**4 and found.n == 5 and found.difference == pytest.approx(11 / 5)


def test_sampled_randomization_agrees_with_the_t_test_on_many_pairs():
    random = np.random.default_rng(0)
    a = random.random(400)
    b = a + random.normal(0.004, 0.04, 400)
    sampled = paired_randomization_test(a, b, n_resamples=20_000, seed=1)
    assert sampled.p_value == pytest.approx(paired_t_test(a, b).p_value, abs=0.01)
    assert 0.001 < sampled.p_value < 0.5
    assert sampled == paired_randomization_test(a, b, n_resamples=20_000, seed=1)


def test_sampled_p_is_never_zero():
    found = paired_randomization_test(np.arange(1.0, 60.0), np.zeros(59), n_resamples=99)
    assert found.p_value == 1 / 100


def test_sampled_randomization_has_uniform_p_under_no_difference():
    random = np.random.default_rng(5)
    p = [
        paired_randomization_test(random.normal(size=30), random.normal(size=30), n_resamples=400).p_value
        for _ in range(200)
    ]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="equal lengths"):
        paired_t_test(np.zeros(3), np.zeros(4))
