"""Agents that share a trained policy's channel: what could be reached, with no network.

optimal: the fewest expected episodes, with an exact posterior. greedy: the most informative guess under it. weighing:
the best known way to find a long sequence of bits whose right ones are counted; whether it is optimal is not known.
uniform: guesses at random, with repetition, until the binary channel says yes. tabular_pg: policy gradient on a table
of logits.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from memrl.config import NETWORK_ROLES, TrainConfig, fields_of
from memrl.task.answer_format import cell_digits
from memrl.task.reach import MILESTONES, Reach
from memrl.task.result import RunResult
from memrl.task.reward import Channel, build_channel, element_count_reward
from memrl.task.secret import cell_secret
from memrl.theory.bayes_agent import EpisodesBySecret, play_greedy
from memrl.theory.coin_weighing import episodes_by_weighing
from memrl.theory.dynamic_programming import LARGEST_N, plan_optimal
from memrl.theory.sequences import is_listed, tells_by_symbol
from memrl.theory.tabular import train_tabular

AGENTS = ("optimal", "greedy", "weighing", "uniform", "tabular_pg")
"""The agents that this module lets play."""

LARGEST_PLAYED_N = 8192
"""Up to it a channel's play takes seconds, beyond it minutes: all pairs of guess and secret are gone through."""

TABULAR_LEARNING_RATES = (1.0, 4.0, 16.0, 64.0, 256.0)
"""Learning rates of tabular_pg, in logits: a row each, chosen by whoever reads the table as for trained policies."""

SYMBOL_LEARNING_RATES = (0.05, 0.1, 0.15, 0.2, 0.35, 0.5, 0.75)
"""The same of Adam, on sequences; larger ones let the first update alone decide every symbol."""

_UNIFORM_STREAM = 0x0211F0
"""Keeps the uniform agent's random numbers apart from every other stream of the same seed."""

_UNUSED = {
    "tabular_pg": fields_of(*NETWORK_ROLES),
    "exact": fields_of(*NETWORK_ROLES, "objective", "batch", "budget"),
}
"""Fields of a cell that say nothing about an agent: about one without a network, and about one without a gradient."""


@dataclass(frozen=True)
class AgentRun:
    """An agent's play for one cell's secret.

    Attributes:
        agent: who played, one of `AGENTS`.
        config: the cell whose channel and secret it played.
        fields: the fields of TrainConfig as far as the agent has a use for them; the others are None.
        result: how it went.
    """

    agent: str
    config: TrainConfig
    fields: dict[str, object]
    result: RunResult


def optimal_episodes(channel: Channel) -> EpisodesBySecret | None:
    """The fewest expected episodes, by secret; None where nobody has proved what is optimal.

    Up to N = 16 by dynamic programming; beyond, where the greedy agent is known to be optimal.
    """
    if channel.N <= LARGEST_N:
        return plan_optimal(channel)
    return play_greedy(channel) if channel.greedy_is_optimal else None


def symbol_episodes(config: TrainConfig) -> Int[np.ndarray, "milestone"]:
    """The fewest expected episodes to each of `MILESTONES`, where the posterior is a product over symbols.

    An example tells all. A reward for each symbol tells at most one value of each, so that any guesses without
    repetition do, here 0, 1, …: after n of them a symbol is known if it is below n, or else is one of N - n.
    """
    symbols, reach = cell_digits(config), Reach.start(np.array([config.signal_bits]))
    for episodes in range(config.N):
        num_unknown = int((symbols >= episodes).sum()) if config.algorithm == "rl" or not episodes else 0
        secret_log2 = -num_unknown * math.log2(config.N - episodes)
        reach.note(np.array([0]), np.array([episodes]), np.array([secret_log2]))
    return reach.first[0]


def uniform_episodes(N: int, seed: int) -> int:
    """Episodes to the first hit of guesses drawn uniformly with repetition: geometric, N on average.

    It is what a policy gradient does on the binary channel before its first success.
    """
    generator = np.random.default_rng(np.random.SeedSequence([_UNIFORM_STREAM, N, seed]))
    return int(generator.geometric(1.0 / N))


def is_played(config: TrainConfig) -> bool:
    """Whether the agents play for a cell: not for many keyed secrets, nor at an N where that takes minutes."""
    return config.num_keys is None and config.N <= LARGEST_PLAYED_N


def play_agents(configs: Iterable[TrainConfig], learning_rates: Sequence[float] | None = None) -> list[AgentRun]:
    """Lets every agent play the channels and secrets of those cells that are played for (`is_played`).

    A table that is distilled from the posterior is the posterior, so tabular_pg has no run for distilled cells.

    Cells that differ by the policy alone share their runs. An agent with an exact posterior has memorized when that
    reaches 1/2 and 1; where the channel cannot tell every secret, it has no run.

    Args:
        configs: the cells of a grid.
        learning_rates: of tabular_pg; None: `tabular_rates` of each cell.

    Returns:
        One run per agent, channel, N and secret (tabular_pg: and setting).
    """
    configs = [config for config in configs if is_played(config)]
    runs: list[AgentRun] = []
    for cells in _group(configs, _UNUSED["exact"]):
        for play in (_play_optimal, _play_greedy, _play_weighing, _play_uniform):
            runs += play(cells)
    for cells in _group([config for config in configs if config.algorithm != "distill"], _UNUSED["tabular_pg"]):
        runs += _play_tabular(cells, learning_rates or tabular_rates(cells[0]))
    return runs


def _group(configs: list[TrainConfig], unused: Sequence[str]) -> list[list[TrainConfig]]:
    """Cells that are one to an agent but for their seed, which uses none of some fields; one cell a seed."""
    groups: dict[str, dict[str, TrainConfig]] = {}
    for config in configs:
        fields = config.identity() | dict.fromkeys(unused) | {"channel": config.channel_name}
        which = json.dumps([fields.pop(name) for name in fields_of("draw")])
        groups.setdefault(json.dumps(fields), {}).setdefault(which, config)
    return [list(group.values()) for group in groups.values()]


def _play_optimal(cells: list[TrainConfig]) -> list[AgentRun]:
    if tells_by_symbol(build_channel(cells[0])):
        start = time.perf_counter()
        return _come_to_know("optimal", cells, np.stack([symbol_episodes(config) for config in cells]), start)
    return _play_bayes("optimal", optimal_episodes, cells)


def _play_greedy(cells: list[TrainConfig]) -> list[AgentRun]:
    return _play_bayes("greedy", play_greedy, cells)


def _play_bayes(
    agent: str, play: Callable[[Channel], EpisodesBySecret | None], cells: list[TrainConfig]
) -> list[AgentRun]:
    channel, start = build_channel(cells[0]), time.perf_counter()
    if not is_listed(channel):
        return []
    episodes = play(channel)
    if episodes is None or not np.isfinite(episodes.to_know).all():
        return []
    secrets = [cell_secret(config) for config in cells]
    reached = (episodes.to_half, episodes.to_know, episodes.to_half_bits)
    return _come_to_know(agent, cells, np.stack([by_secret[secrets] for by_secret in reached], axis=1), start)


def _play_weighing(cells: list[TrainConfig]) -> list[AgentRun]:
    channel = build_channel(cells[0])
    if channel.function is not element_count_reward or channel.answer_format.radix != 2 or is_listed(channel):
        return []
    half, know = episodes_by_weighing(channel.answer_format.num_env_steps)
    by_milestone = {"e50": know, "e90": know, "half_bits": half}
    reached = np.array([[by_milestone[name] for name in MILESTONES]] * len(cells))
    return _come_to_know("weighing", cells, reached, time.perf_counter())


def _play_uniform(cells: list[TrainConfig]) -> list[AgentRun]:
    if cells[0].algorithm == "sft" or cells[0].reward_type != "binary" or not is_listed(build_channel(cells[0])):
        return []
    start = time.perf_counter()
    hits = np.array([uniform_episodes(config.num_secrets, config.seed) for config in cells])
    return _come_to_know("uniform", cells, np.stack([hits] * len(MILESTONES), axis=1), start)


def _come_to_know(
    agent: str, cells: list[TrainConfig], reached: Shaped[np.ndarray, "cell milestone"], start: float
) -> list[AgentRun]:
    """The runs of an agent that came to know its secrets, and with each all that there is to observe."""
    seconds, bits = (time.perf_counter() - start) / len(cells), cells[0].signal_bits
    runs = []
    for config, episodes in zip(cells, reached.astype(int).tolist(), strict=True):
        reach: dict[str, int] = dict(zip(MILESTONES, episodes, strict=True))
        know = reach["e90"]
        fields = exact_fields(config)
        runs.append(AgentRun(agent, config, fields, RunResult(reach, know, know, bits, bits, "memorized", seconds)))
    return runs


def tabular_rates(config: TrainConfig) -> tuple[float, ...]:
    """The learning rates of tabular_pg on a cell's task."""
    return TABULAR_LEARNING_RATES if config.secret_length is None else SYMBOL_LEARNING_RATES


def exact_fields(config: TrainConfig) -> dict[str, object]:
    """The fields of a cell as far as an agent with an exact posterior has a use for them."""
    return config.identity() | dict.fromkeys(_UNUSED["exact"])


def tabular_fields(config: TrainConfig, learning_rate: float) -> dict[str, object]:
    """The fields of a cell as far as tabular_pg has a use for them."""
    return config.identity() | dict.fromkeys(_UNUSED["tabular_pg"]) | {"learning_rate": float(learning_rate)}


def _play_tabular(cells: list[TrainConfig], learning_rates: Sequence[float]) -> list[AgentRun]:
    start = time.perf_counter()
    tries = [(config, rate) for rate in learning_rates for config in cells]
    secret_of = cell_secret if cells[0].secret_length is None else cell_digits
    secrets, seeds = np.array([secret_of(config) for config, _ in tries]), [config.seed for config, _ in tries]
    done = train_tabular(cells[0], secrets, seeds, np.array([rate for _, rate in tries]))
    seconds = (time.perf_counter() - start) / len(tries)
    runs = []
    for i, (config, rate) in enumerate(tries):
        fields = tabular_fields(config, rate)
        episodes, log2 = int(done.episodes[i]), float(done.secret_log2[i])
        result = RunResult(
            done.reach.milestones(i),
            episodes,
            episodes // config.episodes_per_update,
            config.signal_bits + log2,
            math.nan,
            "memorized" if log2 >= math.log2(config.stop_probability) else "budget_spent",
            seconds,
            done.reach.slope_bits(i),
        )
        runs.append(AgentRun("tabular_pg", config, fields, result))
    return runs
