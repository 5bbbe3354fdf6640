"""The curves table as flat arrays, and what is read off it: quartiles over cells, and when the observer knew.

A cell's rows are a step function of updates (or of episodes); after its last row a cell keeps its last values. Means
over cells follow from the increments of those step functions: one bincount and one cumulative sum, however many rows.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

CURVE_COLUMNS = ("cell_id", "update", "episodes", "observed_bits", "absorbed_bits", "well")
"""The columns of curves that the analysis reads."""


@dataclass(frozen=True)
class Curves:
    """Rows of curves in order of (cell, update).

    Attributes:
        cell: index of the row's cell in the table of cells; int64 (rows,).
        update: updates before the row; int64 (rows,).
        episodes: episodes before the row; float64 (rows,).
        observed: observed_bits; float64 (rows,), NaN where nothing observed.
        absorbed: absorbed_bits; float64 (rows,).
        well: share of env_steps in the well; float64 (rows,), NaN where that has no meaning or was not counted.
        is_first: whether the row is its cell's first; bool (rows,).
    """

    cell: np.ndarray
    update: np.ndarray
    episodes: np.ndarray
    observed: np.ndarray
    absorbed: np.ndarray
    well: np.ndarray
    is_first: np.ndarray

    def __len__(self) -> int:
        return len(self.cell)

    def of_cells(self, chosen: np.ndarray) -> "Curves":
        """The rows of some cells.

        Args:
            chosen: new index of each cell, or -1 to leave it out; int (cells,). Must keep the order of cells.
        """
        keep = chosen[self.cell] >= 0
        names = ("cell", "update", "episodes", "observed", "absorbed", "well", "is_first")
        rows = {name: getattr(self, name)[keep] for name in names}
        return Curves(**{**rows, "cell": chosen[rows["cell"]]})


def collect_curves(table: pa.Table | pd.DataFrame, cells: pd.DataFrame) -> Curves:
    """Sorts the rows of some cells by (cell, update).

    Args:
        table: rows of curves, at least CURVE_COLUMNS (of a data frame well may be left out), in any order.
        cells: measured cells; rows of other cells (failed, or not finished) are left out.
    """
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table.reindex(columns=list(CURVE_COLUMNS)), preserve_index=False)
    names = pa.array(cells["cell_id"].astype(str).to_list(), pa.string())
    ids = table["cell_id"]
    if pa.types.is_dictionary(ids.type):
        ids = ids.unify_dictionaries()
        values = ids.chunk(0).dictionary if ids.num_chunks else pa.array([], pa.string())
        of_value = _index_in(values, names).to_numpy(zero_copy_only=False)
        codes = [of_value[chunk.indices.to_numpy(zero_copy_only=False)] for chunk in ids.chunks]
        cell = np.concatenate(codes) if codes else np.empty(0, np.int64)
    else:
        cell = _index_in(ids, names).to_numpy()
    cell = cell.astype(np.int64)
    update = table["update"].to_numpy().astype(np.int64)
    key = cell * (int(update.max(initial=0)) + 1) + update
    known = cell >= 0
    if known.all() and (np.diff(key) > 0).all():
        order = slice(None)
    else:
        order = np.flatnonzero(known)
        order = order[np.argsort(key[order], kind="stable")]
    del key
    cell = cell[order]
    is_first = np.ones(len(cell), dtype=bool)
    is_first[1:] = cell[1:] != cell[:-1]
    episodes, observed, absorbed, well = (
        table[name].to_numpy()[order].astype(np.float64, copy=False) for name in CURVE_COLUMNS[2:]
    )
    return Curves(cell, update[order], episodes, observed, absorbed, well, is_first)


def _index_in(ids: pa.ChunkedArray, names: pa.Array) -> pa.ChunkedArray:
    """Position of each id among the names, -1 where it is none of them."""
    options = pc.SetLookupOptions(value_set=names, skip_nulls=True)
    return pc.fill_null(pc.call_function("index_in", [ids.cast(pa.string())], options), -1)


def carry_forward_sums(
    values: np.ndarray, is_first: np.ndarray, series: np.ndarray, position: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Sums of step functions at every position, each carried forward from its last row (and back from its first).

    >>> values, is_first = np.array([0.0, 2.0, 1.0, 5.0]), np.array([True, False, True, False])
    >>> carry_forward_sums(values, is_first, np.zeros(4, int), np.array([0, 2, 0, 1]), (1, 4)).tolist()
    [[1.0, 5.0, 7.0, 7.0]]

    Args:
        values: rows in order of (cell, position); (rows,).
        is_first: whether a row is its cell's first; bool (rows,).
        series: which sum a row's cell belongs to; int (rows,).
        position: first position at which the row holds; rows at or beyond the last position are left out; int (rows,).
        shape: number of series, number of positions.

    Returns:
        float64 array of shape `shape`.
    """
    previous = np.empty_like(values)
    previous[1:] = values[:-1]
    previous[is_first] = 0.0
    start = np.where(is_first, 0, position)
    inside = start < shape[1]
    flat = series[inside] * shape[1] + start[inside]
    increments = np.bincount(flat, weights=(values - previous)[inside], minlength=shape[0] * shape[1])
    return np.cumsum(increments.reshape(shape), axis=1)


def when_observer_knew(curves: Curves, signal_bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Episodes until the ideal observer was one bit short of the secret (as P(secret) = 1/2 is), and what it knew then.

    A cell whose observer never got that far counts with all of its episodes and what it knew in the end.

    Args:
        curves: rows of all cells.
        signal_bits: (cells,).

    Returns:
        Episodes and observed bits, float64 (cells,) each; NaN for a cell without rows or without an observer.
    """
    last = np.append(curves.is_first[1:], True) if len(curves) else curves.is_first
    stops = (curves.observed >= signal_bits[curves.cell] - 1.0 - 1e-9) & (curves.episodes > 0)
    rows = np.flatnonzero(stops | last)
    cell, index = np.unique(curves.cell[rows], return_index=True)
    episodes, bits = np.full(len(signal_bits), np.nan), np.full(len(signal_bits), np.nan)
    episodes[cell], bits[cell] = curves.episodes[rows[index]], curves.observed[rows[index]]
    episodes[np.isnan(bits)] = np.nan
    return episodes, bits


def count_wells(curves: Curves, num_cells: int) -> np.ndarray:
    """The share of env_steps in the well over all updates of each cell; (cells,), NaN where it was not counted."""
    known = ~np.isnan(curves.well)
    total, rows = (np.bincount(curves.cell[known], x, minlength=num_cells) for x in (curves.well[known], None))
    return np.divide(total, rows, out=np.full(num_cells, np.nan), where=rows > 0)


def quartile_curves(curves: Curves, group: np.ndarray, keys: pd.DataFrame, num_points: int = 48) -> pd.DataFrame:
    """Median observed bits, and quartiles of absorbed bits, over cells against episodes.

    Runs end in two heaps, those that know the secret and those that collapsed: a mean would describe neither.

    Args:
        curves: rows of the cells that `group` numbers.
        group: the group of each cell; int (cells,).
        keys: one row per group, copied into the result.
        num_points: most points of a curve, spread evenly over the logarithm of episodes.

    Returns:
        One row per group and point: the columns of `keys`, num_secrets, episodes, observed_median, absorbed_low,
        absorbed_median, absorbed_high.
    """
    pieces = []
    row_group = group[curves.cell]
    for number in range(len(keys)):
        rows = np.flatnonzero(row_group == number)
        if not len(rows):
            continue
        grid = _thin_out(np.unique(curves.episodes[rows]), num_points)
        observed, absorbed = (
            _carry_forward(curves, rows, values, grid) for values in (curves.observed, curves.absorbed)
        )
        piece: dict[str, object] = {name: keys[name].iloc[number] for name in keys}
        piece |= {"num_secrets": len(absorbed), "episodes": grid, "observed_median": np.median(observed, axis=0)}
        quartiles = np.quantile(absorbed, (0.25, 0.5, 0.75), axis=0, method="nearest")
        piece |= dict(zip(("absorbed_low", "absorbed_median", "absorbed_high"), quartiles, strict=True))
        pieces.append(pd.DataFrame(piece))
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame()


def _carry_forward(curves: Curves, rows: np.ndarray, values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Every cell's values on a grid of episodes, each carried forward from its last row; (cells, points)."""
    starts = np.append(np.flatnonzero(curves.is_first[rows]), len(rows))
    cells = [rows[start:end] for start, end in pairwise(starts)]
    return np.stack([values[c[np.searchsorted(curves.episodes[c], grid, side="right").clip(1) - 1]] for c in cells])


def _thin_out(values: np.ndarray, num_points: int) -> np.ndarray:
    """At most about `num_points` of ascending values, first and last included, evenly spread over their logarithm."""
    if len(values) <= num_points:
        return values
    wanted = np.geomspace(max(values[1], 1e-9), values[-1], num_points - 1)
    return values[np.unique(np.concatenate([[0], np.searchsorted(values, wanted).clip(0, len(values) - 1)]))]
