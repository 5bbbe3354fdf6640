import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from table_rows import append_cells, cell_row, curve_rows

from memrl.tables import folder as folder_module
from memrl.tables.folder import MOST_SMALL_PARTS, PART_ROWS
from memrl.tables.parts import store_schema
from memrl.tables.places import has_tables, local_folder
from memrl.tables.schema import CURVES, CURVES_SCHEMA, EPISODES_TO_MEMORIZE, EPISODES_TO_MEMORIZE_SCHEMA
from memrl.tables.store import TableStore


def curve_table(cell_id: str, num_updates: int) -> pa.Table:
    columns = {name: np.zeros(num_updates) for name in CURVES_SCHEMA.names}
    columns |= {
        "cell_id": [cell_id] * num_updates,
        "update": np.arange(num_updates),
        "episodes": np.arange(num_updates),
    }
    return pa.table(columns, schema=CURVES_SCHEMA)


def list_parts(folder, table: str) -> list[str]:
    return sorted(name for name in os.listdir(folder / table) if not name.startswith("."))


@pytest.fixture
def store(tmp_path) -> TableStore:
    store = TableStore(str(tmp_path))
    store.create()
    return store


def test_pandas_sees_every_column_before_the_first_row(store, tmp_path):
    for table, schema in ((EPISODES_TO_MEMORIZE, EPISODES_TO_MEMORIZE_SCHEMA), (CURVES, CURVES_SCHEMA)):
        frame = pd.read_parquet(tmp_path / table)
        assert list(frame.columns) == schema.names
        assert frame.empty


def test_what_is_appended_is_read_back_sorted_by_its_key(store, tmp_path):
    store.append(EPISODES_TO_MEMORIZE, [cell_row("b", e50=7), cell_row("a", e50=9, absorbed_bits=0.25)])
    store.append(EPISODES_TO_MEMORIZE, [cell_row("a", agent="greedy", e50=1)])
    rows = store.read(EPISODES_TO_MEMORIZE, ["agent", "e50", "absorbed_bits"]).to_pylist()
    assert rows == [
        {"agent": "greedy", "e50": 1, "absorbed_bits": None},
        {"agent": "lora", "e50": 9, "absorbed_bits": 0.25},
        {"agent": "lora", "e50": 7, "absorbed_bits": None},
    ]
    frame = pd.read_parquet(store.table_address(EPISODES_TO_MEMORIZE))
    assert frame["e50"].tolist() == [1, 9, 7]


def test_files_carry_the_declared_schema_with_its_docs(store, tmp_path):
    store.append(CURVES, curve_rows("a", 2))
    (part,) = list_parts(tmp_path, CURVES)
    schema = pq.read_schema(tmp_path / CURVES / part)
    assert schema.equals(store_schema(CURVES_SCHEMA), check_metadata=True)
    assert schema.field("cell_id").type == pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize("as_table", [False, True])
def test_a_missing_or_unknown_column_is_refused(store, as_table):
    rows = curve_rows("a", 1)
    missing = {name: value for name, value in rows[0].items() if name != "absorbed_bits"}
    for row, message in ((missing, r"missing \['absorbed_bits'\]"), (rows[0] | {"bits": 1.0}, r"unknown \['bits'\]")):
        given = pa.Table.from_pylist([row]) if as_table else [rows[0], row]
        with pytest.raises(ValueError, match=message):
            store.append(CURVES, given)
    assert store.read(CURVES).num_rows == 0


def test_a_value_of_another_type_is_refused(store):
    with pytest.raises(ValueError, match="first"):
        store.append(CURVES, curve_table("a", 1).set_column(1, "update", pa.array(["first"])))
    assert store.finished_cell_ids() == set()


def test_an_unknown_table_gets_a_suggestion(store):
    with pytest.raises(ValueError, match="unknown table 'curve'; did you mean 'curves'"):
        store.read("curve")


def test_failed_cells_and_other_agents_are_not_finished(store):
    rows = [cell_row("a"), cell_row("b", "budget_spent"), cell_row("c", "failed"), cell_row("d", agent="optimal")]
    append_cells(store, *rows)
    assert store.finished_cell_ids() == {"a", "b"}


def test_a_cell_is_finished_only_with_all_its_curves(store):
    store.append(EPISODES_TO_MEMORIZE, [cell_row("a", updates=3), cell_row("b", updates=3), cell_row("c", updates=3)])
    store.append(CURVES, curve_rows("a", 4) + curve_rows("b", 3))
    assert store.finished_cell_ids() == {"a"}


def test_a_batch_that_is_used_again_and_keys_that_are_measured_now_and_then_have_fewer_rows_of_curves(store):
    reused: dict[str, Any] = {"updates": 8, "updates_per_batch": 4}
    keyed: dict[str, Any] = {"updates": 8, "num_keys": 64}
    store.append(EPISODES_TO_MEMORIZE, [cell_row("a", **reused), cell_row("b", **reused), cell_row("c", **keyed)])
    every_fourth = [row | {"update": 4 * row["update"]} for name in "abc" for row in curve_rows(name, 3)]
    store.append(CURVES, [row for row in every_fourth if (row["cell_id"], row["update"]) != ("b", 4)])
    assert store.finished_cell_ids() == {"a", "c"}


def test_a_tilde_that_the_shell_leaves_alone_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    TableStore("~/results").create()
    assert (tmp_path / "results" / CURVES).is_dir()
    assert has_tables("~/results")
    assert local_folder("~/results") == tmp_path / "results"


@pytest.mark.parametrize("status", ["banana", None])
def test_a_cell_of_no_known_status_is_not_finished(store, status):
    append_cells(store, cell_row("a", status))
    assert store.finished_cell_ids() == set()


def test_a_row_that_does_not_fit_fails_alone(store):
    failed = store.append(
        EPISODES_TO_MEMORIZE, [cell_row("a", N=2**63), cell_row("b", N=4), cell_row("c", error="\udcff")]
    )
    rows = store.read(EPISODES_TO_MEMORIZE, ["cell_id", "N", "status", "error"]).to_pylist()
    assert rows == [
        {"cell_id": "a", "N": None, "status": "failed", "error": "the table can't hold N='9223372036854775808'"},
        {"cell_id": "b", "N": 4, "status": "memorized", "error": None},
        {"cell_id": "c", "N": None, "status": "failed", "error": "the table can't hold error='\\udcff'"},
    ]
    assert [row["cell_id"] for row in failed] == ["a", "c"]


def test_a_row_without_its_key_is_refused(store):
    with pytest.raises(ValueError, match="must have their agent"):
        store.append(EPISODES_TO_MEMORIZE, [cell_row("a", agent=None)])
    assert store.read(EPISODES_TO_MEMORIZE).num_rows == 0


def test_a_cell_that_failed_and_then_finished_is_finished_and_counts_once(store, tmp_path):
    store.append(EPISODES_TO_MEMORIZE, [cell_row("a", "failed")])
    again = TableStore(str(tmp_path))
    append_cells(again, cell_row("a", "memorized"))
    assert again.read(EPISODES_TO_MEMORIZE, ["status"]).to_pylist() == [{"status": "memorized"}]
    assert again.finished_cell_ids() == {"a"}


def test_dropped_cells_leave_both_tables_but_baselines_stay(store, tmp_path):
    store.append(EPISODES_TO_MEMORIZE, [cell_row("a", "failed"), cell_row("b"), cell_row("a", agent="optimal")])
    store.append(CURVES, curve_rows("a", 3) + curve_rows("b", 2))
    TableStore(str(tmp_path)).drop_cells(["a", "not there"])
    left = pd.read_parquet(tmp_path / EPISODES_TO_MEMORIZE)
    assert list(zip(left["cell_id"], left["agent"], strict=True)) == [("a", "optimal"), ("b", "lora")]
    assert pd.read_parquet(tmp_path / CURVES)["cell_id"].tolist() == ["b", "b"]


def test_an_address_without_tables_reads_as_empty(tmp_path):
    store = TableStore(str(tmp_path / "nothing"))
    assert store.finished_cell_ids() == set()
    assert store.read(CURVES).schema.names == CURVES_SCHEMA.names


def test_a_run_leaves_few_parts_however_often_it_appends(store, tmp_path):
    for i in range(40):
        store.append(CURVES, curve_table(f"cell{i:02d}", 4096))
    assert len(list_parts(tmp_path, CURVES)) == math.ceil(40 * 4096 / PART_ROWS)
    assert pd.read_parquet(tmp_path / CURVES).groupby("cell_id").size().eq(4096).all()


def test_rows_that_would_overflow_a_part_go_into_the_next_together(store, tmp_path):
    for cell_id, num_updates in (("a", PART_ROWS - 2), ("b", 5), ("c", 2 * PART_ROWS), ("d", 1)):
        store.append(CURVES, curve_table(cell_id, num_updates))
    sizes = [pq.read_metadata(tmp_path / CURVES / part).num_rows for part in list_parts(tmp_path, CURVES)]
    assert sizes == [PART_ROWS - 2, 5, 2 * PART_ROWS, 1]
    assert store.read(CURVES)["update"].to_pylist()[-3:] == [2 * PART_ROWS - 2, 2 * PART_ROWS - 1, 0]


def test_a_second_run_leaves_the_first_ones_rows(store, tmp_path):
    append_cells(store, cell_row("a"))
    second = TableStore(str(tmp_path))
    second.create()
    append_cells(second, cell_row("b"))
    assert sorted(pd.read_parquet(tmp_path / EPISODES_TO_MEMORIZE)["cell_id"]) == ["a", "b"]
    assert second.finished_cell_ids() == {"a", "b"}


def test_compaction_merges_many_small_parts_and_keeps_the_newest_rows(tmp_path):
    for run in range(MOST_SMALL_PARTS + 1):
        store = TableStore(str(tmp_path))
        store.create()
        store.append(EPISODES_TO_MEMORIZE, [cell_row("shared", e50=run), cell_row(f"own{run:02d}", e50=run)])
    before = len(list_parts(tmp_path, EPISODES_TO_MEMORIZE))
    store.compact()
    assert before > len(list_parts(tmp_path, EPISODES_TO_MEMORIZE)) == 1
    frame = pd.read_parquet(tmp_path / EPISODES_TO_MEMORIZE).set_index("cell_id")["e50"]
    assert len(frame) == MOST_SMALL_PARTS + 2
    assert frame["shared"] == MOST_SMALL_PARTS
    store.append(EPISODES_TO_MEMORIZE, [cell_row("later")])
    assert len(pd.read_parquet(tmp_path / EPISODES_TO_MEMORIZE)) == MOST_SMALL_PARTS + 3


def test_few_parts_are_left_as_they_are(store, tmp_path):
    store.append(EPISODES_TO_MEMORIZE, [cell_row("a")])
    before = list_parts(tmp_path, EPISODES_TO_MEMORIZE)
    store.compact()
    assert list_parts(tmp_path, EPISODES_TO_MEMORIZE) == before


def test_pandas_reads_whole_files_at_any_moment_of_a_run(store, tmp_path):
    ended = threading.Event()

    def write() -> None:
        try:
            for i in range(60):
                store.append(CURVES, curve_table(f"cell{i:02d}", 3000))
        finally:
            ended.set()

    def watch() -> list[int]:
        sizes = []
        while not ended.is_set():
            frame = pd.read_parquet(tmp_path / CURVES)
            assert not frame.duplicated(["cell_id", "update"]).any()
            assert frame.groupby("cell_id").size().eq(3000).all()
            sizes.append(len(frame))
        return sizes

    with ThreadPoolExecutor(2) as pool:
        writing, watching = pool.submit(write), pool.submit(watch)
        writing.result()
        sizes = watching.result()
    assert sizes == sorted(sizes)
    assert len(pd.read_parquet(tmp_path / CURVES)) == 60 * 3000


def test_our_reader_survives_compactions_without_losing_or_doubling_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "MOST_SMALL_PARTS", 1)
    TableStore(str(tmp_path)).create()
    ended = threading.Event()

    def write() -> None:
        try:
            for i in range(40):
                store = TableStore(str(tmp_path))
                append_cells(store, cell_row(f"cell{i:02d}"))
                store.compact()
        finally:
            ended.set()

    def watch() -> list[int]:
        sizes = []
        while not ended.is_set():
            ids = TableStore(str(tmp_path)).read(EPISODES_TO_MEMORIZE, ["cell_id"])["cell_id"].to_pylist()
            assert len(ids) == len(set(ids))
            sizes.append(len(ids))
        return sizes

    with ThreadPoolExecutor(2) as pool:
        writing, watching = pool.submit(write), pool.submit(watch)
        writing.result()
        sizes = watching.result()
    assert sizes == sorted(sizes)
    assert len(TableStore(str(tmp_path)).finished_cell_ids()) == 40


def test_half_written_files_are_not_read(store, tmp_path):
    append_cells(store, cell_row("a"))
    (tmp_path / EPISODES_TO_MEMORIZE / ".part-x.parquet.tmp").write_bytes(b"PAR1 half a file")
    assert len(pd.read_parquet(tmp_path / EPISODES_TO_MEMORIZE)) == 1
    assert store.finished_cell_ids() == {"a"}


def test_a_place_that_can_not_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="results must be a writable address"):
        TableStore(str(tmp_path / "file" / "results")).create()


def test_a_table_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / CURVES).write_text("")
    store = TableStore(str(tmp_path))
    with pytest.raises(ValueError, match="results must be a writable address"), store.open_for_writing():
        pass
    with pytest.raises(ValueError, match="results must be readable"):
        store.read(CURVES)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="results must be a folder or an address such as s3://"):
        TableStore("gopher://bucket/folder")


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_any_fsspec_address_holds_tables(tmp_path, scheme):
    address = f"{scheme}://{tmp_path}/sweep"
    store = TableStore(address)
    store.create()
    with store.open_for_writing():
        store.append(EPISODES_TO_MEMORIZE, [cell_row("a"), cell_row("b", "failed")])
        store.append(CURVES, curve_rows("a", 5))
    assert TableStore(address).finished_cell_ids() == {"a"}
    assert TableStore(address).read(CURVES)["update"].to_pylist() == [0, 1, 2, 3, 4]
    assert pd.read_parquet(store.table_address(CURVES))["episodes"].tolist() == [0, 32, 64, 96, 128]


def test_equal_rows_make_equal_files_but_for_their_names(tmp_path):
    files = []
    for name in ("first", "second"):
        store = TableStore(str(tmp_path / name))
        store.create()
        for cell_id in ("b", "a") if name == "first" else ("a", "b"):
            store.append(CURVES, curve_rows(cell_id, 3, absorbed_bits=0.1))
        (part,) = list_parts(tmp_path / name, CURVES)
        files.append((tmp_path / name / CURVES / part).read_bytes())
    assert files[0] == files[1]
