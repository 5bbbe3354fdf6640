"""The optimal agent for small N, by exact dynamic programming over sets of candidate secrets."""

from functools import lru_cache
from math import isqrt

import numpy as np
from jaxtyping import Float, Int

from memrl.task.reward import Channel
from memrl.theory.bayes_agent import EpisodesBySecret

LARGEST_N = 16
"""2^N sets of candidates are enumerated: 65,536 here, and some 16 times the work for every 4 more."""


@lru_cache(maxsize=64)
def plan_optimal(channel: Channel) -> EpisodesBySecret:
    """Plans for the fewest expected episodes to each of four goals; each goal has a plan of its own.

    Let W(A) be the episodes that all secrets of a set A still need, added up, and A(g, c) the part of A that guess g is
    told code c for. Then W(A) = |A| + min over g of sum over c of W(A(g, c)), with W(A) = 0 where A is small enough:
    sqrt(N) candidates for to_half_bits, 2 for to_half, 1 for to_know. For to_say only the empty set is, and the guess
    leaves its own part.

    Args:
        channel: any channel with N <= 16.

    Returns:
        Episodes by secret; the mean of each array is minimal; inf where the channel never tells.

    Raises:
        ValueError: N is too large to enumerate.

    Source: Bellman 1957, Dynamic Programming, chapter III; for decision trees, Garey 1972, SIAM J. Appl. Math. 23(2).
    """
    if channel.N > LARGEST_N:
        raise ValueError(f"N must be at most {LARGEST_N} for exact dynamic programming, got {channel.N}")
    return EpisodesBySecret(*(_Plan(channel, enough).follow() for enough in (isqrt(channel.N), 2, 1, 0)))


class _Plan:
    """Episodes that the secrets of every set (a bit mask) still need, added up, under the best guesses.

    Args:
        channel: the channel.
        enough: the goal is reached when so many candidates are left; at 0, when the secret was said.
    """

    def __init__(self, channel: Channel, enough: int) -> None:
        self._N, self._enough = channel.N, enough
        secrets = 1 << np.arange(channel.N)
        self._parts = [[int(secrets[row == code].sum()) for code in np.unique(row)] for row in channel.codes]
        sets = np.arange(1 << self._N)
        size = np.bitwise_count(sets)
        self._total = np.where(size <= enough, 0.0, np.inf)
        for n in range(enough + 1, self._N + 1):
            level = sets[size == n]
            self._total[level] = n + np.min([self._total_after(level, guess) for guess in range(self._N)], axis=0)

    def follow(self) -> Float[np.ndarray, "secret"]:
        """Walks the plan from all secrets; episodes by secret."""
        episodes = np.full(self._N, np.inf)
        pending = [((1 << self._N) - 1, 0)]
        while pending:
            node, depth = pending.pop()
            members = [secret for secret in range(self._N) if node >> secret & 1]
            if len(members) <= self._enough:
                episodes[members] = depth
            elif np.isfinite(self._total[node]):
                guess = self._choose(node, members)
                if self._enough == 0 and guess in members:
                    episodes[guess] = depth + 1
                pending += [(int(part[0]), depth + 1) for part in self._split(np.array([node]), guess)]
        return episodes

    def _choose(self, node: int, members: list[int]) -> int:
        """The best guess; among equals a candidate, then the smallest."""
        totals = np.array([self._total_after(np.array([node]), guess)[0] for guess in range(self._N)])
        best = np.flatnonzero(totals == totals.min()).tolist()
        return next((guess for guess in best if guess in members), best[0])

    def _total_after(self, sets: Int[np.ndarray, "set"], guess: int) -> Float[np.ndarray, "set"]:
        """What is still needed after a guess; inf where it gains nothing, for its set has no total yet."""
        return np.sum([self._total[part] for part in self._split(sets, guess)], axis=0)

    def _split(self, sets: Int[np.ndarray, "set"], guess: int) -> list[Int[np.ndarray, "set"]]:
        unsaid = ~(1 << guess) if self._enough == 0 else -1
        return [sets & part & unsaid for part in self._parts[guess]]
