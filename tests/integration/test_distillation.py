"""Distillation: the policy comes to the observer's posterior, whoever asks, alone as in a pack."""

import chz
import numpy as np
import pyarrow.compute as pc
import pytest
from naive_policy import compare_adapters

from memrl.config import TrainConfig
from memrl.learning.pack import Pack
from memrl.task.reward import build_channel
from memrl.theory.bayes_agent import play_greedy

CHANNELS = {
    "binary": {"reward_type": "binary"},
    "distance": {"reward_type": "distance"},
    "binned": {"reward_type": "binned_distance", "reward_bins": 4},
    "per_bit": {"reward_type": "per_bit", "env_type": "multi_step"},
    "bit_count": {"reward_type": "bit_count", "env_type": "multi_step"},
    "per_element": {"reward_type": "per_element", "env_type": "multi_step", "N": 2, "secret_length": 3},
    "element_count": {"reward_type": "element_count", "env_type": "multi_step", "N": 2, "secret_length": 3},
}


def distill(channel, seed, **fields):
    shared = {"N": 8, "algorithm": "distill", "learning_rate": 3e-3, "updates_per_batch": 32, "n_steps": 30}
    return TrainConfig(**{**shared, **CHANNELS[channel], "seed": seed, **fields})


def test_the_policy_moves_to_the_posterior_of_what_one_guess_was_told():
    """Seed 0's first guess misses: seven secrets are left, all equally likely, and what was guessed is not one."""
    pack = Pack([distill("binary", 0, explore="greedy")])
    pack.update()
    candidates = pack.state.observer.candidates(0)
    assert len(candidates) == 7
    assert pack.update().secret_log2[0] == pytest.approx(-np.log2(7), abs=0.05)


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_greedy_asker_memorizes_as_fast_as_the_greedy_agent(channel):
    cells = [distill(channel, seed, explore="greedy") for seed in range(8)]
    pack = Pack(cells)
    while not pack.finished:
        pack.update()
    ended, curves = pack.drain()
    rows = {row["cell_id"]: row for row in ended}
    to_half = play_greedy(build_channel(cells[0])).to_half
    expected = [to_half[rows[cell.cell_id]["secret"]] for cell in cells]
    # Of two secrets that are left, the policy may give either a hair less than 1/2, which is all that there is to know.
    knows = curves.filter(pc.greater_equal(curves["absorbed_bits"], cells[0].signal_bits - 1.2)).to_pandas()
    first = knows.groupby("cell_id")["episodes"].min()
    got = [first[cell.cell_id] for cell in cells]
    assert all(row["status"] == "memorized" for row in rows.values())
    assert np.mean(got) <= 1.25 * np.mean(expected)


@pytest.mark.parametrize("explore", ["policy", "greedy", "thompson"])
def test_a_distilled_cell_does_not_depend_on_its_neighbors(explore):
    cells = [
        distill(channel, 3, explore=explore, dtype="float64", n_steps=4, updates_per_batch=4) for channel in CHANNELS
    ]
    together, alone = Pack(cells), Pack(cells[2:3])
    for _ in range(2):
        together.update()
        alone.update()
    place = together.state.configs.index(cells[2])
    got, expected = (pack.state.adapters.export_peft(i) for pack, i in ((together, place), (alone, 0)))
    assert compare_adapters(got, expected) <= 1e-9


def test_cells_that_learn_otherwise_can_not_share_its_pack():
    with pytest.raises(ValueError, match="configs must share"):
        Pack([distill("binary", 0), TrainConfig(N=8)])


def test_greedy_asks_one_question_a_batch():
    with pytest.raises(ValueError, match="batch_size must be 1 for explore=greedy"):
        distill("binary", 0, explore="greedy", batch_size=2)


def test_objectives_do_not_change_who_a_distilled_cell_is():
    cell = distill("binary", 0)
    assert chz.replace(cell, advantage="std_normalized").cell_id == cell.cell_id
    assert chz.replace(cell, explore="thompson").cell_id != cell.cell_id
