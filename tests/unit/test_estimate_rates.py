"""Bits per episode, ratios and losses: coverage on processes whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from memrl.analysis.estimate import build_ledger, compare_with_agents
from memrl.analysis.resample import (
    divide_estimates,
    draw_weights,
    estimate_ratio,
    estimate_ratio_difference,
    percentile_interval,
)
from memrl.analysis.survival import Estimates, estimate_quantile

DRAWS = 2000


def cover(fit, truth):
    return ((fit.lower <= truth) & (truth <= fit.upper)).mean()


def guess_uniformly(seed, num_secrets, N, budget):
    """Bits and episodes of uniform guessing that is stopped by the budget, and the true rate."""
    hits = np.random.default_rng(seed).geometric(1 / N, size=(DRAWS, num_secrets))
    miss = (1 - 1 / N) ** budget
    bits = np.where(hits <= budget, np.log2(N), 0.0)
    true_rate = np.log2(N) * (1 - miss) / ((1 - miss) * N)
    return bits, np.minimum(hits, budget).astype(float), true_rate


@pytest.mark.parametrize(("num_secrets", "budget"), [(16, 10_000), (32, 10_000), (32, 80)])
def test_coverage_of_the_rate_of_uniform_guessing(num_secrets, budget):
    bits, episodes, truth = guess_uniformly(1, num_secrets, 64, budget)
    fit = estimate_ratio(bits, episodes, np.ones_like(bits, dtype=bool))
    assert 0.93 <= cover(fit, truth) <= 0.97


def test_percentile_interval_alone_would_not_cover():
    # The reason for studentizing: the plain percentile interval of the same rates covers too little.
    bits, episodes, truth = guess_uniformly(1, 16, 64, 10_000)
    weights = draw_weights(16).T
    low, high = percentile_interval((bits @ weights) / (episodes @ weights))
    assert ((low <= truth) & (truth <= high)).mean() < 0.92


def test_coverage_of_a_difference_of_rates():
    stream = np.random.default_rng(2)
    known, spent = stream.geometric(1 / 64, size=(DRAWS, 32)), stream.gamma(4.0, 25.0, size=(DRAWS, 32))
    bits = np.full(known.shape, 6.0)
    fit = estimate_ratio_difference((bits, known), (bits, known + spent), np.ones_like(bits, dtype=bool))
    assert 0.93 <= cover(fit, 6 / 64 - 6 / 164) <= 0.97


def test_coverage_of_a_ratio_to_an_agents_median():
    stream = np.random.default_rng(7)
    ours, best = (stream.geometric(1 / N, size=(DRAWS, n)).astype(float) for N, n in ((512, 16), (128, 400)))
    none = [np.zeros_like(x, dtype=bool) for x in (ours, best)]
    fit = divide_estimates(estimate_quantile(ours, none[0]), estimate_quantile(best, none[1]))
    truth = np.ceil(np.log(2) / -np.log1p(-1 / 512)) / np.ceil(np.log(2) / -np.log1p(-1 / 128))
    assert 0.93 <= cover(fit, truth) <= 0.97


def test_ratio_to_a_median_that_was_not_reached_is_a_bound():
    ours = Estimates(np.array([np.inf, 10.0]), np.array([400.0, 8.0]), np.array([np.inf, 14.0]))
    best = Estimates(np.array([20.0, np.inf]), np.array([16.0, 50.0]), np.array([25.0, np.inf]))
    ratio = divide_estimates(ours, best)
    assert ratio.value.tolist() == [np.inf, 0.0]
    assert ratio.lower.tolist() == [16.0, 0.0]
    assert ratio.upper.tolist() == [np.inf, 14.0 / 50.0]


def test_rows_of_unequal_length_are_estimated_alone():
    stream = np.random.default_rng(4)
    bits, episodes = stream.random((1, 9)) + 1, stream.random((1, 9)) + 10
    alone = estimate_ratio(bits, episodes, np.ones((1, 9), dtype=bool))
    padded = [np.vstack([np.pad(x, ((0, 0), (0, 3))), stream.random((1, 12)) + 5]) for x in (bits, episodes)]
    present = np.ones((2, 12), dtype=bool)
    present[0, 9:] = False
    both = estimate_ratio(padded[0], padded[1], present)
    np.testing.assert_allclose([both.value[0], both.lower[0], both.upper[0]], [x[0] for x in vars(alone).values()])


def test_constant_rows_have_no_spread_and_single_ones_no_interval():
    same = estimate_ratio(np.full((1, 8), 6.0), np.full((1, 8), 2.0), np.ones((1, 8), dtype=bool))
    assert (same.value[0], same.lower[0], same.upper[0]) == (3.0, 3.0, 3.0)
    one = estimate_ratio(np.array([[6.0]]), np.array([[2.0]]), np.array([[True]]))
    assert (one.lower[0], one.upper[0]) == (-np.inf, np.inf)


def test_ledger_adds_up_to_the_capacity():
    stream = np.random.default_rng(9)
    known = stream.geometric(1 / 64, size=24).astype(float)
    cells = pd.DataFrame(
        {
            "agent": "lora",
            "channel": "binary",
            "N": 64,
            "model": "embedded",
            "absorbed_bits": 5.9,
            "episodes": known + 100.0,
            "capacity_best_bits": 0.1161,
            "capacity_nominal_bits": 1.0,
        }
    )
    row = build_ledger(cells, known, np.full(24, 6.0)).iloc[0]
    assert row["observed_rate"] == pytest.approx(24 * 6.0 / known.sum())
    assert row["absorbed_rate"] == pytest.approx(24 * 5.9 / (known.sum() + 2400))
    assert row["exploration_loss"] + row["absorption_loss"] + row["absorbed_rate"] == pytest.approx(0.1161)
    assert row["exploration_loss_lower"] == pytest.approx(0.1161 - row["observed_rate_upper"])
    assert row["absorption_loss_lower"] <= row["absorption_loss"] <= row["absorption_loss_upper"]


def test_a_channel_nobody_observed_has_no_ledger():
    cells = pd.DataFrame({"agent": ["lora"], "channel": ["m:f"], "N": [4], "model": ["embedded"]})
    assert build_ledger(cells, np.array([np.nan]), np.array([np.nan])).empty


def test_ratios_use_the_optimal_agent_or_else_the_greedy_one():
    rows = [
        ("lora", "binary", 100.0),
        ("optimal", "binary", 25.0),
        ("greedy", "binary", 30.0),
        ("tabular_pg", "binary", 200.0),
        ("lora", "distance", 80.0),
        ("greedy", "distance", 2.0),
        ("lora", "sft", 3.0),
    ]
    table = pd.DataFrame(rows, columns=["agent", "channel", "e50"]).assign(N=64, capacity_best_bits=0.5)
    for end in ("_lower", "_upper"):
        table[f"e50{end}"] = table["e50"]
    for end in ("", "_lower", "_upper"):
        table[f"bits_per_episode{end}"] = 0.05
    found = compare_with_agents(table)
    found = found[found["agent"] == "lora"].set_index("channel")
    assert found["reference_agent"].fillna("none").to_dict() == {
        "binary": "optimal",
        "distance": "greedy",
        "sft": "none",
    }
    assert found["e50_vs_optimal"]["binary"] == 4.0
    assert found["e50_vs_optimal"]["distance"] == 40.0
    assert found["e50_vs_tabular_pg"]["binary"] == 0.5
    assert np.isnan(found["e50_vs_tabular_pg"]["sft"])
    assert found["rate_vs_capacity"]["sft"] == pytest.approx(0.1)
