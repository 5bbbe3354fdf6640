"""memrl.load and memrl.estimate: results in Python."""

import shutil

import numpy as np
import pandas as pd
import pytest
from simulated_sweep import SMALL_GRID, write_sweep

import memrl
from memrl.analysis.summary import summarize_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(str(folder), **(SMALL_GRID | {"max_episodes": 120}))
    return str(folder)


@pytest.fixture(scope="module")
def results(sweep):
    return memrl.load(sweep)


def test_frames_hold_the_tables_with_integers_as_integers(results):
    cells, curves, agents = results
    assert len(cells) == 385
    assert len(curves) > 2000
    assert set(agents["agent"]) == {"optimal", "uniform"}
    assert set(cells["agent"]) == {"lora"}
    for name in ("N", "seed", "lora_rank", "n_steps", "batch_size"):
        assert cells[name].dtype == np.int64, name
    assert cells["e50"].dtype == pd.Int64Dtype()
    assert isinstance(cells["created"].dtype, pd.DatetimeTZDtype)


def test_a_run_that_never_got_there_has_no_number_of_episodes(results):
    cells = results.cells[results.cells["status"] != "failed"]
    censored = cells["e50_censored"].astype(bool)
    assert 0 < censored.sum() < len(cells)
    assert cells.loc[censored, "e50"].isna().all()
    assert cells.loc[~censored, "e50"].notna().all()


def test_estimates_are_those_of_the_report(sweep, results):
    ours, reported = memrl.estimate(results.cells), summarize_sweep(sweep).estimates
    reported = reported[reported["agent"] == "lora"].sort_values(["N", "e50", "e90"])
    ours = ours.sort_values(["N", "e50", "e90"])
    for name in ("num_cells", "e50", "e50_lower", "e50_upper", "e90", "bits_per_episode"):
        np.testing.assert_array_equal(ours[name], reported[name])


def test_estimates_of_agents_need_no_columns_of_a_network(results):
    found = memrl.estimate(results.agents, by=["agent", "N"]).set_index(["agent", "N"])
    assert (found["num_cells"] == 200).all()
    assert found.loc[("optimal", 64), "e50"] == pytest.approx(32, abs=6)


def test_files_as_pandas_reads_them_do_too(sweep, results):
    raw = pd.read_parquet(f"{sweep}/episodes_to_memorize")
    assert isinstance(raw["channel"].dtype, pd.CategoricalDtype)
    pd.testing.assert_frame_equal(memrl.estimate(raw), memrl.estimate(results.cells), check_dtype=False)


def test_a_grid_that_was_not_run_gives_its_reference(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="got none in results/tiny or sweeps/reference/tiny"):
        memrl.load("tiny")
    shutil.copytree(sweep, tmp_path / "sweeps" / "reference" / "tiny")
    assert len(memrl.load("tiny").cells) == 385


def test_what_the_package_does_not_have_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        memrl.lod  # noqa: B018
    assert set(memrl.__all__) <= set(dir(memrl))


def test_the_reference_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(memrl.load("published").cells)
    with pytest.raises(ValueError, match="; did you mean 'published'"):
        memrl.load("publishd")


def test_what_is_no_table_of_cells_is_refused_with_what_is_missing(results):
    cells, curves, _ = results
    with pytest.raises(
        ValueError, match="cells must be rows of the table episodes_to_memorize or agents, got a frame wi"
    ):
        memrl.estimate(curves)
    with pytest.raises(ValueError, match="cells must hold a run that was measured, got 0 rows"):
        memrl.estimate(cells.head(0))
    with pytest.raises(ValueError, match="by must name columns of cells, got 'chanel'; did you mean 'channel'"):
        memrl.estimate(cells, by=["chanel"])
