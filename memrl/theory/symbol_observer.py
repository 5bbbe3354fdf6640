"""An observer of sequences whose posterior is a product over symbols: exact, whatever their length."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from memrl.task.env import Outcomes
from memrl.task.reward import Channel, sequence_itself


class SymbolObserver:
    """Keeps, for every symbol of every cell, the values that agree with all feedback seen so far.

    A reward of 1 for a symbol tells it, and a reward of 0 rules one value out; an example tells all symbols.

    Args:
        channels: the channel of each cell, all with `tells_by_symbol`.
    """

    def __init__(self, channels: Sequence[Channel]) -> None:
        formats = [channel.answer_format for channel in channels]
        self._length = np.array([f.num_env_steps for f in formats], dtype=np.int64)
        self._radix = np.array([f.radix for f in formats], dtype=np.int64)
        self._is_told_all = np.array([channel.function is sequence_itself for channel in channels], dtype=bool)
        # What lies beyond a cell's own symbols and values is certain from the start.
        shape = int(self._length.max(initial=0)), int(self._radix.max(initial=1))
        is_symbol = np.arange(shape[0]) < self._length[:, None]
        self._consistent = (np.arange(shape[1]) < self._radix[:, None])[:, None, :] & is_symbol[:, :, None]
        self._consistent[:, :, 0] |= ~is_symbol

    @property
    def observed_bits(self) -> Float[np.ndarray, "cell"]:
        """signal_bits - H(S | all seen so far) of each cell."""
        is_symbol = np.arange(self._consistent.shape[1]) < self._length[:, None]
        at_first = np.where(is_symbol, np.log2(self._radix)[:, None], 0.0)
        return (at_first - np.log2(self._consistent.sum(axis=2))).sum(axis=1)

    def candidates(self, cell: int) -> Int[np.ndarray, "candidate"]:
        """See `PackObserver.candidates`: there is no list."""
        raise ValueError(f"secrets must be few enough to list, got {self._length[cell]} symbols")

    def observe(
        self, cells: Int[np.ndarray, "outcome"], outcomes: Outcomes, rewards: Float[np.ndarray, "outcome env_step"]
    ) -> None:
        """Reads episodes and what they paid; see `PackObserver.observe`."""
        row, step = np.nonzero(outcomes.digits >= 0)
        digit, paid = outcomes.digits[row, step], rewards[row, step]
        is_right = self._is_told_all[cells[row]] | (paid == 1.0)
        if not (is_right | (paid == 0.0)).all():
            raise ValueError("rewards must be 1 for a symbol that is right and 0 for another")
        wrong, right = np.flatnonzero(~is_right), np.flatnonzero(is_right)
        self._consistent[cells[row[wrong]], step[wrong], digit[wrong]] = False
        is_possible = self._consistent[cells[row[right]], step[right], digit[right]]
        self._consistent[cells[row[right]], step[right]] = False
        self._consistent[cells[row[right]], step[right], digit[right]] = is_possible
        if not self._consistent[np.unique(cells)].any(axis=2).all():
            raise ValueError("rewards must be those of the channel, got some that no secret explains")

    def keep(self, cells: Int[np.ndarray, "kept"]) -> None:
        """Keeps these cells alone, in this order."""
        self._length, self._radix = self._length[cells], self._radix[cells]
        self._is_told_all, self._consistent = self._is_told_all[cells], self._consistent[cells]

    def arrays(self) -> dict[str, np.ndarray]:
        """See `PackObserver.arrays`."""
        return {"consistent": self._consistent}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """See `PackObserver.restore`."""
        self._consistent = arrays["consistent"].copy()
