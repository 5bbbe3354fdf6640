"""Races: the learning rates of one condition, of which one is stopped where it can no longer be chosen, whatever comes.

A report chooses the rate of each half of the seeds on the other half, by the smallest mean of the episodes to memorize
(`memrl.analysis.selection`). A rate is outpaced once its mean would be larger than another's in both halves even if all
of its runs got there now and all of the other's never did. Racing algorithms (Maron and Moore 1993, Hoeffding Races,
NIPS 6) drop what a confidence bound rules out; here nothing is left to chance: no choice changes, and no estimate that
rests on one.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from memrl.config import TrainConfig, fields_of
from memrl.tables.schema import Row
from memrl.task.reach import MILESTONES

CHECKS = 50
"""A race is looked at so often in the course of its budget."""

_VARIED = {"learning_rate", *fields_of("draw")}


@dataclass(frozen=True)
class Race:
    """The runs of a condition at several learning rates.

    Attributes:
        cell_ids: of the runs.
        rate: the number of each run's learning rate, from 0.
        half: the parity of its seed.
        worst: episodes with which a run that never gets there may be counted.
        every: it is looked at again after so many updates.
    """

    cell_ids: Sequence[str]
    rate: Int[np.ndarray, "run"]
    half: Int[np.ndarray, "run"]
    worst: int
    every: int

    def list_outpaced(self, so_far: Mapping[str, Row]) -> list[str]:
        """The runs, by cell_id, at rates that no half of the seeds can choose any more.

        Args:
            so_far: by cell_id, the episodes that a run has used, null where it could not start, and those at which it
                reached each milestone, null before.
        """
        rows = [so_far[cell_id] for cell_id in self.cell_ids]
        first = np.array([[row[name] for name in MILESTONES] for row in rows], dtype=float)
        used = np.array([row["episodes"] for row in rows], dtype=float)
        if np.isnan(used).any():  # its rate has fewer runs than the others, and may be no candidate
            return []
        reached = np.isfinite(first)
        least = np.where(reached, first, used[:, None])
        outpaced = find_outpaced(self.rate, self.half, least, np.where(reached, first, self.worst))
        return [cell_id for cell_id, rate in zip(self.cell_ids, self.rate, strict=True) if outpaced[rate]]


def find_whole(cell_ids: Collection[str], races: Sequence[Race]) -> list[Race]:
    """Those of the races all of whose runs are among the cells: of the others too little is seen to stop a run."""
    return [race for race in races if set(race.cell_ids) <= set(cell_ids)]


def find_outpaced(
    rate: Int[np.ndarray, "run"],
    half: Int[np.ndarray, "run"],
    least: Float[np.ndarray, "run milestone"],
    most: Float[np.ndarray, "run milestone"],
) -> Bool[np.ndarray, "rate"]:
    """Which rates of a race no half of the seeds can choose any more.

    Args:
        rate: the number of each run's rate, from 0; every rate with the same seeds.
        half: the parity of its seed.
        least: the fewest episodes that each milestone can take it.
        most: the most that they can be counted with.

    >>> episodes = np.array([[8.0], [9.0], [40.0], [40.0]])
    >>> find_outpaced(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), episodes, episodes).tolist()
    [False, True]
    """
    outpaced = np.ones(int(rate.max()) + 1, dtype=bool)
    for parity in np.unique(half):
        sums = np.zeros((2, len(outpaced), least.shape[1]))
        for place, episodes in enumerate((least, most)):
            np.add.at(sums[place], rate[half == parity], episodes[half == parity])
        outpaced &= (sums[0] > sums[1].min(0)).all(1)
    return outpaced


def name_condition(cell: TrainConfig) -> Hashable:
    """What the cells of one race share: all but the learning rate, the secret and the seed."""
    return tuple(value for name, value in cell.identity().items() if name not in _VARIED)


def list_races(cells: Iterable[TrainConfig]) -> list[Race]:
    """The races of a sweep: conditions at several rates, each on the same seeds, without keys.

    What many keyed secrets came to is compared by their bits at the end, so that no rate is told to lose before.
    """
    conditions: dict[Hashable, list[TrainConfig]] = {}
    worst: dict[Hashable, int] = {}
    for cell in cells:
        conditions.setdefault(name_condition(cell), []).append(cell)
        told = (cell.channel_name, cell.N, cell.model)
        worst[told] = max(worst.get(told, 0), cell.episode_budget)
    return [
        _start_race(race, worst[race[0].channel_name, race[0].N, race[0].model])
        for race in conditions.values()
        if race[0].num_keys is None and _is_even(race)
    ]


def _is_even(cells: Collection[TrainConfig]) -> bool:
    """Whether there are several rates, each with the same seeds."""
    seeds: dict[float, list[int]] = {}
    for cell in cells:
        seeds.setdefault(cell.learning_rate, []).append(cell.seed)
    return len(seeds) > 1 and len({tuple(sorted(tried)) for tried in seeds.values()}) == 1


def _start_race(cells: Sequence[TrainConfig], worst: int) -> Race:
    _, rate = np.unique([cell.learning_rate for cell in cells], return_inverse=True)
    updates = cells[0].episode_budget // cells[0].episodes_per_update
    half = np.array([cell.seed % 2 for cell in cells])
    return Race([cell.cell_id for cell in cells], rate, half, worst, max(1, updates // CHECKS))
