"""An ideal Bayes observer of a pack's own reward streams: what could have been known, in bits.

Three ways share the work, each with the cells that it can follow: a set of the secrets that are still possible, a set
of values for each symbol, and, where neither is tractable, a bound of what can have been told.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from memrl.task.env import Outcomes
from memrl.task.reward import Channel
from memrl.theory.bound_observer import BoundObserver
from memrl.theory.candidate_observer import CandidateObserver
from memrl.theory.sequences import is_listed, tells_by_symbol
from memrl.theory.symbol_observer import SymbolObserver


class _Observer(Protocol):
    """Observes cells of one sort, by their places among themselves."""

    @property
    def observed_bits(self) -> Float[np.ndarray, "cell"]: ...

    def observe(
        self, cells: Int[np.ndarray, "outcome"], outcomes: Outcomes, rewards: Float[np.ndarray, "outcome env_step"]
    ) -> None: ...

    def candidates(self, cell: int) -> Int[np.ndarray, "candidate"]: ...

    def keep(self, cells: Int[np.ndarray, "kept"]) -> None: ...

    def arrays(self) -> dict[str, np.ndarray]: ...

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None: ...


class PackObserver:
    """Knows, of every cell of a pack, what its feedback so far has told about the secret.

    Malformed answers tell nothing, except that on a per-step channel an answer that became malformed at env_step j
    tells what its first j env_steps paid.

    Args:
        channels: the channel of each cell; cells may differ in all.
    """

    def __init__(self, channels: Sequence[Channel]) -> None:
        self._way = np.array([_choose_way(channel) for channel in channels], dtype=np.int64)
        self._place = _number_within(self._way)
        self._ways: list[_Observer] = [
            observer([channels[cell] for cell in np.flatnonzero(self._way == way)])
            for way, observer in enumerate(_WAYS)
        ]

    def __len__(self) -> int:
        return len(self._way)

    @property
    def observed_bits(self) -> Float[np.ndarray, "cell"]:
        """signal_bits - H(S | all seen so far) of each cell, in bits, from 0 to signal_bits.

        An upper bound for the cells whose channel `observes_exactly` denies.
        """
        bits = np.zeros(len(self))
        for way, observer in enumerate(self._ways):
            bits[self._way == way] = observer.observed_bits
        return bits

    def candidates(self, cell: int) -> Int[np.ndarray, "candidate"]:
        """The secrets of a cell that agree with all feedback so far, ascending.

        Raises:
            ValueError: its secrets are too many to list.
        """
        return self._ways[self._way[cell]].candidates(int(self._place[cell]))

    def observe(
        self,
        cells: int | Int[np.ndarray, "outcome"],
        outcomes: Outcomes,
        rewards: Float[np.ndarray, "outcome env_step"],
    ) -> None:
        """Reads episodes and what they paid, of one cell or of the whole pack at once, in any order.

        Args:
            cells: the cell of each outcome, or one cell for all.
            outcomes: how the episodes ended.
            rewards: what `memrl.task.env.step_rewards` gave for them, NaN where an env_step was not taken or the
                cell has fewer.

        Raises:
            ValueError: no secret explains a cell's rewards: they are not those of its channel.
        """
        cells = np.broadcast_to(cells, len(outcomes))
        for way, observer in enumerate(self._ways):
            rows = np.flatnonzero(self._way[cells] == way)
            if len(rows) == len(cells):
                observer.observe(self._place[cells], outcomes, rewards)
            elif len(rows):
                observer.observe(self._place[cells[rows]], outcomes.select(rows), rewards[rows])

    def keep(self, cells: Int[np.ndarray, "kept"]) -> None:
        """Keeps these cells alone, in this order."""
        kept = np.asarray(cells, dtype=np.int64)
        for way, observer in enumerate(self._ways):
            observer.keep(self._place[kept[self._way[kept] == way]])
        self._way = self._way[kept]
        self._place = _number_within(self._way)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that an observer of the same channels needs to go on, by name."""
        ways = enumerate(self._ways)
        return {f"{way}.{name}": array for way, observer in ways for name, array in observer.arrays().items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes up what `arrays` gave, for the same channels."""
        for way, observer in enumerate(self._ways):
            prefix = f"{way}."
            observer.restore({k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)})


_WAYS = (CandidateObserver, SymbolObserver, BoundObserver)


def _choose_way(channel: Channel) -> int:
    if is_listed(channel):
        return 0
    return 1 if tells_by_symbol(channel) else 2


def observes_exactly(channel: Channel) -> bool:
    """Whether observed_bits of a channel are exact, and not an upper bound."""
    return _choose_way(channel) != 2


def _number_within(way: Int[np.ndarray, "cell"]) -> Int[np.ndarray, "cell"]:
    """The place of each cell among those that go the same way."""
    place = np.zeros(len(way), dtype=np.int64)
    for which in np.unique(way):
        place[way == which] = np.arange((way == which).sum())
    return place
