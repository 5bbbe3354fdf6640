"""Rows for tests of the tables."""

import math

from memrl.analysis.cells import measured_cells
from memrl.analysis.curves import collect_curves
from memrl.analysis.leak import judge_leaks, leak_curve
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


def leak_report(curves, episodes_to_memorize, agent="lora"):
    """The leak check's verdicts on tables, as a report gives them."""
    cells = measured_cells(episodes_to_memorize)
    cells = cells[cells["agent"] == agent].reset_index(drop=True)
    return judge_leaks(leak_curve(collect_curves(curves, cells), cells))
