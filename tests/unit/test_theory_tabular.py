"""Tabular policy gradient against analytic gradients, gradient flow, the wait for a hit, and other advantages."""

import math

import numpy as np
import pytest
from gradient_flow import gradient_flow_time
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from memrl.config import TrainConfig
from memrl.task.advantage import ADVANTAGES, AdvantageRule, episode_advantages, group_advantages
from memrl.task.reach import MILESTONES
from memrl.theory.tabular import _ArmLogits, _BitLogits, train_tabular

POLICIES = {"arms": _ArmLogits, "bits": _BitLogits}


def run(config, secrets, rate, first_seed=0):
    secrets = np.asarray(secrets)
    seeds = range(first_seed, first_seed + len(secrets))
    return train_tabular(config, secrets, list(seeds), np.full(len(secrets), float(rate)))


def episodes_until(runs, probability):
    """Episodes until P(secret) first reached a probability; infinite where it did not."""
    first = runs.reach.first[:, MILESTONES.index(f"e{100 * probability:.0f}")]
    return np.where(first < 0, np.inf, first)


def log_probabilities(policy, N, run=0):
    """ln P of every answer of one run, in order."""
    alone = policy.__class__.__new__(policy.__class__)
    alone.__dict__ = {
        name: np.repeat(v[run : run + 1], N, 0) if isinstance(v, np.ndarray) else v for name, v in vars(policy).items()
    }
    return alone.log2_probability(np.arange(N)) * math.log(2)


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("N", [2, 6, 10, 16, 100])
def test_policies_start_exactly_uniform_and_stay_in_range(kind, N):
    policy = POLICIES[kind](N, 1)
    np.testing.assert_allclose(log_probabilities(policy, N), -math.log(N), atol=1e-12)
    uniform = np.random.default_rng(0).random((1, 200 * N, policy.num_env_steps))
    counts = np.bincount(policy.sample(uniform)[0], minlength=N)
    assert len(counts) == N
    assert chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("N", [5, 8])
def test_ascend_adds_the_gradient_of_log_probability(kind, N):
    rng = np.random.default_rng(1)
    policy = POLICIES[kind](N, 1)
    policy.ascend(rng.integers(N, size=(1, 40)), rng.normal(size=(1, 40, policy.num_env_steps)), np.ones(1))
    guess, weight = rng.integers(N, size=6), rng.normal(size=6)
    before = policy._logits.copy()

    def objective(logits):
        policy._logits = logits
        if kind == "arms":
            policy._probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return float(weight @ log_probabilities(policy, N)[guess])

    numeric = np.zeros_like(before)
    for i in np.flatnonzero(np.isfinite(before[0])):
        up, down = before.copy(), before.copy()
        up[0, i] += 1e-5
        down[0, i] -= 1e-5
        numeric[0, i] = (objective(up) - objective(down)) / 2e-5
    objective(before.copy())
    policy.ascend(guess[None], np.repeat(weight[None, :, None], policy.num_env_steps, axis=2), np.ones(1))
    moved = np.where(np.isfinite(before), policy._logits - np.where(np.isfinite(before), before, 0), 0)
    np.testing.assert_allclose(moved, numeric, atol=1e-8)


def test_each_env_step_is_pushed_by_its_own_weight():
    policy = _BitLogits(8, 1)
    policy.ascend(np.array([[0b101]]), np.array([[[1.0, 0.0, -2.0]]]), np.ones(1))
    expected = np.zeros(8)
    expected[0b1], expected[0b110] = 0.5, -1.0  # the root's 1, and the last bit after 10
    np.testing.assert_allclose(policy._logits[0, 1:], expected[1:], atol=1e-12)


@settings(max_examples=20)
@given(
    st.sampled_from(list(ADVANTAGES)),
    st.integers(0, 2**32 - 1),
)
def test_advantages_are_those_of_the_trained_policies(kind, seed):
    rng = np.random.default_rng(seed)
    rule = AdvantageRule(kind, baseline=0.3, temperature=0.7)
    credited, surprisal = rng.integers(2, size=(4, 2, 5, 3)) / 1.0, rng.exponential(size=(4, 2, 5, 3))
    groups = np.eye(2, dtype=int)[np.tile(np.repeat([0, 1], 5), 4)]
    flat = (values.reshape(40, 3) for values in (credited, surprisal))
    reference = group_advantages(next(flat), groups, np.repeat(np.arange(4), 10), rule, next(flat))
    reference = np.broadcast_to(reference, (40, 2, 3))
    own = np.take_along_axis(reference, groups.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    np.testing.assert_allclose(episode_advantages(credited, rule, surprisal).reshape(40, 3), own, atol=1e-12)


@pytest.mark.parametrize("kind", POLICIES)
def test_surprisal_of_the_env_steps_is_that_of_the_answer(kind):
    policy = POLICIES[kind](11, 2)
    rng = np.random.default_rng(1)
    policy.ascend(rng.integers(11, size=(2, 40)), rng.normal(size=(2, 40, policy.num_env_steps)), np.ones(2))
    guess = rng.integers(11, size=(2, 6))
    expected = [[-log_probabilities(policy, 11, run)[g] for g in guess[run]] for run in range(2)]
    np.testing.assert_allclose(policy.surprisal(guess).sum(axis=2), expected, atol=1e-12)


def test_small_supervised_steps_follow_the_flow_of_log_probability():
    config = TrainConfig(algorithm="sft", N=32, n_steps=10_000)
    runs = run(config, [3], 0.01)
    assert episodes_until(runs, 0.5)[0] * 0.01 == pytest.approx(gradient_flow_time(32, "log_probability"), rel=0.02)
    assert episodes_until(runs, 0.9)[0] * 0.01 == pytest.approx(
        gradient_flow_time(32, "log_probability", 0.9), rel=0.02
    )


@pytest.mark.parametrize(
    ("advantage", "objective", "speed"),
    [
        ("group_centered", "probability", 1 - 1 / 256),  # the group's mean holds the episode itself
        ("leave_one_out", "probability", 1.0),
        ("constant_baseline", "probability", 1.0),
        ("std_normalized", "arcsin_sqrt", 2.0),
        ("rejection", "log_probability", 1.0),
        ("maxrl", "log_probability", 1.0),
    ],
)
def test_small_steps_of_large_groups_follow_the_flow(advantage, objective, speed):
    N, rate = 8, 0.1
    config = TrainConfig(N=N, advantage=advantage, group_size=256, n_steps=10_000)
    runs = run(config, [0, 5, 7, 2], rate)
    time = episodes_until(runs, 0.5) / 256 * rate * speed
    assert time.mean() == pytest.approx(gradient_flow_time(N, objective), rel=0.06)


@pytest.mark.parametrize("env_type", ["single_step", "multi_step"])
def test_with_large_steps_binary_waits_for_its_first_hit(env_type):
    N, group_size, num_runs = 32, 8, 600
    config = TrainConfig(N=N, env_type=env_type, group_size=group_size, n_steps=10_000)
    runs = run(config, np.arange(num_runs) % N, 1e4)
    waited = episodes_until(runs, 0.5) / group_size
    assert np.isfinite(waited).all()
    hit = 1 - (1 - 1 / N) ** group_size
    assert waited.mean() == pytest.approx(1 / hit, abs=4 * math.sqrt(1 - hit) / hit / math.sqrt(num_runs))


def describe_run(runs, row):
    return [runs.episodes[row], runs.secret_log2[row], runs.reach.slope_bits(row), *runs.reach.first[row]]


def test_a_run_is_what_it_would_be_alone():
    config = TrainConfig(N=20, reward_type="distance", group_size=4, n_steps=60)
    together = train_tabular(config, np.array([3, 7, 11]), [5, 6, 7], np.array([2.0, 8.0, 32.0]))
    for i, (secret, seed, rate) in enumerate([(3, 5, 2.0), (7, 6, 8.0), (11, 7, 32.0)]):
        alone = train_tabular(config, np.array([secret]), [seed], np.array([rate]))
        assert describe_run(together, i) == describe_run(alone, 0)


def test_every_channel_is_learned_by_small_steps():
    fields = [
        {"reward_type": "distance"},
        {"reward_type": "binned_distance", "reward_bins": 4},
        {"reward_type": "bit_count"},
        {"reward_type": "bit_count", "env_type": "multi_step"},
        {"reward_type": "per_bit", "env_type": "multi_step"},
        {"reward_type": "per_bit", "env_type": "multi_step", "credit": "return_to_go"},
        {"algorithm": "sft", "env_type": "multi_step"},
    ]
    for field in fields:
        runs = run(TrainConfig(N=16, n_steps=2000, **field), [0, 5, 10, 15], 2.0)
        assert np.isfinite(episodes_until(runs, 0.9)).all(), field
        assert (episodes_until(runs, 0.5) <= episodes_until(runs, 0.9)).all()
        assert (2**runs.secret_log2 >= 0.9).all()


def test_episode_credit_slows_per_bit_and_per_step_credit_hardly_feels_N():
    def median_e50(N, credit):
        config = TrainConfig(N=N, env_type="multi_step", reward_type="per_bit", credit=credit, n_steps=400)
        runs = [run(config, np.random.default_rng(N).integers(N, size=16), rate) for rate in (4, 16, 64, 256)]
        return min(np.median(episodes_until(r, 0.5)) for r in runs)

    per_step, episode = ([median_e50(N, credit) for N in (16, 1024)] for credit in ("per_step", "episode"))
    assert per_step[1] <= 2 * per_step[0]
    assert episode[1] > 1.5 * per_step[1]
    assert episode[1] > episode[0]


def test_a_spent_budget_censors():
    runs = run(TrainConfig(N=64, n_steps=3, group_size=8), [1, 2], 1e-6)
    assert runs.episodes.tolist() == [24, 24]
    assert (runs.reach.first == -1).all()
    np.testing.assert_allclose(runs.secret_log2, -6, atol=1e-5)
