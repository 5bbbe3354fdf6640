"""Secrets: uniform, and independent across N and seed."""

from functools import reduce

import numpy as np
from jaxtyping import Int

from memrl.config import TrainConfig

_SECRET_STREAM = 0x5EC2E7
"""Keeps the secrets' random numbers apart from every other stream of the same seed."""


def num_bits(N: int) -> int:
    """Bits that write every integer below N: k = ceil(log2 N), at least 1.

    >>> [num_bits(n) for n in (2, 3, 64, 100)]
    [1, 2, 6, 7]
    """
    return max(1, (N - 1).bit_length())


def draw_secret(N: int, seed: int, length: int = 1) -> Int[np.ndarray, "{length}"]:
    """Draws a secret, a vector of symbols uniform on {0, …, N-1}.

    Every (N, seed) has a stream of its own (numpy's SeedSequence), so that secrets are independent across both.

    Args:
        N: number of values of a symbol, at least 2.
        seed: any integer from 0.
        length: symbols of the secret.
    """
    stream = np.random.default_rng(np.random.SeedSequence([_SECRET_STREAM, N, seed]))
    return stream.integers(N, size=length)


def draw_secrets(N: int, seed: int, num_keys: int, length: int = 1) -> Int[np.ndarray, "{num_keys} {length}"]:
    """Draws a secret for each of some keys; every (N, seed, num_keys, length) has a stream of its own.

    Args:
        N: number of values of a symbol, at least 2.
        seed: any integer from 0.
        num_keys: how many secrets.
        length: symbols of each.

    Returns:
        symbols, of the smallest type that holds them.
    """
    stream = np.random.default_rng(np.random.SeedSequence([_SECRET_STREAM, N, seed, num_keys, length]))
    return stream.integers(N, size=(num_keys, length), dtype=np.min_scalar_type(-N))


def cell_secret(cell: TrainConfig) -> int:
    """The secret of a cell: the one that is fixed, or the one that N and seed draw; of a sequence, its number.

    The number of a sequence has its symbols as digits of radix N, the first one most significant. A cell of keys has
    no one secret: see `memrl.task.answer_format.key_digits`.

    >>> cell_secret(TrainConfig(N=64, secret=42))
    42
    """
    assert cell.num_keys is None, "keys have a secret each"
    if cell.secret is not None:
        return cell.secret
    symbols = draw_secret(cell.N, cell.seed, cell.secret_length or 1).tolist()
    return reduce(lambda number, symbol: number * cell.N + symbol, symbols)


def to_bits(values: Int[np.ndarray, "*shape"], k: int) -> Int[np.ndarray, "*shape {k}"]:
    """Writes integers as k bits, most significant first.

    >>> to_bits(np.array([5]), 4).tolist()
    [[0, 1, 0, 1]]
    """
    return (np.asarray(values)[..., None] >> np.arange(k - 1, -1, -1)) & 1
