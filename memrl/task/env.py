"""Episodes: how one ends, and the rewards it brings.

An episode is the answer to one prompt, token by token. It ends with a whole answer, or at the first token after which
no answer in range is left: such an answer is malformed, a value of its own, and never a distance.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from memrl.task.reward import Channel


@dataclass(frozen=True)
class Outcomes:
    """Ways in which episodes ended, one row each.

    Attributes:
        digits: the digit of every env_step that was completed legally, -1 for the others; more columns where
            others' answers have more env_steps.
        well_formed: whether the answer is a whole one.
    """

    digits: Int[np.ndarray, "outcome env_step"]
    well_formed: Bool[np.ndarray, "outcome"]

    def __len__(self) -> int:
        return len(self.digits)

    @property
    def steps_done(self) -> Int[np.ndarray, "outcome"]:
        """env_steps that were completed legally."""
        return (self.digits >= 0).sum(axis=1)

    def select(self, rows: Int[np.ndarray, "row"]) -> "Outcomes":
        """These outcomes alone, in this order."""
        return Outcomes(self.digits[rows], self.well_formed[rows])


def step_rewards(
    channel: Channel, outcomes: Outcomes, secret: int | Int[np.ndarray, "..."]
) -> Float[np.ndarray, "outcome env_step"]:
    """Rewards at every env_step; NaN at env_steps that the episode did not take.

    A per-step channel pays at each env_step; any other pays once, at the episode's last env_step. The env_step in which
    an answer becomes malformed brings `channel.malformed_reward` and ends the episode.

    Args:
        channel: the reward function and the value of a malformed answer.
        outcomes: how the episodes ended.
        secret: the integer, or the symbols of a sequence along a last axis; one, or one per outcome.

    Returns:
        one column per env_step of a whole answer.
    """
    num_env_steps = channel.answer_format.num_env_steps
    guess = channel.answer_format.read(outcomes.digits[:, :num_env_steps])
    told = channel.pay(guess, np.broadcast_to(secret, guess.shape))
    rewards = np.full((len(outcomes), num_env_steps), np.nan)
    step, steps_done = np.arange(num_env_steps), outcomes.steps_done
    last = np.minimum(steps_done, num_env_steps - 1)[:, None]
    if channel.per_step:
        rewards = np.where(step < steps_done[:, None], told, rewards)
    else:
        rewards = np.where(step < last, 0.0, rewards)
        rewards = np.where((step == num_env_steps - 1) & outcomes.well_formed[:, None], told, rewards)
    malformed = ~outcomes.well_formed[:, None] & (step == last)
    return np.where(malformed, channel.malformed_reward, rewards)
