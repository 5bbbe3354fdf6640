"""Results in Python: the tables of a sweep as data frames, and estimates from them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from memrl.analysis.cells import CELL_COLUMNS, IDENTITY, measured_cells
from memrl.analysis.estimate import estimate_groups
from memrl.analysis.selection import hold_out_settings
from memrl.suggest import did_you_mean, suggest_close
from memrl.sweep.grid import list_grids
from memrl.tables.places import find_grids, has_tables, own_address, reference_address
from memrl.tables.schema import AGENTS, CURVES, EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

_MEASURED = ("N", "seed", "signal_bits", "episodes", "e50", "e50_censored", "e90", "e90_censored", "status")


class Results(NamedTuple):
    """The tables of a sweep, whose columns are those of docs/columns.md.

    Attributes:
        cells: one row per cell that has ended.
        curves: one row per cell and update.
        agents: one row per baseline agent, channel and secret.
    """

    cells: pd.DataFrame
    curves: pd.DataFrame
    agents: pd.DataFrame


def load(sweep: str) -> Results:
    """The tables of a sweep, finished or not.

    Integers stay integers (of a nullable type where some are missing).

    Args:
        sweep: the name of a grid, whose tables are results/<grid>, or else those of the reference that comes with the
            code; or the address of tables: a folder, s3://, gs://.

    Raises:
        ValueError: there are no tables.
    """
    address = _find_address(sweep)
    store = TableStore(address)
    return Results(*(_to_frame(store.read(table)) for table in (EPISODES_TO_MEMORIZE, CURVES, AGENTS)))


def estimate(cells: pd.DataFrame, by: Sequence[str] = IDENTITY) -> pd.DataFrame:
    """Medians with 95 % intervals that take censored runs into account.

    Whatever is not in `by` (learning rate, rank, ...) was tuned: each half of the secrets is reported at the setting
    that the other half chose.

    Args:
        cells: rows of episodes_to_memorize, or of agents.
        by: the columns that tell conditions apart.

    Returns:
        One row per condition: the columns `by`; num_cells, num_reached (P(secret) reached 1/2) and num_memorized (0.9);
        e50 and e90, episodes of the median run, inf where fewer than half of the runs got there; bits_per_episode of
        the median run; each with _lower and _upper; and what the condition's channel can tell, in bits per episode.

    Raises:
        ValueError: these are no such rows, none of them was measured, or a column of `by` is not there.
    """
    if missing := [name for name in _MEASURED if name not in cells]:
        rows = "rows of the table episodes_to_memorize or agents"
        raise ValueError(f"cells must be {rows}, got a frame without {', '.join(missing)}")
    unused = dict.fromkeys((name for name in CELL_COLUMNS if name not in cells), np.nan)
    cells = cells.assign(**unused)
    for name in by:
        if name not in cells:
            raise ValueError(f"by must name columns of cells, got {name!r}{did_you_mean(name, cells.columns)}")
    measured = measured_cells(cells)
    if measured.empty:
        raise ValueError(f"cells must hold a run that was measured, got {len(cells):,} rows and none that was")
    return estimate_groups(hold_out_settings(measured, by), by)


def _find_address(sweep: str) -> str:
    named = "/" not in sweep and "://" not in sweep
    candidates = [own_address(sweep), reference_address(sweep)] if named else [sweep]
    # In another folder than the checkout, a notebook's, say, the reference is still that of the code.
    beside = [str(find_grids().parent / "reference" / sweep)] if named else []
    for address in candidates + beside:
        if "://" in address or has_tables(address):
            return address
    like = suggest_close(sweep, list_grids(find_grids())) if named else ""
    raise ValueError(f"sweep must be a grid or an address that has tables, got none in {' or '.join(candidates)}{like}")


def _to_frame(rows: pa.Table) -> pd.DataFrame:
    integers = [field.name for field in rows.schema if pa.types.is_integer(field.type) and rows[field.name].null_count]
    frame = rows.drop_columns(integers).to_pandas()
    frame[integers] = rows.select(integers).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return frame[rows.column_names]
