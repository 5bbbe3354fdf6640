"""Objectives told apart: their names, the usual beside the chosen, edges, and what interference decides."""

import numpy as np
import pandas as pd
import pytest
from simulated_sweep import simulate_sweep, vary_objective

from memrl.analysis.cells import measured_cells
from memrl.analysis.estimate import estimate_groups
from memrl.analysis.objectives import (
    CHOSEN,
    REPORTED,
    USUAL,
    estimate_objectives,
    find_edges,
    hold_out_objectives,
    join_distilled,
    name_objectives,
    pivot_kept,
    split_objectives,
)
from memrl.analysis.resample import estimate_ratio_of_ratios
from memrl.analysis.selection import hold_out_settings
from memrl.analysis.verdicts.interference import judge_interference
from memrl.config import TrainConfig

GRID = {"Ns": (16,), "ranks": (8,), "rates": (1e-3, 3e-3, 1e-2)}


def collect(*tables):
    return join_distilled(measured_cells(pd.concat([table.to_pandas() for table in tables], ignore_index=True)))


@pytest.fixture(scope="module")
def cells():
    """One reward per bit as usual, and by rejection in a third of the episodes; SFT; a binary reward as usual."""
    per_bit, sft, binary = (simulate_sweep(processes=(name,), **GRID)[0] for name in ("per_bit", "sft", "binary"))
    return collect(per_bit, vary_objective(per_bit, 1 / 3, advantage="rejection", entropy_bonus=0.2), sft, binary)


def test_objectives_are_called_by_what_differs_from_the_usual_one():
    rows = [
        TrainConfig().identity(),
        TrainConfig(advantage="rejection", entropy_bonus=0.2, updates_per_batch=4).identity(),
        TrainConfig(advantage="exponential_weights", temperature=0.3, reward_type="distance").identity(),
        TrainConfig(loss="ppo", updates_per_batch=2).identity(),
        TrainConfig(algorithm="distill", explore="greedy").identity(),
        TrainConfig(algorithm="sft").identity(),
    ]
    assert name_objectives(pd.DataFrame(rows)).tolist() == [
        "group-centered",
        "rejection, entropy bonus 0.2, 4 updates a batch",
        "exponential weights, τ = 0.3",
        "group-centered, 2 updates a batch, ppo",
        "distilled, greedy guesses",
        "",
    ]


def test_a_distilled_cell_stands_on_its_channel_and_agents_do_not_play_it_twice():
    cell = TrainConfig(algorithm="distill", N=16)
    table = pd.DataFrame(
        [
            {**TrainConfig(N=16).identity(), "agent": "lora", "channel": "binary"},
            {**cell.identity(), "agent": "lora", "channel": cell.channel_name},
            {**TrainConfig(N=16).identity(), "agent": "greedy", "channel": "binary"},
            {**cell.identity(), "agent": "greedy", "channel": cell.channel_name, "explore": None},
        ]
    )
    joined = join_distilled(table)
    assert joined["channel"].tolist() == ["binary"] * 3
    assert joined["objective_name"].tolist() == ["group-centered", "distilled", "group-centered"]


def test_the_usual_and_the_chosen_stand_side_by_side_and_a_sole_objective_once(cells):
    chosen = hold_out_objectives(cells)
    table = estimate_groups(chosen, REPORTED).set_index(["channel", "objective"])
    assert list(table.index) == [("binary", USUAL), ("per_bit", CHOSEN), ("per_bit", USUAL), ("sft", "")]
    assert table.loc[("per_bit", CHOSEN), "e50"] < 0.5 * table.loc[("per_bit", USUAL), "e50"]
    of_chosen = chosen[(chosen["objective"] == CHOSEN).to_numpy()]
    assert set(of_chosen["objective_name"]) == {"rejection, entropy bonus 0.2"}
    # The verdicts' parts have all channels under each.
    assert set(split_objectives(cells)[CHOSEN]["channel"]) == {"binary", "per_bit"}


def test_a_sweep_of_one_objective_tells_none_apart(cells):
    usual = cells[(cells["objective_name"] != "rejection, entropy bonus 0.2").to_numpy()].reset_index(drop=True)
    assert list(split_objectives(usual)) == [""]
    expected = hold_out_settings(usual)
    pd.testing.assert_frame_equal(hold_out_objectives(usual).drop(columns="objective"), expected)


def test_the_chosen_of_many_equal_objectives_is_no_lucky_one():
    stream = np.random.default_rng(5)
    (table, _), count = simulate_sweep(processes=("per_bit",), Ns=(16,), ranks=(8,), rates=(3e-3,), num_seeds=16), 24
    many = collect(
        *[vary_objective(table, 1.0, advantage="rejection", entropy_bonus=0.01 * i) for i in range(1, count)]
    )
    many["e50"] = stream.gamma(4.0, 25.0, len(many)).round()
    chosen = split_objectives(many)[CHOSEN]
    reported = hold_out_settings(chosen)["e50"].mean()
    lucky = many.groupby("objective_name")["e50"].mean().min()
    error = many["e50"].std() / 4.0
    assert lucky < 100.0 - error
    assert abs(reported - 100.0) < 2.5 * error


def test_a_setting_that_may_use_few_episodes_gains_nothing_by_that(cells):
    usual = (cells["channel"] == "per_bit").to_numpy() & (cells["objective_name"] == "group-centered").to_numpy()
    rows = cells[usual].reset_index(drop=True)
    stopped = rows["learning_rate"] == 1e-2
    early = rows.assign(e50=rows["e50"].where(~stopped, 8.0), e50_censored=stopped)
    assert 1e-2 not in set(hold_out_settings(early)["learning_rate"])


def test_edges_name_the_conditions_whose_rate_may_lie_beyond(cells):
    edges = find_edges(hold_out_objectives(cells), cells).set_index(["channel", "objective"])
    assert not edges["at_edge"].any()
    slow = cells[(cells["learning_rate"] < 1e-2).to_numpy()].reset_index(drop=True)
    edges = find_edges(hold_out_objectives(slow), slow).set_index(["channel", "objective"])
    assert edges["at_edge"].all()
    assert edges.loc[("per_bit", USUAL), "rates_tried"] == "0.001 to 0.003"


def test_every_objective_and_group_size_is_estimated_at_rates_of_its_own(cells):
    table = estimate_objectives(cells).set_index(["channel", "objective_name"])
    assert (
        table.loc[("per_bit", "rejection, entropy bonus 0.2"), "e50"] < table.loc[("per_bit", "group-centered"), "e50"]
    )
    assert ("sft", "SFT") in table.index
    tables = [simulate_sweep(processes=("per_bit",), group_size=size, **GRID)[0] for size in (4, 8)]
    sizes = estimate_objectives(collect(*tables))
    assert sizes["group_size"].tolist() == [4, 8]
    assert sizes["num_cells"].tolist() == [16, 16]
    assert estimate_objectives(collect(tables[0])).empty


def test_the_ratio_of_two_ratios_is_that_of_their_sums_and_its_interval_covers_it():
    stream, covered = np.random.default_rng(3), 0
    for _ in range(200):
        bits, episodes = stream.gamma(4.0, 1.0, (2, 1, 24))
        told, told_in = stream.gamma(9.0, 1.0, (2, 1, 24))
        found = estimate_ratio_of_ratios((bits, episodes), (told, told_in), np.ones((1, 24), dtype=bool))
        assert found.value[0] == pytest.approx(bits.sum() / episodes.sum() / (told.sum() / told_in.sum()))
        covered += bool(found.lower[0] <= 1.0 <= found.upper[0])
    assert covered >= 180


def test_shares_kept_stand_side_by_side():
    ledger = pd.DataFrame(
        {
            "channel": ["binary", "binary", "sft"],
            "N": [16, 16, 16],
            "model": "embedded",
            "objective": [USUAL, "distilled", ""],
            "capacity_bits": [0.3, 0.3, 4.0],
            **{f"kept{end}": [0.1, 0.9, 0.5] for end in ("", "_lower", "_upper")},
        }
    )
    table = pivot_kept(ledger)
    assert table[["channel", "kept_usual", "kept_distilled"]].to_numpy().tolist() == [["binary", 0.1, 0.9]]


@pytest.mark.parametrize(("lost", "outcomes"), [(0.0, ["refuted", "supported"]), (0.9, ["supported", "supported"])])
def test_interference_decides_where_runs_are_lost_on_the_base_that_has_more(lost, outcomes):
    stream = np.random.default_rng(11)
    (table, _) = simulate_sweep(processes=("per_bit",), Ns=(16,), ranks=(8,), rates=(3e-3,), num_seeds=32)
    bases = []
    for model, interference in (("low", 0.1), ("middle", 0.4), ("high", 0.8)):
        both = collect(table, vary_objective(table, 0.5, advantage="rejection"))
        is_usual = (both["objective_name"] == "group-centered").to_numpy()
        fails = is_usual & (stream.random(len(both)) < (lost if model == "high" else 0.0))
        bases.append(both.assign(model=model, interference=interference, e50_censored=fails))
    verdicts = judge_interference(pd.concat(bases, ignore_index=True))
    assert [verdict.name for verdict in verdicts] == ["H9a", "H9b"]
    assert [verdict.outcome for verdict in verdicts] == outcomes
    # Bases that hardly differ decide nothing.
    assert judge_interference(pd.concat(bases[:1], ignore_index=True)) == []
