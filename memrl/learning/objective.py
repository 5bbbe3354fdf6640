"""From rewards to a loss: each cell's objective says which advantages its episodes have, and how they weigh."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from memrl.config import Credit, Loss, TrainConfig
from memrl.learning.loss import LOSSES, regularize, sum_on_edges
from memrl.learning.numbered import Numbered
from memrl.policy.trie_walk import Nodes, Walk
from memrl.task.advantage import AdvantageRule, assign_credit, group_advantages


@dataclass(frozen=True)
class Objective:
    """What a cell ascends.

    Attributes:
        advantage: how episodes are judged in their group; None where each example weighs 1.
        credit: which rewards an env_step answers for.
        loss: of a token, given its advantage.
        clip_range: of ppo.
        entropy_bonus: weight of the entropy of the next letter, in reward per nat.
        kl_penalty: weight of its divergence from the base model's, likewise.
    """

    advantage: AdvantageRule | None
    credit: Credit
    loss: Loss
    clip_range: float = 0.0
    entropy_bonus: float = 0.0
    kl_penalty: float = 0.0

    @classmethod
    def of(cls, config: TrainConfig) -> "Objective":
        """The objective of a cell; that of SFT, and of distillation, is the cross-entropy of its examples."""
        if config.algorithm != "rl":
            return cls(None, "episode", "reinforce")
        return cls(
            AdvantageRule.of(config),
            config.resolved_credit,
            config.loss,
            config.clip_range,
            config.entropy_bonus,
            config.kl_penalty,
        )

    @property
    def weighs_nodes(self) -> bool:
        """Whether it asks for whole distributions, and not just for the tokens that were drawn."""
        return self.entropy_bonus > 0 or self.kl_penalty > 0


def judge_episodes(
    walk: Walk, rewards: Float[np.ndarray, "outcome env_step"], objectives: Numbered[Objective]
) -> Float[np.ndarray, "outcome group env_step"]:
    """The advantage of each outcome in each group at each env_step.

    Args:
        walk: the episodes.
        rewards: NaN at env_steps that were not taken.
        objectives: of the cells.
    """
    advantages = np.ones((len(walk.outcomes), walk.outcome_counts.shape[1], rewards.shape[1]))
    for objective, rows in objectives.split(walk.outcome_cell):
        if (rule := objective.advantage) is not None:
            credited = assign_credit(rewards[rows], objective.credit)
            roots, counts = walk.outcome_root[rows], walk.outcome_counts[rows]
            surprisal = _surprise(walk, rows, rewards.shape[1]) if rule.advantage == "delightful" else None
            advantages[rows] = group_advantages(credited, counts, roots, rule, surprisal)
    return advantages


def _surprise(
    walk: Walk, outcomes: Int[np.ndarray, "outcome"], num_env_steps: int
) -> Float[np.ndarray, "outcome {num_env_steps}"]:
    """-log π of what some outcomes did at each env_step, nats."""
    row, token = np.nonzero(walk.outcome_path[outcomes] >= 0)
    edge = walk.outcome_path[outcomes][row, token]
    surprisal = np.zeros((len(outcomes), num_env_steps))
    np.add.at(surprisal, (row, walk.edge_env_step[edge]), -walk.edge_logprob.detach().double().cpu().numpy()[edge])
    return surprisal


def weigh_edges(
    walk: Walk, advantages: Float[np.ndarray, "outcome group env_step"], share: Float[np.ndarray, "root"]
) -> tuple[Float[Tensor, "edge"], Float[Tensor, "edge"]]:
    """Summed positive and summed negative advantages of the episodes through each edge.

    Args:
        walk: the episodes.
        advantages: as `judge_episodes` gives them.
        share: what one episode of each root weighs; 0 in cells that have ended.

    Returns:
        gain ≥ 0 and cost ≤ 0 of each edge.
    """
    env_step = walk.edge_env_step[np.maximum(walk.outcome_path, 0)]
    sides = []
    for side in (np.maximum(advantages, 0.0), np.minimum(advantages, 0.0)):
        by_env_step = (walk.outcome_counts[:, :, None] * side).sum(1) * share[walk.outcome_root][:, None]
        weights = np.take_along_axis(by_env_step, env_step, axis=1)
        sides.append(sum_on_edges(walk.outcome_path, weights, len(walk.edge_cell)))
    gain, cost = (torch.from_numpy(side).to(walk.edge_logprob) for side in sides)
    return gain, cost


def sum_losses(
    walk: Walk,
    rollout_logprob: Float[Tensor, "edge"],
    gain: Float[Tensor, "edge"],
    cost: Float[Tensor, "edge"],
    objectives: Numbered[Objective],
) -> Float[Tensor, ""]:
    """The sum over cells of their losses; what one cell adds depends on its own episodes alone.

    Args:
        walk: the episodes, scored with gradient.
        rollout_logprob: the sampler's log-probability of each edge, nats.
        gain: as `weigh_edges` gave it.
        cost: likewise.
        objectives: of the cells.
    """
    total = torch.zeros((), dtype=walk.edge_logprob.dtype, device=walk.edge_logprob.device)
    columns = (walk.edge_logprob, rollout_logprob, gain, cost)
    for objective, rows in objectives.split(walk.edge_cell):
        edges = torch.from_numpy(rows).to(total.device)
        own = [column[edges] for column in columns] if len(objectives.values) > 1 else columns
        total = total + LOSSES[objective.loss](*own, torch.full_like(own[0], objective.clip_range)).sum()
    return total


def sum_penalties(
    nodes: Nodes,
    base_logits: Float[Tensor, "node letter"],
    share: Float[np.ndarray, "root"],
    objectives: Numbered[Objective],
) -> Float[Tensor, ""]:
    """The sum over cells of their KL penalty less their entropy bonus, by the nodes that their episodes reached.

    Args:
        nodes: of the cells that have either, with gradient.
        base_logits: the base model's logits of the same letters; read where there is a KL penalty.
        share: what one episode of each root weighs.
        objectives: of the cells.
    """
    of_node = [objectives.values[number] for number in objectives.index[nodes.cell]]
    weight, entropy_bonus, kl_penalty = (
        torch.tensor(values, dtype=nodes.logprob.dtype, device=nodes.logprob.device)
        for values in (
            nodes.counts * share[nodes.root],
            [objective.entropy_bonus for objective in of_node],
            [objective.kl_penalty for objective in of_node],
        )
    )
    return (weight * regularize(nodes.logprob, base_logits, entropy_bonus, kl_penalty)).sum()
