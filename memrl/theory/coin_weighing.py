"""Sequences of bits whose right ones are counted, as coins on a spring scale: few questions, fixed beforehand.

A guess that differs from another in some places is told by how much the count differs: how many of the secret's ones
lie there. So after one guess of zeros, each guess weighs a set of coins.
"""

from functools import lru_cache


@lru_cache(maxsize=64)
def split_coins(num_coins: int) -> tuple[int, ...]:
    """The orders of the blocks that tell so many coins by the fewest weighings in all, largest first.

    >>> split_coins(64), split_coins(5)
    ((4, 4), (2, 1))
    """
    best: list[tuple[int, ...]] = [()]
    orders = range(1, num_coins.bit_length() + 1)
    for coins in range(1, num_coins + 1):
        splits = [(order, *best[max(coins - coins_of(order), 0)]) for order in orders]
        best.append(min(splits, key=lambda split: sum(2**order - 1 for order in split)))
    return tuple(sorted(best[num_coins], reverse=True))


def coins_of(order: int) -> int:
    """Coins of a block."""
    return order << (order - 1)


def episodes_by_weighing(length: int) -> tuple[int, int]:
    """Episodes until half of a sequence of bits is known, and all of it: a guess of zeros, and blocks one by one.

    About 2 L / log2 L for L bits: a block of `order` tells order 2^(order - 1) coins by 2^order - 1 weighings. What it
    tells before its last weighing is not counted.

    >>> [episodes_by_weighing(length) for length in (4, 16, 64, 256)]
    [(4, 4), (8, 11), (16, 31), (64, 94)]

    Source: Lindström 1965, Canadian Mathematical Bulletin 8(4) (the number of weighings).
    """
    episodes, known, half = 1, 0, 0
    for order in split_coins(length):
        episodes, known = episodes + 2**order - 1, known + coins_of(order)
        half = half or (episodes if 2 * known >= length else 0)
    return half, episodes
