"""An observer that keeps the set of secrets which agree with all feedback: exact, for as many secrets as can be listed.

A channel is a function, so the exact posterior of a uniform secret is uniform over the secrets that agree with
everything seen so far. A set per cell says it all, and an episode whose guess was seen before tells nothing new.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from memrl.task.env import Outcomes
from memrl.task.reward import FEEDBACK_DECIMALS, Channel

_SAME = 0.5 * 10.0**-FEEDBACK_DECIMALS
"""Rewards that differ by less are one feedback."""

_ROUND_GROWTH = 4
"""A round reads so many times the guesses of the round before: many a cell is certain after its first."""

_NARROW = 4
"""A set of fewer than 1/4 of all secrets is small: it is worth remembering, or going through one by one."""

_CHUNK_REWARDS = 1 << 16
"""Rewards computed at a time, so that they stay in a core's cache."""


class CandidateObserver:
    """Keeps, for every cell, the secrets that agree with all feedback seen so far.

    Malformed answers tell nothing, except that on a per-step channel an answer that became malformed at env_step j
    tells what its first j env_steps paid.

    Args:
        channels: the channel of each cell; cells may differ in N.
    """

    def __init__(self, channels: Sequence[Channel]) -> None:
        distinct = dict.fromkeys(channels)
        self._distinct = [_SharedChannel(channel, {}) for channel in distinct]
        position = {channel: number for number, channel in enumerate(distinct)}
        self._number = np.array([position[channel] for channel in channels], dtype=np.int64)
        self._N = np.array([channel.N for channel in channels], dtype=np.int64)
        self._consistent = np.arange(self._N.max(initial=0)) < self._N[:, None]
        most_keys = max((shared.num_keys for shared in self._distinct), default=0)
        self._seen = np.zeros((len(channels), most_keys), dtype=bool)
        self._count = self._N.copy()

    def __len__(self) -> int:
        return len(self._N)

    @property
    def observed_bits(self) -> Float[np.ndarray, "cell"]:
        """log2 N - H(S | all seen so far) of each cell, in bits, from 0 to log2 N."""
        return np.log2(self._N) - np.log2(self._count)

    def candidates(self, cell: int) -> Int[np.ndarray, "candidate"]:
        """The secrets of a cell that agree with all feedback so far, ascending."""
        return np.flatnonzero(self._consistent[cell])

    def observe(
        self,
        cells: Int[np.ndarray, "outcome"],
        outcomes: Outcomes,
        rewards: Float[np.ndarray, "outcome env_step"],
    ) -> None:
        """Reads episodes and what they paid; see `PackObserver.observe`.

        A cell that is certain of its secret is not read any more.
        """
        for number in range(len(self._distinct)):
            of_channel = np.flatnonzero((self._number[cells] == number) & (self._count[cells] > 1))
            if len(of_channel):
                channel = self._distinct[number].channel
                heard = _hear(channel, outcomes.select(of_channel), rewards[of_channel])
                self._observe_channel(self._distinct[number], cells[of_channel], heard)

    def keep(self, cells: Int[np.ndarray, "kept"]) -> None:
        """Keeps these cells alone, in this order."""
        self._number, self._N, self._count = self._number[cells], self._N[cells], self._count[cells]
        self._consistent = self._consistent[cells, : self._N.max(initial=0)]
        self._seen = self._seen[cells]

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that an observer of the same channels needs to go on, by name, one row per cell."""
        return {"consistent": self._consistent, "seen": self._seen}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes up what `arrays` gave, for the same channels."""
        self._consistent, self._seen = arrays["consistent"].copy(), arrays["seen"].copy()
        self._count = self._consistent.sum(axis=1)

    def _observe_channel(self, shared: "_SharedChannel", cells: Int[np.ndarray, "episode"], heard: "_Heard") -> None:
        """Reads episodes of cells that share a channel, a few per cell at first, until the cell is certain."""
        news = np.flatnonzero((heard.read > 0) & ~self._seen[cells, heard.key])
        news = news[np.unique(cells[news] * shared.num_keys + heard.key[news], return_index=True)[1]]
        self._seen[cells[news], heard.key[news]] = True
        for places in _growing_rounds(cells[news]):
            episodes = news[places]
            episodes = episodes[self._count[cells[episodes]] > 1]
            self._strike_out(shared, cells[episodes], heard.select(episodes))
            touched = np.unique(cells[episodes])
            self._count[touched] = self._consistent[touched].sum(axis=1)
            if not self._count[touched].all():
                raise ValueError(f"rewards must be those of {shared.channel.name}, got some that no secret explains")

    def _strike_out(self, shared: "_SharedChannel", cells: Int[np.ndarray, "episode"], heard: "_Heard") -> None:
        """Strikes out the secrets under which these episodes would have been told something else."""
        wide = self._count[cells] * _NARROW > shared.channel.N
        ruled_out = shared.rule_out(heard.select(wide))
        sizes = np.fromiter(map(len, ruled_out), dtype=np.int64, count=len(ruled_out))
        if sizes.any():
            self._consistent[np.repeat(cells[wide], sizes), np.concatenate(ruled_out)] = False
        # Where few candidates are left, they alone are looked at.
        narrow = np.flatnonzero(~wide)
        distinct, which = np.unique(cells[narrow], return_inverse=True)
        candidates = np.nonzero(self._consistent[distinct])[1]
        sizes = self._consistent[distinct].sum(axis=1)
        secret = candidates[_join_ranges((np.cumsum(sizes) - sizes)[which], sizes[which])]
        episode = np.repeat(narrow, sizes[which])
        wrong = ~heard.select(episode).agrees(shared.channel, secret)
        self._consistent[cells[episode[wrong]], secret[wrong]] = False


@dataclass(frozen=True)
class _Heard:
    """What episodes of one channel told.

    Attributes:
        key: a number for the env_steps that were completed; equal keys of a cell tell the same.
        guess: the guess.
        told: the rewards that the channel's function gave.
        read: how many of them count; 0 where the episode tells nothing.
    """

    key: Int[np.ndarray, "episode"]
    guess: Int[np.ndarray, "episode"]
    told: Float[np.ndarray, "episode reward"]
    read: Int[np.ndarray, "episode"]

    def select(self, chosen: Int[np.ndarray, "place"] | Bool[np.ndarray, "episode"]) -> "_Heard":
        return _Heard(self.key[chosen], self.guess[chosen], self.told[chosen], self.read[chosen])

    def agrees(self, channel: Channel, secret: Int[np.ndarray, "episode"]) -> Bool[np.ndarray, "episode"]:
        """Whether the secret would have told the same; one secret per episode."""
        return _agrees(channel, self.guess, secret, self.told, self.read)

    def agrees_with_all(self, channel: Channel) -> Bool[np.ndarray, "episode secret"]:
        """Whether each of the N secrets would have told the same."""
        guess, told, read = self.guess[:, None], self.told[:, None], self.read[:, None]
        return _agrees(channel, guess, np.arange(channel.N), told, read)


@dataclass(frozen=True)
class _SharedChannel:
    """A channel that cells share, and what its feedback was found to rule out."""

    channel: Channel
    remembered: dict[tuple[int, bytes], Int[np.ndarray, "_"]]

    @property
    def num_keys(self) -> int:
        """Keys of `_Heard`: the beginnings of answers for a per-step channel, else the guesses."""
        return self.channel.answer_format.num_prefixes if self.channel.per_step else self.channel.N

    def rule_out(self, heard: _Heard) -> list[Int[np.ndarray, "_"]]:
        """The secrets that each episode rules out, ascending; small sets are remembered for the cells to come."""
        names = [(key, told.tobytes()) for key, told in zip(heard.key.tolist(), heard.told, strict=True)]
        answers = [self.remembered.get(name) for name in names]
        unknown = np.array([i for i, answer in enumerate(answers) if answer is None], dtype=np.int64)
        size = max(1, _CHUNK_REWARDS // (self.channel.N * self.channel.num_rewards))
        for chunk in np.split(unknown, range(size, len(unknown), size)):
            for i, agrees in zip(chunk.tolist(), heard.select(chunk).agrees_with_all(self.channel), strict=True):
                answers[i] = answer = np.flatnonzero(~agrees)
                if len(answer) * _NARROW < self.channel.N:
                    self.remembered[names[i]] = answer
        return [answer for answer in answers if answer is not None]


def _hear(channel: Channel, outcomes: Outcomes, rewards: Float[np.ndarray, "outcome env_step"]) -> _Heard:
    """Reads what the channel's function gave: the reward of every env_step, or of the last one that was taken."""
    answer_format = channel.answer_format
    digits = outcomes.digits[:, : answer_format.num_env_steps]
    guess = answer_format.integers(digits)
    if not channel.per_step:
        last = np.isfinite(rewards).sum(axis=1) - 1
        told = np.take_along_axis(rewards, last[:, None], axis=1)
        return _Heard(guess, guess, told, outcomes.well_formed.astype(np.int64))
    told = rewards[:, : answer_format.num_env_steps]
    return _Heard(answer_format.prefix_numbers(digits), guess, told, outcomes.steps_done)


def _agrees(
    channel: Channel,
    guess: Int[np.ndarray, "..."],
    secret: Int[np.ndarray, "..."],
    told: Float[np.ndarray, "... reward"],
    read: Int[np.ndarray, "..."],
) -> Bool[np.ndarray, "..."]:
    same = np.abs(channel.rewards(guess, secret) - told) < _SAME
    if not channel.per_step:
        return same[..., 0]
    unread = np.arange(channel.num_rewards) >= read[..., None]
    return np.logical_and.reduce(same | unread, axis=-1)


def _join_ranges(start: Int[np.ndarray, "range"], length: Int[np.ndarray, "range"]) -> Int[np.ndarray, "_"]:
    """The integers start[i] .. start[i] + length[i] - 1, for all i one after the other."""
    begin = np.cumsum(length) - length
    return np.arange(length.sum()) + np.repeat(start - begin, length)


def _growing_rounds(cells: Int[np.ndarray, "episode"]) -> Iterator[Int[np.ndarray, "_"]]:
    """Splits positions so that the first round holds one episode per cell, the next 4, 16, ...; `cells` ascending."""
    _, starts, counts = np.unique(cells, return_index=True, return_counts=True)
    place = np.arange(len(cells)) - np.repeat(starts, counts)
    low, high = 0, 1
    while low < counts.max(initial=0):
        yield np.flatnonzero((place >= low) & (place < high))
        low, high = high, high + (high - low) * _ROUND_GROWTH
