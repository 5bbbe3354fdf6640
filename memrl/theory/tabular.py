"""Policy gradient without a network: one logit per answer (single_step), or one per prefix of bits (multi_step).

It starts exactly uniform, samples on-policy and ascends the gradient plainly, with the same credit assignment and
advantages as a trained policy; what a trained policy needs beyond it is the network's, the adapter's and Adam's doing.
Of a sequence it has the logits of each symbol by itself (`symbol_logits`), and Adam too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit, softmax

from memrl.config import TrainConfig
from memrl.task.advantage import AdvantageRule, assign_credit, episode_advantages
from memrl.task.reach import Reach
from memrl.task.reward import Channel, build_channel
from memrl.task.secret import num_bits, to_bits
from memrl.theory.symbol_logits import SymbolLogits

_STREAM = 0x7AB01A
"""Keeps these random numbers apart from every other stream of the same seed."""

_DRAWN_AHEAD = 1 << 14
"""About so many uniform numbers a run draws at once, those of 1 to 32 updates."""


@dataclass(frozen=True)
class TabularRuns:
    """How runs went.

    Attributes:
        reach: how far they came, and after how many episodes.
        episodes: episodes used in all.
        secret_log2: log2 P(secret) at the end.
    """

    reach: Reach
    episodes: Int[np.ndarray, "run"]
    secret_log2: Float[np.ndarray, "run"]


def train_tabular(
    config: TrainConfig,
    secrets: Int[np.ndarray, "run *symbol"],
    seeds: Sequence[int],
    learning_rates: Float[np.ndarray, "run"],
) -> TabularRuns:
    """Trains many tabular policies side by side; each run draws from its own seed, whatever its neighbors do.

    A run's update adds learning_rate times the mean over its episodes of advantage times the gradient of log P(answer);
    of a sequence it is a step of Adam.

    Args:
        config: task, channel, credit, advantage, groups and budget; its secret, seed and learning rate are not used.
        secrets: the secret of each run, an integer or its symbols.
        seeds: the seed of each run's episodes.
        learning_rates: of each run, in logits.

    Returns:
        How the runs went. A run ends when P(secret) reaches the config's stop_probability or its budget is spent.

    Source: Williams 1992, Machine Learning 8, section 5 (REINFORCE); Mei et al. 2020, arXiv 2005.06392, lemma 1.
    """
    policy = _start(config, len(secrets))
    channel = build_channel(config)
    draws = _Draws(seeds, config.N, (config.episodes_per_update, policy.num_env_steps))
    live, secret_log2 = np.arange(len(secrets)), np.zeros(len(secrets))
    reach = Reach.start(np.full(len(secrets), config.signal_bits))
    episodes = np.zeros(len(secrets), dtype=np.int64)
    while True:
        secret_log2[live] = log2 = policy.log2_probability(secrets[live])
        reach.note(live, episodes[live], log2)
        in_budget = episodes[live] + config.episodes_per_update <= config.episode_budget
        goes_on = (log2 < np.log2(config.stop_probability)) & in_budget
        live = live[goes_on]
        if not len(live):
            break
        if not goes_on.all():
            policy.keep(goes_on)
        guess, advantage = _play(config, channel, policy, draws.take(live), secrets[live])
        policy.ascend(guess, advantage / config.episodes_per_update, learning_rates[live])
        episodes[live] += config.episodes_per_update
    return TabularRuns(reach, episodes, secret_log2)


def _start(config: TrainConfig, runs: int) -> "TabularPolicy":
    if config.secret_length is not None:
        return SymbolLogits(config.N, config.secret_length, runs)
    return (_BitLogits if config.env_type == "multi_step" else _ArmLogits)(config.N, runs)


def _play(
    config: TrainConfig,
    channel: Channel,
    policy: "TabularPolicy",
    uniform: Float[np.ndarray, "run episode env_step"],
    secrets: Int[np.ndarray, "run *symbol"],
) -> tuple[Int[np.ndarray, "run episode *symbol"], Float[np.ndarray, "run episode env_step"]]:
    """Guesses of one update, and their advantages; for sft, examples."""
    if config.algorithm == "sft":
        guess = np.repeat(secrets[:, None], config.episodes_per_update, axis=1)
        return guess, np.ones(uniform.shape)
    guess = policy.sample(uniform)
    told = channel.pay(guess, secrets[:, None])
    rewards = np.zeros(uniform.shape)
    rewards[..., -told.shape[-1] :] = told
    in_groups = (len(secrets), config.num_groups, config.group_size, policy.num_env_steps)
    credited = assign_credit(rewards, config.resolved_credit).reshape(in_groups)
    surprisal = policy.surprisal(guess).reshape(in_groups) if config.advantage == "delightful" else None
    return guess, episode_advantages(credited, AdvantageRule.of(config), surprisal).reshape(rewards.shape)


@runtime_checkable
class TabularPolicy(Protocol):
    """Policies of many runs side by side; an answer is an integer, or has a last axis of symbols."""

    num_env_steps: int

    def sample(self, uniform: Float[np.ndarray, "run episode env_step"]) -> Int[np.ndarray, "run episode *symbol"]:
        """Answers from uniform numbers."""
        ...

    def surprisal(self, guess: Int[np.ndarray, "run episode *symbol"]) -> Float[np.ndarray, "run episode env_step"]:
        """-log P of what was done at each env_step, nats."""
        ...

    def ascend(
        self,
        guess: Int[np.ndarray, "run episode *symbol"],
        weight: Float[np.ndarray, "run episode env_step"],
        rate: Float[np.ndarray, "run"],
    ) -> None:
        """Moves by rate along weight times the gradient of each env_step's log-probability, summed over episodes."""
        ...

    def log2_probability(self, secrets: Int[np.ndarray, "run *symbol"]) -> Float[np.ndarray, "run"]:
        """log2 P(secret) of each run."""
        ...

    def keep(self, goes_on: Bool[np.ndarray, "run"]) -> None:
        """Drops the runs that do not go on."""
        ...


class _ArmLogits:
    """One softmax over N answers per run."""

    num_env_steps = 1

    def __init__(self, N: int, runs: int) -> None:
        self._logits = np.zeros((runs, N))
        self._probability = softmax(self._logits, axis=1)
        self._cumulative = np.cumsum(self._probability, axis=1)

    def sample(self, uniform: Float[np.ndarray, "run episode env_step"]) -> Int[np.ndarray, "run episode"]:
        scaled = uniform[..., 0] * self._cumulative[:, -1:]
        guess = np.array([steps.searchsorted(u, "right") for steps, u in zip(self._cumulative, scaled, strict=True)])
        return np.minimum(guess, self._logits.shape[1] - 1)

    def surprisal(self, guess: Int[np.ndarray, "run episode"]) -> Float[np.ndarray, "run episode env_step"]:
        return -np.log(np.take_along_axis(self._probability, guess, axis=1))[..., None]

    def ascend(
        self,
        guess: Int[np.ndarray, "run episode"],
        weight: Float[np.ndarray, "run episode env_step"],
        rate: Float[np.ndarray, "run"],
    ) -> None:
        weight = weight[..., 0] * rate[:, None]
        moved = np.flatnonzero(weight.any(axis=1))
        if not len(moved):
            return
        pushed = np.zeros((len(moved), self._logits.shape[1]))
        np.add.at(pushed, (np.arange(len(moved))[:, None], guess[moved]), weight[moved])
        self._logits[moved] += pushed - self._probability[moved] * weight[moved].sum(axis=1, keepdims=True)
        self._probability[moved] = softmax(self._logits[moved], axis=1)
        self._cumulative[moved] = np.cumsum(self._probability[moved], axis=1)

    def log2_probability(self, secrets: Int[np.ndarray, "run"]) -> Float[np.ndarray, "run"]:
        with np.errstate(divide="ignore"):
            return np.log2(self._probability[np.arange(len(secrets)), secrets])

    def keep(self, goes_on: Bool[np.ndarray, "run"]) -> None:
        self._logits, self._probability = self._logits[goes_on], self._probability[goes_on]
        self._cumulative = self._cumulative[goes_on]


class _BitLogits:
    """One logit of a 1 for each prefix of bits, in heap order (a 1, then the prefix); bits most significant first."""

    def __init__(self, N: int, runs: int) -> None:
        self.num_env_steps = k = num_bits(N)
        below = np.zeros(2 << k)
        below[1 << k : (1 << k) + N] = 1
        for node in range((1 << k) - 1, 0, -1):
            below[node] = below[2 * node] + below[2 * node + 1]
        inner = np.arange(1 << k)
        with np.errstate(divide="ignore", invalid="ignore"):
            start = np.log(below[2 * inner + 1]) - np.log(below[2 * inner])
        self._logits = np.tile(start, (runs, 1))

    def sample(self, uniform: Float[np.ndarray, "run episode env_step"]) -> Int[np.ndarray, "run episode"]:
        node = np.ones(uniform.shape[:2], dtype=np.int64)
        rows = np.arange(len(node))[:, None]
        for step in range(self.num_env_steps):
            node = 2 * node + (uniform[..., step] < expit(self._logits[rows, node]))
        return node - (1 << self.num_env_steps)

    def surprisal(self, guess: Int[np.ndarray, "run episode"]) -> Float[np.ndarray, "run episode env_step"]:
        node, bit = self._path(guess)
        logits = self._logits[np.arange(len(guess))[:, None, None], node]
        return np.logaddexp(0.0, np.where(bit == 1, -logits, logits))

    def ascend(
        self,
        guess: Int[np.ndarray, "run episode"],
        weight: Float[np.ndarray, "run episode env_step"],
        rate: Float[np.ndarray, "run"],
    ) -> None:
        node, bit = self._path(guess)
        rows = np.arange(len(guess))[:, None, None]
        np.add.at(self._logits, (rows, node), rate[:, None, None] * weight * (bit - expit(self._logits[rows, node])))

    def log2_probability(self, secrets: Int[np.ndarray, "run"]) -> Float[np.ndarray, "run"]:
        return -self.surprisal(secrets[:, None]).sum(axis=(1, 2)) / np.log(2.0)

    def keep(self, goes_on: Bool[np.ndarray, "run"]) -> None:
        self._logits = self._logits[goes_on]

    def _path(
        self, answers: Int[np.ndarray, "*shape"]
    ) -> tuple[Int[np.ndarray, "*shape k"], Int[np.ndarray, "*shape k"]]:
        """The nodes in which an answer's bits are chosen, and the bits."""
        k = self.num_env_steps
        return (answers[..., None] + (1 << k)) >> np.arange(k, 0, -1), to_bits(answers, k)


class _Draws:
    """Uniform numbers, each run's from its own generator, drawn for several updates at once."""

    def __init__(self, seeds: Sequence[int], N: int, shape: tuple[int, int]) -> None:
        self._generators = [np.random.default_rng(np.random.SeedSequence([_STREAM, N, seed])) for seed in seeds]
        self._shape, self._num_ahead = shape, min(max(_DRAWN_AHEAD // (shape[0] * shape[1]), 1), 32)
        self._ahead: dict[int, Float[np.ndarray, "update episode env_step"]] = {}
        self._taken = 0

    def take(self, live: Int[np.ndarray, "run"]) -> Float[np.ndarray, "run episode env_step"]:
        """The numbers of the next update of these runs; call once per update."""
        place = self._taken % self._num_ahead
        self._taken += 1
        if place == 0:
            self._ahead = {run: self._generators[run].random((self._num_ahead, *self._shape)) for run in live.tolist()}
        return np.array([self._ahead[run][place] for run in live.tolist()]).reshape(len(live), *self._shape)
