"""From rewards to advantages: which rewards an env_step's token answers for, and what is subtracted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

from memrl.cell_rules import NEEDS_NO_PEER
from memrl.config import Advantage, Credit, TrainConfig

STD_EPSILON = 1e-4
"""Added to the group's standard deviation, as trainers of the field do."""


def assign_credit(
    rewards: Float[np.ndarray, "*shape env_step"], credit: Credit
) -> Float[np.ndarray, "*shape env_step"]:
    """The return that each env_step answers for.

    per_step: its own reward. return_to_go: its own and all later ones. episode: all, at every env_step.

    >>> assign_credit(np.array([[1.0, 0.0, 1.0]]), "return_to_go").tolist()
    [[2.0, 1.0, 1.0]]

    Args:
        rewards: NaN at env_steps that were not taken.
        credit: the rule.

    Returns:
        NaN at the same places.
    """
    if credit == "per_step":
        return rewards
    not_taken = np.isnan(rewards)
    to_go = np.where(not_taken, 0.0, rewards)[..., ::-1].cumsum(-1)[..., ::-1]
    credited = to_go if credit == "return_to_go" else np.broadcast_to(to_go[..., :1], rewards.shape)
    return np.where(not_taken, np.nan, credited)


@dataclass(frozen=True)
class AdvantageRule:
    """How a cell judges its episodes.

    Attributes:
        advantage: one of `ADVANTAGES`.
        baseline: of constant_baseline.
        temperature: τ of exponential_weights, η of delightful; in units of reward (of reward times nats).
    """

    advantage: Advantage
    baseline: float = 0.0
    temperature: float = 1.0

    @classmethod
    def of(cls, config: TrainConfig) -> "AdvantageRule":
        """The rule of a cell."""
        return cls(config.advantage, config.baseline, config.temperature)


@runtime_checkable
class Group(Protocol):
    """What a rule may ask about an episode and the others of its group that took the env_step, beside their credit."""

    @property
    def size(self) -> np.ndarray | int:
        """How many they are; broadcasts with the credited rewards."""
        ...

    @property
    def surprisal(self) -> np.ndarray:
        """-log π of what each episode did at the env_step, nats; broadcasts with the credited rewards."""
        ...

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean over them; broadcasts with the credited rewards."""
        ...

    def max(self, values: np.ndarray) -> np.ndarray:
        """The largest of them; broadcasts with the credited rewards."""
        ...


def group_centered(x: Float[np.ndarray, "*shape"], group: Group, rule: AdvantageRule) -> Float[np.ndarray, "..."]:
    """X - mean: ascends (1 - 1/G) E[x] over groups of G, for the mean holds the episode itself.

    Source: Schulman and Thinking Machines Lab, LoRA Without Regret, 2025 (no division by the deviation).
    """
    return x - group.mean(x)


def leave_one_out(x: Float[np.ndarray, "*shape"], group: Group, rule: AdvantageRule) -> Float[np.ndarray, "..."]:
    """X - mean of the others: ascends E[x].

    Source: Kool et al., Buy 4 REINFORCE Samples, Get a Baseline for Free, 2019.
    """
    return (x - group.mean(x)) * group.size / np.maximum(group.size - 1, 1)


def std_normalized(x: Float[np.ndarray, "*shape"], group: Group, rule: AdvantageRule) -> Float[np.ndarray, "..."]:
    """(x - mean) / (std + 1e-4), with the unbiased std: ascends 2 arcsin sqrt p where x is 0 or 1.

    Source: Shao et al., DeepSeekMath, 2024, arXiv 2402.03300, section 4.1; Davis and Recht 2025, arXiv 2510.13651.
    """
    centered = x - group.mean(x)
    variance = group.mean(centered**2) * group.size / np.maximum(group.size - 1, 1)
    return centered / (np.sqrt(variance) + STD_EPSILON)


def constant_baseline(x: Float[np.ndarray, "*shape"], group: Group, rule: AdvantageRule) -> Float[np.ndarray, "..."]:
    """X - baseline: ascends E[x].

    Source: Williams 1992, Machine Learning 8, section 4.
    """
    return x - rule.baseline


def rejection(x: Float[np.ndarray, "*shape"], group: Group, rule: AdvantageRule) -> Float[np.ndarray, "..."]:
    """Divides: x / mean, 0 where no x is right; for x of 0 or 1, the cross-entropy of what was right.

    Over groups of G it ascends log p up to its G-th term, -sum over k = 1 .. G of (1 - p)^k / k.

    Source: Dong et al., RAFT, 2023, arXiv 2304.06767; Tajwar et al., MaxRL, 2026, arXiv 2602.02710 (the series).
    """
    return _divide(x, group.mean(x))


def maxrl(x: Float[np.ndarray, "*shape"], group: Group, rule: AdvantageRule) -> Float[np.ndarray, "..."]:
    """(x - mean) / mean, 0 where no x is right; for x of 0 or 1.

    Over groups of G it ascends log p up to its (G - 1)-th term.

    Source: Tajwar et al., Maximum Likelihood Reinforcement Learning, 2026, arXiv 2602.02710.
    """
    mean = group.mean(x)
    return _divide(x - mean, mean)


def exponential_weights(x: Float[np.ndarray, "*shape"], group: Group, rule: AdvantageRule) -> Float[np.ndarray, "..."]:
    """e^(x/τ) / mean of e^(x/τ) - 1: ascends log E[e^(x/τ)] as groups grow, for x of any size.

    Source: Peters and Schaal, Reinforcement Learning by Reward-Weighted Regression, ICML 2007; Peng et al., AWR, 2019,
    arXiv 1910.00177.
    """
    weight = np.exp(np.minimum(x - group.max(x), 0.0) / rule.temperature)
    return _divide(weight, group.mean(weight)) - 1.0


def delightful(x: Float[np.ndarray, "*shape"], group: Group, rule: AdvantageRule) -> Float[np.ndarray, "..."]:
    """A sigmoid(A s / η), with A = x - mean and the surprisal s of what was done: a rare failure counts for little.

    What was done at an env_step is one action, of however many tokens.

    Source: Osband, Delightful Policy Gradient, 2026, arXiv 2603.14608, section 2.
    """
    centered = x - group.mean(x)
    return centered * expit(centered * group.surprisal / rule.temperature)


def _divide(numerator: Float[np.ndarray, "..."], denominator: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The ratio, and 0 where the denominator is 0."""
    return np.where(denominator == 0.0, 0.0, numerator / np.where(denominator == 0.0, 1.0, denominator))


ADVANTAGES: dict[Advantage, Callable[[np.ndarray, Group, AdvantageRule], np.ndarray]] = {
    "group_centered": group_centered,
    "leave_one_out": leave_one_out,
    "std_normalized": std_normalized,
    "constant_baseline": constant_baseline,
    "rejection": rejection,
    "maxrl": maxrl,
    "exponential_weights": exponential_weights,
    "delightful": delightful,
}
"""Advantages by the credited rewards x, of the same shape; but for `NEEDS_NO_PEER`, of groups of two or more."""


class _CountedGroups:
    """Groups of outcomes that many episodes share, cell by cell."""

    def __init__(self, counts: np.ndarray, taken: np.ndarray, cell: np.ndarray, surprisal: np.ndarray) -> None:
        self._weight = counts[:, :, None] * taken[:, None, :]
        _, self._starts, self._inverse = np.unique(cell, return_index=True, return_inverse=True)
        self.size = self._sum(self._weight)
        self.surprisal = surprisal[:, None, :]

    def mean(self, values: np.ndarray) -> np.ndarray:
        return self._sum(self._weight * values) / np.maximum(self.size, 1)

    def max(self, values: np.ndarray) -> np.ndarray:
        present = np.where(self._weight > 0, values, -np.inf)
        largest = np.maximum.reduceat(present, self._starts, axis=0)[self._inverse]
        return np.where(self.size > 0, largest, 0.0)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, self._starts, axis=0)[self._inverse]


def group_advantages(
    credited: Float[np.ndarray, "outcome env_step"],
    counts: Int[np.ndarray, "outcome group"],
    root: Int[np.ndarray, "outcome"],
    rule: AdvantageRule,
    surprisal: Float[np.ndarray, "outcome env_step"] | None = None,
) -> Float[np.ndarray, "outcome group env_step"]:
    """Advantages of episodes within their groups, env_step by env_step.

    Means run over the episodes of the group that took the env_step; an env_step that one episode alone took has
    nothing to be compared with and gets 0 (but for `NEEDS_NO_PEER`).

    Args:
        credited: what an env_step answers for, NaN where not taken.
        counts: episodes of each group that ended so.
        root: the root of each outcome, ascending; groups of different roots are different groups.
        rule: the rule of these cells.
        surprisal: -log π of what was done at each env_step, nats; only delightful asks for it.

    Returns:
        0 where not taken.
    """
    taken = ~np.isnan(credited)
    groups = _CountedGroups(counts, taken, root, np.zeros_like(credited) if surprisal is None else surprisal)
    advantage = ADVANTAGES[rule.advantage](np.where(taken, credited, 0.0)[:, None, :], groups, rule)
    compares = taken[:, None, :] & ((groups.size > 1) | (rule.advantage in NEEDS_NO_PEER))
    return np.where(compares, advantage, 0.0)


class _WholeGroups:
    """Groups of episodes one by one, all of one size and none cut short: (runs, groups, episodes, env_steps)."""

    def __init__(self, size: int, surprisal: np.ndarray) -> None:
        self.size, self.surprisal = size, surprisal

    def mean(self, values: np.ndarray) -> np.ndarray:
        return values.mean(axis=2, keepdims=True)

    def max(self, values: np.ndarray) -> np.ndarray:
        return values.max(axis=2, keepdims=True)


def episode_advantages(
    credited: Float[np.ndarray, "run group episode env_step"],
    rule: AdvantageRule,
    surprisal: Float[np.ndarray, "run group episode env_step"] | None = None,
) -> Float[np.ndarray, "run group episode env_step"]:
    """Advantages of episodes that all take every env_step.

    >>> episode_advantages(np.array([0.0, 1.0]).reshape(1, 1, 2, 1), AdvantageRule("leave_one_out")).ravel().tolist()
    [-1.0, 1.0]

    Args:
        credited: what an env_step answers for.
        rule: the rule.
        surprisal: -log π of what was done at each env_step, nats; only delightful asks for it.
    """
    groups = _WholeGroups(credited.shape[2], np.zeros_like(credited) if surprisal is None else surprisal)
    return ADVANTAGES[rule.advantage](credited, groups, rule)
