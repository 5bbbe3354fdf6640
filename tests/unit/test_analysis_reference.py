"""A sweep beside the reference: which medians agree, and that those which do not are named."""

import numpy as np
import pytest
from simulated_sweep import simulate_sweep

from memrl.analysis.cells import measured_cells
from memrl.analysis.reference import compare_medians, compare_with_reference
from memrl.config import TrainConfig
from memrl.sweep.console import SteadyConsole
from memrl.sweep.execution import Execution
from memrl.sweep.sweep import Sweep
from memrl.tables.schema import CURVES, EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

GRID = {"Ns": (16, 64), "processes": ("sft", "binary", "per_bit"), "ranks": (1, 8), "rates": (1e-3, 3e-3)}


@pytest.fixture(scope="module")
def tables():
    return simulate_sweep(**GRID)


@pytest.fixture(scope="module")
def cells(tables):
    return measured_cells(tables[0].to_pandas())


def slow_down(cells, channel, N, factor):
    """The cells, where one condition takes `factor` times the episodes."""
    slow = ((cells["channel"] == channel) & (cells["N"] == N)).to_numpy()
    scale = np.where(slow, factor, 1.0)
    return cells.assign(**{name: cells[name] * scale for name in ("e50", "e90", "episodes")})


def test_the_same_cells_agree_everywhere(cells):
    compared = compare_medians(cells, cells)
    assert compared["overlap"].tolist() == [True] * 6
    assert (compared["e50"] == compared["e50_other"]).all()


def test_other_secrets_of_the_same_process_agree(cells):
    halves = [cells[(cells["seed"] // 2 % 2 == half).to_numpy()].reset_index(drop=True) for half in (0, 1)]
    compared = compare_medians(*halves)
    assert compared["overlap"].all()
    assert (compared["e50"] != compared["e50_other"]).any()


def test_a_condition_that_takes_longer_is_found(cells):
    compared = compare_medians(slow_down(cells, "per_bit", 64, 3.0), cells)
    (row,) = compared[~compared["overlap"]].to_dict("records")
    assert (row["channel"], row["N"]) == ("per bit", 64)
    assert row["e50"] == pytest.approx(3 * row["e50_other"])
    assert row["e50_lower"] > row["e50_other_upper"]


def test_a_condition_that_never_arrives_does_not_agree(cells):
    per_bit = (cells["channel"] == "per_bit").to_numpy()
    stuck = cells.assign(e50_censored=cells["e50_censored"] | per_bit, e90_censored=cells["e90_censored"] | per_bit)
    compared = compare_medians(stuck, cells)
    assert compared.loc[~compared["overlap"], "channel"].tolist() == ["per bit"] * 2


def test_settings_are_chosen_from_those_that_both_tried(cells):
    # At 1e-3 alone everything takes longer than at the best rate: that must not count against the reproduction.
    part = cells[(cells["learning_rate"] == 1e-3).to_numpy() & (cells["N"] == 64).to_numpy()].reset_index(drop=True)
    compared = compare_medians(part, cells)
    assert len(compared) == 3
    assert compared["overlap"].all()
    assert (compared["e50"] == compared["e50_other"]).all()


def write(folder, cells, curves):
    store = TableStore(str(folder))
    store.create()
    store.append(EPISODES_TO_MEMORIZE, cells)
    store.append(CURVES, curves)
    return store


def test_lines_name_what_does_not_agree(tables, tmp_path):
    table, curves = tables
    changed = table.to_pandas()
    slow = ((changed["channel"] == "per_bit") & (changed["N"] == 64)).to_numpy()
    for name in ("e50", "e90", "episodes"):
        changed[name] = changed[name].mask(slow, 3 * changed[name])
    reference = write(tmp_path / "reference", table, curves)
    own = write(tmp_path / "own", table.from_pandas(changed, schema=table.schema, preserve_index=False), curves)
    first, second = compare_with_reference(own, reference)
    assert first == (
        f"reference ({tmp_path / 'reference'}): the 95 % intervals of E50 overlap in 5 of 6 conditions (channel and N)"
    )
    assert second.startswith("they do not overlap at per bit, N = 64 (")
    assert second.count(" here, ") == 1
    only = compare_with_reference(reference, reference)
    assert len(only) == 1
    assert "6 of 6" in only[0]


def test_other_settings_can_not_be_compared(tables, tmp_path):
    other, curves = simulate_sweep(Ns=(32,), processes=("binary",), ranks=(1,), rates=(3e-3,))
    own = write(tmp_path / "own", other, curves)
    (line,) = compare_with_reference(own, write(tmp_path / "reference", *tables))
    assert line.endswith("it holds none of these settings")


def test_a_launch_ends_with_the_comparison_and_the_reference_with_none(tables, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = {row["cell_id"]: TrainConfig() for row in tables[0].select(["cell_id"]).to_pylist()}
    folders = ("results/tiny", "sweeps/reference/tiny")
    for store in [write(folder, *tables) for folder in folders]:
        assert Sweep("tiny", cells, Execution(), store, command="", console=SteadyConsole(width=200)).finish()
    own, reference = capsys.readouterr().out.split("tiny: all 384 cells were finished already")[1:]
    assert own.splitlines()[-1].startswith("reference (sweeps/reference/tiny): ")
    assert "overlap in 6 of 6 conditions" in own.splitlines()[-1]
    assert "reference (" not in reference
