import io
import re
from pathlib import Path

import pyarrow as pa
import pytest

from memrl.config import TrainConfig
from memrl.errors import WriteError
from memrl.sweep import recorder as recorder_module
from memrl.sweep.checkpoints import Checkpoints
from memrl.sweep.closing import print_table
from memrl.sweep.console import SteadyConsole
from memrl.sweep.execution import Execution
from memrl.sweep.plan import plan_packs
from memrl.sweep.progress import ProgressLine, describe_sweep
from memrl.sweep.recorder import Recorder
from memrl.sweep.stretch import Stretch
from memrl.sweep.summary import summarize, summarize_rows
from memrl.sweep.sweep import Sweep
from memrl.tables.rows import failed_row
from memrl.tables.schema import CURVES, CURVES_SCHEMA, EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore
from memrl.task.result import DIVERGED

CELLS = [TrainConfig(N=4, seed=seed) for seed in range(6)]
PACKS = [CELLS[:4], CELLS[4:]]


def ended(cell: TrainConfig, e50: int = 32, reached: bool = True, **values) -> dict:
    """A row as a trained cell leaves it."""
    measured = {
        "error": None,
        "status": "memorized" if reached else "budget_spent",
        "e50": e50,
        "e50_censored": not reached,
        "e90": 2 * e50,
        "e90_censored": not reached,
        "episodes": 2 * e50,
        "updates": 2,
        "absorbed_bits": 1.9,
        "capacity_best_bits": 0.8,
        "capacity_uniform_bits": 0.8,
        "capacity_nominal_bits": 1.0,
        "prior_kl_bits": 0.0,
        "prior_well_formed": 1.0,
    }
    return failed_row(cell, "") | measured | values


def stretch(*rows: dict, live: int = 0, episodes: int = 0) -> Stretch:
    numbers = dict.fromkeys(CURVES_SCHEMA.names, 0)
    curves = [numbers | {"cell_id": row["cell_id"], "update": update} for row in rows for update in range(3)]
    return Stretch(rows, pa.Table.from_pylist(curves, schema=CURVES_SCHEMA), live=live, episodes=episodes)


@pytest.fixture
def store(tmp_path) -> TableStore:
    store = TableStore(str(tmp_path))
    store.create()
    return store


@pytest.fixture
def recorder(store) -> Recorder:
    recorder = Recorder(store, num_cells=8, finished=["a", "b"])
    recorder.begin(PACKS)
    return recorder


def test_what_has_ended_is_counted_and_written(recorder, store):
    recorder.take(0, stretch(ended(CELLS[0]), ended(CELLS[1], reached=False), live=2, episodes=256))
    recorder.take(1, Stretch(live=2, episodes=64))
    recorder.flush()
    assert (recorder.num_done, recorder.num_cells, recorder.episodes) == (4, 8, 320)
    assert dict(recorder.statuses) == {"memorized": 1, "budget_spent": 1}
    assert store.finished_cell_ids() == {CELLS[0].cell_id, CELLS[1].cell_id}
    assert store.read(CURVES).num_rows == 6


def test_a_trial_that_dies_leaves_a_failed_row_for_each_cell_that_had_not_ended(recorder, store):
    recorder.take(0, stretch(ended(CELLS[1]), live=3, episodes=128))
    recorder.fail(0, "out of memory")
    rows = store.read(EPISODES_TO_MEMORIZE, ["cell_id", "status", "error", "N", "secret"]).to_pylist()
    failed = {row["cell_id"] for row in rows if row["status"] == "failed"}
    assert failed == {cell.cell_id for cell in CELLS[:4]} - {CELLS[1].cell_id}
    assert {row["error"] for row in rows if row["status"] == "failed"} == {"the trial died: out of memory"}
    assert all(row["N"] == 4 and 0 <= row["secret"] < 4 for row in rows)
    assert recorder.first_error == "binary, N = 4: the trial died: out of memory"


def test_time_left_follows_the_share_of_the_work_that_is_done(recorder, monkeypatch):
    now = 100.0
    monkeypatch.setattr(recorder_module.time, "monotonic", lambda: now)
    recorder.take(0, Stretch(live=4))
    assert recorder.seconds_left() is None
    now = 110.0
    recorder.take(0, stretch(*map(ended, CELLS[:4]), episodes=1000))
    assert recorder.episodes_per_s() == pytest.approx(100.0)
    left = recorder.seconds_left()
    assert left > 0
    now = 110.5
    assert recorder.seconds_left() == pytest.approx(left - 0.5)
    now = 120.0
    recorder.take(1, stretch(*map(ended, CELLS[4:])))
    assert recorder.seconds_left() == 0


def test_the_live_line_tells_counts_rate_and_time(recorder, monkeypatch):
    now = 100.0
    monkeypatch.setattr(recorder_module.time, "monotonic", lambda: now)
    assert describe_sweep("smoke", recorder, "starting Ray") == "smoke  2/8 cells  starting Ray ..."
    recorder.take(0, Stretch(live=4))
    now = 104.0
    recorder.take(0, stretch(ended(CELLS[0]), live=3, episodes=8000))
    recorder.fail(1, "lost")
    line = describe_sweep("smoke", recorder)
    assert re.fullmatch(r"smoke  5/8 cells  1 memorized  2 failed  2,000 episodes/s  \d+:\d\d (min|h) left", line)
    line = describe_sweep("smoke", recorder, "stopping", 7.0)
    assert re.fullmatch(r"smoke  5/8 cells  1 memorized  2 failed  \d+:\d\d (min|h) left  \(stopping, 0:07 min\)", line)


def test_without_a_terminal_lines_are_printed_now_and_then(recorder, monkeypatch):
    output = io.StringIO()
    now = 0.0
    monkeypatch.setattr("memrl.sweep.progress.time.monotonic", lambda: now)
    with ProgressLine(lambda: describe_sweep("smoke", recorder, "starting Ray"), SteadyConsole(file=output)) as line:
        for second in range(1, 26):
            now = float(second)
            line.tick()
    assert output.getvalue().splitlines() == ["smoke  2/8 cells  starting Ray ..."] * 2


def test_the_summary_chooses_the_setting_on_the_other_seeds(store):
    slow = [TrainConfig(N=16, seed=seed, learning_rate=1e-4, n_steps=200) for seed in range(8)]
    fast = [TrainConfig(N=16, seed=seed, learning_rate=1e-2, n_steps=200) for seed in range(8)]
    sft = [TrainConfig(N=16, seed=seed, algorithm="sft") for seed in range(2)]
    store.append(EPISODES_TO_MEMORIZE, [ended(cell, e50=3000) for cell in slow])
    store.append(EPISODES_TO_MEMORIZE, [ended(cell, e50=64, reached=cell.seed != 3) for cell in fast])
    store.append(EPISODES_TO_MEMORIZE, [ended(sft[0], e50=9, reached=False), failed_row(sft[1], "diverged")])
    store.append(EPISODES_TO_MEMORIZE, [ended(fast[0], agent="greedy", e50=1)])
    frame = store.read(EPISODES_TO_MEMORIZE).to_pandas()
    supervised, binary = summarize_rows(frame[frame["agent"] == "lora"]).to_dict("records")
    assert binary["memorized"] == "15/16"
    assert (binary["channel"], supervised["channel"]) == ("binary", "SFT")
    assert (binary["E50"], binary["E90"]) == ("64", "128")
    # log2(0.9 · 16) bits in 128 episodes.
    assert binary["bits/episode"] == "0.03"
    assert (supervised["memorized"], supervised["failed"]) == ("0/2", "1")
    assert supervised["E50"] == "> 18"
    assert supervised["bits/episode"] == "< 0.21"


def test_the_summary_of_a_sweep_that_was_stopped_at_once_is_empty(store):
    title, table = summarize(store, [CELLS[0].cell_id])
    assert (title, table.row_count) == ("Episodes to memorize, medians; so far, of 0 of 1 cells", 0)


def test_the_summary_of_failed_cells_alone_counts_them(store):
    store.append(EPISODES_TO_MEMORIZE, [failed_row(cell, "no model") for cell in CELLS])
    output = io.StringIO()
    print_table(store, [*(cell.cell_id for cell in CELLS[:2]), "to come"], SteadyConsole(file=output, width=100))
    lines = output.getvalue().splitlines()
    assert lines[0] == "Episodes to memorize, medians; so far, of 2 of 3 cells"
    assert lines[2].split() == ["4", "binary", "0/2", "2"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_summary_loses_no_digit_where_names_are_long(store, width):
    name = "package.module:reward_of_a_very_long_name"
    numbers = {"e50": 1_228_800, "e90": 1_228_801, "episodes": 1_228_801, "reward_type": name, "channel": name}
    rows = [
        ended(cell, model=model, **numbers) | {"cell_id": f"{model}-{cell.seed}"}
        for cell in CELLS[:2]
        for model in ("folder/one-base-of-a-long-name", "folder/another-base-of-a-long-name")
    ]
    store.append(EPISODES_TO_MEMORIZE, rows)
    output = io.StringIO()
    print_table(store, [row["cell_id"] for row in rows], SteadyConsole(file=output, width=width))
    text = output.getvalue()
    assert text.count("1,228,800") == text.count("1,228,801") == text.count("2/2") == 2
    assert "package.mo" in text


def test_several_models_have_rows_of_their_own(store):
    rows = [ended(CELLS[0], e50=e50, model=model, cell_id=model) for model, e50 in (("x/a", 8), ("x/b", 800))]
    store.append(EPISODES_TO_MEMORIZE, rows)
    shown = summarize_rows(store.read(EPISODES_TO_MEMORIZE).to_pandas())
    assert shown[["model", "E50"]].to_numpy().tolist() == [["a", "8"], ["b", "800"]]


def test_a_plan_gives_each_core_a_pack_and_each_gpu_a_trial():
    cells = [TrainConfig(seed=seed) for seed in range(40)]
    plan = plan_packs(cells, Execution(), num_cpus=4, num_gpus=0)
    assert (len(plan.packs), plan.num_trials, plan.device, plan.resources) == (4, 4, "cpu", {"CPU": 1.0})
    plan = plan_packs(cells, Execution(num_threads=2, pack_size=5), num_cpus=4, num_gpus=0)
    assert (len(plan.packs), plan.num_trials, plan.resources) == (8, 2, {"CPU": 2.0})
    plan = plan_packs(cells, Execution(), num_cpus=16, num_gpus=2)
    assert (plan.num_trials, plan.device, plan.resources) == (2, "cuda", {"CPU": 1.0, "GPU": 1.0})
    assert plan_packs(cells, Execution(device="cpu"), num_cpus=3, num_gpus=2).num_trials == 3
    assert (
        plan_packs(cells, Execution(pack_size=1), num_cpus=2, num_gpus=0)
        .describe()
        .startswith("40 cells in 40 packs of up to 1, on 2 cpu trials at once")
    )


def test_what_a_pack_tells_again_is_written_once(store):
    recorder = Recorder(store, num_cells=6, finished=[CELLS[0].cell_id])
    recorder.begin(PACKS)
    for told in (stretch(ended(CELLS[0]), ended(CELLS[1]), live=2), stretch(ended(CELLS[1]), ended(CELLS[2]), live=1)):
        recorder.take(0, told)
    recorder.flush()
    assert recorder.num_done == 3
    assert [row["cell_id"] for row in store.read(EPISODES_TO_MEMORIZE).to_pylist()] == sorted(
        cell.cell_id for cell in CELLS[1:3]
    )
    assert store.read(CURVES).num_rows == 6
    recorder.fail(0, "lost")
    assert recorder.statuses == {"memorized": 2, "failed": 1}


def test_tables_that_can_not_be_written_stop_a_sweep_in_one_line(tmp_path, monkeypatch, capsys):
    sweep_store = TableStore(str(tmp_path))
    sweep_store.create()
    sweep = Sweep("smoke", {cell.cell_id: cell for cell in CELLS}, Execution(), sweep_store, "again", SteadyConsole())

    def refuse(*_: object) -> None:
        raise WriteError("results must be a writable address, got x (No space left on device)")

    monkeypatch.setattr(sweep_store, "append", refuse)
    sweep._recorder.begin(PACKS)
    assert not sweep.should_stop()
    sweep.take(0, stretch(ended(CELLS[0]), live=3))
    assert sweep.should_stop()
    assert not sweep.finish()
    *_, problem, advice = capsys.readouterr().out.splitlines()
    assert problem == "error: results must be a writable address, got x (No space left on device)"
    assert advice == "Stopped; what has finished is kept. To go on: again"


def test_a_cell_that_diverged_is_not_trained_again_unless_that_is_asked(tmp_path, capsys):
    cells = {cell.cell_id: cell for cell in CELLS[:3]}
    store = TableStore(str(tmp_path))
    store.create()
    broken, diverged = failed_row(CELLS[1], "ValueError: x"), failed_row(CELLS[2], f"{DIVERGED}: log2 P(secret) is nan")
    store.append(EPISODES_TO_MEMORIZE, [ended(CELLS[0]), broken, diverged])
    store.append(CURVES, stretch(ended(CELLS[0])).curves)
    sweep = Sweep("smoke", cells, Execution(), store, "again", SteadyConsole())
    assert sweep.left.keys() == {CELLS[1].cell_id}
    sweep.finish()
    told = "1 of them diverged in an earlier launch; retry_diverged=True trains these again"
    assert told in capsys.readouterr().out.splitlines()
    asked = Sweep("smoke", cells, Execution(retry_diverged=True), store, "again", SteadyConsole())
    assert asked.left.keys() == {CELLS[1].cell_id, CELLS[2].cell_id}


def test_a_pack_whose_trial_dies_is_split_until_one_cell_is_left_and_that_one_fails(tmp_path):
    sweep_store = TableStore(str(tmp_path))
    sweep_store.create()
    cells = {cell.cell_id: cell for cell in CELLS[:4]}
    sweep = Sweep("smoke", cells, Execution(num_trials=1), sweep_store, "again", SteadyConsole())
    plan = sweep.plan((), 1.0, 0.0)
    (pack,) = plan.packs
    sweep._begin(plan.packs)
    checkpoints = Checkpoints(str(tmp_path))

    def write(folder: Path) -> None:
        (folder / "state").write_text("of all")

    checkpoints.save(pack, write)
    sweep.take(0, stretch(ended(pack[3]), live=3))
    sweep.fail(0, "died")
    assert [len(half) for half in sweep._packs[1:]] == [2, 1]
    for half in sweep._packs[1:]:
        with checkpoints.open(half) as folder:
            assert folder is not None
            assert (folder / "state").read_text() == "of all"
    with checkpoints.open(pack) as folder:
        assert folder is None
    assert checkpoints.find_packs(cells, sweep._formed_for) == [list(half) for half in sweep._packs[1:]]
    sweep.take(1, Stretch(live=2, too_large="MemoryError"))
    assert [len(half) for half in sweep._packs[3:]] == [1, 1]
    sweep.fail(2, "died")
    assert sweep._recorder.statuses == {"memorized": 1, "failed": 1}
    assert sweep._packs_left == {3, 4}
    assert sweep._recorder.episodes == 64


def test_trials_that_keep_dying_are_no_fault_of_a_single_cell(tmp_path, monkeypatch):
    monkeypatch.setattr("memrl.sweep.sweep._MOST_SPLITS", 1)
    sweep_store = TableStore(str(tmp_path))
    sweep_store.create()
    cells = {cell.cell_id: cell for cell in CELLS[:4]}
    sweep = Sweep("smoke", cells, Execution(num_trials=1), sweep_store, "again", SteadyConsole())
    sweep._begin(sweep.plan((), 1.0, 0.0).packs)
    for pack in range(3):
        sweep.fail(pack, "died")
    assert sweep._recorder.statuses == {"failed": 4}
    assert not sweep._packs_left
