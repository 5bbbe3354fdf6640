"""Entropies and channel capacities of discrete distributions, in bits."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import entr, rel_entr


def entropy_bits(p: Float[np.ndarray, "..."], axis: int = -1) -> Float[np.ndarray, "..."]:
    """Entropy of a distribution: H(p) = -sum p log2 p, in bits.

    >>> float(entropy_bits(np.full(8, 1 / 8)))
    3.0

    Args:
        p: probabilities, summing to 1 along `axis`.
        axis: the axis of the outcomes.

    Returns:
        Bits, from 0 to log2 of the number of outcomes; the shape of `p` without `axis`.

    Source: Cover and Thomas, Elements of Information Theory, 2nd ed., eq. 2.1.
    """
    return np.asarray(entr(np.asarray(p, dtype=np.float64)).sum(axis=axis) / np.log(2.0))


def binary_entropy_bits(p: float | Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Entropy of a yes that comes with probability p: h(p) = -p log2 p - (1-p) log2 (1-p), in bits.

    >>> round(float(binary_entropy_bits(1 / 64)), 3)
    0.116

    Source: Cover and Thomas, eq. 2.5.
    """
    p = np.asarray(p, dtype=np.float64)
    return np.asarray((entr(p) + entr(1.0 - p)) / np.log(2.0))


def kl_bits(p: Float[np.ndarray, "..."], q: Float[np.ndarray, "..."], axis: int = -1) -> Float[np.ndarray, "..."]:
    """Divergence KL(p || q) = sum p log2 (p / q), in bits; inf where q misses an outcome of p.

    >>> float(kl_bits(np.array([1.0, 0.0]), np.array([0.5, 0.5])))
    1.0

    Args:
        p: probabilities along `axis`.
        q: probabilities, of a shape that broadcasts with `p`.
        axis: the axis of the outcomes.

    Source: Cover and Thomas, eq. 2.26.
    """
    terms = rel_entr(np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64))
    return np.asarray(terms.sum(axis=axis) / np.log(2.0))


def row_entropies_bits(
    labels: Shaped[np.ndarray, "row column"],
) -> tuple[Float[np.ndarray, "row"], Int[np.ndarray, "row"]]:
    """Entropy of a label drawn at random from each row, in bits, and the number of distinct labels.

    >>> row_entropies_bits(np.array([[1, 1, 2, 2], [3, 3, 3, 3]]))
    (array([1., 0.]), array([2, 1]))

    Args:
        labels: any sortable labels.

    Returns:
        Bits, from 0 to log2 of the number of columns; the number of distinct labels.
    """
    rows, columns = labels.shape
    ordered = np.sort(labels, axis=1)
    begins = np.ones((rows, columns), dtype=bool)
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=begins[:, 1:])
    run_start = np.flatnonzero(begins)
    run_length = np.diff(run_start, append=rows * columns)
    first_run = np.searchsorted(run_start, np.arange(rows) * columns)
    spread = np.add.reduceat(count_log2_count(columns)[run_length], first_run) / columns
    return np.log2(columns) - spread, np.diff(first_run, append=len(run_start))


@lru_cache(maxsize=64)
def count_log2_count(largest: int) -> Float[np.ndarray, "{largest}+1"]:
    """The table c log2 c for c = 0 .. largest, read-only; an entropy of counts c is log2 n - sum c log2 c / n."""
    counts = np.arange(largest + 1, dtype=np.float64)
    table = counts * np.log2(np.maximum(counts, 1.0))
    table.flags.writeable = False
    return table
