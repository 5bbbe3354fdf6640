"""Capacities: the most that one episode of a channel can tell, in bits.

A channel is a deterministic function of (guess, secret), and the learner picks the guess and knows it. So one episode
tells I(S; R | guess) = H(R | guess), which is linear in the distribution of the guess: its maximum is at the best
single guess, and mixing guesses gains nothing. What is left to maximize over is the distribution of the secret, which
an adaptive learner does shape, by what it saw before: over it the maximum is log2 of the number of distinct feedbacks
of one guess.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from memrl.task.answer_format import AnswerFormat, integer_format
from memrl.task.own_reward import RewardFunction
from memrl.task.reward import FEEDBACK_DECIMALS, Channel, SymbolAverage, row_blocks, secret_itself, sequence_itself
from memrl.theory.information import row_entropies_bits
from memrl.theory.sequences import episode_bits, is_listed, signal_bits


@dataclass(frozen=True)
class Capacity:
    """What one well-formed episode of a channel can tell about a secret.

    Attributes:
        nominal_bits: by the usual count (log2 B, 1, k, ...); inf where the reward is continuous.
        uniform_guess_bits: I(S; R | guess) for a uniform secret and a uniform guess: the mean of H(R | guess).
        best_guess_bits: the same at the best single guess: the most that an episode tells of a uniform secret.
        max_feedback_bits: the most over guesses and over distributions of the secret: log2 of the largest number of
            distinct feedbacks of one guess. No episode of an adaptive learner tells more on average.
        identifiable: whether maximizing the reward means saying the secret, for every secret.
        is_bound: whether the capacities are upper bounds, because the secrets are too many to list.
    """

    nominal_bits: float
    uniform_guess_bits: float
    best_guess_bits: float
    max_feedback_bits: float
    identifiable: bool
    is_bound: bool = False


@dataclass(frozen=True)
class _Enumeration:
    """What one pass over all (guess, secret) finds.

    Attributes:
        information_bits: H(R | guess) for a uniform secret, by guess.
        num_feedbacks: distinct feedbacks, by guess.
        num_rivals: guesses other than the secret that pay at least as much, by secret.
    """

    information_bits: Float[np.ndarray, "N"]
    num_feedbacks: Int[np.ndarray, "N"]
    num_rivals: Int[np.ndarray, "N"]


def channel_capacity(channel: Channel) -> Capacity:
    """Enumerates a channel, once per process, and returns its capacities in bits.

    Raises:
        ValueError: a reward is not finite.

    Source: Li 2025, Information Bandwidth in Reinforcement Learning, Theorems 1 and 2, for the nominal counts; the rest
        follows from the channel being a function, see the module's docstring.
    """
    if not is_listed(channel):
        return _sequence_capacity(channel)
    found = _enumerate(channel)
    return Capacity(
        nominal_bits=channel.nominal_bits,
        uniform_guess_bits=float(found.information_bits.mean()),
        best_guess_bits=float(found.information_bits.max()),
        max_feedback_bits=math.log2(int(found.num_feedbacks.max())),
        identifiable=identifiability_warning(channel) is None,
    )


def _sequence_capacity(channel: Channel) -> Capacity:
    """Of sequences every guess tells as much as any other, where the capacity is exact."""
    bits, is_exact = episode_bits(channel)
    is_told = channel.function is sequence_itself
    most = signal_bits(channel) if is_told else min(channel.nominal_bits, signal_bits(channel))
    identifiable = identifiability_warning(channel) is None
    return Capacity(channel.nominal_bits, bits, bits, most, identifiable, not is_exact)


def identifiability_warning(channel: Channel) -> str | None:
    """Says in one line why maximizing the reward does not mean saying the secret; None where it does.

    Two things break it: another guess pays as much as the secret (log bins with N > 4^(B-1), equal_mass bins with
    B < N), or a malformed answer does. SFT maximizes no reward and always passes.
    """
    if channel.function in (secret_itself, sequence_itself):
        return None
    where, rivals = _describe_size(channel), _count_rivals(channel)
    if rivals:
        return (
            f"{channel.name} at {where}: up to {rivals + 1} guesses pay as much as the secret, "
            f"so maximizing the reward cannot teach all log2 N = {math.log2(channel.N):.2f} bits"
        )
    if _malformed_pays(channel):
        return (
            f"{channel.name} at {where}: a malformed answer pays malformed_reward={channel.malformed_reward}, "
            "no less than the secret, so maximizing the reward does not mean saying the secret"
        )
    return None


def _describe_size(channel: Channel) -> str:
    answers = channel.answer_format
    return f"N={answers.radix}, length {answers.num_env_steps}" if answers.is_sequence else f"N={channel.N}"


def _count_rivals(channel: Channel) -> int:
    """The most guesses that pay as much as the secret; where they can't be listed, as far as a single symbol shows."""
    if is_listed(channel):
        return int(_enumerate(channel).num_rivals.max())
    if not isinstance(channel.function, SymbolAverage):
        return 0
    of_symbol = integer_format(channel.answer_format.radix, "single_step")
    return _count_rivals(
        Channel(channel.name, of_symbol, channel.function.function, per_step=False, nominal_bits=math.inf)
    )


def _enumerate(channel: Channel) -> _Enumeration:
    return _enumerate_function(channel.function, channel.answer_format, channel.per_step, channel.name)


@lru_cache(maxsize=512)
def _enumerate_function(
    function: RewardFunction, answer_format: AnswerFormat, per_step: bool, name: str
) -> _Enumeration:
    channel = Channel(name, answer_format, function, per_step, math.inf)
    N = channel.N
    secrets = np.arange(N)
    own = channel.feedback(secrets, secrets)[1]
    information, feedbacks = np.empty(N), np.empty(N, dtype=np.int64)
    rivals = np.full(N, -1)
    for guesses in row_blocks(N):
        label, total = channel.feedback(guesses[:, None], secrets)
        information[guesses], feedbacks[guesses] = row_entropies_bits(label)
        rivals += (total >= own).sum(axis=0)
    information.flags.writeable = False
    return _Enumeration(information, feedbacks, rivals)


def _malformed_pays(channel: Channel) -> bool:
    """Whether, for some secret, breaking off its answer at some env_step pays no less than the whole of it."""
    secrets = np.arange(channel.N if is_listed(channel) else 1)
    own = channel.rewards(secrets, secrets).round(FEEDBACK_DECIMALS)
    kept = np.cumsum(own, axis=1) - own
    return bool(((kept + channel.malformed_reward).max(axis=1) >= own.sum(axis=1)).any())
