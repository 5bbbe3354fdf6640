"""Losses on the edges of a walk: a token that many episodes share is one term, weighted by their summed advantages."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from memrl.config import Loss

Edges = Float[Tensor, "edge"]
"""One number per edge."""

LossRule = Callable[[Edges, Edges, Edges, Edges, Tensor], Edges]
"""(log π, log π of the sampler, gain, cost, clip range) of each edge, to its loss.

An edge's advantages are summed apart by sign: gain >= 0 >= cost. The sum over a cell's edges is the cell's loss. Where
sampler and learner agree, as in the one update that a batch is used for, all these losses have one gradient.
"""


def reinforce(
    edge_logprob: Edges, rollout_logprob: Edges, gain: Edges, cost: Edges, clip_range: Float[Tensor, "..."]
) -> Edges:
    """-(gain + cost) log π, in advantage times nats.

    Source: Williams 1992, Machine Learning 8, section 5.
    """
    return -(gain + cost) * edge_logprob


def importance_sampling(
    edge_logprob: Edges, rollout_logprob: Edges, gain: Edges, cost: Edges, clip_range: Float[Tensor, "..."]
) -> Edges:
    """-(gain + cost) ρ with the ratio ρ = π / π of the sampler, in advantage.

    Source: Schulman and Thinking Machines Lab, LoRA Without Regret, 2025.
    """
    return -(gain + cost) * torch.exp(edge_logprob - rollout_logprob)


def ppo(
    edge_logprob: Edges, rollout_logprob: Edges, gain: Edges, cost: Edges, clip_range: Float[Tensor, "..."]
) -> Edges:
    """-(gain min(ρ, 1 + c) + cost max(ρ, 1 - c)), in advantage.

    Source: Schulman et al., PPO, 2017, arXiv 1707.06347, equation 7.
    """
    ratio = torch.exp(edge_logprob - rollout_logprob)
    return -(gain * torch.minimum(ratio, 1.0 + clip_range) + cost * torch.maximum(ratio, 1.0 - clip_range))


LOSSES: dict[Loss, LossRule] = {"importance_sampling": importance_sampling, "reinforce": reinforce, "ppo": ppo}


def regularize(
    logprob: Float[Tensor, "node letter"],
    base_logits: Float[Tensor, "node letter"],
    entropy_bonus: Float[Tensor, "node"],
    kl_penalty: Float[Tensor, "node"],
) -> Float[Tensor, "node"]:
    """-(entropy bonus) H(π) + (KL penalty) KL(π || base) of each node, exact over the letters that may follow.

    Both are of the next letter alone, in nats; the sum over an episode's nodes is the estimate for its answer.

    Args:
        logprob: log π of the letters that may follow, -inf for the others; with gradient.
        base_logits: the base model's logits of the same letters.
        entropy_bonus: of each node's cell, in advantage per nat.
        kl_penalty: likewise.

    Returns:
        what each node adds to the loss, in advantage.

    Source: Williams and Peng 1991, Connection Science 3(3) (entropy); Jaques et al. 2017, arXiv 1611.02796 (KL).
    """
    may_follow = logprob.isfinite()
    base = torch.log_softmax(base_logits.to(logprob).masked_fill(~may_follow, -torch.inf), dim=-1)
    surprisal = -logprob.masked_fill(~may_follow, 0.0)
    excess = (logprob - base).masked_fill(~may_follow, 0.0)
    probability = logprob.exp()
    entropy, divergence = (probability * surprisal).sum(-1), (probability * excess).sum(-1)
    return kl_penalty * divergence - entropy_bonus * entropy


def sum_on_edges(
    path: Int[np.ndarray, "outcome depth"], values: Float[np.ndarray, "outcome depth"], num_edges: int
) -> Float[np.ndarray, "{num_edges}"]:
    """Sums a value of each (outcome, token) onto the edge that the token is.

    Args:
        path: edges of each outcome, padded with -1.
        values: ignored at padding.
        num_edges: edges in all.
    """
    real = path >= 0
    return np.bincount(path[real], weights=values[real], minlength=num_edges)
