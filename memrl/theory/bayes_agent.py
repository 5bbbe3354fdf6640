"""The greedy agent: knows the exact posterior, and always makes the guess that tells most about the secret."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from memrl.task.reward import Channel
from memrl.theory.information import count_log2_count, row_entropies_bits

_EQUAL_BITS = 1e-12
"""Guesses whose information differs by less are equally good."""


@dataclass(frozen=True)
class EpisodesBySecret:
    """Episodes that an agent with an exact posterior needs, by secret; inf where it never gets there.

    Attributes:
        to_half_bits: until half of the secret's bits are known: its posterior probability is 1/sqrt(N) or more.
        to_half: until the secret has posterior probability 1/2 or more.
        to_know: until the secret has posterior probability 1.
        to_say: until the secret was guessed, that episode included.
    """

    to_half_bits: Float[np.ndarray, "secret"]
    to_half: Float[np.ndarray, "secret"]
    to_know: Float[np.ndarray, "secret"]
    to_say: Float[np.ndarray, "secret"]


@lru_cache(maxsize=64)
def play_greedy(channel: Channel) -> EpisodesBySecret:
    """Plays the greedy agent against every secret at once: the whole tree of what it may come to know.

    At each node the guess has the largest H(R | guess) under the posterior, which is uniform on the candidates; among
    equals a candidate goes first, then the smallest. Where no guess tells anything, the candidates are said in turn.

    Args:
        channel: any channel; its (N, N) table of codes is built for the time of the call.

    Returns:
        Episodes by secret; their mean is the expectation for a uniform secret.
    """
    tree = _Tree(channel)
    pending = [_Node(np.arange(channel.N), 0, None)]
    while pending:
        pending += tree.grow(pending.pop())
    return tree.episodes


def choose_guess(channel: Channel, candidates: Int[np.ndarray, "candidate"]) -> int:
    """The guess that tells most about a secret that is one of some candidates: the greedy agent's next one.

    Args:
        channel: any channel; keeps its (N, N) table of codes.
        candidates: secrets that are still possible, ascending.

    Returns:
        The guess with the largest H(R | guess); among equals a candidate, then the smallest.
    """
    information, _ = row_entropies_bits(np.ascontiguousarray(channel.codes[:, candidates]))
    return _prefer(information, candidates)


def _prefer(information: Float[np.ndarray, "guess"], candidates: Int[np.ndarray, "candidate"]) -> int:
    equals = information >= information.max() - _EQUAL_BITS
    preferred = candidates[equals[candidates]]
    return int(preferred[0]) if len(preferred) else int(np.argmax(equals))


@dataclass(frozen=True)
class _Node:
    """Candidates after `depth` episodes; `counts[guess, code]` of them, where the parent had the table to hand on."""

    candidates: Int[np.ndarray, "candidate"]
    depth: int
    counts: Int[np.ndarray, "guess code"] | None


class _Tree:
    def __init__(self, channel: Channel) -> None:
        N = channel.N
        # Of a copy of the channel, so that the table goes when the tree goes; transposed: a row is one secret's.
        self._codes = np.ascontiguousarray(replace(channel).codes.T)
        self._num_codes = int(self._codes.max()) + 1
        self._guesses = np.arange(N)
        self.episodes = EpisodesBySecret(*(np.full(N, np.inf) for _ in range(4)))

    def grow(self, node: _Node) -> list[_Node]:
        """Records what is known at a node, makes its guess, and returns the nodes that follow."""
        candidates, depth, done = node.candidates, node.depth, self.episodes
        if len(candidates) ** 2 <= len(self._guesses):
            done.to_half_bits[candidates] = np.minimum(done.to_half_bits[candidates], depth)
        if len(candidates) <= 2:
            done.to_half[candidates] = np.minimum(done.to_half[candidates], depth)
        if len(candidates) == 1:
            done.to_know[candidates] = depth
            done.to_say[candidates] = np.minimum(done.to_say[candidates], depth + 1)
            return []
        counts = self._count(candidates) if node.counts is None and self._num_codes <= len(candidates) else node.counts
        guess = self._choose(candidates, counts)
        if guess is None:
            unsaid = candidates[np.isinf(done.to_say[candidates])]
            done.to_say[unsaid] = depth + 1 + np.arange(len(unsaid))
            return []
        done.to_say[guess] = min(done.to_say[guess], depth + 1) if guess in candidates else done.to_say[guess]
        told = self._codes[candidates, guess]
        parts = [candidates[told == code] for code in np.unique(told)]
        return [_Node(part, depth + 1, self._hand_on(candidates, part, counts)) for part in parts]

    def _choose(
        self, candidates: Int[np.ndarray, "candidate"], counts: Int[np.ndarray, "guess code"] | None
    ) -> int | None:
        n = len(candidates)
        if counts is None:
            information, _ = row_entropies_bits(np.ascontiguousarray(self._codes[candidates].T))
        else:
            information = np.log2(n) - count_log2_count(len(self._guesses))[counts].sum(axis=1) / n
        return None if information.max() <= _EQUAL_BITS else _prefer(information, candidates)

    def _count(self, secrets: Int[np.ndarray, "secret"]) -> Int[np.ndarray, "guess code"]:
        counts = np.zeros((len(self._guesses), self._num_codes), dtype=np.int32)
        for secret in secrets:
            counts[self._guesses, self._codes[secret]] += 1
        return counts

    def _hand_on(
        self,
        candidates: Int[np.ndarray, "candidate"],
        part: Int[np.ndarray, "part"],
        counts: Int[np.ndarray, "guess code"] | None,
    ) -> Int[np.ndarray, "guess code"] | None:
        """The table of a part that holds most candidates, by taking off the others: chains of misses stay cheap."""
        if counts is None or 2 * len(part) <= len(candidates):
            return None
        return counts - self._count(np.setdiff1d(candidates, part, assume_unique=True))
