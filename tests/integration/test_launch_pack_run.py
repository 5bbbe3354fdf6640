"""A pack's run as its trial sees it, with the real learner: whole cells, the same rows again, failures kept inside."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from memrl.config import TrainConfig
from memrl.sweep.pack_run import PackRun, Parcel
from memrl.tables.schema import CURVES, EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

TIMES = ["seconds", "created"]
CELLS = [
    TrainConfig(N=8, algorithm="sft", learning_rate=1e-2),
    TrainConfig(N=8, learning_rate=1e-2, n_steps=4),
    TrainConfig(N=8, learning_rate=3e-3, n_steps=7, lora_rank=2, seed=1),
    TrainConfig(N=8, env_type="multi_step", reward_type="per_bit", n_steps=5, seed=2),
]


def run_to_the_end(run: PackRun, seconds: float = 0.0) -> list[Parcel]:
    parcels = [run.advance(seconds)]
    while not run.finished:
        parcels.append(run.advance(seconds))
    return parcels


def test_a_parcel_holds_whole_cells_and_every_cell_comes_once():
    run = PackRun(CELLS)
    ended: dict[str, int] = {}
    for parcel in run_to_the_end(run):
        ids = [row["cell_id"] for row in parcel.rows]
        assert not set(ids) & set(ended)
        assert set(parcel.curves["cell_id"].to_pylist()) == set(ids)
        for row in parcel.rows:
            updates = parcel.curves.filter(pa.compute.equal(parcel.curves["cell_id"], row["cell_id"]))["update"]
            assert sorted(updates.to_pylist()) == list(range(row["updates"] + 1))
            ended[row["cell_id"]] = row["episodes"]
    assert set(ended) == {cell.cell_id for cell in CELLS}
    assert run.live == 0
    assert run.episodes == sum(ended.values())


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_the_same_pack_leaves_the_same_tables_but_for_times(tmp_path, seconds):
    tables = []
    for name, slices in (("first", 60.0), ("second", seconds)):
        store = TableStore(str(tmp_path / name))
        store.create()
        for parcel in run_to_the_end(PackRun(CELLS), slices):
            store.append(CURVES, parcel.curves)
            store.append(EPISODES_TO_MEMORIZE, parcel.rows)
        tables.append([pd.read_parquet(tmp_path / name / table) for table in (EPISODES_TO_MEMORIZE, CURVES)])
    (cells, curves), (cells_again, curves_again) = tables
    pd.testing.assert_frame_equal(cells.drop(columns=TIMES), cells_again.drop(columns=TIMES), check_exact=True)
    pd.testing.assert_frame_equal(curves, curves_again, check_exact=True)
    assert len(cells) == len(CELLS)


def test_a_model_that_can_not_be_read_fails_every_cell_of_its_pack(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    cells = [TrainConfig(N=8, seed=seed, model=str(tmp_path)) for seed in range(3)]
    run = PackRun(cells)
    assert run.finished
    parcel = run.advance(1.0)
    assert [row["cell_id"] for row in parcel.rows] == [cell.cell_id for cell in cells]
    assert all(row["status"] == "failed" and row["error"] and "\n" not in row["error"] for row in parcel.rows)


def test_a_cell_that_can_not_start_leaves_its_neighbours_alone():
    broken = TrainConfig(N=9, learning_rate=1e-2)  # no prompt that the embedded model is calibrated for
    rows = [row for parcel in run_to_the_end(PackRun([broken, CELLS[0]])) for row in parcel.rows]
    statuses = {row["cell_id"]: row["status"] for row in rows}
    assert statuses == {broken.cell_id: "failed", CELLS[0].cell_id: "memorized"}


def test_an_error_in_the_middle_fails_what_is_left_and_keeps_what_has_ended(monkeypatch):
    module: Any = ModuleType("fragile_rewards")
    module.broken = False

    def reward(guess: np.ndarray, secret: np.ndarray, N: int) -> np.ndarray:
        if module.broken:
            raise RuntimeError("the reward service is gone")
        return (guess == secret).astype(float)

    module.reward = reward
    monkeypatch.setitem(sys.modules, "fragile_rewards", module)
    fragile = TrainConfig(N=8, reward_type="fragile_rewards:reward", learning_rate=1e-9, n_steps=1000)
    run = PackRun([fragile, CELLS[0]])
    parcels = []
    while run.live == 2:
        parcels.append(run.advance(0.0))
    module.broken = True
    parcels += run_to_the_end(run)
    rows = {row["cell_id"]: row for parcel in parcels for row in parcel.rows}
    assert rows[CELLS[0].cell_id]["status"] == "memorized"
    failed = rows[fragile.cell_id]
    assert failed["status"] == "failed"
    assert failed["error"].startswith("RuntimeError: the reward service is gone (")
