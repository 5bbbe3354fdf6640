"""The pack's observer against Bayes' rule played secret by secret, and what information theory says it can reach."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memrl.config import TrainConfig
from memrl.task.env import Outcomes, step_rewards
from memrl.task.reward import Channel, build_channel
from memrl.task.secret import num_bits
from memrl.theory.capacity import channel_capacity, distinct_guess_gain_bits, guess_information_bits
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


def num_env_steps(name, N):
    return num_bits(N) if FIELDS[name].get("env_type") == "multi_step" else 1


def draw_outcomes(rng, name, N, size):
    """Random episodes: a quarter malformed, at a random env_step, their guess cut as `Outcomes` describes."""
    steps = num_env_steps(name, N)
    well_formed = rng.random(size) > 0.25
    done = np.where(well_formed, steps, rng.integers(steps, size=size))
    unset = steps - done if steps > 1 else np.zeros(size, dtype=int)
    return Outcomes(rng.integers(N, size=size) >> unset << unset, done, well_formed)


def join(parts):
    return Outcomes(*(np.concatenate([getattr(p, a) for p in parts]) for a in ("guess", "steps_done", "well_formed")))


def explains(channel, secret, outcomes, rewards):
    """Whether the secret would have paid every one of these rewards: the likelihood, from the environment itself."""
    paid = step_rewards(channel, outcomes, secret, rewards.shape[1])
    return np.array_equal(paid, rewards, equal_nan=True)


def posterior_bits(channel, outcomes, rewards):
    left = [secret for secret in range(channel.N) if explains(channel, secret, outcomes, rewards)]
    return math.log2(channel.N) - math.log2(len(left)), left


class Cell:
    """One cell's task and everything that it has seen."""

    def __init__(self, name, N, secret):
        self.name, self.channel, self.secret = name, make_channel(name, N), secret
        self.steps = num_env_steps(name, N)
        self.outcomes = Outcomes(*np.zeros((3, 0), dtype=int))
        self.rewards = np.zeros((0, self.steps))

    def play(self, rng, size):
        outcomes = draw_outcomes(rng, self.name, self.channel.N, size)
        rewards = step_rewards(self.channel, outcomes, self.secret, self.steps)
        self.outcomes, self.rewards = join([self.outcomes, outcomes]), np.concatenate([self.rewards, rewards])
        return outcomes, rewards


def observe_pack(observer, cells, played, rng):
    """Hands the whole pack's episodes over at once, shuffled, rewards padded to the longest."""
    longest = max(cell.steps for cell in cells)
    rewards = [np.pad(r, ((0, 0), (0, longest - r.shape[1])), constant_values=np.nan) for _, r in played]
    index = np.repeat(np.arange(len(cells)), [len(o) for o, _ in played])
    outcomes, rewards, order = join([o for o, _ in played]), np.concatenate(rewards), rng.permutation(len(index))
    shuffled = Outcomes(outcomes.guess[order], outcomes.steps_done[order], outcomes.well_formed[order])
    observer.observe(index[order], shuffled, rewards[order])


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
    channel, steps = make_channel(name, N), num_env_steps(name, N)
    done, told = np.array([steps]), np.zeros((N, N))
    for guess in range(N):
        outcome = Outcomes(np.array([guess]), done, np.array([True]))
        observer = PackObserver([channel] * N)
        for secret in range(N):
            observer.observe(secret, outcome, step_rewards(channel, outcome, secret, steps))
        told[guess] = observer.observed_bits
    np.testing.assert_allclose(told.mean(axis=1), guess_information_bits(channel), atol=1e-12)
    assert told.mean() == pytest.approx(channel_capacity(channel).uniform_guess_bits, abs=1e-12)


@settings(max_examples=50)
@given(st.sampled_from(list(FIELDS)), st.integers(5, 40), st.integers(0, 2**32 - 1))
def test_guesses_that_do_not_look_back_tell_at_most_the_sum_of_their_capacities(name, N, seed):
    rng, channel, steps = np.random.default_rng(seed), make_channel(name, N), num_env_steps(name, N)
    guess = rng.integers(N, size=rng.integers(1, 8))
    outcomes = Outcomes(guess, np.full(len(guess), steps), np.ones(len(guess), dtype=bool))
    observer = PackObserver([channel] * N)
    for secret in range(N):
        observer.observe(secret, outcomes, step_rewards(channel, outcomes, secret, steps))
    mean = observer.observed_bits.mean()
    assert mean <= min(math.log2(N), guess_information_bits(channel)[guess].sum()) + 1e-9
    assert mean <= len(guess) * channel_capacity(channel).max_feedback_bits + 1e-9
    if channel.name.endswith("binary"):
        assert mean == pytest.approx(float(distinct_guess_gain_bits(N, len(set(guess.tolist())))), abs=1e-9)


@pytest.mark.parametrize("N", [2, 64, 100])
def test_one_example_tells_all(N):
    channel = build_channel(TrainConfig(N=N, algorithm="sft"))
    observer = PackObserver([channel] * 2)
    example = Outcomes(np.array([N - 1]), np.array([1]), np.array([True]))
    observer.observe(1, example, step_rewards(channel, example, N - 1, 1))
    assert observer.observed_bits.tolist() == [0.0, math.log2(N)]
    assert observer.candidates(1).tolist() == [N - 1]


def test_malformed_answers_tell_nothing_but_the_bits_before_them():
    channel = make_channel("per_bit", 16)
    observer = PackObserver([channel])
    for bits, done, expected in [(0b0000, 0, 0.0), (0b1000, 1, 1.0), (0b1000, 1, 1.0), (0b0110, 3, 3.0), (0b0, 0, 3.0)]:
        outcome = Outcomes(np.array([bits]), np.array([done]), np.array([False]))
        observer.observe(0, outcome, step_rewards(channel, outcome, 0b1010, 4))
        assert observer.observed_bits.tolist() == [expected]
    assert observer.candidates(0).tolist() == [0b1010, 0b1011]


def test_a_malformed_reward_that_equals_a_real_one_is_not_taken_for_it():
    channel = make_channel("binary", 8, malformed_reward=1.0)
    observer = PackObserver([channel])
    malformed = Outcomes(np.array([3]), np.array([0]), np.array([False]))
    observer.observe(0, malformed, step_rewards(channel, malformed, 5, 1))
    assert observer.observed_bits.tolist() == [0.0]


def test_dropping_cells_keeps_what_the_others_know():
    rng = np.random.default_rng(1)
    cells = [Cell(name, N, 3) for name, N in [("per_bit", 9), ("binary", 30), ("log-3", 50), ("bit_count", 17)]]
    observer = PackObserver([cell.channel for cell in cells])
    observe_pack(observer, cells, [cell.play(rng, 3) for cell in cells], rng)
    before = observer.observed_bits
    observer.drop([3, 1])
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
    saved.drop([1, 2])
    restored = PackObserver([cells[1].channel, cells[2].channel])
    restored.load_state_dict(saved.state_dict())
    more = [cell.play(rng, 5) for cell in cells[1:]]
    for observer in (saved, restored):
        observe_pack(observer, cells[1:], more, np.random.default_rng(0))
    np.testing.assert_array_equal(saved.observed_bits, restored.observed_bits)
    assert saved.observed_bits.min() > 0
    with pytest.raises(ValueError, match="state must be of the same pack"):
        PackObserver([cells[0].channel]).load_state_dict(saved.state_dict())


def test_rewards_that_no_secret_explains_are_refused():
    channel = make_channel("binary", 4)
    outcome = Outcomes(np.array([0, 1]), np.array([1, 1]), np.array([True, True]))
    with pytest.raises(ValueError, match="rewards must be those of binary, got some that no secret explains"):
        PackObserver([channel]).observe(0, outcome, np.array([[0.5], [0.0]]))


def test_a_channel_of_vectors_that_are_no_bits_is_read_step_by_step():
    rewards = np.random.default_rng(0).integers(0, 3, size=(8, 8, 3)) / 3
    channel = Channel(
        "vectors", 8, lambda guess, secret, N: rewards[guess, secret], per_step=True, nominal_bits=math.inf
    )
    observer = PackObserver([channel])
    outcome = Outcomes(np.array([6]), np.array([2]), np.array([False]))
    observer.observe(0, outcome, step_rewards(channel, outcome, 5, 3))
    expected = [s for s in range(8) if (rewards[6, s, :2] == rewards[6, 5, :2]).all()]
    assert observer.candidates(0).tolist() == expected
