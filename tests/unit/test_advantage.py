"""Credit and advantages, against plain loops over episodes and against exact expectations on a tabular policy."""

import itertools
import math
from statistics import stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memrl.task.advantage import STD_EPSILON, assign_credit, group_advantages

NAN = math.nan
KINDS = ["group_centered", "leave_one_out", "std_normalized", "constant_baseline"]


def test_credit_of_a_worked_episode():
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, -2.0, NAN, NAN]])
    np.testing.assert_array_equal(assign_credit(rewards, "per_step"), rewards)
    np.testing.assert_array_equal(
        assign_credit(rewards, "return_to_go"), [[2.0, 1.0, 1.0, 1.0], [-2.0, -2.0, NAN, NAN]]
    )
    np.testing.assert_array_equal(assign_credit(rewards, "episode"), [[2.0] * 4, [-2.0, -2.0, NAN, NAN]])


@st.composite
def sampled_outcomes(draw):
    """Outcomes of up to three cells: cell, signal with env_steps not taken at the end, and counts by group."""
    steps, groups = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    cells = sorted(draw(st.lists(st.integers(0, 2), min_size=1, max_size=7)))
    signal = np.full((len(cells), steps), NAN)
    for row in signal:
        taken = draw(st.integers(1, steps))
        row[:taken] = draw(st.lists(st.floats(-3, 3, width=16), min_size=taken, max_size=taken))
    counts = draw(
        st.lists(
            st.lists(st.integers(0, 4), min_size=groups, max_size=groups), min_size=len(cells), max_size=len(cells)
        )
    )
    return np.array(cells), signal, np.array(counts)


def loop_over_episodes(cells, signal, counts, kind, baseline, outcome, group, step):
    """The advantage of an episode that ended as `outcome`, by its definition."""
    own = signal[outcome, step]
    if kind == "constant_baseline":
        return own - baseline
    others = []
    for row in range(len(cells)):
        if cells[row] == cells[outcome] and not math.isnan(signal[row, step]):
            others += [signal[row, step]] * (int(counts[row, group]) - (row == outcome))
    if not others:
        return 0.0
    mean = (own + sum(others)) / (1 + len(others))
    if kind == "group_centered":
        return own - mean
    if kind == "leave_one_out":
        return own - sum(others) / len(others)
    return (own - mean) / (stdev([own, *others]) + 1e-4)


@settings(max_examples=150)
@given(outcomes=sampled_outcomes(), kind=st.sampled_from(KINDS), baseline=st.floats(-2, 2, width=16))
def test_advantages_are_those_of_the_episodes_one_by_one(outcomes, kind, baseline):
    cells, signal, counts = outcomes
    got = group_advantages(signal, counts, cells, kind, baseline)
    for outcome, group, step in np.ndindex(*got.shape):
        if math.isnan(signal[outcome, step]):
            assert got[outcome, group, step] == 0.0
        elif counts[outcome, group]:
            expected = loop_over_episodes(cells, signal, counts, kind, baseline, outcome, group, step)
            assert got[outcome, group, step] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def list_groups(num_arms, size):
    """Every way in which `size` episodes fall on the arms, as counts."""
    for bars in itertools.combinations(range(size + num_arms - 1), num_arms - 1):
        edges = (-1, *bars, size + num_arms - 1)
        yield np.array([right - left - 1 for left, right in itertools.pairwise(edges)])


def multinomial_probability(counts, p):
    coefficient = math.factorial(int(counts.sum()))
    for count in counts.tolist():
        coefficient //= math.factorial(count)
    return coefficient * float(np.prod(p**counts))


def expect_gradient(p, rewards, size, kind, baseline=0.0):
    """E[1/G sum_i A_i grad log p(a_i)] over all groups, with respect to a softmax's logits."""
    total = np.zeros_like(p)
    for counts in list_groups(len(p), size):
        advantage = group_advantages(rewards[:, None], counts[:, None], np.zeros(len(p), int), kind, baseline)[:, 0, 0]
        weight = counts * advantage / size
        total += multinomial_probability(counts, p) * (weight - weight.sum() * p)
    return total


ARMS = np.array([0.5, 0.2, 0.2, 0.1])
REWARDS = np.array([0.0, 1.0, 0.25, -2.0])
TRUE_GRADIENT = ARMS * (REWARDS - ARMS @ REWARDS)
"""Of E[r] with respect to the logits."""


@pytest.mark.parametrize("size", [2, 3, 5])
def test_group_centering_shrinks_the_gradient_by_the_episode_in_its_own_baseline(size):
    # Of r_i - mean, the part -r_i / G is the only one correlated with grad log p(a_i).
    expected = (size - 1) / size * TRUE_GRADIENT
    np.testing.assert_allclose(expect_gradient(ARMS, REWARDS, size, "group_centered"), expected, atol=1e-14)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_leave_one_out_is_unbiased(size):
    np.testing.assert_allclose(expect_gradient(ARMS, REWARDS, size, "leave_one_out"), TRUE_GRADIENT, atol=1e-14)


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_any_constant_baseline_is_unbiased(baseline):
    got = expect_gradient(ARMS, REWARDS, 3, "constant_baseline", baseline)
    np.testing.assert_allclose(got, TRUE_GRADIENT, atol=1e-14)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_normalizing_by_the_deviation_changes_what_binary_rewards_ascend(size):
    # With H hits among G, the hits share sqrt(H(G-H)) / ..., so that the expected gradient is c(p) grad p with
    # c = E[H(G-H) / (s + eps)] / (G^2 p (1-p)) and s^2 = H(G-H) / (G(G-1)).
    p = ARMS[3]
    c = 0.0
    for hits in range(1, size):
        s = math.sqrt(hits * (size - hits) / (size * (size - 1)))
        probability = math.comb(size, hits) * p**hits * (1 - p) ** (size - hits)
        c += probability * hits * (size - hits) / (s + STD_EPSILON) / (size**2 * p * (1 - p))
    rewards = np.array([0.0, 0.0, 0.0, 1.0])
    expected = c * ARMS * (rewards - p)
    np.testing.assert_allclose(expect_gradient(ARMS, rewards, size, "std_normalized"), expected, atol=1e-14)


def test_normalized_gradient_of_large_groups_ascends_the_arcsine_of_the_root_of_p():
    # d/dp 2 arcsin sqrt p = 1 / sqrt(p (1-p)).
    p = np.array([0.7, 0.3])
    got = expect_gradient(p, np.array([0.0, 1.0]), 150, "std_normalized")
    np.testing.assert_allclose(got, p * ([0.0, 1.0] - p[1]) / math.sqrt(0.21), rtol=0.02)
