"""Tables from before version 2, where agents stood among the trained cells and unreached milestones held a number."""

import shutil
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from table_rows import cell_row, curve_rows

from memrl.tables.schema import AGENTS, CURVES, EPISODES_TO_MEMORIZE, EPISODES_TO_MEMORIZE_SCHEMA
from memrl.tables.store import TableStore

CREATED = "2026-11-22T22:44:11+00:00"


@pytest.fixture
def store(tmp_path) -> TableStore:
    """A finished cell, one that never got there, and an agent, as they were written once."""
    reached: dict[str, Any] = {"e50": 8, "e50_censored": False, "e90": 16, "e90_censored": False}
    never: dict[str, Any] = {"e50": 96, "e50_censored": True, "e90": 96, "e90_censored": True}
    rows = [
        cell_row("a", episodes=16, updates=1, **reached),
        cell_row("b", "budget_spent", episodes=96, updates=1, **never),
        cell_row("c", **(reached | {"agent": "greedy", "episodes": 3, "N": 64, "e50": 2})),
    ]
    created = EPISODES_TO_MEMORIZE_SCHEMA.get_field_index("created")
    schema = EPISODES_TO_MEMORIZE_SCHEMA.set(created, pa.field("created", pa.string()))
    folder = tmp_path / EPISODES_TO_MEMORIZE
    folder.mkdir()
    pq.write_table(
        pa.Table.from_pylist([row | {"created": CREATED} for row in rows], schema=schema), folder / "part-0.parquet"
    )
    store = TableStore(str(tmp_path))
    store.append(CURVES, curve_rows("a", 2) + curve_rows("b", 2))
    return store


def assert_as_of_now(store: TableStore) -> None:
    cells = store.read(EPISODES_TO_MEMORIZE, ["cell_id", "e50", "e50_censored", "episodes", "created"]).to_pylist()
    assert [list(row.values())[:4] for row in cells] == [["a", 8, False, 16], ["b", None, True, 96]]
    assert cells[0]["created"] == datetime.fromisoformat(CREATED).astimezone(UTC)
    assert store.read(AGENTS, ["agent", "cell_id", "N", "e50"]).to_pylist() == [
        {"agent": "greedy", "cell_id": "c", "N": 64, "e50": 2}
    ]
    assert store.finished_cell_ids() == {"a", "b"}


def test_a_reader_sees_them_as_of_now(store):
    assert_as_of_now(store)
    assert store.read(EPISODES_TO_MEMORIZE, ["e50"])["e50"].to_pylist() == [8, None]


def test_the_next_writer_brings_them_up(store, tmp_path):
    with TableStore(str(tmp_path)).open_for_writing():
        pass
    assert_as_of_now(store)
    assert pd.read_parquet(tmp_path / EPISODES_TO_MEMORIZE)["cell_id"].tolist() == ["a", "b"]
    assert pd.read_parquet(tmp_path / AGENTS)["cell_id"].tolist() == ["c"]


def test_cells_that_are_dropped_take_no_agent_along(store, tmp_path):
    writer = TableStore(str(tmp_path))
    with writer.open_for_writing("b"):
        writer.drop_cells(["b"])
    assert store.finished_cell_ids() == {"a"}
    assert store.read(AGENTS, ["cell_id"])["cell_id"].to_pylist() == ["c"]


def test_agents_that_were_moved_and_are_still_there_count_once(store, tmp_path):
    kept = tmp_path / "kept.parquet"
    shutil.copy(tmp_path / EPISODES_TO_MEMORIZE / "part-0.parquet", kept)
    with TableStore(str(tmp_path)).open_for_writing():
        pass
    shutil.copy(kept, tmp_path / EPISODES_TO_MEMORIZE / "part-0.parquet")
    assert_as_of_now(store)
