"""Losses on edges: gradients against the analytic ones in float64, on a tabular policy and edge by edge."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memrl.learning.loss import LOSSES, sum_on_edges

KINDS = list(LOSSES)
CLIP = 0.2


def columns(*lists):
    return [torch.tensor(values, dtype=torch.float64) for values in lists]


def differentiate(kind, logprob, rollout, gain, cost, clip=CLIP):
    leaf = logprob.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        LOSSES[kind](leaf, rollout, gain, cost, torch.tensor(clip, dtype=torch.float64)).sum(), leaf
    )
    return gradient


@pytest.mark.parametrize("kind", KINDS)
def test_where_sampler_and_learner_agree_every_loss_is_reinforce(kind):
    logprob, gain, cost = columns([-0.1, -2.0, -5.0], [1.5, 0.0, 0.25], [0.0, -3.0, -1.0])
    # d/d log p of -A log p, with A = gain + cost.
    torch.testing.assert_close(differentiate(kind, logprob, logprob, gain, cost), -(gain + cost), rtol=0, atol=0)


def test_importance_sampling_weighs_by_the_ratio():
    logprob, rollout, gain, cost = columns([-0.1, -2.0], [-1.3, -1.5], [1.5, 0.0], [0.0, -3.0])
    expected = -(gain + cost) * torch.exp(logprob - rollout)
    torch.testing.assert_close(
        LOSSES["importance_sampling"](logprob, rollout, gain, cost, torch.tensor(CLIP)), expected
    )
    torch.testing.assert_close(differentiate("importance_sampling", logprob, rollout, gain, cost), expected)


def test_ppo_has_no_gradient_beyond_the_clip_on_the_side_that_the_advantage_pulls_to():
    ratios = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0], dtype=torch.float64)
    ones, zeros, rollout = torch.ones_like(ratios), torch.zeros_like(ratios), torch.zeros_like(ratios)
    up = differentiate("ppo", ratios.log(), rollout, ones, zeros)
    down = differentiate("ppo", ratios.log(), rollout, zeros, -ones)
    torch.testing.assert_close(up, torch.where(ratios < 1 + CLIP, -ratios, 0.0))
    torch.testing.assert_close(down, torch.where(ratios > 1 - CLIP, ratios, 0.0))


@given(
    ratio=st.floats(0.3, 3.0),
    advantages=st.lists(st.floats(-2, 2), min_size=1, max_size=6),
    clip=st.floats(0.05, 0.9),
)
def test_ppo_of_summed_advantages_is_the_sum_over_episodes(ratio, advantages, clip):
    (logprob,) = columns([np.log(ratio)])
    gain, cost = columns([sum(max(a, 0.0) for a in advantages)], [sum(min(a, 0.0) for a in advantages)])
    got = LOSSES["ppo"](logprob, torch.zeros_like(logprob), gain, cost, torch.tensor(clip, dtype=torch.float64)).item()
    expected = -sum(min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a) for a in advantages)
    assert got == pytest.approx(expected, abs=1e-12)


def test_clip_range_may_differ_from_edge_to_edge():
    logprob, rollout, gain, cost, clip = columns([0.5, 0.5], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.1, 0.9])
    got = LOSSES["ppo"](logprob, rollout, gain, cost, clip)
    torch.testing.assert_close(got, torch.tensor([-1.1, -np.exp(0.5)], dtype=torch.float64))


@pytest.mark.parametrize("kind", ["importance_sampling", "ppo"])
def test_ratios_make_off_policy_episodes_unbiased(kind):
    # E over arms drawn from mu of -r pi/mu is -E_pi[r]; no ratio is near enough to 1 for the clip to matter.
    logits = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64, requires_grad=True)
    rewards, mu = columns([1.0, 0.0, -0.5], [0.4, 0.3, 0.3])
    logprob = torch.log_softmax(logits, 0)
    gain, cost = mu * rewards.clamp(min=0), mu * rewards.clamp(max=0)
    loss = LOSSES[kind](logprob, mu.log(), gain, cost, torch.tensor(0.95, dtype=torch.float64)).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    pi = torch.softmax(logits.detach(), 0)
    torch.testing.assert_close(gradient, -pi * (rewards - pi @ rewards))


def test_reinforce_ignores_the_sampler():
    logprob, rollout, gain, cost = columns([-0.1, -2.0], [-9.0, -0.1], [1.0, 0.0], [0.0, -1.0])
    torch.testing.assert_close(differentiate("reinforce", logprob, rollout, gain, cost), -(gain + cost))


@given(
    path=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=6),
    seed=st.integers(0, 10_000),
)
def test_values_are_summed_onto_the_edges_of_their_tokens(path, seed):
    padded = np.full((len(path), 4), -1)
    values = np.random.default_rng(seed).normal(size=padded.shape)
    expected = np.zeros(8)
    for row, edges in enumerate(path):
        padded[row, : len(edges)] = edges
        for place, edge in enumerate(edges):
            expected[edge] += values[row, place]
    np.testing.assert_allclose(sum_on_edges(padded, values, 8), expected)
