"""The share of env_steps in the well, on walks written by hand."""

import numpy as np
import torch

from memrl.learning.well import measure_well
from memrl.policy.trie_walk import Walk
from memrl.task.env import Outcomes


def walk_of(outcome_root, outcome_counts, symbol_log2):
    num = len(outcome_root)
    empty = np.zeros((num, 0), dtype=np.int64)
    root = np.array(outcome_root)
    return Walk(
        torch.zeros(0),
        np.zeros(0, dtype=np.int64),
        np.zeros(0, dtype=np.int64),
        root,
        root,
        np.array(outcome_counts),
        empty,
        empty,
        Outcomes(np.zeros((num, symbol_log2.shape[1]), dtype=np.int64), np.ones(num, dtype=bool)),
        np.nansum(symbol_log2, axis=1),
        symbol_log2,
    )


def test_an_env_step_is_in_the_well_where_p_is_small_and_no_episode_of_the_group_was_judged():
    symbol_log2 = np.log2([[0.5, 0.009, 0.009, 0.011]])
    walk = walk_of([0, 0], [[3], [5]], symbol_log2)
    advantages = np.zeros((2, 1, 4))
    advantages[:, 0, 2] = 0.5, -0.3
    # The first symbol is likely, the second is stuck, the third is pulled, and the last is just above the edge.
    assert measure_well(walk, advantages, np.array([0])).tolist() == [0.25]


def test_every_group_counts_and_padding_does_not():
    symbol_log2 = np.array([[-8.0, np.nan], [-8.0, -9.0], [-np.inf, -1.0]])
    walk = walk_of([0, 1, 2], [[4, 4], [8, 0], [8, 0]], symbol_log2)
    advantages = np.zeros((3, 2, 2))
    advantages[0, 1, 0] = 1.0
    assert measure_well(walk, advantages, np.arange(3)).tolist() == [0.5, 1.0, 0.5]


def test_roots_of_one_cell_are_counted_together_and_a_cell_without_episodes_is_unknown():
    walk = walk_of([0, 1], [[2], [2]], np.array([[-8.0], [-1.0], [-8.0]]))
    share = measure_well(walk, np.zeros((2, 1, 1)), np.array([0, 0, 1]))
    np.testing.assert_array_equal(share, [0.5, np.nan])
