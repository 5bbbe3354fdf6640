"""The learner: one walk's episodes become one update of every adapter of the pack."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from memrl.config import Advantage, Credit, Loss, TrainConfig
from memrl.learning.loss import LOSSES, sum_on_edges
from memrl.policy.adapter_pack import AdapterPack
from memrl.policy.network import PackedNetwork
from memrl.policy.trie_walk import Walk
from memrl.task.advantage import assign_credit, group_advantages
from memrl.task.env import step_rewards
from memrl.task.reward import Channel


@dataclass(frozen=True)
class Rewards:
    """Rewards of a walk's outcomes: float64 (outcomes, env_steps), NaN at env_steps that were not taken."""

    by_step: np.ndarray

    def total(self) -> np.ndarray:
        """The return of each outcome: float64 (outcomes,)."""
        return np.nansum(self.by_step, axis=1)


def reward_walk(walk: Walk, channels: Sequence[Channel], secrets: np.ndarray, num_env_steps: np.ndarray) -> Rewards:
    """Rewards every outcome by its cell's channel.

    Args:
        walk: outcomes sorted by cell.
        channels: one a cell; cells of one channel object are rewarded together.
        secrets: int64 (cells,).
        num_env_steps: env_steps of a whole answer, int64 (cells,).
    """
    by_step = np.full((len(walk.outcomes), int(num_env_steps.max())), np.nan)
    channel_of = np.array([id(c) for c in channels])[walk.outcome_cell]
    for channel in {id(c): c for c in channels}.values():
        rows = np.nonzero(channel_of == id(channel))[0]
        if not len(rows):
            continue
        cells = walk.outcome_cell[rows]
        steps = int(num_env_steps[cells[0]])
        by_step[rows, :steps] = step_rewards(channel, walk.outcomes.select(rows), secrets[cells])
    return Rewards(by_step)


class Learner:
    """The only writer of a pack's adapters."""

    def __init__(self, configs: Sequence[TrainConfig], network: PackedNetwork, adapters: AdapterPack) -> None:
        self._configs = list(configs)
        self._network = network
        self.adapters = adapters

    def keep(self, cells: np.ndarray) -> None:
        """Shrinks the learner, network and adapters included, to the given cells."""
        self._configs = [self._configs[cell] for cell in cells]
        self._network.keep(cells)
        self.adapters.keep(cells)

    def update(
        self, walk: Walk, rewards: Rewards, learning: np.ndarray, rollout_logprob: Tensor | None = None
    ) -> np.ndarray:
        """Makes one update of every cell's adapter from its own episodes.

        Where all advantages are zero there is nothing to backpropagate, and Adam goes on by its moments.

        Args:
            walk: the episodes, scored with gradient.
            rewards: of the walk's outcomes.
            learning: which cells still learn; bool (cells,).
            rollout_logprob: the sampler's log-probability of each edge, nats; unset: the walk's own.

        Returns:
            the l2 norm of each cell's gradient, float64 (cells,).
        """
        gain, cost = self._weigh_edges(walk, rewards, learning)
        before = walk.edge_logprob.detach() if rollout_logprob is None else rollout_logprob
        loss = torch.zeros((), dtype=walk.edge_logprob.dtype, device=walk.edge_logprob.device)
        kinds = ["reinforce" if c.algorithm == "sft" else c.loss for c in self._configs]
        names = sorted(set(kinds))
        kind_of = np.array([names.index(kind) for kind in kinds])[walk.edge_cell]
        clip = torch.from_numpy(np.array([c.clip_range for c in self._configs])[walk.edge_cell]).to(walk.edge_logprob)
        columns = (walk.edge_logprob, before, gain, cost)
        for number, name in enumerate(names):
            edges = torch.from_numpy(np.nonzero(kind_of == number)[0]).to(loss.device)
            loss = loss + LOSSES[cast(Loss, name)](*(c[edges] for c in columns), clip[edges]).sum()
        if gain.any() or cost.any():
            self._network.backpropagate(loss)
        norms = self.adapters.gradient_norms()
        self.adapters.step()
        return norms

    def _weigh_edges(self, walk: Walk, rewards: Rewards, learning: np.ndarray) -> tuple[Tensor, Tensor]:
        """Summed positive and negative advantages of the episodes through each edge, over the cell's episodes."""
        advantages = self.advantages(walk, rewards)
        episodes = np.array([c.episodes_per_update for c in self._configs])[walk.outcome_cell]
        share = np.where(learning[walk.outcome_cell], 1.0 / episodes, 0.0)[:, None]
        step = walk.edge_env_step[np.maximum(walk.outcome_path, 0)]
        sides = []
        for side in (np.maximum(advantages, 0.0), np.minimum(advantages, 0.0)):
            by_step = (walk.outcome_counts[:, :, None] * side).sum(1) * share
            weights = np.take_along_axis(by_step, step, axis=1)
            sides.append(sum_on_edges(walk.outcome_path, weights, len(walk.edge_cell)))
        gain, cost = (torch.from_numpy(side).to(walk.edge_logprob) for side in sides)
        return gain, cost

    def advantages(self, walk: Walk, rewards: Rewards) -> np.ndarray:
        """The advantage of each outcome in each group at each env_step: float64 (outcomes, groups, env_steps).

        An sft cell's examples all weigh 1: its loss is the cross-entropy of the secret.
        """
        result = np.ones((len(walk.outcomes), walk.outcome_counts.shape[1], rewards.by_step.shape[1]))
        rules = [
            ("sft", "", 0.0) if c.algorithm == "sft" else (c.advantage, c.resolved_credit, c.baseline)
            for c in self._configs
        ]
        rule_of = np.array([hash(r) for r in rules])[walk.outcome_cell]
        for rule in set(rules) - {("sft", "", 0.0)}:
            rows = np.nonzero(rule_of == hash(rule))[0]
            if not len(rows):
                continue
            kind, credit, baseline = rule
            signal = assign_credit(rewards.by_step[rows], cast(Credit, credit))
            result[rows] = group_advantages(
                signal,
                walk.outcome_counts[rows],
                walk.outcome_cell[rows],
                cast(Advantage, kind),
                baseline,
            )
        return result
