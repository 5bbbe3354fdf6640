"""Every committed result, sweeps/reference/*: small, whole, and good for a page."""

from pathlib import Path

import pytest

from memrl.analysis.figure_data import collect_figures
from memrl.analysis.page import render_page, write_page
from memrl.analysis.summary import summarize_sweep
from memrl.sweep.grid import list_grids
from memrl.tables.schema import SCHEMAS
from memrl.tables.store import TableStore

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
FOLDERS = sorted(path for path in (SWEEPS / "reference").iterdir() if path.is_dir())

pytestmark = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)


def test_it_is_a_grid_s_and_has_each_table_as_one_small_file(folder):
    assert folder.name in list_grids(SWEEPS / "grids")
    for table in SCHEMAS:
        (part,) = TableStore(str(folder)).list_parts(table)
        assert Path(part).stat().st_size < 8e6, "publish it with curve_rows=COUNT"


def test_its_page_can_be_written_again(folder):
    summary = summarize_sweep(str(folder))
    figures = collect_figures(summary)
    page = render_page(summary, figures, dict.fromkeys(figures, ()), folder.name, ["launch", "report"], "")
    assert f"{summary.num_finished:,}" in page
    for verdict in summary.verdicts:
        assert verdict.name in page


@pytest.mark.slow
def test_its_page_can_be_drawn_again(folder, tmp_path):
    summary = summarize_sweep(str(folder))
    write_page(summary, collect_figures(summary), folder.name, tmp_path, ["launch", "report"])
    drawn = {path.name for path in (tmp_path / "figures").glob("*.svg")}
    assert {path.name for path in (folder / "figures").glob("*.svg")} <= drawn
