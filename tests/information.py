"""Information of joint distributions and of noisy channels, to hold the closed forms of memrl.theory to."""

import numpy as np
from jaxtyping import Float, Int

from memrl.theory.capacity import _enumerate
from memrl.theory.information import entropy_bits, kl_bits


def mutual_information_bits(joint: Float[np.ndarray, "x y"]) -> float:
    """Mutual information I(X; Y) = H(X) + H(Y) - H(X, Y), in bits.

    >>> mutual_information_bits(np.eye(4) / 4)
    2.0

    Args:
        joint: P(x, y), summing to 1.

    Returns:
        Bits, from 0 to min(H(X), H(Y)).

    Source: Cover and Thomas, eq. 2.45.
    """
    joint = np.asarray(joint, dtype=np.float64)
    marginals = entropy_bits(joint.sum(axis=1)) + entropy_bits(joint.sum(axis=0))
    return max(0.0, float(marginals - entropy_bits(joint.ravel())))


def blahut_arimoto(
    transition: Float[np.ndarray, "x y"], tolerance_bits: float = 1e-9, max_iterations: int = 100_000
) -> tuple[float, Float[np.ndarray, "x"]]:
    """Capacity of a discrete memoryless channel: the maximum of I(X; Y) over distributions of X, in bits.

    >>> from memrl.theory.information import binary_entropy_bits
    >>> flips = np.array([[0.9, 0.1], [0.1, 0.9]])
    >>> round(blahut_arimoto(flips)[0], 6) == round(1 - float(binary_entropy_bits(0.1)), 6)
    True

    Args:
        transition: P(y | x), each row summing to 1.
        tolerance_bits: stops when the capacity is known to within so many bits.
        max_iterations: the most iterations.

    Returns:
        The capacity in bits (a lower bound within the tolerance), and the distribution of X that reaches it.

    Raises:
        ValueError: the rows are no distributions, or the iterations did not suffice.

    Source: Blahut 1972, IEEE Trans. Inf. Theory 18(4), theorems 1 and 3; Cover and Thomas, section 10.8.
    """
    transition = np.asarray(transition, dtype=np.float64)
    if (transition < 0).any() or not np.allclose(transition.sum(axis=1), 1.0):
        raise ValueError(f"transition must have rows that are distributions, got row sums {transition.sum(axis=1)}")
    inputs = np.full(len(transition), 1.0 / len(transition))
    gap = np.inf
    for _ in range(max_iterations):
        told = kl_bits(transition, inputs @ transition)
        lower, upper = float(inputs @ told), float(told.max())
        gap = upper - lower
        if gap <= tolerance_bits:
            return lower, inputs
        inputs = inputs * np.exp2(told - upper)
        inputs /= inputs.sum()
    raise ValueError(f"max_iterations must suffice for {tolerance_bits} bits, got {max_iterations} ({gap} left)")


def distinct_guess_gain_bits(N: int, num_distinct: int | Int[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Mean bits that M distinct guesses of the binary channel tell: log2 N - ((N-M)/N) log2(N-M), for M = 0 .. N.

    The mean is over the secret: with probability M/N one guess hits and tells all, else N-M secrets are left.

    >>> float(distinct_guess_gain_bits(4, 2)), float(distinct_guess_gain_bits(4, 4))
    (1.5, 2.0)

    Returns:
        Bits, from 0 to log2 N.

    Source: Hernandez 2025, Simple information-theoretic bounds for RL vs SFT.
    """
    left = N - np.asarray(num_distinct, dtype=np.float64)
    return np.asarray(np.log2(N) - left / N * np.log2(np.maximum(left, 1.0)))


def guess_information_bits(channel) -> Float[np.ndarray, "N"]:
    """I(S; R | guess) of every guess for a uniform secret, in bits, as the capacities are made of."""
    return _enumerate(channel).information_bits
