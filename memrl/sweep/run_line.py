"""The live line of a single run: how far it is, what it knows, and how long it takes at most."""

import time

from memrl.channels import label_channel
from memrl.config import TrainConfig
from memrl.sweep.progress import format_seconds
from memrl.sweep.stretch import Stretch

_SETTLED_SECONDS = 1.0
"""Before that the pace of the updates says nothing yet."""


class RunLine:
    """Describes a run that begins now, or goes on, from its last stretch.

    Args:
        cell: the cell.
        updates: how many it had made before.
    """

    def __init__(self, cell: TrainConfig, updates: int) -> None:
        self._cell, self._before, self._begun = cell, updates, time.monotonic()

    def describe(self, last: Stretch, width: int) -> str:
        """Updates, bits, the most time that is left, episodes and P(secret): as much as a line holds.

        Args:
            last: the run's last stretch.
            width: of the line, in letters; what a reader needs least is left out first.
        """
        cell = self._cell
        parts = {
            "cell": f"{label_channel(cell.identity())}, N = {cell.N}",
            "updates": f"{last.updates:,}/{self._most_updates:,} updates",
        }
        if last.updates:
            parts["absorbed"] = f"absorbed {last.absorbed_bits:.2f} of {cell.signal_bits:.2f} bits"
            parts["observed"] = f"observed {last.observed_bits:.2f}"
            left = self.seconds_left(last.updates, time.monotonic() - self._begun)
            parts["left"] = "" if left is None else f"at most {format_seconds(left)} left"
        parts["episodes"] = f"{last.episodes:,} {name_episodes(cell.algorithm)}"
        if last.updates and cell.num_keys is None:
            parts["secret"] = f"P(secret) {2 ** (last.absorbed_bits - cell.signal_bits):.3g}"
        for dispensable in ("", "secret", "episodes", "observed", "cell"):
            parts.pop(dispensable, None)
            text = "  ".join(filter(None, parts.values()))
            if len(text) <= width:
                break
        return text

    def seconds_left(self, updates: int, elapsed: float) -> float | None:
        """Seconds to the end of the budget, at the pace so far; a run that memorizes ends before. None at first.

        Args:
            updates: how many the run has made.
            elapsed: seconds since it began here.
        """
        made = updates - self._before
        if elapsed < _SETTLED_SECONDS or not made:
            return None
        return elapsed / made * (self._most_updates - updates)

    @property
    def _most_updates(self) -> int:
        return self._cell.episode_budget // self._cell.episodes_per_update


def name_episodes(algorithm: str) -> str:
    """What the episodes of an algorithm are called."""
    return "examples" if algorithm == "sft" else "episodes"
