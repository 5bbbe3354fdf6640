"""Every channel against brute force written another way, and the facts about channels that the project builds on."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memrl.channels import REWARDS
from memrl.config import TrainConfig
from memrl.task.answer_format import integer_format
from memrl.task.reward import REWARD_FUNCTIONS, Channel, build_channel, distance_bins, row_blocks
from memrl.theory.capacity import channel_capacity, identifiability_warning

RL_CHANNELS = {
    "binary": {},
    "binned_distance-log": {"reward_type": "binned_distance", "reward_bins": 4},
    "binned_distance-linear": {"reward_type": "binned_distance", "reward_bins": 3, "binning": "linear"},
    "binned_distance-equal_mass": {"reward_type": "binned_distance", "reward_bins": 5, "binning": "equal_mass"},
    "distance": {"reward_type": "distance"},
    "per_bit": {"reward_type": "per_bit", "env_type": "multi_step"},
    "bit_count": {"reward_type": "bit_count"},
    "multi_step/bit_count": {"reward_type": "bit_count", "env_type": "multi_step"},
    "multi_step/binary": {"env_type": "multi_step"},
}
CHANNELS = {**RL_CHANNELS, "sft": {"algorithm": "sft"}}
SIZES = (5, 6, 8, 10, 16, 100)


def make_channel(name, N, **fields):
    return build_channel(TrainConfig(N=N, **CHANNELS[name], **fields))


def log_bin(d, N, B):
    """The bin by integer arithmetic alone: d is in bin b or farther iff (1+d)^(2(B-1)) >= N^(2b-1)."""
    return sum((1 + d) ** (2 * (B - 1)) >= N ** (2 * b - 1) for b in range(1, B))


def equal_mass_bin(d, N, B):
    """The bin by counting pairs: floor(B P(D < d))."""
    nearer = sum(abs(g - s) < d for g in range(N) for s in range(N))
    return min(B - 1, math.floor(Fraction(B * nearer, N * N)))


def brute_force(name, guess, secret, N):
    """The rewards of one episode in plain Python; a list with one entry an env_step that pays."""
    d, k = abs(guess - secret), len(format(N - 1, "b"))
    right = [float(a == b) for a, b in zip(format(guess, f"0{k}b"), format(secret, f"0{k}b"), strict=True)]
    if name.endswith("binary"):
        return [float(guess == secret)]
    if name == "distance":
        return [1 - math.log2(1 + d) / math.log2(N)]
    if name == "sft":
        return [float(secret)]
    if name == "per_bit":
        return right
    if name.endswith("bit_count"):
        return [sum(right)]
    B = CHANNELS[name]["reward_bins"]
    bins = {"log": log_bin, "equal_mass": equal_mass_bin, "linear": lambda d, N, B: d * B // N}
    return [1 - bins[name.partition("-")[2]](d, N, B) / (B - 1)]


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("N", [5, 6, 8, 10, 16])
def test_rewards_equal_brute_force(name, N):
    channel = make_channel(name, N)
    told = channel.rewards(np.arange(N)[:, None], np.arange(N)[None, :])
    expected = [[brute_force(name, guess, secret, N) for secret in range(N)] for guess in range(N)]
    np.testing.assert_allclose(told, expected, rtol=0, atol=1e-12)


@given(st.sampled_from(list(RL_CHANNELS)), st.integers(5, 300), st.data())
def test_rewards_are_finite_bounded_and_highest_at_the_secret(name, N, data):
    channel = make_channel(name, N)
    guess, secret = (data.draw(st.integers(0, N - 1)) for _ in range(2))
    told = channel.rewards(np.array(guess), np.array(secret))
    assert told.shape == (channel.num_rewards,)
    assert (told >= 0).all()
    assert told.sum() <= channel.rewards(np.array(secret), np.array(secret)).sum()
    assert told.tolist() == channel.rewards(np.array([guess]), np.array([secret]))[0].tolist()


@given(st.sampled_from(list(RL_CHANNELS)), st.integers(5, 300), st.data())
def test_guess_and_secret_can_change_places(name, N, data):
    channel = make_channel(name, N)
    guess, secret = (np.array(data.draw(st.integers(0, N - 1))) for _ in range(2))
    assert channel.rewards(guess, secret).tolist() == channel.rewards(secret, guess).tolist()


@given(st.integers(2, 300), st.integers(2, 40), st.sampled_from(["log", "linear", "equal_mass"]))
def test_farther_is_never_paid_better_and_bins_are_in_range(N, B, binning):
    B = min(B, N)
    bins = distance_bins(N, B, binning)
    assert bins[0] == 0
    assert (np.diff(bins) >= 0).all()
    assert bins[-1] <= B - 1


@given(st.integers(2, 80), st.integers(2, 80))
def test_log_bins_are_exact_where_a_float_falls_short_of_a_tie(N, B):
    B = min(B, N)
    assert distance_bins(N, B, "log").tolist() == [log_bin(d, N, B) for d in range(N)]


@pytest.mark.parametrize(("N", "B"), [(49, 8), (144, 6), (225, 4), (2401, 8)])
def test_log_bins_at_known_ties(N, B):
    assert distance_bins(N, B, "log").tolist() == [log_bin(d, N, B) for d in range(N)]


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("N", SIZES)
def test_codes_are_equal_where_feedback_is_equal_and_ordered_by_value(name, N):
    channel = make_channel(name, N)
    told = channel.rewards(np.arange(N)[:, None], np.arange(N)[None, :])
    values = sorted({tuple(row) for row in told.reshape(N * N, -1).tolist()})
    expected = [[values.index(tuple(row)) for row in rows] for rows in told.tolist()]
    np.testing.assert_array_equal(channel.codes, expected)


def test_codes_of_vectors_that_are_no_bits():
    rewards = np.random.default_rng(0).integers(-2, 3, size=(8, 8, 3)) / 4
    channel = Channel(
        "vectors",
        integer_format(8, "multi_step"),
        lambda guess, secret, N: rewards[guess, secret],
        per_step=True,
        nominal_bits=math.inf,
    )
    same_code = channel.codes.ravel()[:, None] == channel.codes.ravel()[None, :]
    flat = rewards.reshape(64, 3)
    np.testing.assert_array_equal(same_code, (flat[:, None] == flat[None, :]).all(axis=-1))
    _, total = channel.feedback(np.arange(8)[:, None], np.arange(8))
    np.testing.assert_allclose(total, rewards.sum(axis=-1), atol=1e-12)


def test_codes_ignore_rounding_errors_of_a_float():
    def tenths(guess, secret, N):
        return np.where(guess < secret, 0.1 + 0.2, 0.3)

    channel = Channel("tenths", integer_format(4, "single_step"), tenths, per_step=False, nominal_bits=math.inf)
    assert channel.codes.max() == 0


def test_a_reward_that_is_not_finite_is_refused():
    def one_over_distance(guess, secret, N):
        with np.errstate(divide="ignore"):
            return 1.0 / np.abs(guess - secret)

    answer_format = integer_format(4, "single_step")
    channel = Channel("one_over_distance", answer_format, one_over_distance, per_step=False, nominal_bits=math.inf)
    with pytest.raises(ValueError, match="rewards of one_over_distance must be finite at N=4"):
        channel_capacity(channel)


@pytest.mark.parametrize("N", [2, 3, 100, 70_000])
def test_row_blocks_cover_every_guess_once_in_order(N):
    np.testing.assert_array_equal(np.concatenate(row_blocks(N)), np.arange(N))


def test_equal_channels_are_one_channel_to_a_cache():
    fields = {"reward_type": "binned_distance", "reward_bins": 8}
    first, second = (build_channel(TrainConfig(N=64, seed=seed, **fields)) for seed in (0, 1))
    assert first == second
    assert hash(first) == hash(second)


def binned(N, B, binning):
    return build_channel(TrainConfig(N=N, reward_type="binned_distance", reward_bins=B, binning=binning))


@pytest.mark.parametrize("B", [2, 3, 4, 5, 6])
def test_log_bins_are_identifiable_iff_N_is_at_most_4_to_the_B_minus_1(B):
    limit = 4 ** (B - 1)
    for N in {max(2, B), limit - 1, limit, limit + 1, 2 * limit}:
        assert channel_capacity(binned(N, B, "log")).identifiable == (limit >= N)


def test_eight_log_bins_over_1024_secrets_tell_under_2_bits_and_equal_mass_bins_restore_them():
    log, equal_mass = (channel_capacity(binned(1024, 8, binning)) for binning in ("log", "equal_mass"))
    assert log.nominal_bits == equal_mass.nominal_bits == 3.0
    assert log.uniform_guess_bits < 2.0
    assert equal_mass.uniform_guess_bits > 2.6
    # Under log2 B: an edge guess sees other distances than a middle guess, and the bins fit only their mixture.
    assert equal_mass.uniform_guess_bits <= 3.0


@pytest.mark.parametrize("binning", ["linear", "equal_mass"])
@pytest.mark.parametrize("N", [2, 9, 64])
def test_other_bins_are_identifiable_iff_there_are_N_of_them(binning, N):
    for B in {2, N - 1, N} - {1}:
        assert channel_capacity(binned(N, B, binning)).identifiable == (B == N)


def test_a_warning_counts_the_guesses_that_pay_best():
    assert "up to 5 guesses pay as much as the secret" in str(identifiability_warning(binned(64, 16, "equal_mass")))


def test_two_distance_bins_are_not_the_binary_reward():
    two_bins, binary = channel_capacity(binned(64, 2, "log")), channel_capacity(make_channel("binary", 64))
    assert two_bins.uniform_guess_bits > 5 * binary.uniform_guess_bits
    assert two_bins.identifiable is False
    assert binary.identifiable is True


@pytest.mark.parametrize("name", ["binary", "distance", "per_bit", "bit_count", "multi_step/binary", "sft"])
def test_channels_that_pay_the_secret_alone_are_identifiable(name):
    channel = make_channel(name, 100)
    assert channel_capacity(channel).identifiable
    assert identifiability_warning(channel) is None


@pytest.mark.parametrize("name", ["binary", "distance", "per_bit"])
def test_a_malformed_answer_that_pays_as_much_as_the_secret_is_warned_of(name):
    channel = make_channel(name, 16, malformed_reward=1.0)
    assert not channel_capacity(channel).identifiable
    assert "malformed_reward=1.0" in str(identifiability_warning(channel))
    assert channel_capacity(make_channel(name, 16, malformed_reward=-1.0)).identifiable


def test_every_record_of_a_channel_has_a_reward_function():
    assert set(REWARD_FUNCTIONS) | {"binned_distance"} == set(REWARDS)


@pytest.mark.parametrize("name", CHANNELS)
def test_a_record_says_which_rewards_are_zero_or_one(name):
    config = TrainConfig(N=13, **CHANNELS[name])
    answers = np.arange(13)
    rewards = build_channel(config).rewards(answers[:, None], answers)
    assert config.channel_kind.zero_or_one <= (set(np.unique(rewards)) <= {0.0, 1.0})
