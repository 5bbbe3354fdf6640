"""Agents with an exact posterior against recursion and search written independently, closed forms, and their rows."""

import math
from collections import Counter, defaultdict
from functools import cache
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from memrl.config import Advantage, TrainConfig
from memrl.tables.rows import agent_row
from memrl.tables.schema import AGENTS_SCHEMA
from memrl.task.answer_format import integer_format
from memrl.task.reach import MILESTONES
from memrl.task.reward import Channel, build_channel
from memrl.task.secret import draw_secret
from memrl.theory.agents import AGENTS, optimal_episodes, play_agents, uniform_episodes
from memrl.theory.bayes_agent import play_greedy
from memrl.theory.capacity import channel_capacity
from memrl.theory.dynamic_programming import plan_optimal

FIELDS = {
    "binary": {},
    "log-2": {"reward_type": "binned_distance", "reward_bins": 2},
    "log-4": {"reward_type": "binned_distance", "reward_bins": 4},
    "linear-3": {"reward_type": "binned_distance", "reward_bins": 3, "binning": "linear"},
    "equal_mass-4": {"reward_type": "binned_distance", "reward_bins": 4, "binning": "equal_mass"},
    "distance": {"reward_type": "distance"},
    "per_bit": {"reward_type": "per_bit", "env_type": "multi_step"},
    "bit_count": {"reward_type": "bit_count"},
    "sft": {"algorithm": "sft"},
}
GOALS = ("to_half_bits", "to_half", "to_know", "to_say")


def make_channel(name, N):
    return build_channel(TrainConfig(N=N, **FIELDS[name]))


def make_custom(function, N):
    return Channel(function.__name__, integer_format(N, "single_step"), function, per_step=False, nominal_bits=math.inf)


def parity(guess, secret, N):
    return ((guess + secret) % 2).astype(float)


def split(channel, candidates, guess):
    parts = defaultdict(list)
    for secret in candidates:
        parts[tuple(channel.rewards(np.array(guess), np.array(secret)).tolist())].append(secret)
    return list(parts.values())


def entropy(parts):
    n = sum(map(len, parts))
    return sum(-len(part) / n * math.log2(len(part) / n) for part in parts)


def recurse_greedily(channel, candidates, depth=0, said=()):
    """Episodes to every one of `GOALS` by secret, by plain recursion over lists."""
    best = max(entropy(split(channel, candidates, guess)) for guess in range(channel.N))
    equals = [g for g in range(channel.N) if entropy(split(channel, candidates, g)) >= best - 1e-9]
    guess = min(equals, key=lambda g: (g not in candidates, g))
    found = {}
    if len(candidates) > 1:
        said = (*said, guess)
        for part in split(channel, candidates, guess):
            for secret, (bits, half, know, say) in recurse_greedily(channel, part, depth + 1, said).items():
                bits = depth if math.log2(len(candidates)) <= math.log2(channel.N) / 2 else bits
                half = depth if len(candidates) <= 2 else half
                found[secret] = (bits, half, know, depth + 1 if secret == guess else say)
    else:
        found[candidates[0]] = (depth, depth, depth, depth + 1)
    return found


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("N", [5, 8, 11, 16])
def test_greedy_agent_equals_plain_recursion(name, N):
    channel = make_channel(name, N)
    expected = recurse_greedily(channel, list(range(N)))
    episodes = play_greedy(channel)
    for goal, values in zip(GOALS, zip(*(expected[s] for s in range(N)), strict=True), strict=True):
        assert getattr(episodes, goal).tolist() == list(values)


def search_optimum(channel, enough):
    """The fewest expected episodes, by memoized search over sets, until `enough` candidates are left (0: all said)."""

    @cache
    def total(candidates):
        if len(candidates) <= enough:
            return 0
        options = []
        for guess in range(channel.N):
            left = [frozenset(part) - ({guess} if enough == 0 else set()) for part in split(channel, candidates, guess)]
            if candidates not in left:
                options.append(len(candidates) + sum(map(total, left)))
        return min(options, default=math.inf)

    return total(frozenset(range(channel.N))) / channel.N


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("N", [5, 7])
def test_dynamic_programming_equals_memoized_search(name, N):
    channel = make_channel(name, N)
    planned = plan_optimal(channel)
    for goal, enough in zip(GOALS, (math.isqrt(N), 2, 1, 0), strict=True):
        assert getattr(planned, goal).mean() == pytest.approx(search_optimum(channel, enough), abs=1e-12)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("N", [5, 6, 9, 12, 13, 16])
def test_greedy_agent_is_nearly_optimal_and_never_better(name, N):
    planned, greedy = plan_optimal(make_channel(name, N)), play_greedy(make_channel(name, N))
    for goal in GOALS:
        assert getattr(greedy, goal).mean() >= getattr(planned, goal).mean() - 1e-12
    assert greedy.to_know.mean() <= 1.2 * planned.to_know.mean()
    if name in ("binary", "distance", "per_bit", "sft") or (name == "bit_count" and N == 16):
        for goal in GOALS:
            assert getattr(greedy, goal).mean() == pytest.approx(getattr(planned, goal).mean(), abs=1e-12)


@pytest.mark.parametrize("N", [3, 16, 64, 500])
def test_binary_without_repetition_hits_after_half_the_secrets(N):
    episodes = optimal_episodes(make_channel("binary", N))
    assert episodes.to_say.mean() == pytest.approx((N + 1) / 2)
    assert episodes.to_know.mean() == pytest.approx((N + 1) / 2 - 1 / N)  # the last one left need not be said
    assert sorted(episodes.to_say.tolist()) == list(range(1, N + 1))


@pytest.mark.parametrize("name", ["sft", "per_bit", "distance"])
@pytest.mark.parametrize("N", [16, 100, 1024])
def test_one_episode_is_enough_to_know_and_two_to_say(name, N):
    episodes = optimal_episodes(make_channel(name, N))
    assert set(episodes.to_know.tolist()) == {1.0}
    assert Counter(episodes.to_say.tolist()) == {2.0: N - 1, 1.0: 1}


@pytest.mark.parametrize("k", [4, 6, 8, 10])
def test_bit_count_needs_fewer_episodes_than_bits_but_more_than_its_capacity_allows(k):
    episodes = play_greedy(make_channel("bit_count", 2**k))
    assert k / math.log2(k + 1) <= episodes.to_know.mean() < k - 1


@settings(max_examples=30)
@given(st.sampled_from(list(FIELDS)), st.integers(5, 60))
def test_no_agent_beats_what_its_channel_can_tell(name, N):
    channel = make_channel(name, N)
    episodes = play_greedy(channel)
    assert episodes.to_know.mean() * channel_capacity(channel).max_feedback_bits >= math.log2(N) - 1e-9
    assert (episodes.to_half <= episodes.to_know).all()
    assert (episodes.to_say <= episodes.to_know + 1).all()
    assert (episodes.to_say >= 1).all()


def test_an_agent_that_is_not_told_all_says_what_is_left_in_turn():
    episodes = play_greedy(make_custom(parity, 6))
    assert np.isinf(episodes.to_know).all()
    assert np.isinf(episodes.to_half).all()
    assert sorted(episodes.to_say.tolist()) == [1, 2, 2, 3, 3, 4]
    planned = plan_optimal(make_custom(parity, 6))
    assert np.isinf(planned.to_know).all()
    assert planned.to_say.mean() == episodes.to_say.mean()


def test_dynamic_programming_refuses_what_it_cannot_enumerate():
    with pytest.raises(ValueError, match="N must be at most 16 for exact dynamic programming, got 17"):
        plan_optimal(make_channel("binary", 17))
    assert optimal_episodes(make_channel("log-4", 17)) is None


def test_uniform_guesses_wait_geometrically_for_the_first_hit():
    N = 40
    waits = np.array([uniform_episodes(N, seed) for seed in range(4000)])
    assert waits.mean() == pytest.approx(N, abs=4 * N / math.sqrt(4000))
    # Smeared to a continuous variable, a geometric wait is exponential.
    smeared = waits - np.random.default_rng(0).random(4000)
    assert kstest(smeared, lambda t: 1 - (1 - 1 / N) ** np.floor(t) * (1 - (t - np.floor(t)) / N)).pvalue > 1e-4


CELLS = [
    TrainConfig(N=N, seed=seed, lora_rank=rank, learning_rate=rate, n_steps=60, **fields)
    for fields in FIELDS.values()
    for N in (8, 20)
    for rank, rate in ((1, 1e-3), (8, 1e-2))
    for seed in range(4)
]


@pytest.fixture(scope="module")
def rows():
    return [agent_row(run) for run in play_agents(CELLS, learning_rates=[4.0, 64.0])]


def test_rows_fit_the_table_and_have_ids_of_their_own(rows):
    table = pa.Table.from_pylist(rows, schema=AGENTS_SCHEMA)
    assert all(set(row) == set(AGENTS_SCHEMA.names) for row in rows)
    assert len({row["cell_id"] for row in rows}) == len(rows)
    assert set(table["agent"].to_pylist()) == set(AGENTS) - {"weighing"}  # it plays sequences alone
    assert not {row["cell_id"] for row in rows} & {cell.cell_id for cell in CELLS}


def test_cells_that_differ_by_the_policy_alone_share_their_rows(rows):
    per_condition = Counter((row["agent"], row["channel"], row["N"]) for row in rows)
    assert {per_condition["tabular_pg", name, 8] for name in ("binary", "sft", "per_bit")} == {2 * 4}
    assert {per_condition["greedy", name, 20] for name in ("binary", "sft", "distance")} == {4}
    assert per_condition["uniform", "binary", 20] == 4
    assert sum(count for (agent, _, _), count in per_condition.items() if agent == "uniform") == 8
    assert per_condition["optimal", "binned_distance-4-log", 8] == 4
    assert per_condition["optimal", "binned_distance-4-log", 20] == 0


def test_every_objective_has_a_tabular_control_of_its_own_and_penalties_of_networks_have_none():
    rules = [{"advantage": kind} for kind in get_args(Advantage)]
    cells = [TrainConfig(N=4, n_steps=5, **rule) for rule in [*rules, {"entropy_bonus": 0.1}, {"kl_penalty": 0.1}]]
    tabular = [run for run in play_agents(cells, learning_rates=[4.0]) if run.agent == "tabular_pg"]
    assert [run.fields["advantage"] for run in tabular] == list(get_args(Advantage))
    assert len({agent_row(run)["cell_id"] for run in tabular}) == len(tabular)


def test_rows_say_what_the_agents_did(rows):
    for row in rows:
        config = TrainConfig(N=row["N"], seed=row["seed"], **_task_fields(row))
        assert row["secret"] == draw_secret(row["N"], row["seed"])[0]
        assert row["channel"] == config.channel_name
        assert row["capacity_best_bits"] == channel_capacity(build_channel(config)).best_guess_bits
        if row["agent"] in ("optimal", "greedy"):
            play = optimal_episodes if row["agent"] == "optimal" else play_greedy
            episodes = play(build_channel(config))
            reached = (episodes.to_half, episodes.to_know, episodes.to_half_bits)
            assert [row[name] for name in MILESTONES] == [by_secret[row["secret"]] for by_secret in reached]
        if row["agent"] == "tabular_pg":
            assert row["learning_rate"] in (4.0, 64.0)
            assert row["e90_censored"] == (row["absorbed_bits"] < math.log2(0.9 * row["N"]) - 1e-9)
            assert row["status"] == ("budget_spent" if row["e90_censored"] else "memorized")
            reached = [row[name] for name in ("e50", "e90") if not row[f"{name}_censored"]]
            assert sorted(reached) == reached
            assert max([0, *reached]) <= row["episodes"] <= config.episodes_per_update * 60
        else:
            assert row["learning_rate"] is None
            assert row["absorbed_bits"] == row["observed_bits"] == math.log2(row["N"])


def _task_fields(row):
    fields = {name: row[name] for name in ("algorithm", "env_type", "reward_type", "reward_bins", "binning", "credit")}
    return {name: value for name, value in fields.items() if value is not None}


def test_rows_are_the_same_again_but_for_their_times(rows):
    again = [agent_row(run) for run in play_agents(CELLS, learning_rates=[4.0, 64.0])]
    timeless = [
        [{k: repr(v) for k, v in row.items() if k not in ("seconds", "created")} for row in r] for r in (rows, again)
    ]
    assert timeless[0] == timeless[1]


def test_a_channel_that_cannot_tell_every_secret_has_no_row_of_an_exact_posterior(tmp_path, monkeypatch):
    (tmp_path / "parity_channel.py").write_text("def parity(guess, secret, N):\n    return (guess + secret) % 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    cell = TrainConfig(N=6, reward_type="parity_channel:parity", n_steps=5)
    rows = [agent_row(run) for run in play_agents([cell], learning_rates=[1.0])]
    assert [row["agent"] for row in rows] == ["tabular_pg"]
    assert rows[0]["identifiable"] is False
