"""How an episode ends and what it pays: worked sequences, and a slow referee that plays step by step."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcomes import make_outcomes

from memrl.config import EnvType, TrainConfig
from memrl.task.answer_format import integer_format
from memrl.task.env import step_rewards
from memrl.task.reward import build_channel
from memrl.task.secret import num_bits

NAN = np.nan


def make_channel(reward_type, N, env_type: EnvType = "multi_step", malformed_reward=0.0):
    bins = 2 if reward_type == "binned_distance" else None
    fields: dict[str, Any] = {"reward_type": reward_type, "reward_bins": bins, "malformed_reward": malformed_reward}
    return build_channel(TrainConfig(N=N, env_type=env_type, **fields))


def play(channel, secret, *rows):
    """Rewards of outcomes, given as (guess, env_steps done, whether it is well-formed)."""
    return step_rewards(channel, make_outcomes(channel.answer_format, *zip(*rows, strict=True)), secret)


WORKED = [
    # single_step, N = 64, secret 37: the episode is one env_step, whatever its tokens are.
    ("binary", "single_step", 64, 37, (37, 1, True), [1.0]),
    ("binary", "single_step", 64, 37, (36, 1, True), [0.0]),
    ("binary", "single_step", 64, 37, (0, 0, False), [-1.0]),
    ("distance", "single_step", 64, 37, (38, 1, True), [1 - 1 / 6]),
    ("distance", "single_step", 64, 37, (34, 1, True), [1 - 2 / 6]),
    ("distance", "single_step", 64, 37, (3, 0, False), [-1.0]),
    # multi_step, N = 8, secret 5 = 101: one bit an env_step.
    ("per_bit", "multi_step", 8, 5, (0b101, 3, True), [1.0, 1.0, 1.0]),
    ("per_bit", "multi_step", 8, 5, (0b011, 3, True), [0.0, 0.0, 1.0]),
    ("bit_count", "multi_step", 8, 5, (0b011, 3, True), [0.0, 0.0, 1.0]),
    ("bit_count", "multi_step", 8, 5, (0b111, 3, True), [0.0, 0.0, 2.0]),
    ("binary", "multi_step", 8, 5, (0b101, 3, True), [0.0, 0.0, 1.0]),
    ("binary", "multi_step", 8, 5, (0b100, 3, True), [0.0, 0.0, 0.0]),
    # Malformed at each env_step: what was written before keeps its pay, what comes after does not happen.
    ("per_bit", "multi_step", 8, 5, (0b000, 0, False), [-1.0, NAN, NAN]),
    ("per_bit", "multi_step", 8, 5, (0b100, 1, False), [1.0, -1.0, NAN]),
    ("per_bit", "multi_step", 8, 5, (0b110, 2, False), [1.0, 0.0, -1.0]),
    ("bit_count", "multi_step", 8, 5, (0b000, 0, False), [-1.0, NAN, NAN]),
    ("bit_count", "multi_step", 8, 5, (0b100, 1, False), [0.0, -1.0, NAN]),
    ("bit_count", "multi_step", 8, 5, (0b110, 2, False), [0.0, 0.0, -1.0]),
    ("binary", "multi_step", 8, 5, (0b100, 2, False), [0.0, 0.0, -1.0]),
    # N = 6 has 3 bits, and 110 is no answer: its last bit is malformed, though both bits before it were right.
    ("per_bit", "multi_step", 6, 5, (0b100, 2, False), [1.0, 1.0, -1.0]),
]


@pytest.mark.parametrize(("reward_type", "env_type", "N", "secret", "outcome", "expected"), WORKED)
def test_worked_sequences(reward_type, env_type, N, secret, outcome, expected):
    channel = make_channel(reward_type, N, env_type, malformed_reward=-1.0)
    rewards = play(channel, secret, outcome)
    np.testing.assert_allclose(rewards, [expected], rtol=0, atol=1e-12)


def test_many_episodes_each_with_a_secret_of_its_own():
    channel = make_channel("per_bit", 8)
    outcomes = (0b101, 3, True), (0b101, 3, True), (0b100, 1, False)
    rewards = play(channel, np.array([0b101, 0b010, 0b011]), *outcomes)
    np.testing.assert_array_equal(rewards, [[1, 1, 1], [0, 0, 0], [0, 0, NAN]])


def referee(reward_type, N, secret, bits, malformed_at, malformed_reward):
    """Plays one multi_step episode: writes the bits in order and stops at the malformed one, if any."""
    k = num_bits(N)
    secret_bits = format(secret, f"0{k}b")
    pay = []
    for t in range(k):
        if t == malformed_at:
            return pay + [malformed_reward] + [None] * (k - t - 1)
        last = t == k - 1
        if reward_type == "per_bit":
            pay.append(float(bits[t] == secret_bits[t]))
        elif not last:
            pay.append(0.0)
        elif reward_type == "bit_count":
            pay.append(float(sum(a == b for a, b in zip(bits, secret_bits, strict=True))))
        else:
            pay.append(float(bits == secret_bits))
    return pay


@given(
    reward_type=st.sampled_from(["per_bit", "bit_count", "binary"]),
    N=st.integers(2, 200),
    malformed_reward=st.sampled_from([0.0, -1.0, 0.5]),
    data=st.data(),
)
def test_multi_step_agrees_with_a_referee(reward_type, N, malformed_reward, data):
    k = num_bits(N)
    secret, guess = (data.draw(st.integers(0, N - 1), label=name) for name in ("secret", "guess"))
    malformed_at = data.draw(st.none() | st.integers(0, k - 1), label="malformed_at")
    bits = format(guess, f"0{k}b")
    steps_done = k if malformed_at is None else malformed_at
    # What the policy wrote before the malformed bit is all that counts: the guess is its smallest continuation.
    smallest = guess if malformed_at is None else int(bits[:steps_done].ljust(k, "0"), 2)
    channel = make_channel(reward_type, N, malformed_reward=malformed_reward)
    (rewards,) = play(channel, secret, (smallest, steps_done, malformed_at is None))
    expected = referee(reward_type, N, secret, bits, malformed_at, malformed_reward)
    assert [None if np.isnan(reward) else reward for reward in rewards] == expected


@given(
    reward_type=st.sampled_from(["per_bit", "bit_count", "binary", "distance", "binned_distance"]),
    N=st.integers(2, 200),
    data=st.data(),
)
def test_a_malformed_answer_tells_nothing_beyond_its_finished_steps(reward_type, N, data):
    k = num_bits(N)
    steps_done = data.draw(st.integers(0, k - 1))
    guess, other = (data.draw(st.integers(0, N - 1)) for _ in range(2))
    secret = data.draw(st.integers(0, N - 1))
    channel = make_channel(reward_type, N, malformed_reward=-2.0)
    rewards = play(channel, secret, (guess, steps_done, False), (other, steps_done, False))
    same_beginning = guess >> (k - steps_done) == other >> (k - steps_done)
    if same_beginning or reward_type != "per_bit":
        np.testing.assert_array_equal(rewards[0], rewards[1])
    assert (rewards[:, steps_done] == -2.0).all()
    assert np.isnan(rewards[:, steps_done + 1 :]).all()
    assert np.isfinite(rewards[:, : steps_done + 1]).all()


@given(
    reward_type=st.sampled_from(["bit_count", "binary", "distance", "binned_distance"]),
    N=st.integers(2, 200),
    data=st.data(),
)
def test_an_episode_reward_is_paid_once_and_last(reward_type, N, data):
    k = num_bits(N)
    guess, secret = (data.draw(st.integers(0, N - 1)) for _ in range(2))
    channel = make_channel(reward_type, N)
    (rewards,) = play(channel, secret, (guess, k, True))
    assert (rewards[:-1] == 0).all()
    assert rewards[-1] == channel.rewards(np.array(guess), np.array(secret)).item()


def test_outcomes_count_episodes():
    outcomes = make_outcomes(integer_format(8, "multi_step"), [5, 4], [3, 1], [True, False])
    assert len(outcomes) == 2
    assert outcomes.steps_done.tolist() == [3, 1]
    assert outcomes.select(np.array([1])).digits.tolist() == [[1, -1, -1]]
