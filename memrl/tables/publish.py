"""Results made fit to be committed: each table one small part file."""

import numpy as np
import pyarrow as pa

from memrl.tables.files import find_filesystem, remove_file, replace_file
from memrl.tables.launches import FILE
from memrl.tables.parts import encode_part
from memrl.tables.schema import CURVES, SCHEMAS
from memrl.tables.store import TableStore

_PART = "part-published.parquet"
_SMALLEST = 19
"""zstd's level: a tenth smaller than the default one, and slow, which a sweep that writes as it goes can't afford."""


def publish_tables(store: TableStore, address: str, curve_rows: int | None = None) -> None:
    """Writes the tables of a sweep, and its sweep.json, to another folder: each table as one part file.

    Args:
        store: the sweep's own tables.
        address: the folder, or an address such as s3://.
        curve_rows: at most so many rows of `curves` a cell, its first and last among them, evenly spaced between;
            unset, all. Bits per episode and episodes to memorize need none of them; curves, ledger and the search for
            leaks do, and become as much coarser.

    Raises:
        ValueError: the store's tables can't be read, or curve_rows is less than two.
        OSError: the folder can't be written.
    """
    published = TableStore(address)
    filesystem, root = find_filesystem(address)
    # All are read before any is written: they may be the same tables.
    for table, rows in {table: store.read(table) for table in SCHEMAS}.items():
        if table == CURVES and curve_rows is not None:
            rows = thin_curves(rows, curve_rows)
        folder = f"{root.rstrip('/')}/{table}"
        replace_file(filesystem, f"{folder}/{_PART}", encode_part(rows, _SMALLEST))
        for part in published.list_parts(table):
            if part != f"{folder}/{_PART}":
                remove_file(filesystem, part)
    launches = store.read_text(FILE)
    if launches is not None:
        published.write_text(FILE, launches)


def thin_curves(curves: pa.Table, curve_rows: int) -> pa.Table:
    """At most so many rows of each cell: its first, its last, and others evenly spaced between.

    >>> curves = pa.table({"cell_id": ["a"] * 5 + ["b"], "update": [0, 1, 2, 3, 4, 0]})
    >>> thin_curves(curves, 3)["update"].to_pylist()
    [0, 2, 4, 0]

    Args:
        curves: rows in order of (cell_id, update).
        curve_rows: how many.

    Raises:
        ValueError: they are less than two.
    """
    if curve_rows < 2:
        raise ValueError(f"curve_rows must be at least 2, got {curve_rows}")
    cell = np.asarray(curves["cell_id"].combine_chunks().dictionary_encode().indices)
    begins = np.flatnonzero(np.append(True, np.diff(cell) != 0)) if len(cell) else np.empty(0, np.int64)
    kept = [
        begin + np.unique(np.linspace(0, size - 1, min(size, curve_rows)).round().astype(np.int64))
        for begin, size in zip(begins, np.diff(np.append(begins, len(cell))), strict=True)
    ]
    return curves.take(pa.array(np.concatenate(kept))) if kept else curves
