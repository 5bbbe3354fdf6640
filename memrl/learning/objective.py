"""From rewards to a loss: each cell's objective says which advantages its episodes have, and how they weigh."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memrl.config import Advantage, Credit, Loss, TrainConfig
from memrl.learning.loss import LOSSES, sum_on_edges
from memrl.learning.numbered import Numbered
from memrl.policy.trie_walk import Walk
from memrl.task.advantage import assign_credit, group_advantages


@dataclass(frozen=True)
class Objective:
    """What a cell ascends.

    Attributes:
        advantage: the baseline and scale in a group; None where each example weighs 1, as under SFT.
        credit: which rewards an env_step answers for.
        baseline: of constant_baseline.
        loss: of a token, given its advantage.
        clip_range: of ppo.
    """

    advantage: Advantage | None
    credit: Credit
    baseline: float
    loss: Loss
    clip_range: float

    @classmethod
    def of(cls, config: TrainConfig) -> "Objective":
        """The objective of a cell; that of SFT is the cross-entropy of its examples."""
        if config.algorithm == "sft":
            return cls(None, "episode", 0.0, "reinforce", 0.0)
        return cls(config.advantage, config.resolved_credit, config.baseline, config.loss, config.clip_range)


def judge_episodes(walk: Walk, rewards: np.ndarray, objectives: Numbered[Objective]) -> np.ndarray:
    """The advantage of each outcome in each group at each env_step.

    Args:
        walk: the episodes.
        rewards: (outcomes, env_steps), NaN at env_steps that were not taken.
        objectives: of the cells.

    Returns:
        float64 (outcomes, groups, env_steps).
    """
    advantages = np.ones((len(walk.outcomes), walk.outcome_counts.shape[1], rewards.shape[1]))
    for objective, rows in objectives.split(walk.outcome_cell):
        if objective.advantage is not None:
            credited = assign_credit(rewards[rows], objective.credit)
            cells, counts = walk.outcome_cell[rows], walk.outcome_counts[rows]
            advantages[rows] = group_advantages(credited, counts, cells, objective.advantage, objective.baseline)
    return advantages


def weigh_edges(walk: Walk, advantages: np.ndarray, share: np.ndarray) -> tuple[Tensor, Tensor]:
    """Summed positive and summed negative advantages of the episodes through each edge.

    Args:
        walk: the episodes.
        advantages: (outcomes, groups, env_steps).
        share: what one episode of each cell weighs, float64 (cells,): one over the cell's episodes, or 0.

    Returns:
        gain ≥ 0 and cost ≤ 0 of each edge; both (edges,).
    """
    env_step = walk.edge_env_step[np.maximum(walk.outcome_path, 0)]
    sides = []
    for side in (np.maximum(advantages, 0.0), np.minimum(advantages, 0.0)):
        by_env_step = (walk.outcome_counts[:, :, None] * side).sum(1) * share[walk.outcome_cell][:, None]
        weights = np.take_along_axis(by_env_step, env_step, axis=1)
        sides.append(sum_on_edges(walk.outcome_path, weights, len(walk.edge_cell)))
    gain, cost = (torch.from_numpy(side).to(walk.edge_logprob) for side in sides)
    return gain, cost


def sum_losses(
    walk: Walk, rollout_logprob: Tensor, gain: Tensor, cost: Tensor, objectives: Numbered[Objective]
) -> Tensor:
    """The sum over cells of their losses; what one cell adds depends on its own episodes alone.

    Args:
        walk: the episodes, scored with gradient.
        rollout_logprob: the sampler's log-probability of each edge, nats; (edges,).
        gain: as `weigh_edges` gave it.
        cost: likewise.
        objectives: of the cells.
    """
    total = torch.zeros((), dtype=walk.edge_logprob.dtype, device=walk.edge_logprob.device)
    columns = (walk.edge_logprob, rollout_logprob, gain, cost)
    for objective, rows in objectives.split(walk.edge_cell):
        edges = torch.from_numpy(rows).to(total.device)
        own = [column[edges] for column in columns]
        total = total + LOSSES[objective.loss](*own, torch.full_like(own[0], objective.clip_range)).sum()
    return total
