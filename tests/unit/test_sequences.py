"""Sequences of symbols: their channels against plain loops, against integers by their bits, and what they tell."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from information import guess_information_bits
from outcomes import make_outcomes

from memrl.config import TrainConfig
from memrl.limits import MOST_SIGNAL_BITS
from memrl.task.answer_format import cell_digits, cell_format
from memrl.task.env import Outcomes, step_rewards
from memrl.task.reward import build_channel
from memrl.task.secret import cell_secret
from memrl.theory.bound_observer import BoundObserver
from memrl.theory.candidate_observer import CandidateObserver
from memrl.theory.capacity import channel_capacity, identifiability_warning
from memrl.theory.observer import PackObserver, observes_exactly
from memrl.theory.sequences import episode_bits
from memrl.theory.symbol_observer import SymbolObserver

FIELDS = {
    "per_element": {"reward_type": "per_element"},
    "element_count": {"reward_type": "element_count"},
    "binary": {},
    "distance": {"reward_type": "distance"},
    "binned_distance-2-linear": {"reward_type": "binned_distance", "reward_bins": 2, "binning": "linear"},
    "sft": {"algorithm": "sft"},
}
SIZES = [(2, 1), (2, 5), (3, 3), (7, 2)]


def make_config(name, N, length, **fields):
    config = TrainConfig(N=N, secret_length=length, env_type="multi_step", **FIELDS[name], **fields)
    assert config.channel_name == f"sequence-{length}/{name}"
    return config


def pay(name, N, guess, secret):
    """The rewards of an episode, symbol by symbol."""
    right = [float(g == s) for g, s in zip(guess, secret, strict=True)]
    once = [0.0] * (len(guess) - 1)
    if name == "per_element":
        return right
    if name == "element_count":
        return [*once, sum(right)]
    if name == "binary":
        return [*once, float(sum(right) == len(right))]
    if name == "distance":
        each = [max(0.0, 1 - math.log2(1 + abs(g - s)) / math.log2(N)) for g, s in zip(guess, secret, strict=True)]
    else:
        each = [1.0 - (2 * abs(g - s)) // N for g, s in zip(guess, secret, strict=True)]
    return [*once, sum(each) / len(each)]


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "sft"])
@pytest.mark.parametrize(("N", "length"), SIZES)
def test_rewards_are_those_of_a_plain_loop(name, N, length):
    channel, vectors = build_channel(make_config(name, N, length)), list(product(range(N), repeat=length))
    rng = np.random.default_rng(0)
    guesses, secret = vectors, vectors[rng.integers(len(vectors))]
    outcomes = Outcomes(np.array(guesses), np.ones(len(guesses), dtype=bool))
    expected = [pay(name, N, guess, secret) for guess in guesses]
    np.testing.assert_allclose(step_rewards(channel, outcomes, np.array(secret)), expected, atol=1e-12)


@given(st.sampled_from(["per_element", "element_count", "binary"]), st.integers(1, 8), st.data())
def test_a_sequence_of_bits_pays_what_an_integer_by_its_bits_does(name, k, data):
    integer = {"per_element": "per_bit", "element_count": "bit_count", "binary": "binary"}[name]
    ours = build_channel(make_config(name, 2, k, malformed_reward=-0.5))
    theirs = build_channel(TrainConfig(N=2**k, env_type="multi_step", reward_type=integer, malformed_reward=-0.5))
    secret, *guesses = data.draw(st.lists(st.integers(0, 2**k - 1), min_size=2, max_size=5))
    done = data.draw(st.lists(st.integers(0, k), min_size=len(guesses), max_size=len(guesses)))
    outcomes = make_outcomes(ours.answer_format, guesses, done, [steps == k for steps in done])
    got = step_rewards(ours, outcomes, ours.answer_format.digits(secret))
    np.testing.assert_array_equal(got, step_rewards(theirs, outcomes, secret))
    assert channel_capacity(ours).uniform_guess_bits == pytest.approx(channel_capacity(theirs).uniform_guess_bits)
    assert channel_capacity(ours).nominal_bits == channel_capacity(theirs).nominal_bits


RIGHT_SHARE = """
def right_share(guess, secret, N):
    assert guess.shape[-1] == secret.shape[-1] == 3 and N == 4
    return (guess == secret).mean(axis=-1)
"""


def test_a_reward_of_ones_own_sees_symbols(tmp_path, monkeypatch):
    (tmp_path / "vector_rewards.py").write_text(RIGHT_SHARE)
    monkeypatch.syspath_prepend(tmp_path)
    config = TrainConfig(N=4, secret_length=3, env_type="multi_step", reward_type="vector_rewards:right_share")
    channel = build_channel(config)
    outcomes = make_outcomes(channel.answer_format, [0b111001, 0b011110], [3, 3], [True, True])
    rewards = step_rewards(channel, outcomes, np.array([3, 2, 2]))
    np.testing.assert_allclose(rewards, [[0, 0, 2 / 3], [0, 0, 1 / 3]])


@pytest.mark.parametrize("name", ["per_element", "element_count", "binary", "sft"])
@pytest.mark.parametrize(("N", "length"), SIZES)
def test_closed_forms_are_what_enumeration_finds(name, N, length):
    channel = build_channel(make_config(name, N, length))
    bits, is_exact = episode_bits(channel)
    assert is_exact
    np.testing.assert_allclose(guess_information_bits(channel), bits, atol=1e-9)
    assert channel_capacity(channel).identifiable


@pytest.mark.parametrize("name", ["distance", "binned_distance-2-linear"])
@pytest.mark.parametrize(("N", "length"), SIZES)
def test_bounds_are_no_less_than_what_enumeration_finds(name, N, length):
    channel = build_channel(make_config(name, N, length))
    bits, is_exact = episode_bits(channel)
    assert not is_exact
    assert (guess_information_bits(channel) <= bits + 1e-9).all()


def test_a_thousand_bits_are_described_without_listing_a_secret():
    for name in FIELDS:
        channel = build_channel(make_config(name, 2, MOST_SIGNAL_BITS))
        capacity = channel_capacity(channel)
        assert capacity.uniform_guess_bits <= capacity.max_feedback_bits <= MOST_SIGNAL_BITS
        assert capacity.is_bound == ("distance" in name)
    assert channel_capacity(build_channel(make_config("per_element", 2, 1024))).uniform_guess_bits == 1024.0
    few = build_channel(make_config("binned_distance-2-linear", 16, 256))
    assert "up to 15 guesses pay as much as the secret" in str(identifiability_warning(few))
    bad = build_channel(make_config("element_count", 16, 256, malformed_reward=256.0))
    assert "no less than the secret" in str(identifiability_warning(bad))
    assert identifiability_warning(build_channel(make_config("element_count", 16, 256, malformed_reward=255.0))) is None


def test_secrets_are_drawn_by_length_and_numbered_by_their_symbols():
    config = make_config("per_element", 10, 5, seed=3)
    digits = cell_digits(config)
    assert cell_secret(config) == int("".join(map(str, digits)))
    fixed = make_config("per_element", 10, 5, secret=407)
    assert cell_digits(fixed).tolist() == [0, 0, 4, 0, 7]
    long = make_config("per_element", 2, 1024)
    assert [int(bit) for bit in format(cell_secret(long), "01024b")] == cell_digits(long).tolist()
    drawn = np.array([cell_digits(make_config("per_element", 4, 64, seed=seed)) for seed in range(64)])
    assert np.abs(np.bincount(drawn.ravel(), minlength=4) / drawn.size - 0.25).max() < 0.03
    assert len({tuple(row) for row in drawn.tolist()}) == 64


def test_a_length_makes_another_cell_and_none_leaves_the_cell_what_it_was():
    assert TrainConfig().cell_id == "24ccb5d4e3b80fd9"
    lengths = [make_config("per_element", 2, length).cell_id for length in (1, 2, 64)]
    assert len({*lengths, TrainConfig(N=2, env_type="multi_step").cell_id}) == 4
    assert make_config("per_element", 3, 100).signal_bits == pytest.approx(100 * math.log2(3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"secret_length": 13, "algorithm": "distill"},
            "^secret_length must be at most 12 at N=2 for algorithm=distill",
        ),
        ({"env_type": "single_step"}, r"^secret_length must be unset on env_type=single_step \(use multi_step"),
        ({"secret_length": 0}, "^secret_length must be at least 1, got 0"),
        ({"secret_length": 1025}, r"^secret_length must be at most 1024 at N=2 \(1024 bits\), got 1025"),
        ({"reward_type": "per_bit"}, "^reward_type must be per_element where the secret is a sequence, got per_bit"),
        ({"secret": 16}, "^secret must lie in 0 .. 15, got 16"),
        (
            {"secret_length": None, "reward_type": "element_count"},
            "^reward_type must be bit_count where the secret is an integer, got element_count",
        ),
    ],
)
def test_bad_lengths_are_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"N": 2, "secret_length": 4, "env_type": "multi_step"} | fields)


def draw_outcomes(rng, answer_format, size):
    """Random episodes: a quarter malformed, at a random env_step."""
    steps = answer_format.num_env_steps
    well_formed = rng.random(size) > 0.25
    done = np.where(well_formed, steps, rng.integers(steps, size=size))
    return make_outcomes(answer_format, rng.integers(answer_format.num_answers, size=size), done, well_formed)


def observe(observers, channel, secret, outcomes):
    rewards = step_rewards(channel, outcomes, channel.answer_format.digits(secret))
    for observer in observers:
        observer.observe(np.zeros(len(outcomes), dtype=int), outcomes, rewards)
    return [float(observer.observed_bits[0]) for observer in observers]


@settings(max_examples=40)
@given(st.sampled_from(SIZES), st.integers(0, 2**32 - 1))
def test_symbols_by_themselves_know_what_the_list_of_secrets_knows(size, seed):
    rng, channel = np.random.default_rng(seed), build_channel(make_config("per_element", *size))
    observers = [SymbolObserver([channel]), CandidateObserver([channel])]
    secret = int(rng.integers(channel.N))
    for _ in range(4):
        got, expected = observe(observers, channel, secret, draw_outcomes(rng, channel.answer_format, rng.integers(4)))
        assert got == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40)
@given(
    st.sampled_from(["element_count", "binary", "distance", "binned_distance-2-linear"]),
    st.sampled_from(SIZES),
    st.integers(0, 2**32 - 1),
)
def test_a_bound_is_never_below_what_was_told_and_never_above_the_signal(name, size, seed):
    rng, channel = np.random.default_rng(seed), build_channel(make_config(name, *size))
    observers = [BoundObserver([channel]), CandidateObserver([channel])]
    told, bounds = [], []
    outcomes = [draw_outcomes(rng, channel.answer_format, rng.integers(4)) for _ in range(3)]
    for secret in range(channel.N):
        observers = [BoundObserver([channel]), CandidateObserver([channel])]
        for each in outcomes:
            bound, exact = observe(observers, channel, secret, each)
        bounds.append(bound)
        told.append(exact)
    # In the mean over secrets: a lucky guess tells one secret more than any bound of the mean.
    assert np.mean(told) <= np.mean(bounds) + 1e-9
    assert max(bounds) <= math.log2(channel.N) + 1e-9


def test_one_episode_of_bits_and_one_example_of_any_symbols_tell_all():
    bits, example = (build_channel(make_config(*task)) for task in (("per_element", 2, 200), ("sft", 50, 100)))
    for channel, guess in ((bits, 0), (example, 7)):
        assert observes_exactly(channel)
        outcomes = make_outcomes(channel.answer_format, [0], [200 if channel is bits else 100], [True])
        outcomes.digits[:] = guess
        observer = PackObserver([channel, channel])
        secret = np.full(outcomes.digits.shape[1], guess)
        observer.observe(1, outcomes, step_rewards(channel, outcomes, secret))
        np.testing.assert_allclose(observer.observed_bits, [0.0, channel.answer_format.signal_bits])


def test_a_mixed_pack_is_observed_as_its_cells_are_alone():
    tasks = [("per_element", 2, 40), ("element_count", 2, 40), ("binary", 3, 3), ("sft", 5, 20)]
    configs = [*(make_config(*task) for task in tasks), TrainConfig(N=30), make_config("binary", 2, 64)]
    channels = [build_channel(config) for config in configs]
    assert [observes_exactly(channel) for channel in channels] == [True, False, True, True, True, False]
    rng, packed, alone = np.random.default_rng(0), PackObserver(channels), [PackObserver([c]) for c in channels]
    cells, width = list(range(len(configs))), 64

    def play(cells):
        parts = []
        for place, cell in enumerate(cells):
            answer_format = cell_format(configs[cell])
            secret, steps = cell_digits(configs[cell]), answer_format.num_env_steps
            digits = secret if configs[cell].algorithm == "sft" else rng.integers(answer_format.radix, size=steps)
            outcome = Outcomes(digits[None], np.array([True]))
            rewards = step_rewards(channels[cell], outcome, answer_format.read(secret))
            alone[cell].observe(0, outcome, rewards)
            pads = ((0, 0), (0, width - steps))
            parts.append(
                (place, np.pad(outcome.digits, pads, constant_values=-1), np.pad(rewards, pads, constant_values=np.nan))
            )
        rng.shuffle(parts)
        place, digits, rewards = (list(column) for column in zip(*parts, strict=True))
        return np.array(place), Outcomes(np.concatenate(digits), np.ones(len(digits), bool)), np.concatenate(rewards)

    for kept in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0], [2, 0]):
        packed.keep(np.array(kept))
        cells = [cells[cell] for cell in kept]
        restored = PackObserver([channels[cell] for cell in cells])
        restored.restore(packed.arrays())
        for observer in (packed, restored):
            assert len(observer) == len(cells)
        for _ in range(2):
            played = play(cells)
            for observer in (packed, restored):
                observer.observe(*played)
                expected = [alone[cell].observed_bits[0] for cell in cells]
                np.testing.assert_allclose(observer.observed_bits, expected, atol=1e-9)


def test_rewards_that_no_sequence_explains_are_refused():
    channel = build_channel(make_config("per_element", 2, 20))
    outcomes = make_outcomes(channel.answer_format, [0, 0], [20, 20], [True, True])
    with pytest.raises(ValueError, match="rewards must be 1 for a symbol that is right and 0 for another"):
        PackObserver([channel]).observe(0, outcomes, np.full((2, 20), 0.5))
    with pytest.raises(ValueError, match="some that no secret explains"):
        PackObserver([channel]).observe(0, outcomes, np.stack([np.ones(20), np.zeros(20)]))
