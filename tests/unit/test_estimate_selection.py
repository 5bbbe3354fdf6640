"""Choosing a learning rate on one half of the seeds: deterministic, honest, and blind to what it reports."""

import numpy as np
import pandas as pd

from memrl.analysis.cells import TUNED
from memrl.analysis.selection import hold_out_settings
from memrl.analysis.survival import estimate_quantile


def build_cells(e50, rates, censored=None):
    """Cells of one channel from a table (rates, seeds) of e50."""
    e50 = np.asarray(e50, dtype=float)
    rate, seed = (x.ravel() for x in np.meshgrid(rates, np.arange(e50.shape[1]), indexing="ij"))
    cells = pd.DataFrame(dict.fromkeys(TUNED), index=range(e50.size))
    flags = np.zeros(e50.shape, dtype=bool) if censored is None else np.asarray(censored)
    return cells.assign(
        agent="lora",
        channel="binary",
        N=64,
        model="embedded",
        learning_rate=rate,
        lora_rank=8.0,
        seed=seed,
        e50=e50.ravel(),
        e50_censored=flags.ravel(),
    )


def test_each_half_is_reported_at_the_rate_of_the_other():
    even, odd = [10, 90], [80, 20]  # the first rate is better on even seeds, the second on odd ones
    table = [
        [even[0] if s % 2 == 0 else odd[0] for s in range(8)],
        [even[1] if s % 2 == 0 else odd[1] for s in range(8)],
    ]
    chosen = hold_out_settings(build_cells(table, [1e-3, 3e-3]))
    assert len(chosen) == 8
    assert set(chosen.loc[chosen["seed"] % 2 == 0, "learning_rate"]) == {3e-3}
    assert set(chosen.loc[chosen["seed"] % 2 == 1, "learning_rate"]) == {1e-3}
    assert sorted(chosen["e50"].unique()) == [80.0, 90.0]
    assert chosen["held_out"].all()


def test_censored_rates_lose_against_reached_ones():
    table = [[50.0] * 8, [50.0] * 8]
    chosen = hold_out_settings(build_cells(table, [1e-3, 3e-3], censored=[[True] * 8, [False] * 8]))
    assert set(chosen["learning_rate"]) == {3e-3}


def test_ties_go_to_the_smaller_rate_whatever_the_order_of_rows():
    cells = build_cells([[50.0] * 8, [50.0] * 8, [50.0] * 8], [1e-2, 3e-3, 1e-1])
    for seed in range(3):
        chosen = hold_out_settings(cells.sample(frac=1, random_state=seed).reset_index(drop=True))
        assert set(chosen["learning_rate"]) == {3e-3}


def test_where_no_rate_reaches_its_median_the_mean_decides():
    table, flags = np.full((2, 8), 100.0), np.ones((2, 8), dtype=bool)
    table[1, :4], flags[1, :4] = 40.0, False
    table[1, 4:], flags[1, 4:] = 100.0, True
    table[1, [0, 1]], flags[1, [2, 3]] = 40.0, True
    chosen = hold_out_settings(build_cells(table, [1e-3, 3e-3], censored=flags))
    assert set(chosen["learning_rate"]) == {3e-3}


def test_without_the_other_half_the_choice_is_marked():
    cells = build_cells([[50.0] * 8, [20.0] * 8], [1e-3, 3e-3])
    chosen = hold_out_settings(cells[cells["seed"] % 2 == 0].reset_index(drop=True))
    assert set(chosen["learning_rate"]) == {3e-3}
    assert not chosen["held_out"].any()


def test_a_setting_that_hardly_ran_is_no_candidate():
    cells = build_cells([[50.0] * 8, [20.0] * 8], [1e-3, 3e-3])
    started = (cells["learning_rate"] == 1e-3) | (cells["seed"] < 2)
    assert set(hold_out_settings(cells[started].reset_index(drop=True))["learning_rate"]) == {1e-3}


def test_one_setting_needs_no_choice_and_keeps_all_seeds():
    chosen = hold_out_settings(build_cells([[50.0] * 7], [1e-3]))
    assert len(chosen) == 7
    assert chosen["held_out"].all()


def test_selection_does_not_bias_what_is_reported():
    # Six equally good rates: the best of six looks better than it is, the one chosen on other secrets does not.
    draws, stream, rates = 2000, np.random.default_rng(2), np.geomspace(1e-3, 1e-1, 6)
    e50 = stream.geometric(1 / 256, size=(draws, 6, 16)).astype(float)
    cells = build_cells(e50.transpose(1, 0, 2).reshape(6, draws * 16), rates)
    cells = cells.assign(N=64 + cells["seed"] // 16, seed=cells["seed"] % 16)
    chosen = hold_out_settings(cells)
    reported = chosen.sort_values(["N", "seed"])["e50"].to_numpy().reshape(draws, 16)
    naive = e50[np.arange(draws), np.median(e50, axis=2).argmin(axis=1)]
    truth = np.ceil(np.log(2) / -np.log1p(-1 / 256))
    fit, biased = (estimate_quantile(x, np.zeros_like(x, dtype=bool)) for x in (reported, naive))
    assert 0.93 <= ((fit.lower <= truth) & (truth <= fit.upper)).mean() <= 0.97
    assert abs(np.median(fit.value) / truth - 1) < 0.08
    assert np.median(biased.value) / truth < 0.75
