"""How long a sweep still takes, from what its cells have taken so far.

A cell that ends early says little of those that go on: the ones that spend their whole budget end last. So the length
of a run is estimated as a waiting time with censoring, exposure over events, in which every live cell counts with the
updates that it has made. What an update costs is the median over stretches (`memrl.sweep.pace`). Both are estimated
from the general to the particular, where what is known of all cells is the prior of a channel's, and so on down to a
channel, rate and N.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from memrl.config import TrainConfig, shared_fields
from memrl.sweep.pace import Pace
from memrl.sweep.packing import estimate_updates

_PRIOR_RUNS = 2.0
"""What is known of more general cells counts as so many ended runs."""

_PRIOR_UPDATES = 5000.0
"""Likewise, as so many updates of a cell, for what an update costs: about what a pack of grid=bitrate makes."""

_OVERHEAD = 6
"""A pass of a pack costs as much as one of so many more cells: 4.6 ms beside 0.83 ms a cell in grid=bitrate."""

_SPENT = 0.25
"""The share of runs that spend their budget, before anything is known of them; 27 % in grid=bitrate."""

_STEPS = 64
"""Of the sum over the updates that a pack may still make."""

_Key = tuple[object, ...]


class Forecast:
    """Estimates the time that a sweep's packs still take."""

    def __init__(self) -> None:
        self._packs: list[_PackProgress] = []
        self._num_trials = 1
        self._lengths, self._pace = _Pool(), Pace(_PRIOR_UPDATES)

    def learn_length(self, cell: TrainConfig, batches: int) -> None:
        """Takes note of the batches that a run has used to its end."""
        # A budget that was spent is no event: it says that the run would have gone on.
        self._lengths.add(_list_length_keys(cell), batches / _guess_updates(cell), float(batches < _most_updates(cell)))

    def learn_cost(self, cell: TrainConfig, num_cells: int, updates: int, seconds: float) -> None:
        """Takes note of the time that updates of a pack have taken, of so many cells like this one."""
        self._pace.add(_list_cost_keys(cell), seconds, (num_cells + _OVERHEAD) * updates)

    def begin(self, packs: Sequence[Sequence[TrainConfig]], num_trials: int) -> None:
        """Takes note of packs that will train, so many at once; they are known by their numbers, in this order."""
        self._packs += [_PackProgress(pack) for pack in packs]
        self._num_trials = max(1, num_trials)

    def close(self, pack: int) -> None:
        """Takes note that what is left of a pack goes on in others."""
        self._packs[pack].left = []

    def see(self, pack: int, updates: int, now: float) -> None:
        """Takes note that a pack has made so many updates by now."""
        self._settle(self._packs[pack])
        self._packs[pack].see(updates, now)

    def end(self, pack: int, cell_id: str, updates: int | None) -> None:
        """Takes note that a cell has ended, after so many updates; None where it made none."""
        cell = self._packs[pack].find(cell_id)
        if cell is not None:
            # A batch that is used again makes more updates of one of its pack.
            batches = (updates or 0) // cell.updates_per_batch
            self._packs[pack].end(cell, batches)
            if updates is not None:
                self.learn_length(cell, batches)

    def seconds_left(self) -> float | None:
        """The time left; None before there is anything to go by."""
        for pack in self._packs:
            self._settle(pack)
        if not self._pace:
            return None
        lengths, left = self._know_lengths(), [0.0]
        for pack in self._packs:
            updates, passes = _expect_updates(pack, lengths)
            left.append((updates + _OVERHEAD * passes) * self._pace.estimate(pack.cost_keys))
        return max(sum(left) / self._num_trials, max(left))

    def expect_updates(self) -> float:
        """The updates that cells still make, over all of them."""
        lengths = self._know_lengths()
        return sum(_expect_updates(pack, lengths)[0] for pack in self._packs)

    def _settle(self, pack: "_PackProgress") -> None:
        """Counts what a pack has done since it was last seen, now that the cells that ended meanwhile are known."""
        self._pace.add(pack.cost_keys, *pack.settle())

    def _know_lengths(self) -> "_Pool":
        lengths = self._lengths.copy()
        for pack in self._packs:
            for cell in pack.left:
                lengths.add(_list_length_keys(cell), pack.updates / _guess_updates(cell), 0.0)
        return lengths


class _PackProgress:
    """What is known of a pack: the cells that have not ended, its updates, and its time in this launch."""

    def __init__(self, cells: Sequence[TrainConfig]) -> None:
        self.left = list(cells)
        self.cost_keys = _list_cost_keys(cells[0]) if cells else [()]
        self.updates, self.seconds = 0, 0.0
        self._begun: float | None = None
        self._first, self._spent = 0, 0
        self._settled = (0.0, 0)

    @property
    def _work(self) -> int:
        """Updates of all its cells in this launch, and what their passes cost beside."""
        passes = self.updates - self._first
        return self._spent + (len(self.left) + _OVERHEAD) * passes

    def settle(self) -> tuple[float, int]:
        """Seconds and work since the last time that there was any work."""
        now = self.seconds, self._work
        seconds, work = now[0] - self._settled[0], now[1] - self._settled[1]
        if work > 0:
            self._settled = now
        return seconds, work

    def see(self, updates: int, now: float) -> None:
        """It has made so many updates by now, some of them perhaps in a launch before."""
        if self._begun is None:
            self._begun, self._first = now, updates
        self.updates, self.seconds = max(self.updates, updates), now - self._begun

    def find(self, cell_id: str) -> TrainConfig | None:
        """One of its cells that has not ended; None where it has."""
        return next((cell for cell in self.left if cell.cell_id == cell_id), None)

    def end(self, cell: TrainConfig, updates: int) -> None:
        """One of its cells has ended."""
        self.left.remove(cell)
        self._spent += max(0, updates - self._first)


class _Pool:
    """Ratios of sums, by keys from the general to the particular."""

    def __init__(self) -> None:
        self._sums: dict[_Key, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))

    def copy(self) -> "_Pool":
        """One that can be added to without changing this one."""
        pool = _Pool()
        pool._sums.update(self._sums)
        return pool

    def add(self, keys: Iterable[_Key], numerator: float, denominator: float) -> None:
        """Adds to the sums of every key."""
        for key in keys:
            one, other = self._sums[key]
            self._sums[key] = one + numerator, other + denominator

    def estimate(self, keys: Iterable[_Key], weight: float, prior: float | None = None) -> float:
        """The ratio of the last key, of which each one before it is the prior with so much weight."""
        for key in keys:
            numerator, denominator = self._sums[key]
            prior = numerator / denominator if prior is None else (weight * prior + numerator) / (weight + denominator)
        assert prior is not None, "keys are several"
        return prior


def _list_length_keys(cell: TrainConfig) -> list[_Key]:
    channel, rate = cell.channel_name, cell.learning_rate
    return [(), (channel,), (channel, rate), (channel, rate, cell.N)]


def _list_cost_keys(cell: TrainConfig) -> list[_Key]:
    shared, rank, channel = shared_fields(cell), cell.lora_rank, cell.channel_name
    return [(), (shared,), (shared, rank), (shared, rank, channel), (shared, rank, channel, cell.N)]


def _expect_updates(pack: _PackProgress, lengths: _Pool) -> tuple[float, float]:
    """The updates that cells of a pack still make in all, and its passes: waiting times, cut off by budgets."""
    if not pack.left:
        return 0.0, 0.0
    means = np.array(
        [
            max(1.0, lengths.estimate(_list_length_keys(cell), _PRIOR_RUNS, 1.0) * _guess_updates(cell))
            for cell in pack.left
        ]
    )
    most = np.array([max(0, _most_updates(cell) - pack.updates) for cell in pack.left])
    cells = -means * np.expm1(-most / means)
    # The pack goes on until its last cell has ended.
    at = np.linspace(0, most.max(), _STEPS + 1)[:-1, None]
    ended = np.where(at < most, -np.expm1(-at / means), 1.0)
    longest = (1 - ended.prod(axis=1)).sum() * most.max() / _STEPS
    return float(cells.sum()), float(longest)


def _guess_updates(cell: TrainConfig) -> float:
    """What one expects of a run before any has ended."""
    return (1 - _SPENT) * estimate_updates(cell) + _SPENT * _most_updates(cell)


def _most_updates(cell: TrainConfig) -> int:
    return cell.episode_budget // cell.episodes_per_update
