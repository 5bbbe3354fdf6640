"""Results made fit to be committed."""

from pathlib import Path

import pytest
from simulated_sweep import SMALL_GRID, write_sweep

from memrl.report import main
from memrl.tables.publish import publish_tables
from memrl.tables.schema import SCHEMAS
from memrl.tables.store import TableStore


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(str(folder), **SMALL_GRID)
    return TableStore(str(folder))


def test_each_table_becomes_one_part_of_the_same_rows_in_place_of_what_was_there(sweep, tmp_path):
    before = TableStore(str(tmp_path))
    before.create()
    publish_tables(sweep, str(tmp_path))
    published = TableStore(str(tmp_path))
    for table in SCHEMAS:
        assert published.read(table).to_pandas().equals(sweep.read(table).to_pandas())
        assert [Path(part).name for part in published.list_parts(table)] == ["part-published.parquet"]


def test_tables_are_published_in_their_own_place(sweep, tmp_path):
    publish_tables(sweep, str(tmp_path))
    first = [Path(part).read_bytes() for table in SCHEMAS for part in TableStore(str(tmp_path)).list_parts(table)]
    publish_tables(TableStore(str(tmp_path)), str(tmp_path))
    again = [Path(part).read_bytes() for table in SCHEMAS for part in TableStore(str(tmp_path)).list_parts(table)]
    assert again == first


def test_curves_are_thinned_where_one_asks_for_it_alone(sweep, tmp_path):
    publish_tables(sweep, str(tmp_path), curve_rows=5)
    whole, thin = (store.read("curves").to_pandas() for store in (sweep, TableStore(str(tmp_path))))
    assert thin.groupby("cell_id").size().max() == 5
    for end in (0, -1):
        of_thin, of_whole = (rows.groupby("cell_id").nth(end).reset_index(drop=True) for rows in (thin, whole))
        assert of_thin.equals(of_whole)
    with pytest.raises(ValueError, match="curve_rows must be at least 2, got 1"):
        publish_tables(sweep, str(tmp_path), curve_rows=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grid=a,b", "publish=c"], "error: publish takes one sweep, got grid=a,b\n"),
        (["grid=a", "curve_rows=9"], "error: curve_rows needs publish, got curve_rows=9 alone\n"),
    ],
)
def test_what_can_not_be_published_is_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert capsys.readouterr().err == message
