"""The pack's observer against Bayes' rule played secret by secret, and what information theory says it can reach."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from information import distinct_guess_gain_bits, guess_information_bits
from outcomes import make_outcomes

from memrl.config import TrainConfig
from memrl.task.answer_format import integer_format
from memrl.task.env import Outcomes, step_rewards
from memrl.task.reward import Channel, build_channel
from memrl.theory.capacity import channel_capacity
from memrl.theory.observer import PackObserver

FIELDS = {
    "binary": {},
    "log-3": {"reward_type": "binned_distance", "reward_bins": 3},
    "equal_mass-4": {"reward_type": "binned_distance", "reward_bins": 4, "binning": "equal_mass"},
    "distance": {"reward_type": "distance"},
    "per_bit": {"reward_type": "per_bit", "env_type": "multi_step"},
    "bit_count": {"reward_type": "bit_count"},
    "multi_step/bit_count": {"reward_type": "bit_count", "env_type": "multi_step"},
    "multi_step/binary": {"env_type": "multi_step"},
}


def make_channel(name, N, malformed_reward=-1.0):
    return build_channel(TrainConfig(N=N, malformed_reward=malformed_reward, **FIELDS[name]))


def draw_outcomes(rng, channel, size):
    """Random episodes: a quarter malformed, at a random env_step."""
    steps = channel.answer_format.num_env_steps
    well_formed = rng.random(size) > 0.25
    done = np.where(well_formed, steps, rng.integers(steps, size=size))
    return make_outcomes(channel.answer_format, rng.integers(channel.N, size=size), done, well_formed)


def write_whole(channel, *guesses):
    """Whole answers."""
    steps = channel.answer_format.num_env_steps
    return make_outcomes(channel.answer_format, guesses, [steps] * len(guesses), [True] * len(guesses))


def join(parts):
    """The outcomes of several cells, their digits padded to the longest."""
    longest = max(part.digits.shape[1] for part in parts)
    digits = [np.pad(p.digits, ((0, 0), (0, longest - p.digits.shape[1])), constant_values=-1) for p in parts]
    return Outcomes(np.concatenate(digits), np.concatenate([p.well_formed for p in parts]))


def explains(channel, secret, outcomes, rewards):
    """Whether the secret would have paid every one of these rewards: the likelihood, from the environment itself."""
    paid = step_rewards(channel, outcomes, secret)
    return np.array_equal(paid, rewards, equal_nan=True)


def posterior_bits(channel, outcomes, rewards):
    left = [secret for secret in range(channel.N) if explains(channel, secret, outcomes, rewards)]
    return math.log2(channel.N) - math.log2(len(left)), left


class Cell:
    """One cell's task and everything that it has seen."""

    def __init__(self, name, N, secret):
        self.channel, self.secret = make_channel(name, N), secret
        self.steps = self.channel.answer_format.num_env_steps
        self.outcomes = write_whole(self.channel)
        self.rewards = np.zeros((0, self.steps))

    def play(self, rng, size):
        outcomes = draw_outcomes(rng, self.channel, size)
        rewards = step_rewards(self.channel, outcomes, self.secret)
        self.outcomes, self.rewards = join([self.outcomes, outcomes]), np.concatenate([self.rewards, rewards])
        return outcomes, rewards


def observe_pack(observer, cells, played, rng):
    """Hands the whole pack's episodes over at once, shuffled, rewards padded to the longest."""
    longest = max(cell.steps for cell in cells)
    rewards = [np.pad(r, ((0, 0), (0, longest - r.shape[1])), constant_values=np.nan) for _, r in played]
    index = np.repeat(np.arange(len(cells)), [len(o) for o, _ in played])
    outcomes, rewards, order = join([o for o, _ in played]), np.concatenate(rewards), rng.permutation(len(index))
    observer.observe(index[order], outcomes.select(order), rewards[order])


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(list(FIELDS)), st.integers(5, 40)), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
)
def test_a_mixed_pack_knows_what_bayes_knows_after_every_update(tasks, seed):
    rng = np.random.default_rng(seed)
    cells = [Cell(name, N, rng.integers(N)) for name, N in tasks + tasks[:1]]
    observer = PackObserver([cell.channel for cell in cells])
    before = observer.observed_bits
    np.testing.assert_array_equal(before, 0.0)
    for _ in range(4):
        observe_pack(observer, cells, [cell.play(rng, rng.integers(1, 6)) for cell in cells], rng)
        for i, cell in enumerate(cells):
            bits, left = posterior_bits(cell.channel, cell.outcomes, cell.rewards)
            assert observer.observed_bits[i] == pytest.approx(bits, abs=1e-12)
            assert observer.candidates(i).tolist() == left
        assert (observer.observed_bits >= before).all()
        before = observer.observed_bits


@pytest.mark.parametrize("name", FIELDS)
def test_many_cells_of_one_channel_over_many_updates(name):
    rng, N = np.random.default_rng(0), 120
    cells = [Cell(name, N, rng.integers(N)) for _ in range(4)]
    observer = PackObserver([cell.channel for cell in cells])
    for _ in range(4):
        observe_pack(observer, cells, [cell.play(rng, 32) for cell in cells], rng)
        expected = [posterior_bits(cell.channel, cell.outcomes, cell.rewards)[0] for cell in cells]
        np.testing.assert_allclose(observer.observed_bits, expected, atol=1e-12)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("N", [6, 16])
def test_one_episode_tells_its_capacity_on_average(name, N):
    channel, told = make_channel(name, N), np.zeros((N, N))
    for guess in range(N):
        outcome = write_whole(channel, guess)
        observer = PackObserver([channel] * N)
        for secret in range(N):
            observer.observe(secret, outcome, step_rewards(channel, outcome, secret))
        told[guess] = observer.observed_bits
    np.testing.assert_allclose(told.mean(axis=1), guess_information_bits(channel), atol=1e-12)
    assert told.mean() == pytest.approx(channel_capacity(channel).uniform_guess_bits, abs=1e-12)


@settings(max_examples=50)
@given(st.sampled_from(list(FIELDS)), st.integers(5, 40), st.integers(0, 2**32 - 1))
def test_guesses_that_do_not_look_back_tell_at_most_the_sum_of_their_capacities(name, N, seed):
    rng, channel = np.random.default_rng(seed), make_channel(name, N)
    guess = rng.integers(N, size=rng.integers(1, 8))
    outcomes = write_whole(channel, *guess)
    observer = PackObserver([channel] * N)
    for secret in range(N):
        observer.observe(secret, outcomes, step_rewards(channel, outcomes, secret))
    mean = observer.observed_bits.mean()
    assert mean <= min(math.log2(N), guess_information_bits(channel)[guess].sum()) + 1e-9
    assert mean <= len(guess) * channel_capacity(channel).max_feedback_bits + 1e-9
    if channel.name.endswith("binary"):
        assert mean == pytest.approx(float(distinct_guess_gain_bits(N, len(set(guess.tolist())))), abs=1e-9)


@pytest.mark.parametrize("N", [2, 64, 100])
def test_one_example_tells_all(N):
    channel = build_channel(TrainConfig(N=N, algorithm="sft"))
    observer = PackObserver([channel] * 2)
    example = write_whole(channel, N - 1)
    observer.observe(1, example, step_rewards(channel, example, N - 1))
    assert observer.observed_bits.tolist() == [0.0, math.log2(N)]
    assert observer.candidates(1).tolist() == [N - 1]


def test_malformed_answers_tell_nothing_but_the_bits_before_them():
    channel = make_channel("per_bit", 16)
    observer = PackObserver([channel])
    for bits, done, expected in [(0b0000, 0, 0.0), (0b1000, 1, 1.0), (0b1000, 1, 1.0), (0b0110, 3, 3.0), (0b0, 0, 3.0)]:
        outcome = make_outcomes(channel.answer_format, [bits], [done], [False])
        observer.observe(0, outcome, step_rewards(channel, outcome, 0b1010))
        assert observer.observed_bits.tolist() == [expected]
    assert observer.candidates(0).tolist() == [0b1010, 0b1011]


def test_a_malformed_reward_that_equals_a_real_one_is_not_taken_for_it():
    channel = make_channel("binary", 8, malformed_reward=1.0)
    observer = PackObserver([channel])
    malformed = make_outcomes(channel.answer_format, [3], [0], [False])
    observer.observe(0, malformed, step_rewards(channel, malformed, 5))
    assert observer.observed_bits.tolist() == [0.0]


def test_cells_that_leave_take_nothing_from_the_others():
    rng = np.random.default_rng(1)
    cells = [Cell(name, N, 3) for name, N in [("per_bit", 9), ("binary", 30), ("log-3", 50), ("bit_count", 17)]]
    observer = PackObserver([cell.channel for cell in cells])
    observe_pack(observer, cells, [cell.play(rng, 3) for cell in cells], rng)
    before = observer.observed_bits
    observer.keep(np.array([3, 1]))
    cells = [cells[3], cells[1]]
    assert len(observer) == 2
    np.testing.assert_array_equal(observer.observed_bits, before[[3, 1]])
    for _ in range(3):
        observe_pack(observer, cells, [cell.play(rng, 4) for cell in cells], rng)
    expected = [posterior_bits(cell.channel, cell.outcomes, cell.rewards)[0] for cell in cells]
    np.testing.assert_allclose(observer.observed_bits, expected, atol=1e-12)


def test_a_restored_observer_goes_on_as_the_saved_one():
    rng = np.random.default_rng(2)
    cells = [Cell("per_bit", 9, 3), Cell("binary", 30, 7), Cell("log-3", 50, 11)]
    saved = PackObserver([cell.channel for cell in cells])
    observe_pack(saved, cells, [cell.play(rng, 3) for cell in cells], rng)
    saved.keep(np.array([1, 2]))
    restored = PackObserver([cells[1].channel, cells[2].channel])
    restored.restore(saved.arrays())
    more = [cell.play(rng, 5) for cell in cells[1:]]
    for observer in (saved, restored):
        observe_pack(observer, cells[1:], more, np.random.default_rng(0))
    np.testing.assert_array_equal(saved.observed_bits, restored.observed_bits)
    assert saved.observed_bits.min() > 0


def test_rewards_that_no_secret_explains_are_refused():
    channel = make_channel("binary", 4)
    outcome = write_whole(channel, 0, 1)
    with pytest.raises(ValueError, match="rewards must be those of binary, got some that no secret explains"):
        PackObserver([channel]).observe(0, outcome, np.array([[0.5], [0.0]]))


def test_a_channel_of_vectors_that_are_no_bits_is_read_step_by_step():
    rewards = np.random.default_rng(0).integers(0, 3, size=(8, 8, 3)) / 3
    channel = Channel(
        "vectors",
        integer_format(8, "multi_step"),
        lambda guess, secret, N: rewards[guess, secret],
        per_step=True,
        nominal_bits=math.inf,
    )
    observer = PackObserver([channel])
    outcome = make_outcomes(channel.answer_format, [6], [2], [False])
    observer.observe(0, outcome, step_rewards(channel, outcome, 5))
    expected = [s for s in range(8) if (rewards[6, s, :2] == rewards[6, 5, :2]).all()]
    assert observer.candidates(0).tolist() == expected
