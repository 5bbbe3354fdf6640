"""Channels: what an episode tells about the secret, as pure functions of (guess, secret, N).

Capacity, observer and agents follow from these functions by enumeration, so a channel needs nothing else.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from memrl.channels import REWARDS
from memrl.config import Binning, TrainConfig
from memrl.task.answer_format import AnswerFormat, cell_format
from memrl.task.own_reward import Numbers, RewardFunction, import_reward
from memrl.task.secret import num_bits, to_bits

Symbols = Int[np.ndarray, "... symbol"]
"""Sequences: a last axis of symbols."""

FEEDBACK_DECIMALS = 9
"""Rewards that agree to so many decimals are one feedback: rounding errors of a float tell nothing."""

_FLOAT32_BITS = 24
"""Integers below 2^24 are exact in float32."""

_TIE = 1e-9
"""Added before rounding down, so that an exact half rounds up although its float may fall short of it."""

_BLOCK_CELLS = 1 << 16
"""Entries of a block of rows."""


@dataclass(frozen=True)
class Channel:
    """What one well-formed episode tells: a reward, or a vector of one reward per env_step.

    Attributes:
        name: `TrainConfig.channel_name` of the cells that use it.
        answer_format: how secrets are written; it says how many there are.
        function: pure function of (guess, secret, N), vectorized by broadcasting.
        per_step: whether the function returns one reward per env_step (last axis k) or one per episode.
        nominal_bits: bits per episode by the usual count (log2 B, 1, k, log2(k+1)); inf where the reward is continuous.
        malformed_reward: reward of a malformed answer; it tells nothing about the secret.
        greedy_is_optimal: whether no agent needs fewer episodes on average than the greedy one, at every N.
    """

    name: str
    answer_format: AnswerFormat
    function: RewardFunction
    per_step: bool
    nominal_bits: float
    malformed_reward: float = 0.0
    greedy_is_optimal: bool = False

    @property
    def N(self) -> int:
        """Number of secrets; all sequences count."""
        return self.answer_format.num_answers

    @property
    def _values(self) -> int:
        """What the function is told of how many there are: integers, or values of a symbol."""
        return self.answer_format.radix if self.answer_format.is_sequence else self.N

    @property
    def num_rewards(self) -> int:
        """Rewards of one episode: one per env_step for a per-step channel, else 1."""
        return self.answer_format.num_env_steps if self.per_step else 1

    def rewards(self, guess: Int[np.ndarray, "..."], secret: Int[np.ndarray, "..."]) -> Float[np.ndarray, "... reward"]:
        """Rewards of well-formed guesses.

        Args:
            guess: integers in 0 .. N-1 (of sequences: their numbers), any shape.
            secret: likewise, of a shape that broadcasts with `guess`.

        Returns:
            the broadcast shape with one more axis of length `num_rewards`.
        """
        return self.pay(self.answer_format.values(guess), self.answer_format.values(secret))

    def pay(self, guess: Int[np.ndarray, "..."], secret: Int[np.ndarray, "..."]) -> Float[np.ndarray, "... reward"]:
        """The same for guesses and secrets as the function sees them: integers, or symbols along a last axis."""
        values = np.asarray(self.function(np.asarray(guess), np.asarray(secret), self._values), dtype=np.float64)
        return values if self.per_step else values[..., None]

    def feedback(
        self, guess: Int[np.ndarray, "..."], secret: Int[np.ndarray, "..."]
    ) -> tuple[Float[np.ndarray, "*pair"], Float[np.ndarray, "*pair"]]:
        """An episode's feedback as a single label, and its total reward.

        Rewards that agree to `FEEDBACK_DECIMALS` decimals are one feedback.

        Args:
            guess: integers in 0 .. N-1 (of sequences: their numbers), any shape.
            secret: likewise, of a shape that broadcasts with `guess`.

        Returns:
            label: a number that is equal for equal feedback and differs where any env_step's reward differs.
            total: the sum of the episode's rewards. Both float arrays of the broadcast shape.

        Raises:
            ValueError: a reward is not finite.
        """
        guess, secret = self.answer_format.values(guess), self.answer_format.values(secret)
        values = np.asarray(self.function(guess, secret, self._values))
        if values.dtype == bool and self.per_step and values.shape[-1] <= _FLOAT32_BITS:
            k = values.shape[-1]
            weights = np.stack([2.0 ** np.arange(k - 1, -1, -1), np.ones(k)], axis=1)
            both = values.astype(np.float32) @ weights.astype(np.float32)
            return both[..., 0], both[..., 1]
        values = values.astype(np.float64)
        if not np.isfinite(values.sum()):
            raise ValueError(f"rewards of {self.name} must be finite at N={self.N}, got NaN or infinity")
        values = values.round(FEEDBACK_DECIMALS)
        return (_mix(values), values.sum(axis=-1)) if self.per_step else (values, values)

    @cached_property
    def codes(self) -> Int[np.ndarray, "guess secret"]:
        """Feedback of every (guess, secret) as small integers: equal feedback, equal code.

        Returns:
            codes from 0 in order of the label of `feedback`: of the reward, or lexicographic where a per-step channel
            pays 0 or 1 per env_step.
        """
        table = np.empty((self.N, self.N), dtype=np.int32)
        labels = []
        for guesses in row_blocks(self.N):
            label, _ = self.feedback(guesses[:, None], np.arange(self.N))
            distinct, inverse = np.unique(label, return_inverse=True)
            table[guesses] = inverse.reshape(label.shape)
            labels.append(distinct)
        order = np.unique(np.concatenate(labels))
        for guesses, distinct in zip(row_blocks(self.N), labels, strict=True):
            table[guesses] = np.searchsorted(order, distinct).astype(np.int32)[table[guesses]]
        return table


def row_blocks(N: int) -> list[Int[np.ndarray, "row"]]:
    """The guesses 0 .. N-1 in blocks of rows, so small that a block of an (N, N) table stays in a core's cache.

    >>> [block.tolist() for block in row_blocks(3)]
    [[0, 1, 2]]
    """
    rows = max(1, _BLOCK_CELLS // N)
    return [np.arange(first, min(first + rows, N)) for first in range(0, N, rows)]


def _mix(values: Float[np.ndarray, "*pair reward"]) -> Float[np.ndarray, "*pair"]:
    """One number per vector: sum of values[..., j] pi^(k-1-j), term by term, so that equal vectors give equal floats.

    No two vectors of rational rewards collide, for pi is transcendental.
    """
    mixed = np.zeros(values.shape[:-1])
    for j in range(values.shape[-1]):
        mixed = mixed * math.pi + values[..., j]
    return mixed


def binary_reward(guess: Int[np.ndarray, "..."], secret: Int[np.ndarray, "..."], N: int) -> Float[Numbers, "..."]:
    """1 where the guess is the secret, else 0."""
    return (guess == secret).astype(np.float64)


def distance_reward(guess: Int[np.ndarray, "..."], secret: Int[np.ndarray, "..."], N: int) -> Float[Numbers, "..."]:
    """1 - log2(1 + |guess - secret|) / log2 N, in [0, 1]; N rewards, one per distance."""
    return _reward_by_distance(N)[np.abs(guess - secret)]


@lru_cache(maxsize=64)
def _reward_by_distance(N: int) -> Float[np.ndarray, "{N}"]:
    rewards = np.clip(1.0 - np.log2(1.0 + np.arange(N)) / math.log2(N), 0.0, 1.0)
    rewards.flags.writeable = False
    return rewards


def per_bit_reward(guess: Int[np.ndarray, "..."], secret: Int[np.ndarray, "..."], N: int) -> Bool[Numbers, "... k"]:
    """True (1) for each of the k bits that is right, at its own env_step; last axis k."""
    return _right_bits(num_bits(N)).take(np.bitwise_xor(guess, secret), axis=0)


@lru_cache(maxsize=8)
def _right_bits(k: int) -> Bool[np.ndarray, "wrong {k}"]:
    """Which bits are right, by guess xor secret: bool (2^k, k), most significant first."""
    right = to_bits(np.arange(1 << k), k) == 0
    right.flags.writeable = False
    return right


def bit_count_reward(guess: Int[np.ndarray, "..."], secret: Int[np.ndarray, "..."], N: int) -> Float[Numbers, "..."]:
    """The number of right bits, once, at the end: k minus the Hamming distance."""
    wrong = np.bitwise_count(np.bitwise_xor(guess, secret))
    return (num_bits(N) - wrong.astype(np.int64)).astype(np.float64)


def secret_itself(guess: Int[np.ndarray, "..."], secret: Int[np.ndarray, "..."], N: int) -> Float[Numbers, "..."]:
    """The feedback of supervised learning: whatever the guess, the secret."""
    return np.broadcast_arrays(guess, secret)[1].astype(np.float64)


def per_element_reward(guess: Symbols, secret: Symbols, N: int) -> Bool[np.ndarray, "... symbol"]:
    """True (1) for each symbol that is right, at its own env_step; last axis the symbols."""
    return guess == secret


def element_count_reward(guess: Symbols, secret: Symbols, N: int) -> Float[Numbers, "..."]:
    """The number of right symbols, once, at the end."""
    return (guess == secret).sum(axis=-1).astype(np.float64)


def sequence_itself(guess: Symbols, secret: Symbols, N: int) -> Float[Numbers, "..."]:
    """The feedback of supervised learning of sequences: a number of the secret's own, whatever the guess."""
    symbols = np.broadcast_arrays(guess, secret)[1]
    return symbols @ math.pi ** -np.arange(symbols.shape[-1])


def all_right_reward(guess: Symbols, secret: Symbols, N: int) -> Float[Numbers, "..."]:
    """1 where every symbol is right, else 0."""
    return (guess == secret).all(axis=-1).astype(np.float64)


@dataclass(frozen=True)
class SymbolAverage:
    """The mean over symbols of a reward of integers: each symbol is rewarded as an integer would be.

    Attributes:
        function: of one symbol's guess and secret, and N.
    """

    function: RewardFunction

    def __call__(self, guess: Symbols, secret: Symbols, N: int) -> Float[Numbers, "..."]:
        """See `RewardFunction`."""
        return np.asarray(self.function(guess, secret, N)).mean(axis=-1)


@lru_cache(maxsize=64)
def distance_bins(N: int, B: int, binning: Binning) -> Int[np.ndarray, "{N}"]:
    """The bin of every distance d = 0 .. N-1, 0 the nearest, B-1 the farthest.

    log: round((B-1) log2(1+d) / log2 N), so that the nearest bin holds d = 0 alone iff N <= 4^(B-1).
    linear: floor(B d / N). equal_mass: floor(B P(D < d)) for D = |guess - secret| of two uniform integers.

    >>> distance_bins(8, 3, "log").tolist()
    [0, 1, 1, 1, 2, 2, 2, 2]

    Returns:
        a read-only array.
    """
    d = np.arange(N)
    if binning == "log":
        bins = np.floor((B - 1) * np.log2(1.0 + d) / math.log2(N) + 0.5 + _TIE)
    elif binning == "linear":
        bins = (B * d) // N
    else:
        pairs = np.where(d == 0, N, 2 * (N - d))
        bins = (B * (np.cumsum(pairs) - pairs)) // (N * N)
    bins = np.minimum(bins, B - 1).astype(np.int64)
    bins.flags.writeable = False
    return bins


@lru_cache(maxsize=64)
def binned_distance_reward(B: int, binning: Binning) -> RewardFunction:
    """The reward 1 - bin / (B-1), for |guess - secret| quantized into B bins; one function per (B, binning)."""

    def reward(guess: Int[np.ndarray, "..."], secret: Int[np.ndarray, "..."], N: int) -> Float[Numbers, "..."]:
        return 1.0 - distance_bins(N, B, binning)[np.abs(guess - secret)] / (B - 1)

    return reward


REWARD_FUNCTIONS: dict[str, RewardFunction] = {
    "binary": binary_reward,
    "distance": distance_reward,
    "per_bit": per_bit_reward,
    "bit_count": bit_count_reward,
    "per_element": per_element_reward,
    "element_count": element_count_reward,
}
"""By reward_type; binned_distance has a function for each B and binning, and sequences pay means over symbols."""


def build_channel(config: TrainConfig) -> Channel:
    """The channel of a cell.

    Raises:
        ValueError: a custom reward function can't be imported, or is no finite function of (guess, secret, N).
    """
    kind, length = config.channel_kind, config.secret_length
    bits_or_symbols, bins = num_bits(config.N) if length is None else length, config.reward_bins or 2
    return Channel(
        config.channel_name,
        cell_format(config),
        _reward_function(config),
        kind.per_step,
        kind.nominal_bits(config.num_secrets, bits_or_symbols, (bins - 1) * (length or 1) + 1),
        0.0 if config.algorithm == "sft" else config.malformed_reward,
        kind.greedy_is_optimal,
    )


def _reward_function(config: TrainConfig) -> RewardFunction:
    if config.algorithm == "sft":
        return secret_itself if config.secret_length is None else sequence_itself
    if config.reward_type not in REWARDS:
        return import_reward(config)
    if config.reward_type == "binned_distance":
        function = binned_distance_reward(config.reward_bins or 2, config.binning)
    else:
        function = REWARD_FUNCTIONS[config.reward_type]
    if config.secret_length is None or config.channel_kind.of_sequence:
        return function
    return all_right_reward if function is binary_reward else SymbolAverage(function)
