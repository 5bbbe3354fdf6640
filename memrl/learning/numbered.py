"""Values that cells of a pack share, each distinct one kept once and numbered."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass
class Numbered(Generic[T]):
    """The value of each cell: `values[index[cell]]`.

    Attributes:
        values: the distinct values, in order of first use.
        index: the value of each cell, by its place in `values`; int64 (cells,).

    >>> shared = Numbered.of(["a", "b", "a"])
    >>> shared.values, shared.index.tolist()
    (['a', 'b'], [0, 1, 0])
    """

    values: list[T]
    index: np.ndarray

    @classmethod
    def of(cls, items: Sequence[T]) -> "Numbered[T]":
        """Numbers one value per cell; values that are equal are one."""
        place = {value: number for number, value in enumerate(dict.fromkeys(items))}
        return cls(list(place), np.array([place[item] for item in items], dtype=np.int64))

    def keep(self, cells: np.ndarray) -> None:
        """Shrinks to the given cells."""
        self.index = self.index[cells]

    def split(self, cells: np.ndarray) -> Iterator[tuple[T, np.ndarray]]:
        """Splits rows by the value of their cell.

        Args:
            cells: the cell of each row, int64 (rows,).

        Yields:
            each value that some row has, with the places of its rows.
        """
        if len(self.values) == 1:
            yield self.values[0], np.arange(len(cells))
            return
        number = self.index[cells]
        for place in np.unique(number):
            yield self.values[place], np.flatnonzero(number == place)
