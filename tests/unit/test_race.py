"""Stopping outpaced learning rates changes no choice and no estimate: replayed on committed and on simulated sweeps."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stopped_rates import read_reference, replay

from memrl.analysis.cells import CELL_COLUMNS, IDENTITY, measured_cells
from memrl.analysis.estimate import estimate_groups
from memrl.analysis.objectives import REPORTED, hold_out_objectives, join_distilled
from memrl.analysis.selection import hold_out_settings
from memrl.config import TrainConfig
from memrl.sweep.race import CHECKS, list_races
from memrl.tables.schema import Row
from memrl.task.reach import MILESTONES


@pytest.mark.parametrize("grid", ["published", "bits", "bitrate"])
def test_a_committed_sweep_that_had_stopped_what_is_outpaced_reports_the_same(grid):
    table, cells = read_reference(grid)
    trained = (table["agent"] == "lora").to_numpy()
    fewer = pd.concat([replay(table[trained], cells), table[~trained]], ignore_index=True)
    assert 1.0 - fewer["episodes"][trained].sum() / table["episodes"][trained].sum() > 0.2
    for within in (IDENTITY, (*IDENTITY, "lora_rank"), (*IDENTITY, "group_size")):
        full, few = (report(rows, within) for rows in (table, fewer))
        pd.testing.assert_frame_equal(few, full)


def report(table: pd.DataFrame, within: Sequence[str]) -> pd.DataFrame:
    chosen = hold_out_objectives(join_distilled(measured_cells(table)), within)
    assert "stopped" not in set(chosen["status"])
    return estimate_groups(chosen, [*within, *set(REPORTED) - set(within)])


RATES, SEEDS, BUDGET = (1e-3, 3e-3, 1e-2), range(4), 100
SETTINGS = [
    TrainConfig(algorithm="sft", batch_size=1, n_steps=BUDGET, learning_rate=rate, seed=seed)
    for rate in RATES
    for seed in SEEDS
]
runs = st.tuples(*(st.one_of(st.none(), st.integers(0, BUDGET)) for _ in MILESTONES))


@settings(max_examples=25)
@given(st.lists(runs, min_size=len(SETTINGS), max_size=len(SETTINGS)))
def test_whatever_the_runs_come_to_the_same_rates_are_chosen(reached):
    table = pd.DataFrame([simulate_row(cell, *first) for cell, first in zip(SETTINGS, reached, strict=True)])
    fewer = replay(table, SETTINGS)
    for quantity in MILESTONES:
        full, few = (hold_out_settings(measured_cells(rows), quantity=quantity) for rows in (table, fewer))
        assert few["cell_id"].tolist() == full["cell_id"].tolist()
        np.testing.assert_array_equal(few[quantity], full[quantity])


def simulate_row(cell: TrainConfig, *first: int | None) -> Row:
    """A run that ended with the last milestone that it reached, or spent its budget."""
    reached = dict(zip(MILESTONES, first, strict=True))
    known = [episodes for episodes in first if episodes is not None]
    is_whole = len(known) == len(first)
    return {
        **dict.fromkeys(CELL_COLUMNS),
        **{name: value for name, value in cell.identity().items() if name in CELL_COLUMNS},
        **reached,
        **{f"{name}_censored": episodes is None for name, episodes in reached.items()},
        "cell_id": cell.cell_id,
        "agent": "lora",
        "channel": cell.channel_name,
        "episodes": max(1, *known) if is_whole else BUDGET,
        "absorbed_bits": 0.0,
        "status": "memorized" if is_whole else "budget_spent",
    }


def test_conditions_are_raced_over_their_rates_alone():
    others = [TrainConfig(algorithm="sft", learning_rate=rate, seed=9) for rate in RATES[:1]]
    (race,) = list_races([*SETTINGS, *others])
    assert list(race.cell_ids) == [cell.cell_id for cell in SETTINGS]
    assert race.every == BUDGET // CHECKS
    lacking = SETTINGS[1:]
    keyed = [TrainConfig(num_keys=4, batch_size=16, group_size=8, learning_rate=rate) for rate in RATES]
    assert list_races(lacking) == list_races(keyed) == []
