"""From rewards to advantages: which rewards an env_step's token answers for, and what is subtracted.

Source: Schulman and Thinking Machines Lab, LoRA Without Regret, 2025 (group-centered, no division by the deviation);
Shao et al., DeepSeekMath, 2024, arXiv 2402.03300, section 4.1 (std_normalized); Kool et al., 2019 (leave_one_out).
"""

import numpy as np

from memrl.config import Advantage, Credit

STD_EPSILON = 1e-4
"""Added to the group's standard deviation, as trainers of the field do."""


def assign_credit(rewards: np.ndarray, credit: Credit) -> np.ndarray:
    """The return that each env_step answers for.

    per_step: its own reward. return_to_go: its own and all later ones. episode: all, at every env_step.

    >>> assign_credit(np.array([[1.0, 0.0, 1.0]]), "return_to_go").tolist()
    [[2.0, 1.0, 1.0]]

    Args:
        rewards: (outcomes, env_steps), NaN at env_steps that were not taken.
        credit: the rule.

    Returns:
        float64 array of the same shape, NaN at the same places.
    """
    if credit == "per_step":
        return rewards
    paid = np.nan_to_num(rewards)
    to_go = paid[:, ::-1].cumsum(1)[:, ::-1]
    signal = to_go if credit == "return_to_go" else np.broadcast_to(to_go[:, :1], rewards.shape)
    return np.where(np.isnan(rewards), np.nan, signal)


def group_advantages(
    signal: np.ndarray, counts: np.ndarray, cell: np.ndarray, kind: Advantage, baseline: float | np.ndarray = 0.0
) -> np.ndarray:
    """Advantages of episodes within their groups, env_step by env_step.

    group_centered: x - mean. leave_one_out: x - mean of the others. std_normalized: (x - mean) / (std + 1e-4) with the
    unbiased std. constant_baseline: x - baseline. Means run over the episodes of the group that took the env_step;
    an env_step that one episode alone took has no baseline and gets 0 (constant_baseline aside).

    Args:
        signal: what an env_step answers for, (outcomes, env_steps), NaN where not taken.
        counts: episodes of each group that ended so, (outcomes, groups).
        cell: the cell of each outcome, (outcomes,); groups of different cells are different groups.
        kind: the rule.
        baseline: of constant_baseline; one, or one an outcome as (outcomes, 1, 1).

    Returns:
        float64 (outcomes, groups, env_steps); 0 where not taken.
    """
    taken = ~np.isnan(signal)
    x = np.nan_to_num(signal)[:, None, :]
    if kind == "constant_baseline":
        return np.where(taken[:, None, :], x - baseline, 0.0)
    weight = counts[:, :, None] * taken[:, None, :]
    _, starts, inverse = np.unique(cell, return_index=True, return_inverse=True)
    n = np.add.reduceat(weight, starts, axis=0)[inverse]
    mean = np.add.reduceat(weight * x, starts, axis=0)[inverse] / np.maximum(n, 1)
    centered = np.where(taken[:, None, :] & (n > 1), x - mean, 0.0)
    if kind == "group_centered":
        return centered
    if kind == "leave_one_out":
        return centered * n / np.maximum(n - 1, 1)
    variance = np.add.reduceat(weight * (x - mean) ** 2, starts, axis=0)[inverse] / np.maximum(n - 1, 1)
    return centered / (np.sqrt(variance) + STD_EPSILON)
