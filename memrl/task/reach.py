"""When runs got how far: the episodes before P(secret), or the bits absorbed, first reached a level."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

MILESTONES = ("e50", "e90", "half_bits")
"""P(secret) = 0.5; P(secret) = 0.9; half of signal_bits absorbed."""

SLOPE_SHARES = (0.1, 0.5)
"""The shares of signal_bits between which the slope of a run is taken."""


@dataclass
class Reach:
    """What runs have reached so far, run by run.

    Attributes:
        signal_bits: what there is to learn.
        first: episodes before each of `MILESTONES` was first reached, -1 before.
        crossing: episodes at which the absorbed bits first came to each of `SLOPE_SHARES` of the signal, on a straight
            line between two measurements; NaN before.
        measured: episodes of the last measurement, NaN before the first.
        absorbed_bits: at that measurement.
    """

    signal_bits: Float[np.ndarray, "run"]
    first: Int[np.ndarray, "run milestone"]
    crossing: Float[np.ndarray, "run share"]
    measured: Float[np.ndarray, "run"]
    absorbed_bits: Float[np.ndarray, "run"]

    @classmethod
    def start(cls, signal_bits: Float[np.ndarray, "run"]) -> "Reach":
        """Of runs that have not been measured."""
        runs = len(signal_bits)
        nowhere = np.full((3, runs), np.nan)
        crossing = np.full((runs, len(SLOPE_SHARES)), np.nan)
        return cls(signal_bits.copy(), np.full((runs, len(MILESTONES)), -1), crossing, nowhere[0], nowhere[1])

    def note(
        self, runs: Int[np.ndarray, "some"], episodes: Int[np.ndarray, "some"], secret_log2: Float[np.ndarray, "some"]
    ) -> None:
        """Takes note of a measurement of some runs.

        Args:
            runs: which.
            episodes: that each had used, no fewer than at its last measurement.
            secret_log2: log2 P(secret), finite.
        """
        signal = self.signal_bits[runs]
        levels = np.empty((len(runs), len(MILESTONES)))
        levels[:, 0], levels[:, 1], levels[:, 2] = -1.0, np.log2(0.9), -signal / 2
        first = self.first[runs]
        self.first[runs] = np.where((first < 0) & (secret_log2[:, None] >= levels), episodes[:, None], first)
        absorbed, before = signal + secret_log2, self.absorbed_bits[runs][:, None]
        wanted, begun = signal[:, None] * SLOPE_SHARES, self.measured[runs][:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            part = (wanted - before) / (absorbed[:, None] - before)
        between = np.where(np.isnan(begun), episodes[:, None], begun + part * (episodes[:, None] - begun))
        is_new = np.isnan(self.crossing[runs]) & (absorbed[:, None] >= wanted)
        self.crossing[runs] = np.where(is_new, between, self.crossing[runs])
        self.measured[runs], self.absorbed_bits[runs] = episodes, absorbed

    def slope_bits(self, run: int) -> float | None:
        """Bits per episode of a run between 10 % and 50 % of its signal: the rate at which it learned.

        0.4 signal_bits over the episodes between the two crossings; None where the run did not come to 50 %, or
        knew that much from the start.

        >>> reach = Reach.start(np.array([10.0]))
        >>> for episodes, log2 in ((0, -10.0), (8, -8.0), (16, -4.0)):
        ...     reach.note(np.array([0]), np.array([episodes]), np.array([log2]))
        >>> reach.crossing.tolist(), reach.slope_bits(0), reach.milestones(0)
        ([[4.0, 14.0]], 0.4, {'half_bits': 16})
        """
        episodes = self.crossing[run, 1] - self.crossing[run, 0]
        bits = (SLOPE_SHARES[1] - SLOPE_SHARES[0]) * self.signal_bits[run]
        return float(bits / episodes) if episodes > 0 else None

    def milestones(self, run: int) -> dict[str, int]:
        """Episodes of the milestones that a run has reached, by their names."""
        reached = zip(MILESTONES, self.first[run].tolist(), strict=True)
        return {name: episodes for name, episodes in reached if episodes >= 0}

    def keep(self, runs: Int[np.ndarray, "kept"]) -> None:
        """Keeps these runs alone, in this order."""
        self.restore({name: values[runs] for name, values in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, by name, one row per run."""
        return dict(vars(self))

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes up what `arrays` gave."""
        for name in self.arrays():
            setattr(self, name, arrays[name].copy())
