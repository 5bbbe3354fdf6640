"""What a reader and a writer make of parts that are torn, changed, foreign, older, or left by a killed writer."""

import os
import random
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from memrl.errors import WriteError
from memrl.tables import files
from memrl.tables.parts import SCHEMA_VERSION, DamagedPartError, decode_part, encode_part
from memrl.tables.schema import (
    AGENTS,
    CURVES,
    CURVES_SCHEMA,
    EPISODES_TO_MEMORIZE,
    EPISODES_TO_MEMORIZE_SCHEMA,
    SCHEMAS,
    TIME,
)
from memrl.tables.store import TableStore
from memrl.task.reach import MILESTONES


def rows_of(table: str, num_rows: int = 40) -> pa.Table:
    """Rows with something in every column."""
    generator = random.Random(table)
    makers = {
        pa.string(): lambda: f"text {generator.random()}",
        pa.bool_(): lambda: generator.random() < 0.5,
        pa.int32(): lambda: generator.randrange(1000),
        pa.int64(): lambda: generator.randrange(1 << 40),
        pa.float32(): generator.random,
        pa.float64(): generator.random,
        TIME: lambda: datetime.fromtimestamp(generator.randrange(1 << 31), UTC),
    }
    columns = {field.name: [makers[field.type]() for _ in range(num_rows)] for field in SCHEMAS[table]}
    columns["cell_id"] = [f"cell{i:02d}" for i in range(num_rows)]
    if table != CURVES:
        columns |= {"agent": ["lora"] * num_rows, "status": ["memorized"] * num_rows, "updates": [0] * num_rows}
        columns |= {f"{name}_censored": [False] * num_rows for name in MILESTONES}
    return pa.table(columns, schema=SCHEMAS[table])


@pytest.fixture
def store(tmp_path) -> TableStore:
    """Forty finished cells in one part a table."""
    store = TableStore(str(tmp_path))
    for table in SCHEMAS:
        store.append(table, rows_of(table))
    assert len(store.finished_cell_ids()) == 40
    return store


def only_part(folder: Path, table: str) -> Path:
    (part,) = (folder / table).glob("*.parquet")
    return part


@pytest.mark.parametrize("table", list(SCHEMAS))
def test_a_part_gives_back_what_was_written(table):
    rows = rows_of(table)
    assert decode_part("part", table, encode_part(rows)).equals(rows)


@pytest.mark.parametrize("table", list(SCHEMAS))
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_noticed(table, data):
    content = bytearray(encode_part(rows_of(table)))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DamagedPartError, match="some/part"):
        decode_part("some/part", table, bytes(content))


def test_a_flipped_bit_in_the_last_bytes_is_noticed():
    # Where the checksum and the version are themselves.
    whole = encode_part(rows_of(CURVES))
    for position in range(len(whole) - 250, len(whole)):
        content = bytearray(whole)
        content[position] ^= 1
        with pytest.raises(DamagedPartError):
            decode_part("part", CURVES, bytes(content))


@pytest.mark.parametrize("table", list(SCHEMAS))
@given(data=st.data())
def test_a_torn_part_is_noticed(table, data):
    content = encode_part(rows_of(table))
    with pytest.raises(DamagedPartError):
        decode_part("part", table, content[: data.draw(st.integers(0, len(content) - 1))])


@given(st.binary(max_size=300), st.sampled_from(list(SCHEMAS)))
def test_any_other_bytes_are_noticed(content, table):
    for foreign in (content, b"PAR1" + content + b"PAR1"):
        with pytest.raises(DamagedPartError):
            decode_part("part", table, foreign)


def test_pages_carry_checksums_for_other_readers(store, tmp_path):
    part = only_part(tmp_path, CURVES)
    content = bytearray(part.read_bytes())
    content[60] ^= 1
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(pa.BufferReader(bytes(content)), page_checksum_verification=True).read()


def damage(part: Path, how: str) -> None:
    content = part.read_bytes()
    rows = pq.read_table(part)
    table = part.parent.name
    other = rows_of(next(name for name in SCHEMAS if name != table))
    number = "update" if table == CURVES else "seed"
    index = rows.column_names.index(number)
    foreign = {
        "other table": other,
        "other columns": pa.table({"x": [1, 2]}),
        "text in a column of numbers": rows.set_column(index, number, pa.array(["many"] * len(rows))),
        "digits in a column of numbers": rows.set_column(index, number, pa.array(["1"] * len(rows))),
        "a null key": rows.set_column(0, "cell_id", pa.array([None] * len(rows), pa.string())),
        "a column twice": pa.table([*rows.columns, rows["cell_id"]], names=[*rows.column_names, "cell_id"]),
    }
    if how in foreign:
        pq.write_table(foreign[how], part)
    else:
        part.write_bytes({"torn": content[:-100], "empty": b"", "text": b"cell_id,agent\n"}[how])


HOW = [
    *("torn", "empty", "text", "other table", "other columns", "text in a column of numbers"),
    *("digits in a column of numbers", "a null key", "a column twice"),
]


@pytest.mark.parametrize("table", list(SCHEMAS))
@pytest.mark.parametrize("how", HOW)
def test_a_writer_sets_a_damaged_part_aside_and_names_it_and_its_cells_run_again(store, tmp_path, table, how):
    part = only_part(tmp_path, table)
    damage(part, how)
    content = part.read_bytes()
    with pytest.raises(DamagedPartError, match=part.name):
        TableStore(str(tmp_path)).read(table)
    writer = TableStore(str(tmp_path))
    with writer.open_for_writing():
        assert len(writer.finished_cell_ids()) == (40 if table == AGENTS else 0)
        (line,) = writer.damaged
    assert str(part) in line
    assert "\n" not in line
    (aside,) = (tmp_path / "damaged").rglob("*.parquet")
    assert aside.read_bytes() == content
    assert str(aside) in line
    assert not part.exists()
    again = TableStore(str(tmp_path))
    with again.open_for_writing():
        assert again.damaged == []


def test_a_part_that_is_damaged_while_a_sweep_runs_is_set_aside_too(store, tmp_path):
    writer = TableStore(str(tmp_path))
    with writer.open_for_writing():
        only_part(tmp_path, CURVES).write_bytes(b"")
        assert writer.read(CURVES).num_rows == 0
        assert len(writer.damaged) == 1


@pytest.mark.parametrize("missing", ["revision", "identifiable", "absorbed_bits", "seed"])
def test_a_part_of_an_earlier_version_reads_with_nulls_and_is_brought_up_by_the_next_writer(tmp_path, missing):
    folder = tmp_path / EPISODES_TO_MEMORIZE
    folder.mkdir()
    rows = rows_of(EPISODES_TO_MEMORIZE)
    pq.write_table(rows.drop_columns([missing]), folder / "part-0.parquet")
    store = TableStore(str(tmp_path))
    assert store.read(EPISODES_TO_MEMORIZE, [missing])[missing].null_count == rows.num_rows
    assert store.read(EPISODES_TO_MEMORIZE).drop_columns([missing]).equals(rows.drop_columns([missing]))
    with store.open_for_writing():
        assert store.damaged == []
    assert list(pd.read_parquet(folder).columns) == EPISODES_TO_MEMORIZE_SCHEMA.names
    assert pq.read_metadata(folder / "part-0.parquet").metadata[b"memrl.schema_version"] == b"%d" % SCHEMA_VERSION


def test_a_column_that_nobody_knows_is_read_past_and_stays(tmp_path):
    folder = tmp_path / CURVES
    folder.mkdir()
    rows = rows_of(CURVES)
    pq.write_table(rows.append_column("reward_variance", pa.array([0.5] * rows.num_rows)), folder / "part-0.parquet")
    store = TableStore(str(tmp_path))
    assert store.read(CURVES).equals(rows)
    with store.open_for_writing():
        store.drop_cells(["cell00"])
        assert store.damaged == []
    assert pq.read_table(folder / "part-0.parquet")["reward_variance"].to_pylist() == [0.5] * (rows.num_rows - 1)


TYPES = st.sampled_from(
    [
        *(pa.null(), pa.bool_(), pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float64(), pa.string()),
        *(pa.binary(), pa.large_string(), pa.date32(), pa.timestamp("ns", tz="UTC"), pa.decimal128(30, 2)),
        *(pa.list_(pa.int32()), pa.struct([pa.field("x", pa.int8())]), pa.dictionary(pa.int8(), pa.string())),
    ]
)


@st.composite
def foreign_tables(draw) -> tuple[str, pa.Table]:
    """A parquet file that somebody else may put among the parts: some of our columns, of any types."""
    table = draw(st.sampled_from(list(SCHEMAS)))
    names = draw(st.lists(st.sampled_from([*SCHEMAS[table].names, "more", ""]), max_size=6))
    keys = [name for name in ("cell_id", "agent", "update") if name in SCHEMAS[table].names and draw(st.booleans())]
    num_rows = draw(st.integers(0, 3))
    columns = []
    for name in (names := [*names, *keys]):
        type_ = SCHEMAS[table].field(name).type if name in keys else draw(TYPES)
        filled = draw(st.booleans()) and type_ in (pa.int32(), pa.int64(), pa.float64(), pa.string())
        columns.append(
            pa.array([1 if type_ != pa.string() else "1"] * num_rows, type_) if filled else pa.nulls(num_rows, type_)
        )
    return table, pa.Table.from_arrays(columns, names=names)


@given(foreign_tables())
def test_any_parquet_file_gives_the_declared_columns_or_is_noticed(foreign):
    table, rows = foreign
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    try:
        decoded = decode_part("part", table, sink.getvalue().to_pybytes())
    except DamagedPartError as error:
        assert_one_line(error)
    else:
        assert decoded.schema.field("cell_id").type == pa.string()
        assert decoded.select(SCHEMAS[table].names).schema.equals(SCHEMAS[table])
        # Rows of agents that stand among trained cells, as in files without a version, are left out.
        assert decoded.num_rows == (0 if table == EPISODES_TO_MEMORIZE else rows.num_rows)


def assert_one_line(error: Exception) -> None:
    assert "\n" not in str(error)


def test_columns_that_nobody_knows_may_differ_from_part_to_part(store, tmp_path):
    rows = rows_of(CURVES).slice(0, 2)
    for i, values in enumerate(([1, 2], ["a", "b"])):
        pq.write_table(rows.append_column("more", pa.array(values)), tmp_path / CURVES / f"part-{i}.parquet")
    with TableStore(str(tmp_path)).open_for_writing():
        pass
    # The rows were there three times, so that the parts were merged.
    assert pd.read_parquet(tmp_path / CURVES)["cell_id"].is_unique


def test_numbers_of_another_width_and_dictionaries_are_read_as_they_are_declared(tmp_path):
    rows = rows_of(CURVES)
    wide = rows.set_column(1, "update", rows["update"].cast(pa.int64()))
    wide = wide.set_column(0, "cell_id", wide["cell_id"].combine_chunks().dictionary_encode())
    (tmp_path / CURVES).mkdir()
    pq.write_table(wide, tmp_path / CURVES / "part-0.parquet")
    assert TableStore(str(tmp_path)).read(CURVES).equals(rows)


def test_a_part_of_a_later_version_is_refused_and_stays(store, tmp_path):
    part = only_part(tmp_path, CURVES)
    with pq.ParquetWriter(part, CURVES_SCHEMA) as writer:
        writer.write_table(rows_of(CURVES))
        writer.add_key_value_metadata({"memrl.schema_version": "99", "memrl.crc32": "crc32=00000000"})
    blank = part.read_bytes()
    before, after = blank.split(b"crc32=00000000")
    part.write_bytes(before + b"crc32=%08x" % zlib.crc32(blank) + after)
    later = TableStore(str(tmp_path))
    with pytest.raises(ValueError, match="schema version 2 at most, got 99"), later.open_for_writing():
        pass
    assert later.damaged == []
    assert part.exists()


def test_a_killed_compaction_leaves_no_row_twice(store, tmp_path):
    part = only_part(tmp_path, CURVES)
    (tmp_path / CURVES / "part-0.parquet").write_bytes(part.read_bytes())
    assert len(pd.read_parquet(tmp_path / CURVES)) == 80
    with TableStore(str(tmp_path)).open_for_writing():
        pass
    assert len(pd.read_parquet(tmp_path / CURVES)) == 40


def test_half_written_files_of_a_killed_writer_go(store, tmp_path):
    left = tmp_path / CURVES / ".part-x.parquet.tmp"
    left.write_bytes(b"PAR1 half a file")
    with TableStore(str(tmp_path)).open_for_writing("some cell"):
        assert left.exists()
    with TableStore(str(tmp_path)).open_for_writing():
        assert not left.exists()


def test_a_folder_that_was_deleted_while_a_sweep_runs_is_made_again(store, tmp_path):
    only_part(tmp_path, CURVES).unlink()
    (tmp_path / CURVES).rmdir()
    store.append(CURVES, rows_of(CURVES).slice(0, 0))
    more = rows_of(CURVES).slice(0, 1).set_column(0, "cell_id", pa.array(["new"]))
    store.append(CURVES, more)
    assert store.read(CURVES).num_rows == 41


def test_a_file_is_forced_to_the_disk_before_its_name_and_its_folder_after(tmp_path, monkeypatch):
    # The order is all that a test can show without cutting the power.

    target, events = tmp_path / "part.parquet", []
    plain = os.fsync

    def watch(descriptor: int) -> None:
        where = os.readlink(f"/proc/self/fd/{descriptor}")
        events.append((Path(where).name, target.exists()))
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    files.replace_file(fs.LocalFileSystem(), str(target), b"content")
    assert events == [(".part.parquet.tmp", False), (tmp_path.name, True)]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):

    target = tmp_path / "part.parquet"
    target.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.replace_file(fs.LocalFileSystem(), str(target), b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["part.parquet"]
    assert target.read_bytes() == b"old"


def test_rows_of_a_failed_write_come_with_the_next(store, tmp_path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    first, second = (rows_of(CURVES).slice(0, 1).set_column(0, "cell_id", pa.array([name])) for name in "ab")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(WriteError, match=r"results must stay writable, got .* \(No space left on device\)"):
            store.append(CURVES, first)
    store.append(CURVES, second)
    assert len(pd.read_parquet(tmp_path / CURVES)) == 42


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/out"])
def test_no_text_is_written_outside_of_the_results(store, name):
    with pytest.raises(ValueError, match="below the results"):
        store.write_text(name, "")
