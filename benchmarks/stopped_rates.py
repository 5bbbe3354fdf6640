"""Episodes that `stop_conditions=True` would have saved of the sweeps in sweeps/reference, replayed on their tables.

uv run python benchmarks/stopped_rates.py
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from memrl.analysis.cells import read_cells
from memrl.config import TrainConfig
from memrl.launch import Selection, select_cells
from memrl.sweep.race import Race, list_races
from memrl.tables.schema import Row
from memrl.tables.store import TableStore
from memrl.task.reach import MILESTONES

REFERENCE = Path(__file__).parents[1] / "sweeps" / "reference"
GRIDS = ("bitrate", "objective", "bits", "interference", "published", "absorb", "straw")


def read_reference(grid: str) -> tuple[pd.DataFrame, list[TrainConfig]]:
    """The rows of a committed sweep, agents below its cells, and the cells that it was asked for."""
    table = read_cells(TableStore(str(REFERENCE / grid))).astype({"status": object})
    return table, list(select_cells(Selection(grid=grid), {}).values())


def replay(table: pd.DataFrame, cells: Sequence[TrainConfig]) -> pd.DataFrame:
    """The table that a sweep would have left which stops what is outpaced, from that of one which does not."""
    rows = table.set_index("cell_id")
    by_id = {cell.cell_id: cell for cell in cells}
    for race in list_races(by_id.values()):
        _stop_runs(rows, race, by_id[race.cell_ids[0]].episodes_per_update)
    return rows.reset_index()[list(table)]


def _stop_runs(rows: pd.DataFrame, race: Race, per_update: int) -> None:
    whole = rows.loc[list(race.cell_ids), [*MILESTONES, "episodes"]].to_dict("index")
    stopped: dict[str, int] = {}
    step, end = race.every * per_update, max(row["episodes"] for row in whole.values())
    for time in range(step, int(end), step):
        so_far = {name: _see(row, stopped.get(name, time)) for name, row in whole.items()}
        for name in race.list_outpaced(so_far):
            if name not in stopped and whole[name]["episodes"] > time:
                stopped[name] = time
    for name, time in stopped.items():
        seen = _see(whole[name], time)
        rows.loc[name, list(seen)] = pd.Series(seen)
        rows.loc[name, [f"{each}_censored" for each in MILESTONES]] = [pd.isna(seen[each]) for each in MILESTONES]
        rows.loc[name, "status"] = "stopped"


def _see(row: Row, time: int) -> Row:
    """What is known of a run after so many episodes."""
    reached = {name: row[name] if pd.notna(row[name]) and row[name] <= time else None for name in MILESTONES}
    return {**reached, "episodes": min(row["episodes"], time)}


def main() -> None:
    """Prints the share of each sweep's episodes, and how many of its runs would have been stopped."""
    for grid in GRIDS:
        table, cells = read_reference(grid)
        trained = table[(table["agent"] == "lora").to_numpy()]
        fewer = replay(trained, cells)
        saved = 1.0 - fewer["episodes"].sum() / trained["episodes"].sum()
        stopped = (fewer["status"] == "stopped").sum()
        print(
            f"{grid:12}  {saved:4.0%} of {trained['episodes'].sum():,} episodes  {stopped:,} of {len(trained):,} runs"
        )


if __name__ == "__main__":
    main()
