"""Channels of sequences, whose secrets are too many to list: what follows from their symbols."""

import math

import numpy as np
from jaxtyping import Float

from memrl.limits import MOST_LISTED
from memrl.task.reward import (
    Channel,
    all_right_reward,
    element_count_reward,
    per_element_reward,
    sequence_itself,
)
from memrl.theory.information import binary_entropy_bits, entropy_bits


def is_listed(channel: Channel) -> bool:
    """Whether the secrets are few enough to be gone through one by one; integers always are."""
    return not channel.answer_format.is_sequence or channel.N <= MOST_LISTED


def tells_by_symbol(channel: Channel) -> bool:
    """Whether the posterior of a sequence is a product over its symbols: it tells each by itself, or all at once."""
    return channel.function in (per_element_reward, sequence_itself)


def signal_bits(channel: Channel) -> float:
    """H(S) of a uniform secret."""
    return math.log2(channel.N)


def episode_bits(channel: Channel) -> tuple[float, bool]:
    """I(S; feedback) of one episode of a channel of sequences at a uniform guess, in bits.

    With p = 1/N and L symbols: L h(p) where each symbol is told by itself, H(Binomial(L, p)) where the right ones are
    counted, h(p^L) where all must be right.

    Returns:
        the bits, and whether they are exact: of other rewards the bits of a secret, or of the usual count, bound them.
    """
    p, length = 1.0 / channel.answer_format.radix, channel.answer_format.num_env_steps
    if channel.function is sequence_itself:
        return signal_bits(channel), True
    if channel.function is per_element_reward:
        return length * float(binary_entropy_bits(p)), True
    if channel.function is element_count_reward:
        return float(entropy_bits(binomial(length, p))), True
    if channel.function is all_right_reward:
        return float(binary_entropy_bits(p**length)), True
    return min(signal_bits(channel), channel.nominal_bits), False


def binomial(n: int, p: float) -> Float[np.ndarray, "{n}+1"]:
    """The probabilities of 0 .. n successes in n trials."""
    log_p = np.log(p) * np.arange(n + 1) + np.log1p(-p) * np.arange(n, -1, -1)
    ways = np.array([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)])
    return np.exp(ways + log_p)
