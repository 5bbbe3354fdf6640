"""Agents on sequences: closed forms, exhaustive decoding, analytic gradients, and episodes by credit."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.special import softmax

from memrl.config import TrainConfig
from memrl.sweep.agent_play import find_unplayed
from memrl.tables.rows import agent_row
from memrl.task.answer_format import cell_digits
from memrl.task.reach import MILESTONES
from memrl.task.reward import build_channel
from memrl.task.secret import cell_secret
from memrl.theory.agents import SYMBOL_LEARNING_RATES, play_agents, symbol_episodes
from memrl.theory.bayes_agent import play_greedy
from memrl.theory.coin_weighing import coins_of, episodes_by_weighing, split_coins
from memrl.theory.dynamic_programming import plan_optimal
from memrl.theory.symbol_logits import SymbolLogits
from memrl.theory.tabular import train_tabular


def sequence(length, N=2, reward_type="per_element", **fields):
    return TrainConfig(env_type="multi_step", N=N, secret_length=length, reward_type=reward_type, **fields)


def train(config, rates, num_runs=32):
    secrets = np.array([cell_digits(config) for _ in range(num_runs)])
    runs = [train_tabular(config, secrets, list(range(num_runs)), np.full(num_runs, rate)) for rate in rates]
    firsts = [np.where(run.reach.first < 0, np.inf, run.reach.first) for run in runs]
    return dict(zip(MILESTONES, np.min([np.median(first, axis=0) for first in firsts], axis=0), strict=True))


@pytest.mark.parametrize(("N", "length"), [(2, 4), (3, 2), (4, 2), (16, 1)])
def test_one_value_of_each_symbol_an_episode_is_what_dynamic_programming_plans(N, length):
    planned = plan_optimal(build_channel(sequence(length, N)))
    played = np.array([symbol_episodes(sequence(length, N, secret=secret)) for secret in range(N**length)])
    for milestone, by_secret in (
        ("e50", planned.to_half),
        ("e90", planned.to_know),
        ("half_bits", planned.to_half_bits),
    ):
        assert played[:, MILESTONES.index(milestone)].mean() == pytest.approx(by_secret.mean())


def test_a_long_sequence_is_known_after_one_example_and_after_so_many_rewards_as_a_symbol_has_other_values():
    assert symbol_episodes(sequence(256)).tolist() == [1, 1, 1]
    assert symbol_episodes(sequence(128, 16, algorithm="sft")).tolist() == [1, 1, 1]
    assert symbol_episodes(sequence(128, 16))[MILESTONES.index("e90")] == 15


def weigh_block(order):
    """The sets of coins whose weights tell each of order 2^(order - 1) coins, by 2^order - 1 weighings.

    Weighings and coins belong to the sets Y and X of `order` things that are not empty; X has |X| coins, worth 1, 2,
    4, …. Coin j of X lies in weighing Y where Y ∩ X is one of 2^j subsets of X of odd size. Then the sum of the weights
    of all subsets of X of odd size, less those of even size, is the worth of X's coins plus what coins of larger
    sets add, which are known before: every X' that lacks one of X's things adds as much as it takes away.

    Source: Lindström 1965, Canadian Mathematical Bulletin 8(4) (the number of weighings, and the Möbius inversion).
    """
    sets = np.arange(1, 1 << order)
    columns = []
    for x in sets:
        within = sets[(sets & x) == sets]
        odd = within[np.bitwise_count(within) % 2 == 1]
        columns += [np.isin(sets & x, odd[: 1 << worth]) for worth in range(int(x).bit_count())]
    return np.stack(columns, axis=1).astype(np.int64)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_weights_of_a_block_tell_every_set_of_its_coins(order):
    weighings = weigh_block(order)
    assert weighings.shape == (2**order - 1, coins_of(order))
    weights = np.array(list(product((0, 1), repeat=coins_of(order)))) @ weighings.T
    assert len(np.unique(weights, axis=0)) == 2 ** coins_of(order)


def test_counts_of_right_bits_weigh_coins():
    rng = np.random.default_rng(0)
    secret, chosen = rng.integers(2, size=(2, 12))
    count = [(guess == secret).sum() for guess in (np.zeros(12), chosen)]
    assert (count[1] - count[0] + chosen.sum()) / 2 == chosen @ secret


def test_weighing_needs_about_twice_the_bits_over_their_logarithm_and_blocks_hold_all_coins():
    for length in (1, 5, 16, 100, 256, 1024):
        assert sum(map(coins_of, split_coins(length))) >= length
        half, episodes = episodes_by_weighing(length)
        assert half <= episodes <= length + 1
        # No fewer than the counts can tell, as each has length + 1 values.
        assert episodes >= length / math.log2(length + 1)
    assert episodes_by_weighing(1024)[1] < 1.3 * 2 * 1024 / 10


def test_greedy_finds_short_sequences_faster_than_weighing():
    for length in (4, 8):
        assert play_greedy(build_channel(sequence(length, reward_type="element_count"))).to_know.mean() < length


@pytest.mark.parametrize("N", [2, 5])
def test_symbols_start_uniform_and_climb_the_gradient_of_their_own_log_probability(N):
    rng = np.random.default_rng(1)
    policy = SymbolLogits(N, 3, 2)
    secrets = rng.integers(N, size=(2, 3))
    np.testing.assert_allclose(policy.log2_probability(secrets), -3 * math.log2(N))
    for _ in range(4):
        policy.ascend(rng.integers(N, size=(2, 6, 3)), rng.normal(size=(2, 6, 3)), np.array([0.1, 0.3]))
    logits, first, second = policy._logits.copy(), policy._first.copy(), policy._second.copy()
    guess, weight = rng.integers(N, size=(2, 6, 3)), rng.normal(size=(2, 6, 3))
    gradient = np.zeros_like(logits)
    for run, episode, symbol in product(range(2), range(6), range(3)):
        pull = np.eye(N)[guess[run, episode, symbol]] - softmax(logits[run, symbol])
        gradient[run, symbol] += weight[run, episode, symbol] * pull
    first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    step = first / (1 - 0.9**5) / (np.sqrt(second / (1 - 0.999**5)) + 1e-8)
    policy.ascend(guess, weight, np.array([0.1, 0.3]))
    np.testing.assert_allclose(policy._logits, logits + np.array([0.1, 0.3])[:, None, None] * step, atol=1e-12)


def test_symbols_are_said_as_often_as_their_probability():
    policy = SymbolLogits(3, 2, 1)
    policy.ascend(np.array([[[0, 2]]]), np.array([[[1.0, 2.0]]]), np.array([0.7]))
    said = policy.sample(np.random.default_rng(0).random((1, 40_000, 2)))[0]
    for symbol in range(2):
        share = np.bincount(said[:, symbol], minlength=3) / len(said)
        np.testing.assert_allclose(share, softmax(policy._logits[0, symbol]), atol=0.01)
    guess = np.array([[[0, 2], [1, 1]]])
    expected = [[-math.log(softmax(policy._logits[0, s])[v]) for s, v in enumerate(row)] for row in guess[0]]
    np.testing.assert_allclose(policy.surprisal(guess)[0], expected)


def test_a_reward_a_symbol_takes_about_the_log_of_their_number_and_a_sum_takes_their_number():
    # Our own earlier simulation: medians of 16 runs at the best of a few learning rates.
    simulated = {"per_step": (16, 16, 24), "return_to_go": (16, 16, 84), "episode": (16, 36, 104)}
    for credit, expected in simulated.items():
        got = [
            train(sequence(L, credit=credit, group_size=8, n_steps=80), SYMBOL_LEARNING_RATES)["e50"]
            for L in (4, 8, 16)
        ]
        np.testing.assert_allclose(got, expected, rtol=0.3)


def test_rows_of_sequences_come_from_every_agent_that_can_play_and_are_found_again():
    cells = [
        sequence(16, reward_type="element_count", n_steps=3, group_size=4),
        sequence(16, n_steps=3, group_size=4),
        sequence(16, algorithm="sft", n_steps=3),
        sequence(4, reward_type="binary", n_steps=3, group_size=4),
    ]
    rows = [agent_row(run) for run in play_agents(cells)]
    by_channel = {
        cell.channel_name: {row["agent"] for row in rows if row["channel"] == cell.channel_name} for cell in cells
    }
    assert list(by_channel.values()) == [
        {"weighing", "tabular_pg"},
        {"optimal", "tabular_pg"},
        {"optimal", "tabular_pg"},
        {"optimal", "greedy", "uniform", "tabular_pg"},
    ]
    weighing = next(row for row in rows if row["agent"] == "weighing")
    assert [weighing[name] for name in ("half_bits", "e50", "e90", "secret")] == [8, 11, 11, cell_secret(cells[0])]
    played = {row["cell_id"] for row in rows}
    assert find_unplayed(cells, played) == []
    assert find_unplayed([sequence(8)], played) != []
