"""Losses on the edges of a walk: a token that many episodes share is one term, weighted by their summed advantages."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from memrl.config import Loss

LossRule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(log π, log π of the sampler, gain, cost, clip range), each (edges,), to the loss of each edge, (edges,).

An edge's advantages are summed apart by sign: gain >= 0 >= cost. The sum over a cell's edges is the cell's loss. Where
sampler and learner agree, as in the one update that a batch is used for, all these losses have one gradient.
"""


def reinforce(edge_logprob: Tensor, rollout_logprob: Tensor, gain: Tensor, cost: Tensor, clip_range: Tensor) -> Tensor:
    """-(gain + cost) log π, in advantage times nats.

    Source: Williams 1992, Machine Learning 8, section 5.
    """
    return -(gain + cost) * edge_logprob


def importance_sampling(
    edge_logprob: Tensor, rollout_logprob: Tensor, gain: Tensor, cost: Tensor, clip_range: Tensor
) -> Tensor:
    """-(gain + cost) ρ with the ratio ρ = π / π of the sampler, in advantage.

    Source: Schulman and Thinking Machines Lab, LoRA Without Regret, 2025.
    """
    return -(gain + cost) * torch.exp(edge_logprob - rollout_logprob)


def ppo(edge_logprob: Tensor, rollout_logprob: Tensor, gain: Tensor, cost: Tensor, clip_range: Tensor) -> Tensor:
    """-(gain min(ρ, 1 + c) + cost max(ρ, 1 - c)), in advantage.

    Source: Schulman et al., PPO, 2017, arXiv 1707.06347, equation 7.
    """
    ratio = torch.exp(edge_logprob - rollout_logprob)
    return -(gain * torch.minimum(ratio, 1.0 + clip_range) + cost * torch.maximum(ratio, 1.0 - clip_range))


LOSSES: dict[Loss, LossRule] = {"importance_sampling": importance_sampling, "reinforce": reinforce, "ppo": ppo}


def sum_on_edges(path: np.ndarray, values: np.ndarray, num_edges: int) -> np.ndarray:
    """Sums a value of each (outcome, token) onto the edge that the token is.

    Args:
        path: edges of each outcome, padded with -1; (outcomes, depth).
        values: (outcomes, depth); ignored at padding.
        num_edges: edges in all.

    Returns:
        float64 (edges,).
    """
    real = path >= 0
    return np.bincount(path[real], weights=values[real], minlength=num_edges)
