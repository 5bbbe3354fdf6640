"""Rows for tests of the tables."""

import math

from memrl.tables.schema import CURVES, CURVES_SCHEMA, EPISODES_TO_MEMORIZE, EPISODES_TO_MEMORIZE_SCHEMA
from memrl.tables.store import TableStore


def cell_row(cell_id: str, status: str = "memorized", agent: str | None = "lora", **values) -> dict:
    row = dict.fromkeys(EPISODES_TO_MEMORIZE_SCHEMA.names)
    return row | {"cell_id": cell_id, "agent": agent, "status": status} | values


def curve_rows(cell_id: str, num_updates: int, absorbed_bits: float = 0.0) -> list[dict]:
    numbers = dict.fromkeys(CURVES_SCHEMA.names, math.nan)
    return [
        numbers | {"cell_id": cell_id, "update": update, "episodes": 32 * update, "absorbed_bits": absorbed_bits}
        for update in range(num_updates)
    ]


def append_cells(store: TableStore, *rows: dict) -> None:
    """Appends rows with curves of one update each."""
    for row in rows:
        store.append(CURVES, curve_rows(row["cell_id"], 2))
    store.append(EPISODES_TO_MEMORIZE, [row | {"updates": 1} for row in rows])
