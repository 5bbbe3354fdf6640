"""From rewards to advantages: which rewards an env_step's token answers for, and what is subtracted."""

from collections.abc import Callable
from typing import Protocol

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
        rewards: (..., env_steps), NaN at env_steps that were not taken.
        credit: the rule.

    Returns:
        float64 array of the same shape, NaN at the same places.
    """
    if credit == "per_step":
        return rewards
    to_go = np.nan_to_num(rewards)[..., ::-1].cumsum(-1)[..., ::-1]
    signal = to_go if credit == "return_to_go" else np.broadcast_to(to_go[..., :1], rewards.shape)
    return np.where(np.isnan(rewards), np.nan, signal)


class Group(Protocol):
    """What an advantage may ask about the episodes of a group that took an env_step."""

    @property
    def size(self) -> np.ndarray | int:
        """How many they are; broadcasts with the signal."""
        ...

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean over these episodes; broadcasts with the signal."""
        ...


AdvantageRule = Callable[[np.ndarray, Group, float], np.ndarray]
"""(signal x, group, baseline) to advantages of the shape of x, for episodes of groups of two or more."""


def group_centered(x: np.ndarray, group: Group, baseline: float) -> np.ndarray:
    """X - mean: ascends (1 - 1/G) E[x] over groups of G, for the mean holds the episode itself.

    Source: Schulman and Thinking Machines Lab, LoRA Without Regret, 2025 (no division by the deviation).
    """
    return x - group.mean(x)


def leave_one_out(x: np.ndarray, group: Group, baseline: float) -> np.ndarray:
    """X - mean of the others: ascends E[x].

    Source: Kool et al., Buy 4 REINFORCE Samples, Get a Baseline for Free, 2019.
    """
    return (x - group.mean(x)) * group.size / np.maximum(group.size - 1, 1)


def std_normalized(x: np.ndarray, group: Group, baseline: float) -> np.ndarray:
    """(x - mean) / (std + 1e-4), with the unbiased std: ascends 2 arcsin sqrt p where x is 0 or 1.

    Source: Shao et al., DeepSeekMath, 2024, arXiv 2402.03300, section 4.1; Davis and Recht 2025, arXiv 2510.13651.
    """
    centered = x - group.mean(x)
    variance = group.mean(centered**2) * group.size / np.maximum(group.size - 1, 1)
    return centered / (np.sqrt(variance) + STD_EPSILON)


def constant_baseline(x: np.ndarray, group: Group, baseline: float) -> np.ndarray:
    """X - baseline: ascends E[x].

    Source: Williams 1992, Machine Learning 8, section 4.
    """
    return x - baseline


ADVANTAGES: dict[Advantage, AdvantageRule] = {
    "group_centered": group_centered,
    "leave_one_out": leave_one_out,
    "std_normalized": std_normalized,
    "constant_baseline": constant_baseline,
}


class _CountedGroups:
    """Groups of outcomes that many episodes share, cell by cell."""

    def __init__(self, counts: np.ndarray, taken: np.ndarray, cell: np.ndarray) -> None:
        self._weight = counts[:, :, None] * taken[:, None, :]
        _, self._starts, self._inverse = np.unique(cell, return_index=True, return_inverse=True)
        self.size = self._sum(self._weight)

    def mean(self, values: np.ndarray) -> np.ndarray:
        return self._sum(self._weight * values) / np.maximum(self.size, 1)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, self._starts, axis=0)[self._inverse]


def group_advantages(
    signal: np.ndarray, counts: np.ndarray, cell: np.ndarray, kind: Advantage, baseline: float = 0.0
) -> np.ndarray:
    """Advantages of episodes within their groups, env_step by env_step.

    Means run over the episodes of the group that took the env_step; an env_step that one episode alone took has
    nothing to be compared with and gets 0 (constant_baseline aside).

    Args:
        signal: what an env_step answers for, (outcomes, env_steps), NaN where not taken.
        counts: episodes of each group that ended so, (outcomes, groups).
        cell: the cell of each outcome, (outcomes,), ascending; groups of different cells are different groups.
        kind: the rule, one of `ADVANTAGES`.
        baseline: of constant_baseline.

    Returns:
        float64 (outcomes, groups, env_steps); 0 where not taken.
    """
    taken = ~np.isnan(signal)
    groups = _CountedGroups(counts, taken, cell)
    advantage = ADVANTAGES[kind](np.nan_to_num(signal)[:, None, :], groups, baseline)
    compares = taken[:, None, :] & ((groups.size > 1) | (kind == "constant_baseline"))
    return np.where(compares, advantage, 0.0)


class _WholeGroups:
    """Groups of episodes one by one, all of one size and none cut short: (runs, groups, episodes, env_steps)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def mean(self, values: np.ndarray) -> np.ndarray:
        return values.mean(axis=2, keepdims=True)


def episode_advantages(signal: np.ndarray, kind: Advantage, baseline: float = 0.0) -> np.ndarray:
    """Advantages of episodes that all take every env_step.

    >>> episode_advantages(np.array([0.0, 1.0]).reshape(1, 1, 2, 1), "leave_one_out").ravel().tolist()
    [-1.0, 1.0]

    Args:
        signal: what an env_step answers for, (runs, groups, episodes, env_steps).
        kind: the rule, one of `ADVANTAGES`.
        baseline: of constant_baseline.

    Returns:
        float64 array of the shape of `signal`.
    """
    return ADVANTAGES[kind](signal, _WholeGroups(signal.shape[2]), baseline)
