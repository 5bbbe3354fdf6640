"""Episodes: how one ends, and the rewards it brings.

An episode is the answer to one prompt, token by token. It ends with a whole answer, or at the first token after which
no answer in range is left: such an answer is malformed, a value of its own, and never a distance.
"""

from dataclasses import dataclass

import numpy as np

from memrl.task.reward import Channel


@dataclass(frozen=True)
class Outcomes:
    """Ways in which episodes ended, one row each.

    Attributes:
        guess: the integer that was written; for a malformed answer the smallest one that begins with its complete
            env_steps; int64 (outcomes,).
        steps_done: env_steps that were completed legally; int64 (outcomes,).
        well_formed: whether the answer is an integer in range; bool (outcomes,).
    """

    guess: np.ndarray
    steps_done: np.ndarray
    well_formed: np.ndarray

    def __len__(self) -> int:
        return len(self.guess)


def step_rewards(channel: Channel, outcomes: Outcomes, secret: int | np.ndarray, num_env_steps: int) -> np.ndarray:
    """Rewards at every env_step; NaN at env_steps that the episode did not take.

    A per-step channel pays at each env_step; any other pays once, at the episode's last env_step. The env_step in which
    an answer becomes malformed brings `channel.malformed_reward` and ends the episode.

    Args:
        channel: the reward function and the value of a malformed answer.
        outcomes: how the episodes ended, (outcomes,).
        secret: the secret, or one an outcome.
        num_env_steps: env_steps of a whole answer.

    Returns:
        float64 array of shape (outcomes, num_env_steps).
    """
    told = channel.rewards(outcomes.guess, np.broadcast_to(secret, outcomes.guess.shape))
    rewards = np.full((len(outcomes), num_env_steps), np.nan)
    step = np.arange(num_env_steps)
    last = np.minimum(outcomes.steps_done, num_env_steps - 1)[:, None]
    if channel.per_step:
        rewards = np.where(step < outcomes.steps_done[:, None], told, rewards)
    else:
        rewards = np.where(step < last, 0.0, rewards)
        rewards = np.where((step == num_env_steps - 1) & outcomes.well_formed[:, None], told, rewards)
    malformed = ~outcomes.well_formed[:, None] & (step == last)
    return np.where(malformed, channel.malformed_reward, rewards)
