"""Kaplan-Meier medians: against scipy, in closed form, and in coverage on channels whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from memrl.analysis.survival import PADDING, estimate_quantile, pad_rows, resample_medians, survival_steps

DRAWS = 2000


@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=25))
def test_survival_is_scipys(runs):
    times, censored = np.array([t for t, _ in runs], dtype=float), np.array([c for _, c in runs])
    ordered, survival, _ = survival_steps(times, censored)
    theirs = stats.ecdf(stats.CensoredData.right_censored(times, censored)).sf
    ours = [float(survival[np.flatnonzero(ordered <= t)[-1]]) if (ordered <= t).any() else 1.0 for t in range(1, 13)]
    np.testing.assert_allclose(ours, theirs.evaluate(np.arange(1, 13)), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    ("num_runs", "quantile"), [(10, 0.5), (16, 0.5), (25, 0.5), (64, 0.5), (200, 0.5), (200, 0.25)]
)
def test_uncensored_interval_ends_between_the_binomials_order_statistics(num_runs, quantile):
    # Exact: P(X_(d) > true quantile) = P(Binomial(n, q) < d), so 2.5 % lies between two order statistics.
    times = np.cumsum(np.random.default_rng(num_runs).exponential(size=num_runs))
    fit = estimate_quantile(times[None], np.zeros((1, num_runs), dtype=bool), quantile)
    below = stats.binom.cdf(np.arange(num_runs + 1), num_runs, quantile)
    low = np.flatnonzero(below <= 0.025)[-1] + 1
    high = np.flatnonzero(below >= 0.975)[0] + 1
    assert times[low - 1] * (1 - 1e-9) <= fit.lower[0] <= times[low]
    assert times[high - 2] <= fit.upper[0] <= times[high - 1] * (1 + 1e-9)


def test_padding_changes_nothing():
    times, censored = np.array([5.0, 9.0, 9.0, 14.0, 20.0]), np.array([False, False, True, False, True])
    alone = estimate_quantile(times[None], censored[None])
    padded = pad_rows(np.append(times, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), np.repeat([0, 1], [5, 7]), 2, PADDING)
    flags = pad_rows(np.append(censored, [False] * 7), np.repeat([0, 1], [5, 7]), 2, 1.0) > 0
    both = estimate_quantile(padded, flags)
    for name in ("value", "lower", "upper"):
        np.testing.assert_array_equal(getattr(both, name)[0], getattr(alone, name)[0])
    assert both.value[1] == 4.0


def test_censored_runs_are_neither_dropped_nor_set_to_their_budget():
    times, censored = np.array([[10.0, 20.0, 30.0, 50.0, 50.0, 50.0, 50.0]]), np.array([[False] * 3 + [True] * 4])
    fit = estimate_quantile(times, censored)
    assert math.isinf(fit.value[0])
    assert math.isinf(fit.upper[0])
    assert 10.0 < fit.lower[0] <= 20.0
    assert estimate_quantile(times, censored, 0.25).value[0] == 20.0


def test_no_runs_give_no_estimate():
    fit = estimate_quantile(np.array([[PADDING, PADDING], [3.0, PADDING]]), np.array([[True, True], [False, True]]))
    assert np.isnan(fit.value[0])
    assert np.isnan(fit.lower[0])
    assert fit.value[1] == 3.0


def test_quantile_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"quantile must lie strictly between 0 and 1, got 1\.0"):
        estimate_quantile(np.ones((1, 3)), np.zeros((1, 3), bool), 1.0)


@pytest.mark.parametrize("budget", [None, 60, 50], ids=["uncensored", "a third censored", "two fifths censored"])
@pytest.mark.parametrize("num_secrets", [12, 16, 20, 32, 64])
def test_coverage_on_uniform_guessing(num_secrets, budget):
    # Uniform guessing succeeds after a geometric number of episodes; N = 64 has its median at ln 2 / -ln(1 - 1/64).
    stream = np.random.default_rng(num_secrets)
    hits = stream.geometric(1 / 64, size=(DRAWS, num_secrets)).astype(float)
    censored = hits > budget if budget else np.zeros_like(hits, dtype=bool)
    fit = estimate_quantile(np.minimum(hits, budget or np.inf), censored)
    truth = math.ceil(math.log(2) / -math.log1p(-1 / 64))
    covered = ((fit.lower <= truth) & (truth <= fit.upper)).mean()
    assert 0.93 <= covered <= 0.97


def test_coverage_where_budgets_differ_between_runs():
    stream = np.random.default_rng(3)
    hits = stream.geometric(1 / 256, size=(DRAWS, 24)).astype(float)
    budgets = stream.integers(64, 1024, size=hits.shape)
    fit = estimate_quantile(np.minimum(hits, budgets), hits > budgets)
    truth = math.ceil(math.log(2) / -math.log1p(-1 / 256))
    assert 0.93 <= ((fit.lower <= truth) & (truth <= fit.upper)).mean() <= 0.97


def test_coverage_on_tabular_policy_gradient():
    # Exact gradient flow from p = 1/N with rate eta; a secret's own rate is lognormal, so the median time is known.
    N, stream = 100, np.random.default_rng(5)
    flow = N - 2 + 2 * ((N - 1) / N) * math.log(N - 1)
    times = flow * np.exp(0.5 * stream.normal(size=(DRAWS, 16)))
    fit = estimate_quantile(times, np.zeros_like(times, dtype=bool))
    assert 0.93 <= ((fit.lower <= flow) & (flow <= fit.upper)).mean() <= 0.97
    assert abs(np.median(fit.value) / flow - 1) < 0.02


@given(st.integers(0, 10_000))
def test_resampled_medians_are_medians_of_resamples(seed):
    stream = np.random.default_rng(seed)
    times = stream.integers(1, 9, size=(3, 7)).astype(float)
    censored = stream.random((3, 7)) < 0.3
    times[2, 5:], censored[2, 5:] = PADDING, True
    weights = stream.multinomial(7, np.full(7, 1 / 7), size=5).astype(float)
    found = resample_medians(times, censored, weights)
    for row in range(3):
        for draw in range(5):
            copies = weights[draw].astype(int) * (times[row] > PADDING)
            if copies.sum() == 0:
                assert math.isinf(found[row, draw])
                continue
            alone = estimate_quantile(np.repeat(times[row], copies)[None], np.repeat(censored[row], copies)[None])
            assert found[row, draw] == alone.value[0]
