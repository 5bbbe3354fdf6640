"""Agents that share a trained policy's channel, as rows of the same table: what could be reached, with no network.

optimal: the fewest expected episodes, with an exact posterior. greedy: the most informative guess under it. uniform:
guesses at random, with repetition, until the binary channel says yes. tabular_pg: policy gradient on a table of logits.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import chz
import numpy as np

from memrl.config import TrainConfig
from memrl.task.reward import (
    Channel,
    binary_reward,
    build_channel,
    distance_reward,
    per_bit_reward,
    secret_itself,
)
from memrl.task.secret import cell_secret
from memrl.theory.bayes_agent import EpisodesBySecret, play_greedy
from memrl.theory.capacity import channel_capacity
from memrl.theory.dynamic_programming import LARGEST_N, plan_optimal
from memrl.theory.tabular import train_tabular

AGENTS = ("optimal", "greedy", "uniform", "tabular_pg")
"""The values of the column `agent` that this module writes."""

TABULAR_LEARNING_RATES = (1.0, 4.0, 16.0, 64.0, 256.0)
"""Learning rates of tabular_pg, in logits: a row each, chosen by whoever reads the table as for trained policies."""

_UNIFORM_STREAM = 0x0211F0
"""Keeps the uniform agent's random numbers apart from every other stream of the same seed."""

_POLICY_FIELDS = (
    "loss",
    "clip_range",
    "lora_rank",
    "lora_alpha",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "model",
    "prompt_format",
    "bit_separator",
    "dtype",
    "rollout",
)
"""Fields of a cell that say nothing about an agent without a network."""

_LEARNING_FIELDS = (
    "learning_rate",
    "advantage",
    "baseline",
    "group_size",
    "batch_size",
    "n_steps",
    "max_episodes",
    "stop_probability",
)
"""Fields of a cell that say nothing about an agent that does not ascend a gradient."""

Row = dict[str, Any]


def optimal_episodes(channel: Channel) -> EpisodesBySecret | None:
    """The fewest expected episodes, by secret; None where nobody has proved what is optimal.

    Up to N = 16 by dynamic programming. Beyond, where the greedy agent is optimal: sft, per_bit and distance tell all
    in one episode, the fewest there can be; and on binary a guess that misses rules out one secret whichever it was, so
    that every order of guesses without repetition does equally well.
    """
    if channel.N <= LARGEST_N:
        return plan_optimal(channel)
    proved = channel.function in (secret_itself, per_bit_reward, distance_reward, binary_reward)
    return play_greedy(channel) if proved else None


def uniform_episodes(N: int, seed: int) -> int:
    """Episodes to the first hit of guesses drawn uniformly with repetition: geometric, N on average.

    It is what a policy gradient does on the binary channel before its first success.
    """
    generator = np.random.default_rng(np.random.SeedSequence([_UNIFORM_STREAM, N, seed]))
    return int(generator.geometric(1.0 / N))


def agent_rows(
    configs: Iterable[TrainConfig],
    learning_rates: Sequence[float] = TABULAR_LEARNING_RATES,
    provenance: Mapping[str, str | None] | None = None,
) -> list[Row]:
    """Rows of episodes_to_memorize for every agent, on the channels and secrets of some cells.

    Cells that differ by the policy alone share their rows. An agent with an exact posterior has e50 and e90 when that
    reaches 1/2 and 1; where the channel cannot tell every secret, it has no row.

    Args:
        configs: the cells of a grid.
        learning_rates: of tabular_pg.
        provenance: the columns `versions` and `revision`.

    Returns:
        One row an agent, channel, N and secret (tabular_pg: and setting), with all columns of the table.
    """
    fixed = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "versions": None, "revision": None}
    fixed.update(provenance or {})
    configs = list(configs)
    rows: list[Row] = []
    for cells in _group(configs, (*_POLICY_FIELDS, *_LEARNING_FIELDS, "credit")):
        for play in (_play_optimal, _play_greedy, _play_uniform):
            rows += play(cells)
    for cells in _group(configs, (*_POLICY_FIELDS, "learning_rate")):
        rows += _play_tabular(cells, learning_rates)
    return [row | fixed for row in rows]


def _group(configs: list[TrainConfig], unused: Sequence[str]) -> list[list[TrainConfig]]:
    """Cells that are one to an agent but for their seed, which uses none of some fields; one cell a seed."""
    groups: dict[str, dict[str, TrainConfig]] = {}
    for config in configs:
        fields = config.identity() | dict.fromkeys(unused) | {"channel": config.channel_name}
        which = json.dumps([fields.pop("seed"), fields.pop("secret")])
        groups.setdefault(json.dumps(fields), {}).setdefault(which, config)
    return [list(group.values()) for group in groups.values()]


def _play_optimal(cells: list[TrainConfig]) -> list[Row]:
    return _play_bayes("optimal", optimal_episodes, cells)


def _play_greedy(cells: list[TrainConfig]) -> list[Row]:
    return _play_bayes("greedy", play_greedy, cells)


def _play_bayes(agent: str, play: Callable[[Channel], EpisodesBySecret | None], cells: list[TrainConfig]) -> list[Row]:
    start = time.perf_counter()
    episodes = play(build_channel(cells[0]))
    if episodes is None or not np.isfinite(episodes.to_know).all():
        return []
    seconds = (time.perf_counter() - start) / len(cells)
    rows = []
    for config in cells:
        secret = cell_secret(config)
        e50, e90 = int(episodes.to_half[secret]), int(episodes.to_know[secret])
        rows.append(_describe_exact(agent, config) | _memorized(config.N, e50, e90, seconds))
    return rows


def _play_uniform(cells: list[TrainConfig]) -> list[Row]:
    if cells[0].algorithm == "sft" or cells[0].reward_type != "binary":
        return []
    start = time.perf_counter()
    hits = [uniform_episodes(config.N, config.seed) for config in cells]
    seconds = (time.perf_counter() - start) / len(cells)
    return [
        _describe_exact("uniform", config) | _memorized(config.N, hit, hit, seconds)
        for config, hit in zip(cells, hits, strict=True)
    ]


def _play_tabular(cells: list[TrainConfig], learning_rates: Sequence[float]) -> list[Row]:
    start = time.perf_counter()
    runs = [(config, rate) for rate in learning_rates for config in cells]
    secrets, seeds = np.array([cell_secret(config) for config, _ in runs]), [config.seed for config, _ in runs]
    done = train_tabular(cells[0], secrets, seeds, np.array([rate for _, rate in runs]))
    seconds = (time.perf_counter() - start) / len(runs)
    rows = []
    for i, (config, rate) in enumerate(runs):
        memorized = done.secret_log2[i] >= math.log2(config.stop_probability)
        absorbed, episodes = math.log2(config.N) + float(done.secret_log2[i]), int(done.episodes[i])
        reached = {
            "e50": int(done.e50[i]),
            "e50_censored": not done.e50_reached[i],
            "e90": int(done.e90[i]),
            "e90_censored": not done.e90_reached[i],
            "episodes": episodes,
            "updates": episodes // config.episodes_per_update,
            "absorbed_bits": absorbed,
            "observed_bits": math.nan,
            "bits_per_episode": absorbed / episodes if episodes else math.nan,
            "status": "memorized" if memorized else "budget_spent",
            "seconds": seconds,
        }
        rows.append(_describe("tabular_pg", config, _POLICY_FIELDS, {"learning_rate": float(rate)}) | reached)
    return rows


def _memorized(N: int, e50: int, e90: int, seconds: float) -> Row:
    """What a row says of an agent that came to know its secret, and with it all that there is to observe."""
    bits = math.log2(N)
    return {
        "e50": e50,
        "e50_censored": False,
        "e90": e90,
        "e90_censored": False,
        "episodes": e90,
        "updates": e90,
        "absorbed_bits": bits,
        "observed_bits": bits,
        "bits_per_episode": bits / e90,
        "status": "memorized",
        "seconds": seconds,
    }


def _describe_exact(agent: str, config: TrainConfig) -> Row:
    return _describe(agent, config, (*_POLICY_FIELDS, *_LEARNING_FIELDS, "credit"), {})


def _describe(agent: str, config: TrainConfig, unused: Sequence[str], chosen: Row) -> Row:
    """What a row says before the agent plays: who it is, its task, and the channel's capacities."""
    channel = build_channel(config)
    capacity = channel_capacity(channel)
    fields = chz.asdict(config) | config.identity() | dict.fromkeys(unused) | chosen
    fields["secret"] = cell_secret(config)
    identity = json.dumps({"agent": agent, "channel": config.channel_name, **fields}, sort_keys=True)
    return fields | {
        "cell_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "agent": agent,
        "channel": config.channel_name,
        "signal_bits": math.log2(config.N),
        "capacity_nominal_bits": capacity.nominal_bits,
        "capacity_uniform_bits": capacity.uniform_guess_bits,
        "capacity_best_bits": capacity.best_guess_bits,
        "identifiable": capacity.identifiable,
        "prior_kl_bits": 0.0,
        "prior_well_formed": 1.0,
        "error": None,
        "tokens": None,
    }
