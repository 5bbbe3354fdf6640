"""Values that cells of a pack share, each distinct one kept once and numbered."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Int

T = TypeVar("T")


@dataclass
class Numbered(Generic[T]):
    """The value of each cell: `values[index[cell]]`.

    Attributes:
        values: the distinct values, in order of first use.
        index: the value of each cell, by its place in `values`.

    >>> shared = Numbered.of(["a", "b", "a"])
    >>> shared.values, shared.index.tolist()
    (['a', 'b'], [0, 1, 0])
    """

    values: list[T]
    index: Int[np.ndarray, "cell"]

    @classmethod
    def of(cls, items: Sequence[T]) -> "Numbered[T]":
        """Numbers one value per cell; values that are equal are one."""
        place = {value: number for number, value in enumerate(dict.fromkeys(items))}
        return cls(list(place), np.array([place[item] for item in items], dtype=np.int64))

    def keep(self, cells: Int[np.ndarray, "kept"]) -> None:
        """Shrinks to the given cells."""
        self.index = self.index[cells]

    def split(self, cells: Int[np.ndarray, "row"]) -> Iterator[tuple[T, Int[np.ndarray, "_"]]]:
        """Splits rows by the value of their cell.

        Args:
            cells: the cell of each row.

        Yields:
            each value that some row has, with the places of its rows.
        """
        if len(self.values) == 1:
            yield self.values[0], np.arange(len(cells))
            return
        number = self.index[cells]
        for place in np.unique(number):
            yield self.values[place], np.flatnonzero(number == place)
