"""Time left: a replay of the reference on a machine of constant speed, and what a forecast makes of little."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import memrl
from memrl.config import TrainConfig
from memrl.sweep.forecast import Forecast
from memrl.sweep.packing import pack_cells

REFERENCE = Path(__file__).parents[2] / "sweeps" / "reference" / "bitrate"
PASS_S, CELL_S = 4.6e-3, 0.83e-3
"""What an update of a pack takes, and what each of its cells adds, on an idle core."""

CELLS = [TrainConfig(N=4, seed=seed, n_steps=100) for seed in range(8)]


def read_cells() -> dict[TrainConfig, pd.Series]:
    """The cells of the reference and their rows."""
    frame = memrl.load(str(REFERENCE)).cells
    names = [name for name in TrainConfig.__annotations__ if name in frame and name != "model_files"]
    found = {}
    for row in frame.to_dict("records"):
        fields = {name: row[name] for name in names if not pd.isna(row[name])}
        found[TrainConfig(**fields)] = row
    return found


def start(packs, num_trials: int = 1) -> Forecast:
    forecast = Forecast()
    forecast.begin(packs, num_trials)
    return forecast


def replay(num_trials: int, step_s: float) -> pd.DataFrame:
    """What the forecast said and what was true, where cells end after as many updates as they did.

    The seconds of the reference's own rows tell what else its machine had to do at the time.
    """
    rows = read_cells()
    packs = pack_cells(list(rows), 128)
    seconds = [PASS_S * max(u) + CELL_S * sum(u) for u in ([rows[cell]["updates"] for cell in p] for p in packs)]
    begins, free = [], [0.0] * num_trials
    for took in seconds:
        trial = free.index(min(free))
        begins.append(free[trial])
        free[trial] += took
    forecast, said = start(packs, num_trials), []
    told: set[str] = set()
    for now in np.arange(step_s, max(free), step_s):
        for number, (pack, begin, took) in enumerate(zip(packs, begins, seconds, strict=True)):
            if not begin <= now <= begin + took + step_s:
                continue
            # All cells of a pack make their updates together; those that are left longest end it.
            most = max(rows[cell]["updates"] for cell in pack)
            updates = int(most * min(1.0, (now - begin) / took))
            forecast.see(number, 0, begin)
            forecast.see(number, updates, min(float(now), begin + took))
            for cell in pack:
                if rows[cell]["updates"] <= updates and cell.cell_id not in told:
                    told.add(cell.cell_id)
                    forecast.end(number, cell.cell_id, rows[cell]["updates"])
        said.append({"share": now / max(free), "said": forecast.seconds_left(), "true": max(free) - now})
    return pd.DataFrame(said)


def test_time_left_is_right_from_a_quarter_of_the_reference_on():
    said = replay(num_trials=2, step_s=6.0)
    told = said[said["share"].between(0.25, 0.95)]
    ratio = told["said"] / told["true"]
    assert ratio.between(0.7, 1.3).mean() > 0.85
    assert ratio.between(0.5, 2.0).all()


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
