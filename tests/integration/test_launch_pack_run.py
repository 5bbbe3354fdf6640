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
from memrl.learning import update as update_module
from memrl.sweep.pack_run import PackRun, load_pack, start_pack
from memrl.sweep.race import Race, list_races
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
    assert failed["error"].startswith("fragile_rewards:reward raised RuntimeError: the reward service is gone (")


def raise_error(guess, secret, N):
    raise RuntimeError("the reward service is gone")


def write_into_arguments(guess, secret, N):
    guess[...] = secret
    return (guess == secret).astype(float)


FAULTS = {
    "raises": (raise_error, "raised RuntimeError: the reward service is gone (test_launch_pack_run.py:"),
    "exits": (lambda guess, secret, N: sys.exit(3), "raised SystemExit: 3 ("),
    "NaN": (lambda guess, secret, N: np.where(guess == secret, 1.0, np.nan), "got NaN or infinity at N=8"),
    "scalar": (lambda guess, secret, N: 1.0, "got shape () for "),
    "one too many": (lambda guess, secret, N: (guess == secret)[..., None], "for ("),
    "no number": (lambda guess, secret, N: "much", "raised ValueError: could not convert string to float"),
    "writes": (write_into_arguments, "raised ValueError: assignment destination is read-only"),
}


@pytest.fixture(scope="module")
def undisturbed() -> list[Stretch]:
    return run_to_the_end(start_run(CELLS))


@pytest.mark.parametrize(
    ("fault", "where"), [*((fault, "reward") for fault in FAULTS), ("raises", "observer"), ("raises", "capacity")]
)
def test_a_reward_that_breaks_in_the_middle_fails_its_cell_alone(monkeypatch, undisturbed, fault, where):
    name = f"fragile_{fault.replace(' ', '_')}_{where}"
    module: Any = ModuleType(name)
    broken, told = FAULTS[fault]
    calls = []

    def reward(guess: np.ndarray, secret: np.ndarray, N: int) -> np.ndarray:
        calls.append((guess, secret))
        # An update calls it for its episodes first, each beside its secret, then for what the observer would know.
        is_paid = guess.shape == secret.shape and len(np.unique(secret)) == 1
        breaks = {"reward": is_paid, "observer": not is_paid, "capacity": N == 8 and guess.ndim == 2}[where]
        if len(calls) > 4 and breaks:
            return broken(guess, secret, N)
        return (guess == secret).astype(float)

    module.reward = reward
    monkeypatch.setitem(sys.modules, name, module)
    fragile = TrainConfig(N=8, reward_type=f"{name}:reward", learning_rate=3e-3, n_steps=3, seed=7)
    stretches = run_to_the_end(start_run([*CELLS[:2], fragile, *CELLS[2:]]))
    rows = {row["cell_id"]: row for stretch in stretches for row in stretch.rows}
    row = rows.pop(fragile.cell_id)
    assert row["status"] == "failed"
    assert row["error"].startswith(f"{name}:reward ")
    assert told in row["error"]
    expected = {row["cell_id"]: row for stretch in undisturbed for row in stretch.rows}
    assert rows.keys() == expected.keys()
    for cell_id, found in rows.items():
        exact = ("status", "e50", "e90", "episodes", "updates", "tokens", "error")
        assert [found[name] for name in exact] == [expected[cell_id][name] for name in exact]
        for name in ("absorbed_bits", "observed_bits"):
            assert found[name] == pytest.approx(expected[cell_id][name], abs=1e-5)


def exhaust_memory_beyond(monkeypatch, num_cells, error):
    """Lets a walk of more cells than this run out of memory."""
    walk = update_module.walk_tries

    def walk_tries(network, forest, num_episodes, *rest):
        if len(num_episodes) > num_cells:
            raise error
        return walk(network, forest, num_episodes, *rest)

    monkeypatch.setattr(update_module, "walk_tries", walk_tries)


OUT_OF_MEMORY = [
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["numpy", "torch"])
def test_where_memory_ends_no_cell_fails_and_parts_of_the_pack_go_on_from_its_checkpoint(
    tmp_path, monkeypatch, undisturbed, error
):
    run = start_run(CELLS)
    first = run.advance(0.0)
    run.save(tmp_path)
    exhaust_memory_beyond(monkeypatch, 2, error)
    stretch = run.advance(0.0)
    assert run.finished
    assert stretch.too_large.startswith(type(error).__name__)
    assert (first.live, stretch.live, stretch.rows) == (4, 4, [])
    parts = []
    for half in (CELLS[:2], CELLS[2:]):
        ids = [cell.cell_id for cell in half]
        part = PackRun.load(tmp_path, partial(load_pack, cell_ids=ids), ids)
        assert part.updates == 1
        parts += run_to_the_end(part)
    assert {row["cell_id"]: row["error"] for part in parts for row in part.rows} == {c.cell_id: None for c in CELLS}
    for expected, found in zip(join(undisturbed), join(parts), strict=True):
        pd.testing.assert_frame_equal(found, expected, check_exact=False, atol=1e-5, rtol=1e-5)


def test_a_cell_alone_that_takes_more_memory_than_there_is_fails(monkeypatch):
    exhaust_memory_beyond(monkeypatch, 0, MemoryError("no more"))
    (stretch,) = run_to_the_end(start_run(CELLS[:1]))
    assert not stretch.too_large
    assert stretch.rows[0]["error"].startswith("MemoryError: no more (")


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["numpy", "torch"])
def test_where_memory_ends_at_the_start_a_cell_that_takes_it_alone_fails_and_others_are_split(error):
    def start_with(most):
        def start(cells):
            if len(cells) > most or any(cell.lora_rank == 2 for cell in cells):
                raise error
            return start_pack(cells, "cpu")

        return start

    (row,) = PackRun.start(CELLS, start_with(3)).end_stretch().rows
    assert (row["lora_rank"], row["status"]) == (2, "failed")
    run = PackRun.start(CELLS, start_with(2))
    stretch = run.advance(0.0)
    assert run.finished
    assert stretch.too_large
    assert [row["lora_rank"] for row in stretch.rows] == [2]


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
    ids = [cell.cell_id for cell in CELLS]
    resumed = run_to_the_end(PackRun.load(tmp_path, partial(load_pack, cell_ids=ids), ids))
    for expected, found in zip(join(run_to_the_end(start_run(CELLS))), join(resumed), strict=True):
        pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)


RACING = [
    TrainConfig(N=8, algorithm="sft", learning_rate=rate, n_steps=100, seed=seed)
    for rate in (1e-4, 1e-2)
    for seed in range(2)
]
ALONGSIDE = TrainConfig(N=8, learning_rate=1e-2, n_steps=20)


def start_race(cells: list[TrainConfig], races: list[Race]) -> PackRun:
    return PackRun.start(cells, partial(start_pack, device="cpu"), races=races)


def test_runs_at_a_rate_that_is_outpaced_are_stopped_and_all_others_go_on(tmp_path):
    cells = [*RACING, ALONGSIDE]
    stretches = run_to_the_end(start_race(cells, list_races(cells)))
    store = TableStore(str(tmp_path))
    with store.open_for_writing():
        for stretch in stretches:
            store.append(CURVES, stretch.curves)
            store.append(EPISODES_TO_MEMORIZE, stretch.rows)
    rows, plain = (join(runs)[0].set_index("cell_id") for runs in (stretches, run_to_the_end(start_run(cells))))
    stopped = [cell.cell_id for cell in RACING[:2]]
    assert sorted(rows.index[rows["status"] == "stopped"]) == sorted(stopped)
    assert (rows.loc[stopped, "episodes"] < plain.loc[stopped, "episodes"]).all()
    assert rows.loc[stopped, ["e50_censored", "e90_censored"]].all(axis=None)
    others = plain.index.difference(stopped)
    pd.testing.assert_series_equal(rows.loc[others, "e90"], plain.loc[others, "e90"], check_dtype=False)
    assert store.finished_cell_ids() == set(others)
    assert store.finished_cell_ids(stopped=True) == set(plain.index)


def test_a_race_goes_on_from_a_checkpoint_to_the_same_tables(tmp_path):
    races, ids = list_races(RACING), [cell.cell_id for cell in RACING]
    run = start_race(RACING, races)
    for _ in range(3):
        run.advance(0.0)
    run.save(tmp_path)
    resumed = PackRun.load(tmp_path, partial(load_pack, cell_ids=ids), ids, races=races)
    for expected, found in zip(
        join(run_to_the_end(start_race(RACING, races))), join(run_to_the_end(resumed)), strict=True
    ):
        pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)


def test_a_race_of_which_a_run_can_not_start_stops_nobody():
    races = list_races(RACING)
    bad = RACING[1]

    def start(cells):
        if bad in cells:
            raise ValueError("no")
        return start_pack(cells, "cpu")

    rows = [row for stretch in run_to_the_end(PackRun.start(RACING, start, races=races)) for row in stretch.rows]
    assert {row["status"] for row in rows if row["cell_id"] != bad.cell_id} == {"memorized"}
