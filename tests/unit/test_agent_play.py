"""The baseline agents beside a sweep: in a process of their own, once for every cell, whatever a reward does to it."""

import time

import pytest

from memrl.config import TrainConfig
from memrl.sweep.agent_play import AgentPlay, find_unplayed
from memrl.theory.agents import LARGEST_PLAYED_N, play_agents, tabular_rates

CELLS = [TrainConfig(N=4, seed=seed, learning_rate=rate) for seed in range(2) for rate in (1e-3, 1e-2)]


FRAGILE = """
import os
import numpy as np

def raise_late(guess, secret, N):
    if guess.max() > 1:
        raise RuntimeError("the reward service\\nis gone")
    return (guess == secret).astype(float)

def sound(guess, secret, N):
    return (guess == secret).astype(float)

def end_process(guess, secret, N):
    if guess.max() > 1:
        os._exit(7)
    return (guess == secret).astype(float)
"""


def test_every_cell_is_played_for_and_none_again():
    play = AgentPlay(CELLS)
    play.start()
    while not play.wait(60):
        pass
    rows = play.rows
    assert {row["agent"] for row in rows} == {"optimal", "greedy", "uniform", "tabular_pg"}
    played = {row["cell_id"] for row in rows}
    assert find_unplayed(CELLS, played) == []
    assert find_unplayed(CELLS, set()) == CELLS
    more = TrainConfig(N=4, seed=5)
    assert find_unplayed([*CELLS, more], played) == [more]


def test_distilled_cells_are_played_by_those_that_know_the_posterior_and_keyed_ones_by_nobody():
    distilled = TrainConfig(algorithm="distill", N=4, group_size=8, batch_size=32)
    keyed = TrainConfig(N=4, num_keys=2, group_size=8, batch_size=16)
    play = AgentPlay([distilled, keyed])
    play.start()
    while not play.wait(60):
        pass
    assert play.problems == []
    assert {row["agent"] for row in play.rows} == {"optimal", "greedy", "uniform"}
    assert find_unplayed([distilled, keyed], set()) == [distilled]
    assert find_unplayed([distilled, keyed], {row["cell_id"] for row in play.rows}) == []


def test_nobody_waits_for_a_play_of_minutes():
    large = TrainConfig(N=2 * LARGEST_PLAYED_N)
    assert find_unplayed([large, TrainConfig(N=4, num_keys=2, group_size=8, batch_size=16), *CELLS], set()) == CELLS
    assert play_agents([large]) == []


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("raise_late", "raised RuntimeError: the reward service is gone (fragile_rewards_of_agents.py:7)"),
        ("end_process", "the process in which they play ended with exit code 7"),
        ("no_such", "reward_type must name an importable function"),
    ],
)
def test_a_reward_that_breaks_the_play_is_named_and_all_others_are_played(tmp_path, monkeypatch, function, problem):
    (tmp_path / "fragile_rewards_of_agents.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    fragile, sound = (f"fragile_rewards_of_agents:{name}" for name in (function, "sound"))
    play = AgentPlay([TrainConfig(N=4, reward_type=name) for name in (fragile, sound, "binary")])
    play.start()
    while not play.wait(60):
        pass
    assert len(play.problems) == 1
    assert play.problems[0].startswith(f"{fragile}: ")
    assert problem in play.problems[0]
    played = [row["channel"] for row in play.rows if row["agent"] == "tabular_pg"]
    assert sorted(name.partition("@")[0] for name in set(played)) == ["binary", sound]
    assert len(played) == 2 * len(tabular_rates(TrainConfig(N=4)))


def test_a_play_can_be_ended_where_it_is():
    play = AgentPlay([TrainConfig(N=4096, seed=seed) for seed in range(50)])
    play.start()
    start = time.monotonic()
    play.stop()
    assert play.wait(60)
    assert play.rows == play.problems == []
    assert time.monotonic() - start < 5
