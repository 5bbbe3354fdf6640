"""Verdicts: the rule, and each hypothesis on processes that were made to support, refute or leave it open."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from simulated_sweep import simulate_sweep

from memrl.analysis.cells import measured_cells
from memrl.analysis.curves import collect_curves, when_observer_knew
from memrl.analysis.selection import hold_out_settings
from memrl.analysis.verdicts.adapters import judge_learning_rate, judge_rank
from memrl.analysis.verdicts.channels import judge_binary, judge_bins, judge_exploration
from memrl.analysis.verdicts.intervals import pooled_slope
from memrl.analysis.verdicts.judge import judge_hypotheses
from memrl.analysis.verdicts.per_step import judge_number_of_bits, judge_per_step
from memrl.analysis.verdicts.verdict import decide
from memrl.sweep.grid import load_grid
from memrl.task.reward import build_channel
from memrl.theory.capacity import channel_capacity


def measure(**grid):
    """Cells, those at held-out settings, and when their observers knew, of a simulated sweep."""
    table, curves = simulate_sweep(**grid)
    cells = measured_cells(table.to_pandas())
    chosen = hold_out_settings(cells)
    return cells, chosen, when_observer_knew(collect_curves(curves, chosen), chosen["signal_bits"].to_numpy())


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        ((0.8, 1.2), "supported"),
        ((0.75, 1.25), "supported"),
        ((1.3, 2.0), "refuted"),
        ((0.1, 0.7), "refuted"),
        ((0.7, 1.0), "undecided"),
        ((0.0, np.inf), "undecided"),
        ((1.3, np.inf), "refuted"),
        ((np.nan, 1.0), "undecided"),
    ],
)
def test_rule(interval, outcome):
    lower, upper = interval
    assert decide(lower, upper, (0.75, 1.25)) == outcome


def test_a_binary_reward_is_far_below_a_bit_and_says_what_it_could_tell():
    _, chosen, _ = measure(Ns=(64, 256), processes=("binary",), ranks=(8,), rates=(3e-3,))
    verdict = judge_binary(chosen)
    assert verdict.outcome == "supported"
    assert "N = 256" in verdict.sentence
    assert verdict.lower <= verdict.value <= verdict.upper <= 0.1


def test_a_rate_near_a_bit_refutes_h1a():
    _, chosen, _ = measure(Ns=(16,), processes=("sft",), ranks=(8,), rates=(3e-3,))
    assert judge_binary(chosen.assign(reward_type="binary")).outcome == "refuted"


def test_exploration_is_counted_from_the_effective_capacity():
    _, chosen, known = measure(Ns=(64,), processes=("binary",), ranks=(8,), rates=(3e-3,))
    capacity = chosen["capacity_best_bits"].iloc[0]
    observed, absorbed = (float(x.sum()) for x in (known[1], chosen["absorbed_bits"].clip(lower=0)))
    lost = capacity - observed / known[0].sum()
    missing = capacity - absorbed / chosen["episodes"].sum()
    verdict = judge_exploration(chosen, known)
    assert verdict.value == pytest.approx(lost / missing)
    # The nominal bit would blame exploration whatever the policy did with what it was told.
    assert 1 - observed / known[0].sum() > 0.9 * (1 - absorbed / chosen["episodes"].sum())


def test_slow_absorption_refutes_that_exploration_is_to_blame():
    _, chosen, known = measure(Ns=(16,), processes=("binary",), ranks=(8,), rates=(3e-3,))
    # Everything that the channel can tell is observed, and the policies take 100 times the episodes.
    capacity = chosen["capacity_best_bits"].to_numpy()
    told = (known[1] / capacity, known[1])
    slow = chosen.assign(episodes=100 * chosen["episodes"])
    verdict = judge_exploration(slow, told)
    assert verdict.outcome == "refuted"
    assert verdict.value == pytest.approx(0.0, abs=1e-9)
    # Where nothing is observed but after 100 times the episodes, it is exploration.
    assert judge_exploration(slow, (100 * told[0], told[1])).outcome == "supported"


@pytest.mark.parametrize("num_seeds", [1, 2, 6])
def test_few_secrets_decide_nothing(num_seeds):
    grid = {"Ns": (16, 64), "processes": ("sft", "binary", "per_bit"), "rates": (1e-3, 3e-3, 1e-2)}
    cells, chosen, known = measure(**grid, num_seeds=num_seeds)
    verdicts = judge_hypotheses(cells, chosen, known)
    assert {verdict.outcome for verdict in verdicts} <= {"undecided"}
    if num_seeds > 1:
        assert all("It takes 8 secrets" in verdict.sentence for verdict in verdicts)


def test_hypotheses_without_data_get_no_verdict():
    cells, chosen, known = measure(Ns=(16, 64), processes=("sft", "per_bit"), ranks=(8,), rates=(3e-3,))
    assert [verdict.name for verdict in judge_hypotheses(cells, chosen, known)] == ["H3"]
    cells, chosen, known = measure(Ns=(16,), processes=("binary",), ranks=(8,), rates=(3e-3,))
    assert [verdict.name for verdict in judge_hypotheses(cells, chosen, known)] == ["H1a", "H1b"]


def test_bins_that_learn_in_proportion_support_h2():
    grid = {"Ns": (64, 256), "processes": ("binned-2", "binned-4", "binned-8"), "ranks": (8,), "rates": (3e-3,)}
    _, chosen, _ = measure(**grid, num_seeds=32)
    verdict = judge_bins(chosen)
    assert verdict.outcome == "supported"
    assert verdict.lower <= 1.08 <= verdict.upper
    assert judge_bins(chosen[chosen["reward_bins"] != 4].reset_index(drop=True)) is None


def test_bitrate_grid_can_decide_h2():
    cells = load_grid("bitrate", Path(__file__).parents[2] / "sweeps" / "grids").cells().values()
    binned = [c for c in cells if c.reward_type == "binned_distance" and c.binning == "log"]
    bins = {(cell.N, cell.reward_bins): cell for cell in binned}
    identifiable = [N for (N, _), cell in bins.items() if channel_capacity(build_channel(cell)).identifiable]
    assert Counter(identifiable) == {16: 3, 64: 3, 256: 2}


def test_h2_says_that_it_is_open_where_runs_are_too_few():
    grid = {"Ns": (64,), "processes": ("binned-2", "binned-4", "binned-8"), "ranks": (8,), "rates": (3e-3,)}
    _, chosen, _ = measure(**grid, num_seeds=8)
    slow = ((chosen["reward_bins"] == 8) & (chosen["seed"] < 4)).to_numpy()
    verdict = judge_bins(chosen.assign(e90_censored=chosen["e90_censored"] | slow))
    assert verdict.outcome == "undecided"
    assert verdict.sentence.endswith("fewer than half got to 0.9.")


def test_bins_that_make_no_difference_refute_h2():
    grid = {"Ns": (64,), "processes": ("binned-2", "binned-4", "binned-8"), "ranks": (8,), "rates": (3e-3,)}
    _, chosen, _ = measure(**grid)
    by_seed = chosen.groupby("seed")
    same = chosen.assign(**{name: by_seed[name].transform("mean") for name in ("e50", "e90", "episodes")})
    verdict = judge_bins(same)
    assert verdict.outcome == "refuted"
    assert abs(verdict.value) < 0.1


def test_per_bit_against_sft():
    _, chosen, _ = measure(Ns=(16, 64), processes=("sft", "per_bit"), ranks=(8,), rates=(3e-3,))
    assert judge_per_step(chosen).outcome == "refuted"
    fast = chosen.assign(e50=chosen["e50"].where(chosen["channel"] != "per_bit", 2.0))
    verdict = judge_per_step(fast)
    assert verdict.outcome == "supported"
    assert verdict.upper <= 2.0
    assert judge_per_step(chosen[(chosen["channel"] == "sft").to_numpy()]) is None


@pytest.mark.parametrize(("slope", "outcome"), [(0.0, "supported"), (0.5, "refuted")])
def test_rank(slope, outcome):
    cells, _, _ = measure(Ns=(16, 64), processes=("per_bit", "binned-8"), rates=(3e-3,), rank_slope=slope)
    verdict = judge_rank(cells)
    assert verdict.outcome == outcome
    # E grows as rank^slope on top of the observer's first episodes: a little less than 64^-slope from 1 to 64.
    assert verdict.value == pytest.approx(64.0**-slope, rel=0.15)


def test_rank_is_undecided_where_ranks_do_not_arrive():
    cells, _, _ = measure(Ns=(16,), processes=("per_bit",), rates=(3e-3,), rank_slope=0.8, max_episodes=400)
    verdict = judge_rank(cells)
    assert verdict.outcome == "undecided"
    assert "1 of 1" in verdict.sentence


def test_equal_best_rates_support_h5():
    cells, _, _ = measure(Ns=(16, 64), processes=("per_bit", "binned-8"), rates=(1e-3, 3e-3, 1e-2))
    verdict = judge_learning_rate(cells)
    assert verdict.outcome == "supported"
    assert verdict.value == pytest.approx(1.0)


def test_best_rates_that_follow_the_rank_refute_h5():
    cells, _, _ = measure(Ns=(16, 64), processes=("per_bit",), ranks=(1, 8), rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2))
    # At rank 8 every rate works as a rate 3 times as large did.
    moved = cells.assign(
        learning_rate=np.where(cells["lora_rank"] == 8, cells["learning_rate"] / 3, cells["learning_rate"])
    )
    verdict = judge_learning_rate(moved)
    assert verdict.outcome == "refuted"
    assert verdict.value == pytest.approx(3.0)


def test_best_rates_at_the_edge_leave_h5_open():
    cells, _, _ = measure(Ns=(16,), processes=("per_bit",), rates=(3e-3, 1e-2, 3e-2))
    verdict = judge_learning_rate(cells)
    assert verdict.outcome == "undecided"
    assert "smallest or largest that was tried in 3 of 3" in verdict.sentence


@pytest.mark.parametrize(("power", "outcome"), [(0.0, "supported"), (1.0, "refuted")])
def test_number_of_bits(power, outcome):
    _, chosen, _ = measure(Ns=(16, 64, 256), processes=("per_bit",), ranks=(8,), rates=(3e-3,), num_seeds=64)
    bits = np.log2(chosen["N"]) / 4
    verdict = judge_number_of_bits(chosen.assign(e50=chosen["e50"] * bits**power))
    assert verdict.outcome == outcome
    assert verdict.value == pytest.approx(power, abs=0.15)
    summed = chosen.assign(credit="episode")
    assert judge_number_of_bits(summed) is None
    assert judge_number_of_bits(chosen[(chosen["N"] > 16).to_numpy()].reset_index(drop=True)) is None


def test_pooled_slope_leaves_out_a_series_that_is_not_finite():
    x, series = np.array([0.0, 1.0, 0.0, 1.0]), np.array([0, 0, 1, 1])
    y = np.array([[0.0, 0.0], [2.0, np.inf], [5.0, 5.0], [9.0, 9.0]])
    assert pooled_slope(x, y, series).tolist() == [3.0, 4.0]
    assert np.isnan(pooled_slope(x, np.full((4, 1), np.inf), series)).all()
