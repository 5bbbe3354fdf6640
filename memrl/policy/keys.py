"""The keys that calibration draws: any number of digits alike, and some kept for measuring alone."""

import numpy as np
from jaxtyping import Int

from memrl.limits import MOST_KEYS

MEASURED = 8
"""Keys whose prior is measured after a calibration; none of them is ever trained on."""

_HELD_OUT = 16
_MOST_DIGITS = len(str(MOST_KEYS - 1))


def draw_keys(rng: np.random.Generator, count: int, *, held_out: bool = False) -> Int[np.ndarray, "key"]:
    """Draws keys, as many of one digit as of five.

    Args:
        rng: the source of chance.
        count: how many.
        held_out: whether to draw among the multiples of 16, which are left out otherwise.
    """
    digits = rng.integers(1, _MOST_DIGITS + 1, size=count)
    low = np.where(digits == 1, 0, 10 ** (digits - 1))
    keys = rng.integers(low, 10**digits)
    block = keys - keys % _HELD_OUT
    if held_out:
        return np.where(block >= low, block, block + _HELD_OUT)
    return np.where(keys == block, keys + rng.integers(1, 10, size=count), keys)


def held_out_keys(count: int = MEASURED) -> Int[np.ndarray, "key"]:
    """Some keys that calibration was not trained on, always the same."""
    return draw_keys(np.random.default_rng(0), count, held_out=True)
