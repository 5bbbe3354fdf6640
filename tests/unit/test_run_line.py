"""The live line of a single run: what it tells, on how many letters, and how long it says that is left."""

import pytest

from memrl.config import TrainConfig
from memrl.sweep.run_line import RunLine
from memrl.sweep.stretch import Stretch

CELL = TrainConfig(N=64, reward_type="binned_distance", reward_bins=8, n_steps=3125)


def test_time_left_is_the_rest_of_the_budget_at_the_pace_since_the_run_went_on():
    line = RunLine(CELL, updates=1000)
    assert line.seconds_left(1000, 30.0) is None
    assert line.seconds_left(1100, 0.5) is None
    assert line.seconds_left(1100, 50.0) == pytest.approx(0.5 * 2025)
    assert line.seconds_left(3125, 50.0) == 0.0


@pytest.mark.parametrize(
    ("width", "told"),
    [
        (200, ["distance, 8 log bins, N = 64  ", "  observed 2.00  at most 0:", " episodes  P(secret) 0.0359"]),
        (80, ["1,120/3,125 updates  absorbed 1.20 of 6.00 bits  at most 0:"]),
    ],
)
def test_what_a_reader_needs_least_is_left_out_first(monkeypatch, width, told):
    line = RunLine(CELL, updates=0)
    monkeypatch.setattr(line, "_begun", line._begun - 20.0)
    last = Stretch(updates=1120, episodes=1120 * 32, absorbed_bits=1.2, observed_bits=2.0)
    text = line.describe(last, width)
    assert len(text) <= width
    assert [words for words in told if words not in text] == []


def test_before_the_first_update_there_is_a_budget_alone():
    assert RunLine(CELL, 0).describe(Stretch(), 200) == "distance, 8 log bins, N = 64  0/3,125 updates  0 episodes"
