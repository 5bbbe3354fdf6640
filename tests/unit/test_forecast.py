"""Time left: a replay of the reference's own timestamps, and what a forecast makes of little."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import memrl
from memrl.config import TrainConfig
from memrl.sweep.forecast import Forecast
from memrl.sweep.grid import load_grid
from memrl.sweep.packing import choose_pack_size, pack_cells

SWEEPS = Path(__file__).parents[2] / "sweeps"

CELLS = [TrainConfig(N=4, seed=seed, n_steps=100) for seed in range(8)]


def read_timeline(grid: str) -> list[tuple[list[TrainConfig], pd.DataFrame, float]]:
    """The packs of a committed sweep of one trial, the ends of their cells and when each began, in seconds.

    A cell's row was made when it ended. A pack began when the one before had ended, or later: before its first cell
    ended all of its cells had taken their share of the time.
    """
    rows = memrl.load(str(SWEEPS / "reference" / grid)).cells.set_index("cell_id")
    rows["at"] = (rows["created"] - rows["created"].min()).dt.total_seconds()
    cells = list(load_grid(grid, SWEEPS / "grids").cells().values())
    timeline, ended = [], -math.inf
    for pack in pack_cells(cells, choose_pack_size(len(cells), 1)):
        ends = rows.loc[[cell.cell_id for cell in pack], ["at", "updates", "seconds"]].sort_values(["updates", "at"])
        assert ends["at"].is_monotonic_increasing, "the packs are those of the reference"
        begun = max(ended, ends["at"].iloc[0] - len(pack) * ends["seconds"].iloc[0])
        timeline.append((pack, ends, begun))
        ended = ends["at"].iloc[-1]
    return timeline


def replay(grid: str, every: int) -> pd.DataFrame:
    """What the forecast said and what was true, by a committed sweep's own timestamps, now and then."""
    timeline = read_timeline(grid)
    first, last = timeline[0][2], timeline[-1][1]["at"].iloc[-1]
    forecast, said = start([pack for pack, *_ in timeline], 1), []
    stretches = itertools.count(1)
    for number, (_, ends, begun) in enumerate(timeline):
        at, updates = np.r_[begun, ends["at"]], np.r_[0, ends["updates"]]
        left = ends
        for now in np.append(np.arange(begun + 1, at[-1]), at[-1]):
            forecast.see(number, int(np.interp(now, at, updates)), now)
            for cell_id, cell in left[left["at"] <= now].iterrows():
                forecast.end(number, cell_id, int(cell["updates"]))
            left = left[left["at"] > now]
            if next(stretches) % every == 0:
                share = (now - first) / (last - first)
                said.append({"share": share, "said": forecast.seconds_left(), "true": last - now})
    return pd.DataFrame(said)


def start(packs, num_trials: int = 1) -> Forecast:
    forecast = Forecast()
    forecast.begin(packs, num_trials)
    return forecast


def test_time_left_is_right_from_a_quarter_of_the_reference_on():
    """By its own timestamps, though two of its 43 packs took 28 % of the time."""
    said = replay("bitrate", every=10)
    told = said[said["share"].between(0.25, 0.95)]
    assert len(told) > 30
    assert (told["said"] / told["true"]).between(0.7, 1.3).all()


def test_what_is_known_of_an_earlier_sweep_and_of_the_rate_tells_before_the_first_update():
    """A batch that is used four times makes four updates, and is one batch of the run's length."""
    again = [TrainConfig(N=4, seed=seed, n_steps=100, updates_per_batch=4) for seed in range(8)]
    for cells in (CELLS, again):
        forecast = start([cells])
        assert forecast.seconds_left() is None
        forecast.learn_cost(cells[0], num_cells=8, updates=10, seconds=1.0)
        for cell in cells * 40:
            forecast.learn_length(cell, 20)
        # 0.1 s a pass of 8 cells; they end about one after another, after 20 passes in the mean.
        assert forecast.seconds_left() == pytest.approx(2.0 * (20 * 8 + 6 * 54) / (20 * 14), rel=0.2)


def test_nothing_is_said_before_an_update_and_nothing_is_left_after_the_last():
    forecast = start([CELLS[:4], CELLS[4:]])
    assert forecast.seconds_left() is None
    forecast.see(0, 0, 10.0)
    assert forecast.seconds_left() is None
    forecast.see(0, 50, 20.0)
    early = forecast.seconds_left()
    assert early is not None
    assert early > 10
    for number, cells in enumerate((CELLS[:4], CELLS[4:])):
        forecast.see(number, 60, 40.0)
        for cell in cells:
            forecast.end(number, cell.cell_id, 60)
    assert forecast.seconds_left() == 0


def test_cells_that_live_on_count_as_long_ones():
    """Else a sweep in which a few cells end early would seem nearly done."""
    short, long = start([CELLS[:4], CELLS[4:]]), start([CELLS[:4], CELLS[4:]])
    for forecast, alive in ((short, 1), (long, 3)):
        forecast.see(0, 0, 0.0)
        forecast.see(0, 80, 8.0)
        for cell in CELLS[: 4 - alive]:
            forecast.end(0, cell.cell_id, 10)
    assert (long.seconds_left() or 0.0) > (short.seconds_left() or math.inf)


def test_updates_of_a_launch_before_cost_no_time_in_this_one():
    forecast = start([CELLS])
    forecast.see(0, 90, 0.0)
    forecast.see(0, 95, 5.0)
    assert forecast.seconds_left() == pytest.approx(5.0, rel=0.5)


def test_a_machine_that_stood_still_for_a_while_is_not_taken_as_what_is_to_come():
    forecast = start([CELLS, [*CELLS]], num_trials=2)
    for now, updates in ((0.0, 0), (10.0, 10), (20.0, 20), (200.0, 24), (210.0, 34)):
        for pack in (0, 1):
            forecast.see(pack, updates, now)
    left = forecast.seconds_left()
    assert left is not None
    assert left < 100
    assert start([CELLS]).seconds_left() is None
