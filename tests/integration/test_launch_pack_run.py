"""A pack's run as its trial sees it, with the real learner: whole cells, the same rows again, failures kept inside."""

import sys
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from memrl.config import TrainConfig
from memrl.sweep.pack_run import PackRun, load_pack, start_pack
from memrl.sweep.stretch import Stretch
from memrl.tables.schema import CURVES, EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

TIMES = ["seconds", "created"]
CELLS = [
    TrainConfig(N=8, algorithm="sft", learning_rate=1e-2),
    TrainConfig(N=8, learning_rate=1e-2, n_steps=4),
    TrainConfig(N=8, learning_rate=3e-3, n_steps=7, lora_rank=2, seed=1),
    TrainConfig(N=8, env_type="multi_step", reward_type="per_bit", n_steps=5, seed=2),
]


def start_run(cells: list[TrainConfig]) -> PackRun:
    return PackRun.start(cells, partial(start_pack, device="cpu"))


def run_to_the_end(run: PackRun, seconds: float = 0.0) -> list[Stretch]:
    reports = [run.advance(seconds)]
    while not run.finished:
        reports.append(run.advance(seconds))
    return reports


def test_a_report_holds_whole_cells_and_every_cell_comes_once():
    run = start_run(CELLS)
    ended: dict[str, int] = {}
    for report in run_to_the_end(run):
        last = report
        ids = [row["cell_id"] for row in report.rows]
        assert not set(ids) & set(ended)
        assert set(report.curves["cell_id"].to_pylist()) == set(ids)
        for row in report.rows:
            updates = report.curves.filter(pa.compute.equal(report.curves["cell_id"], row["cell_id"]))["update"]
            assert sorted(updates.to_pylist()) == list(range(row["updates"] + 1))
            ended[row["cell_id"]] = row["episodes"]
    assert set(ended) == {cell.cell_id for cell in CELLS}
    assert (last.live, last.episodes) == (0, sum(ended.values()))


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_the_same_pack_leaves_the_same_tables_but_for_times(tmp_path, seconds):
    tables = []
    for name, slices in (("first", 60.0), ("second", seconds)):
        store = TableStore(str(tmp_path / name))
        store.create()
        for report in run_to_the_end(start_run(CELLS), slices):
            store.append(CURVES, report.curves)
            store.append(EPISODES_TO_MEMORIZE, report.rows)
        tables.append([pd.read_parquet(tmp_path / name / table) for table in (EPISODES_TO_MEMORIZE, CURVES)])
    (cells, curves), (cells_again, curves_again) = tables
    pd.testing.assert_frame_equal(cells.drop(columns=TIMES), cells_again.drop(columns=TIMES), check_exact=True)
    pd.testing.assert_frame_equal(curves, curves_again, check_exact=True)
    assert len(cells) == len(CELLS)


def test_a_model_that_can_not_be_read_fails_every_cell_of_its_pack(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    cells = [TrainConfig(N=8, seed=seed, model=str(tmp_path)) for seed in range(3)]
    run = start_run(cells)
    assert run.finished
    report = run.advance(1.0)
    assert [row["cell_id"] for row in report.rows] == [cell.cell_id for cell in cells]
    assert all(row["status"] == "failed" and row["error"] and "\n" not in row["error"] for row in report.rows)


def test_a_cell_that_can_not_start_leaves_its_neighbors_alone():
    broken = TrainConfig(N=9, learning_rate=1e-2)  # no prompt that the embedded model is calibrated for
    rows = [row for report in run_to_the_end(start_run([broken, CELLS[0]])) for row in report.rows]
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
    run = start_run([fragile, CELLS[0]])
    reports = [run.advance(0.0)]
    while reports[-1].live == 2:
        reports.append(run.advance(0.0))
    module.broken = True
    reports += run_to_the_end(run)
    rows = {row["cell_id"]: row for report in reports for row in report.rows}
    assert rows[CELLS[0].cell_id]["status"] == "memorized"
    failed = rows[fragile.cell_id]
    assert failed["status"] == "failed"
    assert failed["error"].startswith("RuntimeError: the reward service is gone (")


def join(stretches: list[Stretch]) -> list[pd.DataFrame]:
    """Rows and curves of some stretches, without times, in one order."""
    rows = pd.DataFrame([row for stretch in stretches for row in stretch.rows]).drop(columns=TIMES)
    curves = pd.concat([stretch.curves.to_pandas() for stretch in stretches])
    return [
        rows.sort_values("cell_id", ignore_index=True),
        curves.sort_values(["cell_id", "update"], ignore_index=True),
    ]


def test_a_run_goes_on_from_its_checkpoint_to_the_same_tables(tmp_path):
    run = start_run(CELLS)
    while run.advance(0.0).live == len(CELLS):
        pass
    run.save(tmp_path)
    run.advance(0.0)
    resumed = run_to_the_end(PackRun.load(tmp_path, load_pack))
    for expected, found in zip(join(run_to_the_end(start_run(CELLS))), join(resumed), strict=True):
        pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)
