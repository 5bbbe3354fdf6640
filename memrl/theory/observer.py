"""An ideal Bayes observer of a pack's own reward streams: what could have been known, in bits.

Three ways share the work, each with the cells that it can follow: a set of the secrets that are still possible, a set
of values for each symbol, and, where neither is tractable, a bound of what can have been told.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from memrl.task.env import Outcomes
from memrl.task.reward import Channel
from memrl.theory.bound_observer import BoundObserver
from memrl.theory.candidate_observer import CandidateObserver
from memrl.theory.sequences import is_listed, tells_by_symbol
from memrl.theory.symbol_observer import SymbolObserver


@runtime_checkable
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
    """Knows, of every cell of a pack, what its feedback so far has told about the secret, or about that of every key.

    Malformed answers tell nothing, except that on a per-step channel an answer that became malformed at env_step j
    tells what its first j env_steps paid.

    Args:
        channels: the channel of each cell; cells may differ in all.
        num_keys: secrets of each cell, None for a cell without keys; unset: no cell has any.
    """

    def __init__(self, channels: Sequence[Channel], num_keys: Sequence[int | None] | None = None) -> None:
        keys = [None] * len(channels) if num_keys is None else list(num_keys)
        # Cells of many keys have an observer of their own, that they need no room beyond their secrets.
        kinds = [(_choose_way(c), None if n is None else c) for c, n in zip(channels, keys, strict=True)]
        sorts = {kind: sort for sort, kind in enumerate(dict.fromkeys(kinds))}
        self._sort = np.array([sorts[kind] for kind in kinds], dtype=np.int64)
        self._count = np.array([n or 1 for n in keys], dtype=np.int64)
        self._start = _number_within(self._sort, self._count)
        self._observers: list[_Observer] = [
            _WAYS[way](
                [
                    channels[c]
                    for c in np.flatnonzero(self._sort == sort).repeat(self._count[self._sort == sort]).tolist()
                ]
            )
            for sort, (way, _) in enumerate(sorts)
        ]

    def __len__(self) -> int:
        return len(self._sort)

    @property
    def observed_bits(self) -> Float[np.ndarray, "cell"]:
        """signal_bits - H(S | all seen so far) of each cell, in bits, from 0 to signal_bits; summed over its keys.

        An upper bound for the cells whose channel `observes_exactly` denies.
        """
        bits = np.zeros(len(self))
        for sort, observer in enumerate(self._observers):
            cells = np.flatnonzero(self._sort == sort)
            if len(cells):
                bits[cells] = np.add.reduceat(observer.observed_bits, self._start[cells])
        return bits

    def candidates(self, cell: int, key: int = 0) -> Int[np.ndarray, "candidate"]:
        """The secrets of a cell, or of a key of it, that agree with all feedback so far, ascending.

        Raises:
            ValueError: its secrets are too many to list.
        """
        return self._observers[self._sort[cell]].candidates(int(self._start[cell]) + key)

    def observe(
        self,
        cells: int | Int[np.ndarray, "outcome"],
        outcomes: Outcomes,
        rewards: Float[np.ndarray, "outcome env_step"],
        keys: int | Int[np.ndarray, "outcome"] = 0,
    ) -> None:
        """Reads episodes and what they paid, of one cell or of the whole pack at once, in any order.

        Args:
            cells: the cell of each outcome, or one cell for all.
            outcomes: how the episodes ended.
            rewards: what `memrl.task.env.step_rewards` gave for them, NaN where an env_step was not taken or the
                cell has fewer.
            keys: the key of each outcome, or one for all.

        Raises:
            ValueError: no secret explains a cell's rewards: they are not those of its channel.
        """
        cells = np.broadcast_to(cells, len(outcomes))
        places = self._start[cells] + keys
        for sort, observer in enumerate(self._observers):
            rows = np.flatnonzero(self._sort[cells] == sort)
            if len(rows) == len(cells):
                observer.observe(places, outcomes, rewards)
            elif len(rows):
                observer.observe(places[rows], outcomes.select(rows), rewards[rows])

    def keep(self, cells: Int[np.ndarray, "kept"]) -> None:
        """Keeps these cells alone, in this order."""
        kept = np.asarray(cells, dtype=np.int64)
        for sort, observer in enumerate(self._observers):
            own = kept[self._sort[kept] == sort]
            places = [np.arange(self._start[cell], self._start[cell] + self._count[cell]) for cell in own]
            observer.keep(np.concatenate([np.zeros(0, dtype=np.int64), *places]))
        self._sort, self._count = self._sort[kept], self._count[kept]
        self._start = _number_within(self._sort, self._count)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that an observer of the same channels needs to go on, by name."""
        return {
            f"{i}.{name}": a for i, observer in enumerate(self._in_order()) for name, a in observer.arrays().items()
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes up what `arrays` gave, for the same channels."""
        for i, observer in enumerate(self._in_order()):
            prefix = f"{i}."
            observer.restore({k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)})

    def _in_order(self) -> list[_Observer]:
        """The observers of cells that are left, by their first cell: as a new one for these cells has them."""
        return [self._observers[sort] for sort in dict.fromkeys(self._sort.tolist())]


_WAYS = (CandidateObserver, SymbolObserver, BoundObserver)


def _choose_way(channel: Channel) -> int:
    if is_listed(channel):
        return 0
    return 1 if tells_by_symbol(channel) else 2


def observes_exactly(channel: Channel) -> bool:
    """Whether observed_bits of a channel are exact, and not an upper bound."""
    return _choose_way(channel) != 2


def _number_within(sort: Int[np.ndarray, "cell"], count: Int[np.ndarray, "cell"]) -> Int[np.ndarray, "cell"]:
    """The place of each cell's first secret among those of its sort."""
    start = np.zeros(len(sort), dtype=np.int64)
    for which in np.unique(sort):
        own = sort == which
        start[own] = np.cumsum(count[own]) - count[own]
    return start
