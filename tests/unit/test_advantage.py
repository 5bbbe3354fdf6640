"""Credit and advantages, against plain loops over episodes and against exact expectations on a tabular policy."""

import itertools
import math
from statistics import stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memrl.cell_rules import NEEDS_NO_PEER
from memrl.task.advantage import ADVANTAGES, STD_EPSILON, AdvantageRule, assign_credit, group_advantages

NAN = math.nan
KINDS = list(ADVANTAGES)
CENTERED = sorted(set(KINDS) - {*NEEDS_NO_PEER, "delightful"})
ZERO_OR_ONE = ("rejection", "maxrl")
rules = st.builds(AdvantageRule, st.sampled_from(KINDS), st.floats(-2, 2, width=16), st.floats(0.125, 4, width=16))


def test_credit_of_a_worked_episode():
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, -2.0, NAN, NAN]])
    np.testing.assert_array_equal(assign_credit(rewards, "per_step"), rewards)
    np.testing.assert_array_equal(
        assign_credit(rewards, "return_to_go"), [[2.0, 1.0, 1.0, 1.0], [-2.0, -2.0, NAN, NAN]]
    )
    np.testing.assert_array_equal(assign_credit(rewards, "episode"), [[2.0] * 4, [-2.0, -2.0, NAN, NAN]])


@st.composite
def sampled_outcomes(draw):
    """Outcomes of up to three cells: cell, credited with env_steps not taken at the end, and counts by group."""
    steps, groups = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    cells = sorted(draw(st.lists(st.integers(0, 2), min_size=1, max_size=7)))
    credited = np.full((len(cells), steps), NAN)
    for row in credited:
        taken = draw(st.integers(1, steps))
        row[:taken] = draw(st.lists(st.floats(-3, 3, width=16), min_size=taken, max_size=taken))
    counts = draw(
        st.lists(
            st.lists(st.integers(0, 4), min_size=groups, max_size=groups), min_size=len(cells), max_size=len(cells)
        )
    )
    surprisal = np.array(
        [draw(st.lists(st.floats(0, 9, width=16), min_size=steps, max_size=steps)) for _ in range(len(cells))]
    )
    return np.array(cells), credited, np.array(counts), surprisal


def judge(outcomes, rule):
    """Credited rewards and advantages; the rewards are made one of 0 and 1 for rules that are for these."""
    cells, credited, counts, surprisal = outcomes
    if rule.advantage in ZERO_OR_ONE:
        credited = np.where(np.isnan(credited), NAN, credited > 0)
    return credited, group_advantages(credited, counts, cells, rule, surprisal)


def loop_over_episodes(cells, credited, counts, rule, surprisal, outcome, group, step):
    """The advantage of an episode that ended as `outcome`, by its definition."""
    own = credited[outcome, step]
    if rule.advantage == "constant_baseline":
        return own - rule.baseline
    others = []
    for row in range(len(cells)):
        if cells[row] == cells[outcome] and not math.isnan(credited[row, step]):
            others += [credited[row, step]] * (int(counts[row, group]) - (row == outcome))
    if not others and rule.advantage not in NEEDS_NO_PEER:
        return 0.0
    mean = (own + sum(others)) / (1 + len(others))
    sigmoid = 1 / (1 + math.exp(-(own - mean) * surprisal[outcome, step] / rule.temperature))
    exponentials = [math.exp(x / rule.temperature) for x in (own, *others)]
    return {
        "group_centered": lambda: own - mean,
        "leave_one_out": lambda: own - sum(others) / len(others),
        "std_normalized": lambda: (own - mean) / (stdev([own, *others]) + 1e-4),
        "rejection": lambda: own / mean if mean else 0.0,
        "maxrl": lambda: (own - mean) / mean if mean else 0.0,
        "exponential_weights": lambda: exponentials[0] / (sum(exponentials) / len(exponentials)) - 1,
        "delightful": lambda: (own - mean) * sigmoid,
    }[rule.advantage]()


@settings(max_examples=300)
@given(outcomes=sampled_outcomes(), rule=rules)
def test_advantages_are_those_of_the_episodes_one_by_one(outcomes, rule):
    cells, _, counts, surprisal = outcomes
    credited, got = judge(outcomes, rule)
    for outcome, group, step in np.ndindex(*got.shape):
        if math.isnan(credited[outcome, step]):
            assert got[outcome, group, step] == 0.0
        elif counts[outcome, group]:
            expected = loop_over_episodes(cells, credited, counts, rule, surprisal, outcome, group, step)
            assert got[outcome, group, step] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(outcomes=sampled_outcomes(), rule=rules.filter(lambda rule: rule.advantage in CENTERED))
def test_centered_advantages_of_a_group_sum_to_zero(outcomes, rule):
    cells, _, counts, _ = outcomes
    _, advantages = judge(outcomes, rule)
    for cell in set(cells.tolist()):
        sums = (counts[:, :, None] * advantages)[cells == cell].sum(0)
        np.testing.assert_allclose(sums, 0.0, atol=1e-9 * np.abs(advantages).max())


@given(outcomes=sampled_outcomes(), rule=rules.filter(lambda rule: rule.advantage != "constant_baseline"))
def test_where_all_episodes_fare_alike_nothing_is_known(outcomes, rule):
    cells, credited, counts, surprisal = outcomes
    alike = np.where(np.isnan(credited), NAN, 0.0 if rule.advantage in ZERO_OR_ONE else credited[0, 0])
    advantages = group_advantages(alike, counts, cells, rule, surprisal)
    np.testing.assert_allclose(advantages * (counts[:, :, None] > 0), 0.0, atol=1e-9)


@given(outcomes=sampled_outcomes())
def test_rejection_gives_what_was_right_the_weight_of_the_whole_group(outcomes):
    cells, _, counts, _ = outcomes
    credited, advantages = judge(outcomes, AdvantageRule("rejection"))
    taken = ~np.isnan(credited)
    for cell in set(cells.tolist()):
        own = cells == cell
        episodes = (counts[:, :, None] * taken[:, None, :])[own].sum(0)
        any_right = ((counts[:, :, None] > 0) & (credited == 1)[:, None, :])[own].any(0)
        np.testing.assert_allclose((counts[:, :, None] * advantages)[own].sum(0), np.where(any_right, episodes, 0))


@given(outcomes=sampled_outcomes(), temperature=st.floats(0.125, 4, width=16), shift=st.floats(-700, 700, width=16))
def test_exponential_weights_know_no_origin_of_rewards_and_never_overflow(outcomes, temperature, shift):
    cells, credited, counts, _ = outcomes
    rule = AdvantageRule("exponential_weights", temperature=temperature)
    present = counts[:, :, None] > 0
    first, second = (group_advantages(credited + s, counts, cells, rule) * present for s in (0.0, shift))
    np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-9)


@given(outcomes=sampled_outcomes(), temperature=st.floats(0.125, 4, width=16))
def test_a_delightful_gate_takes_from_failures_more_than_from_successes(outcomes, temperature):
    _, centered = judge(outcomes, AdvantageRule("group_centered"))
    _, gated = judge(outcomes, AdvantageRule("delightful", temperature=temperature))
    up, down = centered > 0, centered < 0
    assert (gated[up] >= centered[up] / 2).all()
    assert (gated[up] <= centered[up]).all()
    assert (gated[down] <= 0).all()
    assert (gated[down] >= centered[down] / 2).all()


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


def expect_gradient(p, rewards, size, kind, **options):
    """E[1/G sum_i A_i grad log p(a_i)] over all groups, with respect to a softmax's logits."""
    total, rule, cell = np.zeros_like(p), AdvantageRule(kind, **options), np.zeros(len(p), int)
    for counts in list_groups(len(p), size):
        advantage = group_advantages(rewards[:, None], counts[:, None], cell, rule, -np.log(p)[:, None])[:, 0, 0]
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
    got = expect_gradient(ARMS, REWARDS, 3, "constant_baseline", baseline=baseline)
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


RIGHT = np.array([0.0, 0.0, 1.0, 1.0])
"""Two of four arms are right: p is the chance of either."""


@pytest.mark.parametrize(("kind", "missing"), [("rejection", 0), ("maxrl", 1)])
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_rejection_and_maxrl_ascend_the_first_terms_of_log_p(kind, missing, size):
    # log p = -sum_k (1-p)^k / k, whose first K terms have the slope (1 - (1-p)^K) / p.
    p = ARMS @ RIGHT
    slope = (1 - (1 - p) ** (size - missing)) / p
    got = expect_gradient(ARMS, RIGHT, size, kind)
    np.testing.assert_allclose(got, slope * ARMS * (RIGHT - p), atol=1e-14)


def test_exponential_weights_of_large_groups_ascend_the_log_of_the_mean_exponential():
    p, rewards, temperature = np.array([0.6, 0.3, 0.1]), np.array([0.0, 1.0, 0.25]), 0.5
    weight = np.exp(rewards / temperature)
    got = expect_gradient(p, rewards, 120, "exponential_weights", temperature=temperature)
    np.testing.assert_allclose(got, p * (weight / (p @ weight) - 1), rtol=0.02)


def test_delightful_gradient_of_large_groups_is_the_gated_sum_over_arms():
    p, rewards, temperature = np.array([0.6, 0.3, 0.1]), np.array([0.0, 1.0, 0.25]), 0.5
    advantage = rewards - p @ rewards
    weight = p * advantage / (1 + np.exp(advantage * np.log(p) / temperature))
    got = expect_gradient(p, rewards, 120, "delightful", temperature=temperature)
    np.testing.assert_allclose(got, weight - weight.sum() * p, rtol=0.03)


def test_a_constant_baseline_and_group_centering_do_nothing_for_a_policy_that_is_wrong_and_rejection_does():
    # The well: as p falls to 0, the gradient of p has the factor p, and that of log p has not.
    p, right = np.array([0.999, 0.001]), np.array([0.0, 1.0])
    usual, log = (expect_gradient(p, right, 64, kind)[1] for kind in ("group_centered", "rejection"))
    assert log > 50 * usual
