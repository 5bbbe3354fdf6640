"""What a unit of work takes: a median over stretches, so that minutes in which a machine stood still do not count."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

_BINS_PER_E = 20
"""Stretches whose seconds a unit of work differ by less than 5 % are counted together."""


class Pace:
    """Seconds per unit of work, by keys from the general to the particular.

    Half of the work of a key was done faster than its median. A mean would take what slowed a machine down for a while
    as what is to come: in grid=bitrate's reference, 7 % of the work took 28 % of the time.

    Args:
        prior_work: what is known of a more general key counts as so much work of a particular one.
    """

    def __init__(self, prior_work: float) -> None:
        self._prior_work = prior_work
        self._bins: dict[Hashable, dict[int, tuple[float, float]]] = defaultdict(dict)

    def __bool__(self) -> bool:
        return bool(self._bins)

    def add(self, keys: Iterable[Hashable], seconds: float, work: float) -> None:
        """Takes note of a stretch."""
        if seconds <= 0 or work <= 0:
            return
        place = round(_BINS_PER_E * math.log(seconds / work))
        for key in keys:
            spent, done = self._bins[key].get(place, (0.0, 0.0))
            self._bins[key][place] = spent + seconds, done + work

    def estimate(self, keys: Sequence[Hashable]) -> float:
        """Seconds per unit of work of the last key, of which each one before is the prior.

        The first key is what to go by where no other one is known, and no prior.

        >>> pace = Pace(prior_work=1.0)
        >>> for seconds in (2.0, 2.0, 60.0):
        ...     pace.add(["all", "one"], seconds, 2.0)
        >>> pace.estimate(["all", "other"])
        1.0
        """
        known = [_find_median(self._bins[key]) for key in keys[1:] if key in self._bins]
        if not known:
            return _find_median(self._bins[keys[0]])[0]
        found = known[0][0]
        for median, work in known[1:]:
            found = (self._prior_work * found + work * median) / (self._prior_work + work)
        return found


def _find_median(bins: dict[int, tuple[float, float]]) -> tuple[float, float]:
    """Seconds per unit of work, by which half of the work was done, and the work."""
    work = sum(done for _, done in bins.values())
    so_far = 0.0
    for _, (seconds, done) in sorted(bins.items()):
        so_far += done
        if so_far >= work / 2:
            return seconds / done, work
    raise AssertionError("some of the work was done")
