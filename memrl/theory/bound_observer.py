"""An observer of sequences whose posterior nobody can list: it bounds what can have been told."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from memrl.task.env import Outcomes
from memrl.task.reward import Channel, all_right_reward
from memrl.theory.sequences import signal_bits


class BoundObserver:
    """Adds up, for every cell, the most that its feedback can have told.

    By the chain rule n episodes tell at most n times log2 of the number of values that one can bring. Where all must
    be right, n misses rule out at most n secrets, and a hit tells all. No cell is told more than its signal.

    Args:
        channels: the channel of each cell.
    """

    def __init__(self, channels: Sequence[Channel]) -> None:
        self._signal_bits = np.array([signal_bits(channel) for channel in channels])
        self._most_bits = np.array([channel.nominal_bits for channel in channels])
        self._is_binary = np.array([channel.function is all_right_reward for channel in channels], dtype=bool)
        self._read = np.zeros(len(channels), dtype=np.int64)
        self._hit = np.zeros(len(channels), dtype=bool)

    @property
    def observed_bits(self) -> Float[np.ndarray, "cell"]:
        """An upper bound of signal_bits - H(S | all seen so far) of each cell."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ruled_out = -np.log1p(-np.minimum(self._read * np.exp2(-self._signal_bits), 1.0)) / np.log(2.0)
            summed = np.where(self._read > 0, self._read * self._most_bits, 0.0)
        told = np.where(self._is_binary, ruled_out, summed)
        return np.where(self._hit, self._signal_bits, np.minimum(told, self._signal_bits))

    def candidates(self, cell: int) -> Int[np.ndarray, "candidate"]:
        """See `PackObserver.candidates`: there is no list."""
        raise ValueError(f"secrets must be few enough to list, got {self._signal_bits[cell]:.4g} bits")

    def observe(
        self, cells: Int[np.ndarray, "outcome"], outcomes: Outcomes, rewards: Float[np.ndarray, "outcome env_step"]
    ) -> None:
        """Reads episodes and what they paid; see `PackObserver.observe`."""
        told = cells[outcomes.well_formed]
        np.add.at(self._read, told, 1)
        paid = np.nansum(rewards[outcomes.well_formed], axis=1)
        self._hit[told[self._is_binary[told] & (paid == 1.0)]] = True

    def keep(self, cells: Int[np.ndarray, "kept"]) -> None:
        """Keeps these cells alone, in this order."""
        self._signal_bits, self._most_bits = self._signal_bits[cells], self._most_bits[cells]
        self._is_binary, self._read, self._hit = self._is_binary[cells], self._read[cells], self._hit[cells]

    def arrays(self) -> dict[str, np.ndarray]:
        """See `PackObserver.arrays`."""
        return {"read": self._read, "hit": self._hit}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """See `PackObserver.restore`."""
        self._read, self._hit = arrays["read"].copy(), arrays["hit"].copy()
