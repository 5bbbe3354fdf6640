"""Capacities against joint distributions built pair by pair, closed forms, published numbers and their inequalities."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from information import blahut_arimoto, distinct_guess_gain_bits, guess_information_bits, mutual_information_bits

from memrl.config import TrainConfig
from memrl.task.answer_format import integer_format
from memrl.task.reward import Channel, build_channel
from memrl.task.secret import num_bits
from memrl.theory.capacity import (
    channel_capacity,
)
from memrl.theory.information import binary_entropy_bits

FIELDS = {
    "binary": {},
    "log-4": {"reward_type": "binned_distance", "reward_bins": 4},
    "linear-3": {"reward_type": "binned_distance", "reward_bins": 3, "binning": "linear"},
    "equal_mass-5": {"reward_type": "binned_distance", "reward_bins": 5, "binning": "equal_mass"},
    "distance": {"reward_type": "distance"},
    "per_bit": {"reward_type": "per_bit", "env_type": "multi_step"},
    "bit_count": {"reward_type": "bit_count"},
    "sft": {"algorithm": "sft"},
}


def make_channel(name, N):
    return build_channel(TrainConfig(N=N, **FIELDS[name]))


def joint_of_secret_and_feedback(channel, guess, p_secret=None):
    """P(secret, feedback) at one guess, built pair by pair from the rewards alone."""
    p_secret = [1 / channel.N] * channel.N if p_secret is None else p_secret
    told = [tuple(channel.rewards(np.array(guess), np.array(secret)).tolist()) for secret in range(channel.N)]
    column = {feedback: i for i, feedback in enumerate(dict.fromkeys(told))}
    joint = np.zeros((channel.N, len(column)))
    for secret, feedback in enumerate(told):
        joint[secret, column[feedback]] = p_secret[secret]
    return joint


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("N", [5, 8, 13, 32])
def test_capacity_equals_the_mutual_information_of_enumerated_pairs(name, N):
    channel = make_channel(name, N)
    told = [mutual_information_bits(joint_of_secret_and_feedback(channel, guess)) for guess in range(N)]
    capacity = channel_capacity(channel)
    np.testing.assert_allclose(guess_information_bits(channel), told, atol=1e-9)
    assert capacity.uniform_guess_bits == pytest.approx(np.mean(told), abs=1e-9)
    assert capacity.best_guess_bits == pytest.approx(max(told), abs=1e-9)


@pytest.mark.parametrize("name", FIELDS)
def test_over_distributions_of_the_secret_capacity_is_log2_of_the_distinct_feedbacks(name):
    channel = make_channel(name, 13)
    capacities = []
    for guess in range(13):
        joint = joint_of_secret_and_feedback(channel, guess)
        capacities.append(blahut_arimoto(joint * 13)[0])
    assert channel_capacity(channel).max_feedback_bits == pytest.approx(max(capacities), abs=1e-6)


@given(st.sampled_from(list(FIELDS)), st.integers(0, 2**32 - 1))
def test_mixing_guesses_never_beats_the_best_guess(name, seed):
    channel = make_channel(name, 9)
    mixture = np.random.default_rng(seed).dirichlet(np.full(9, 0.5))
    # The learner knows its guess, so the pair (guess, feedback) is what it sees.
    joints = [p * joint_of_secret_and_feedback(channel, guess) for guess, p in enumerate(mixture)]
    assert mutual_information_bits(np.concatenate(joints, axis=1)) <= channel_capacity(channel).best_guess_bits + 1e-9


@given(st.sampled_from(list(FIELDS)), st.integers(5, 200))
def test_capacities_are_ordered(name, N):
    capacity = channel_capacity(make_channel(name, N))
    ceiling = min(math.log2(N), capacity.nominal_bits)
    assert 0 <= capacity.uniform_guess_bits <= capacity.best_guess_bits + 1e-9
    assert capacity.best_guess_bits <= capacity.max_feedback_bits + 1e-9
    assert capacity.max_feedback_bits <= ceiling + 1e-9


@pytest.mark.parametrize("N", [2, 10, 64, 500])
def test_binary_tells_h_of_one_over_N(N):
    capacity = channel_capacity(make_channel("binary", N))
    assert capacity.uniform_guess_bits == pytest.approx(float(binary_entropy_bits(1 / N)), abs=1e-12)
    assert capacity.best_guess_bits == pytest.approx(float(binary_entropy_bits(1 / N)), abs=1e-12)
    assert (capacity.nominal_bits, capacity.max_feedback_bits) == (1.0, 1.0)


def test_binary_over_64_secrets_as_published():
    # Hernandez 2025: h(1/64) = 0.116, not 1.
    assert channel_capacity(make_channel("binary", 64)).uniform_guess_bits == pytest.approx(0.116, abs=5e-4)


@pytest.mark.parametrize("N", [6, 64, 100])
def test_one_example_and_one_per_bit_episode_tell_all(N):
    for name in ("sft", "per_bit"):
        capacity = channel_capacity(make_channel(name, N))
        assert capacity.uniform_guess_bits == pytest.approx(math.log2(N))
        assert capacity.max_feedback_bits == pytest.approx(math.log2(N))
    assert channel_capacity(make_channel("per_bit", N)).nominal_bits == num_bits(N)


@pytest.mark.parametrize("k", [3, 6, 10])
def test_bit_count_tells_the_entropy_of_a_binomial(k):
    p = np.array([math.comb(k, i) / 2**k for i in range(k + 1)])
    capacity = channel_capacity(make_channel("bit_count", 2**k))
    assert capacity.uniform_guess_bits == pytest.approx(-(p * np.log2(p)).sum(), abs=1e-9)
    assert capacity.max_feedback_bits == pytest.approx(math.log2(k + 1))


@pytest.mark.parametrize("N", [8, 100])
def test_distance_tells_all_at_an_edge_and_loses_the_side_elsewhere(N):
    # At guess g, min(g, N-1-g) distances come from two secrets each; every other distance from one.
    expected = [math.log2(N) - 2 * min(g, N - 1 - g) / N for g in range(N)]
    channel = make_channel("distance", N)
    np.testing.assert_allclose(guess_information_bits(channel), expected, atol=1e-9)
    assert channel_capacity(channel).nominal_bits == math.inf


def test_an_adaptive_learner_can_be_told_more_than_the_best_guess_tells_of_a_uniform_secret():
    # The secret is (block, detail). Guess 0 asks for the block; guess 1 + b tells the detail, but only in block b.
    def ask(guess, secret, N):
        block, detail = np.divmod(secret, 16)
        return np.where(guess == 0, block, np.where(block == guess - 1, 1 + detail, 0)).astype(float)

    channel = Channel("ask", integer_format(64, "single_step"), ask, per_step=False, nominal_bits=math.inf)
    capacity = channel_capacity(channel)
    assert capacity.best_guess_bits == pytest.approx(2.0)  # h(1/4) + 1/4 * 4 = 1.81 bits for a detail; 2 for the block
    # Two episodes, block first, tell log2 64 = 6 bits > 2 * 2: effective capacities do not bound it, this does.
    assert 2 * capacity.best_guess_bits < math.log2(64) <= 2 * capacity.max_feedback_bits


@pytest.mark.parametrize("N", [2, 3, 5, 6])
def test_distinct_guess_gain_by_enumeration(N):
    for M in range(N + 1):
        left = [1 if secret < M else N - M for secret in range(N)]  # guesses 0 .. M-1, by symmetry
        expected = np.mean([math.log2(N) - math.log2(n) for n in left])
        assert float(distinct_guess_gain_bits(N, M)) == pytest.approx(expected, abs=1e-12)
