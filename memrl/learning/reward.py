"""Rewarding the episodes of a walk, and letting an ideal observer hear it; who pays wrongly fails alone."""

import traceback
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from memrl.learning.numbered import Numbered
from memrl.policy.trie_walk import Walk
from memrl.task.env import step_rewards
from memrl.task.own_reward import OwnReward, RewardError
from memrl.task.reward import Channel
from memrl.theory.observer import PackObserver

Faults = dict[int, str]
"""What is wrong with the channel of a cell, by its place in the pack."""


def reward_walk(
    walk: Walk,
    channels: Numbered[Channel],
    secrets: Int[np.ndarray, "root digit"],
    num_env_steps: Int[np.ndarray, "cell"],
) -> tuple[Float[np.ndarray, "outcome env_step"], Faults]:
    """Rewards every outcome by its cell's channel.

    Args:
        walk: outcomes sorted by cell.
        channels: of the cells; those of one channel are rewarded together.
        secrets: digits of each root's secret, padded with -1.
        num_env_steps: env_steps of a whole answer.

    Returns:
        rewards, NaN at env_steps that were not taken; and the cells whose channel fails, whose rewards are 0.
    """
    rewards = np.full((len(walk.outcomes), int(num_env_steps.max())), np.nan)
    faults: Faults = {}
    for channel, rows in channels.split(walk.outcome_cell):
        try:
            _reward_rows(channel, rows, walk, secrets, num_env_steps, rewards)
        except RewardError:
            traceback.print_exc()
            for cell in np.unique(walk.outcome_cell[rows]).tolist():
                of_cell = np.flatnonzero(walk.outcome_cell == cell)
                try:
                    _reward_rows(channel, of_cell, walk, secrets, num_env_steps, rewards)
                except RewardError as error:
                    rewards[of_cell], faults[cell] = 0.0, str(error)
    return rewards, faults


def _reward_rows(
    channel: Channel,
    rows: np.ndarray,
    walk: Walk,
    secrets: np.ndarray,
    num_env_steps: np.ndarray,
    rewards: np.ndarray,
) -> None:
    """Rewards some rows, all of one channel, in place."""
    steps = int(num_env_steps[walk.outcome_cell[rows[0]]])
    secret = channel.answer_format.read(secrets[walk.outcome_root[rows], :steps])
    rewards[rows, :steps] = step_rewards(channel, walk.outcomes.select(rows), secret)


def observe_walk(
    observer: PackObserver,
    walk: Walk,
    rewards: Float[np.ndarray, "outcome env_step"],
    keys: Int[np.ndarray, "root"],
    channels: Numbered[Channel],
    faults: Mapping[int, str],
) -> Faults:
    """Lets an ideal observer hear the rewards of a walk.

    Args:
        observer: of the pack; changed in place.
        walk: outcomes sorted by cell.
        rewards: of `reward_walk`.
        keys: the key of each root.
        channels: of the cells.
        faults: the cells that have failed, which it need not hear.

    Returns:
        those, and the cells whose channel fails where the observer asks what other secrets would have paid.
    """
    faults = dict(faults)
    if not any(isinstance(channel.function, OwnReward) for channel in channels.values):
        observer.observe(walk.outcome_cell, walk.outcomes, rewards, keys[walk.outcome_root])
        return faults
    before = {name: array.copy() for name, array in observer.arrays().items()}
    sound = np.flatnonzero(~np.isin(walk.outcome_cell, list(faults)))
    try:
        told = (walk.outcomes.select(sound), rewards[sound], keys[walk.outcome_root[sound]])
        observer.observe(walk.outcome_cell[sound], *told)
    except ValueError:
        observer.restore(before)
        for cell in np.unique(walk.outcome_cell[sound]).tolist():
            of_cell = np.flatnonzero(walk.outcome_cell == cell)
            try:
                told = (walk.outcomes.select(of_cell), rewards[of_cell], keys[walk.outcome_root[of_cell]])
                observer.observe(cell, *told)
            except ValueError as error:
                faults[cell] = str(error)
    return faults
