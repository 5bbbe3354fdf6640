"""Rewarding the episodes of a walk."""

import numpy as np
from jaxtyping import Float, Int

from memrl.learning.numbered import Numbered
from memrl.policy.trie_walk import Walk
from memrl.task.env import step_rewards
from memrl.task.reward import Channel


def reward_walk(
    walk: Walk,
    channels: Numbered[Channel],
    secrets: Int[np.ndarray, "cell digit"],
    num_env_steps: Int[np.ndarray, "cell"],
) -> Float[np.ndarray, "outcome env_step"]:
    """Rewards every outcome by its cell's channel.

    Args:
        walk: outcomes sorted by cell.
        channels: of the cells; those of one channel are rewarded together.
        secrets: digits of each cell's secret, padded with -1.
        num_env_steps: env_steps of a whole answer.

    Returns:
        NaN at env_steps that were not taken.
    """
    rewards = np.full((len(walk.outcomes), int(num_env_steps.max())), np.nan)
    for channel, rows in channels.split(walk.outcome_cell):
        cells = walk.outcome_cell[rows]
        steps = int(num_env_steps[cells[0]])
        secret = channel.answer_format.read(secrets[cells, :steps])
        rewards[rows, :steps] = step_rewards(channel, walk.outcomes.select(rows), secret)
    return rewards
