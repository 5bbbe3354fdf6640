"""Policy gradient on L bits that share nothing: what credit and objective do, apart from any network.

A policy has one logit per bit; an episode says all bits, and is rewarded for each. What a trained policy needs beyond
this is due to the bits' sharing one adapter (ray interference: Schaul et al. 2019, arXiv 1904.11455).
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.special import expit, log_expit

from memrl.config import Credit
from memrl.task.advantage import AdvantageRule, assign_credit, episode_advantages

_BETAS, _EPSILON = (0.9, 0.999), 1e-8
"""Adam's, as in TrainConfig."""


LEARNING_RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.25, 1.5)
"""In logits. Larger ones let the first update alone decide every bit, which no network's bits could bear."""


@dataclass(frozen=True)
class BitsTask:
    """How a policy of independent bits is trained.

    Attributes:
        num_bits: L, bits of the secret.
        rule: how episodes are judged in their group.
        credit: which rewards a bit answers for.
        group_size: episodes per update, one group.
        learning_rate: Adam's, in logits.
    """

    num_bits: int
    rule: AdvantageRule
    credit: Credit = "per_step"
    group_size: int = 8
    learning_rate: float = 0.3


def train_bits(task: BitsTask, num_runs: int, max_updates: int, seed: int = 0) -> Float[np.ndarray, "{num_runs}"]:
    """Trains policies from P = 1/2 per bit until P(all bits right) reaches 1/2.

    Args:
        task: what is trained, and how.
        num_runs: independent runs.
        max_updates: where a run gives up.
        seed: of all random numbers.

    Returns:
        episodes of each run, inf where it gave up.
    """
    rng = np.random.default_rng(seed)
    logit, first, second = np.zeros((3, num_runs, task.num_bits))  # of a right bit
    episodes = np.full(num_runs, np.inf)
    for update in range(max_updates + 1):
        reached = log_expit(logit).sum(axis=1) >= np.log(0.5)
        episodes[reached & np.isinf(episodes)] = update * task.group_size
        if np.isfinite(episodes).all():
            break
        gradient = _estimate_gradient(task, logit, rng.random((num_runs, 1, task.group_size, task.num_bits)))
        first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
        second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient**2
        scale = np.sqrt(second / (1 - _BETAS[1] ** (update + 1))) + _EPSILON
        logit += task.learning_rate * first / (1 - _BETAS[0] ** (update + 1)) / scale
    return episodes


def median_episodes(
    num_bits: int, rule: AdvantageRule, credit: Credit = "per_step", group_size: int = 8, num_runs: int = 64
) -> tuple[float, float]:
    """Median episodes until P(all bits right) is 1/2, at the best of `LEARNING_RATES`, and that rate.

    >>> median_episodes(4, AdvantageRule("rejection"))[0]
    16.0
    """
    task = BitsTask(num_bits, rule, credit, group_size)
    tries = [replace(task, learning_rate=rate) for rate in LEARNING_RATES]
    return min((float(np.median(train_bits(task, num_runs, 20 * num_bits))), task.learning_rate) for task in tries)


def _estimate_gradient(
    task: BitsTask, logit: Float[np.ndarray, "run bit"], uniform: Float[np.ndarray, "run 1 episode bit"]
) -> Float[np.ndarray, "run bit"]:
    """The mean over episodes of advantage times the gradient of log P(bit), with respect to the logits."""
    chance = expit(logit)[:, None, None, :]
    right = uniform < chance
    surprisal = -np.log(np.where(right, chance, 1.0 - chance))
    credited = assign_credit(right.astype(float), task.credit)
    return (episode_advantages(credited, task.rule, surprisal) * (right - chance)).mean(axis=(1, 2))
