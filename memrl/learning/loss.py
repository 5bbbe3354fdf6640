"""Losses on the edges of a walk: a token that many episodes share is one term, weighted by their summed advantages."""

import numpy as np
import torch
from torch import Tensor

from memrl.config import Loss


def edge_loss(
    edge_logprob: Tensor,
    rollout_logprob: Tensor,
    gain: Tensor,
    cost: Tensor,
    kind: Loss,
    clip_range: Tensor | float = 0.2,
) -> Tensor:
    """Policy-gradient loss of each edge; the sum over a cell's edges is the cell's loss.

    With the ratio ρ = π(token) / rollout(token), and an edge's advantages summed apart by sign (gain ≥ 0 ≥ cost):
    importance_sampling: -(gain + cost) ρ. reinforce: -(gain + cost) log π.
    ppo: -(gain min(ρ, 1 + c) + cost max(ρ, 1 - c)).

    Args:
        edge_logprob: the learner's log-probabilities, nats, with gradient; (edges,).
        rollout_logprob: the sampler's, nats, without gradient; (edges,).
        gain: summed positive advantages of the episodes through the edge; (edges,).
        cost: summed negative advantages; (edges,).
        kind: the loss.
        clip_range: c of ppo; one, or one an edge.

    Returns:
        (edges,) in units of advantage (importance_sampling, ppo) or advantage times nats (reinforce).

    Source: Schulman and Thinking Machines Lab, LoRA Without Regret, 2025; Williams, 1992; Schulman et al., PPO, 2017,
    arXiv 1707.06347, equation 7.
    """
    if kind == "reinforce":
        return -(gain + cost) * edge_logprob
    ratio = torch.exp(edge_logprob - rollout_logprob)
    if kind == "importance_sampling":
        return -(gain + cost) * ratio
    clip = torch.as_tensor(clip_range, dtype=ratio.dtype, device=ratio.device)
    return -(gain * torch.minimum(ratio, 1.0 + clip) + cost * torch.maximum(ratio, 1.0 - clip))


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
