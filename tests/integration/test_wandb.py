"""wandb runs, read back from the files that an offline run leaves, record by record."""

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from memrl.config import TrainConfig
from memrl.errors import StartError
from memrl.learning.pack import Pack
from memrl.sweep.execution import Execution, LogTo
from memrl.tables.open_log import open_log
from memrl.tables.places import local_folder
from memrl.tables.tensorboard_log import TensorBoardLog
from memrl.tables.wandb_log import WandbLog

HEADER_BYTES, BLOCK_BYTES, CHUNK_HEADER_BYTES = 7, 32768, 7


def read_records(path):
    """The records of a .wandb file: a LevelDB log (crc, length, type, then a piece of a record) of protobufs."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue] (generated)

    data, records, pieces = path.read_bytes(), [], b""
    assert data.startswith(b":W&B")
    at = HEADER_BYTES
    while at + CHUNK_HEADER_BYTES <= len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < CHUNK_HEADER_BYTES:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + CHUNK_HEADER_BYTES])
        at += CHUNK_HEADER_BYTES + length
        pieces += data[at - length : at]
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(pieces)
            records.append(record)
            pieces = b""
    return records


def read_items(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


class OfflineRun:
    """What one run's file says."""

    def __init__(self, path):
        records = read_records(path)
        (self.run,) = [record.run for record in records if record.HasField("run")][:1]
        self.config = {u.key or "/".join(u.nested_key): json.loads(u.value_json) for u in self.run.config.update}
        self.history = [read_items(r.history.item) for r in records if r.HasField("history")]
        self.metrics = {r.metric.name or r.metric.glob_name: r.metric for r in records if r.HasField("metric")}
        self.summary = {}
        for record in records:
            if record.HasField("summary"):
                self.summary |= read_items(record.summary.update)
        (self.exit_code,) = [record.exit.exit_code for record in records if record.HasField("exit")]


def find_runs(folder):
    runs = [OfflineRun(path) for path in sorted(Path(folder).glob("wandb/offline-run-*/*.wandb"))]
    return {run.config["cell_id"]: run for run in runs}


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """A user without a key, whose wandb keeps its own files out of the way."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished():
    """Two cells that have ended, one of them failed: rows and curves."""
    configs = [
        TrainConfig(N=8, seed=1, learning_rate=1e-2, n_steps=30),
        TrainConfig(N=8, algorithm="sft", seed=2, learning_rate=1e30, n_steps=30),
    ]
    pack = Pack(configs)
    while not pack.finished:
        pack.update()
    return pack.drain()


@pytest.mark.usefixtures("no_key")
def test_every_cell_is_a_run_of_its_sweep_with_its_curves_against_episodes_and_its_row_as_summary(tmp_path, finished):
    rows, curves = finished
    log = WandbLog("memory", f"{tmp_path}/results/bitrate")
    assert "no key" in log.notice
    assert "results/bitrate/wandb" in log.notice
    log.log_cells(rows, curves)
    log.close()
    runs = find_runs(tmp_path / "results" / "bitrate")
    assert runs.keys() == {row["cell_id"] for row in rows}
    for row in rows:
        run = runs[row["cell_id"]]
        assert (run.run.project, run.run.run_group, run.run.job_type) == ("memory", "bitrate", row["channel"])
        assert (run.config["N"], run.config["learning_rate"]) == (8, row["learning_rate"])
        assert run.metrics["*"].step_metric == "episodes"
        assert run.exit_code == (row["status"] == "failed")
        points = curves.filter(pa.compute.equal(curves["cell_id"], row["cell_id"])).to_pylist()
        assert len(run.history) == len(points) > 0
        for logged, point in zip(run.history, points, strict=True):
            measured = {
                k: v for k, v in point.items() if k != "cell_id" and not (isinstance(v, float) and math.isnan(v))
            }
            assert {name: logged.get(name) for name in measured} == measured
            assert {name for name in logged if not name.startswith("_")} == measured.keys()
        for name in ("e50", "e90", "absorbed_bits", "status", "error", "capacity_nominal_bits"):
            if row[name] is not None and row[name] == row[name]:
                assert run.summary[name] == row[name]
    statuses = {row["status"] for row in rows}
    assert statuses == {"memorized", "failed"}
    assert not (tmp_path / "wandb").exists()


@pytest.mark.usefixtures("no_key")
def test_a_sweep_is_one_run_with_its_progress_by_seconds_and_conditions_by_episodes(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = WandbLog("memory", f"{tmp_path}/results/bitrate")
    log.log_progress(0.0, {"cells": 1, "memorized": 0})
    log.log_condition("binary N=16", [0, 8], {"absorbed_bits": [0.0, 1.5], "observed_bits": [0.0, 2.0]})
    log.log_progress(5.0, {"cells": 3, "memorized": 2})
    log.close()
    (path,) = (tmp_path / "results" / "bitrate" / "wandb").glob("offline-run-*/*.wandb")
    run = OfflineRun(path)
    assert (run.run.project, run.run.run_group, run.run.job_type, run.run.display_name) == (
        *("memory", "bitrate", "sweep", "bitrate"),
    )
    assert run.metrics["absorbed_bits/*"].step_metric == "episodes"
    assert run.metrics["progress/*"].step_metric == "seconds"
    logged = [{k: v for k, v in items.items() if not k.startswith("_")} for items in run.history]
    assert logged == [
        {"seconds": 0.0, "progress/cells": 1, "progress/memorized": 0},
        {"episodes": 0, "absorbed_bits/binary N=16": 0.0, "observed_bits/binary N=16": 0.0},
        {"episodes": 8, "absorbed_bits/binary N=16": 1.5, "observed_bits/binary N=16": 2.0},
        {"seconds": 5.0, "progress/cells": 3, "progress/memorized": 2},
    ]


def test_the_words_choose_the_log(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert open_log(None, None, str(tmp_path)) is None
    assert isinstance(open_log("tensorboard", None, str(tmp_path)), TensorBoardLog)
    choices: tuple[tuple[LogTo | None, str | None], ...] = ((None, "memory"), ("wandb", None), ("wandb", "memory"))
    for log_to, project in choices:
        log = open_log(log_to, project, str(tmp_path))
        assert isinstance(log, WandbLog)
        log.close()
    with pytest.raises(ValueError, match="wandb_project must be unset with log_to=tensorboard, got memory"):
        Execution(log_to="tensorboard", wandb_project="memory")


@pytest.mark.usefixtures("no_key")
@pytest.mark.parametrize(("mode", "num_runs"), [("offline", 2), ("disabled", 0)])
def test_what_the_user_set_comes_first_and_needs_no_notice(tmp_path, finished, monkeypatch, mode, num_runs):
    monkeypatch.setenv("WANDB_MODE", mode)
    log = WandbLog("memory", str(tmp_path / "out"))
    assert log.notice == ""
    log.log_cells(*finished)
    log.close()
    assert len(find_runs(tmp_path / "out")) == num_runs


@pytest.mark.usefixtures("no_key")
def test_a_key_without_a_network_logs_offline(tmp_path, finished, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens
    log = WandbLog("memory", str(tmp_path / "out"))
    assert "no way to http://127.0.0.1:9" in log.notice
    log.log_cells(*finished)
    log.close()
    assert len(find_runs(tmp_path / "out")) == 2


@pytest.mark.usefixtures("no_key")
def test_a_cell_gets_one_run_however_often_it_is_logged_and_a_longer_name_than_wandb_takes_is_cut(tmp_path, finished):
    rows, curves = finished
    rows = [{**rows[0], "channel": "my_research_project_rewards.graded:" + "x" * 100}, *rows[1:]]
    for logged in (rows[:1], rows, rows):
        log = WandbLog("memory", str(tmp_path / "out"))
        log.log_cells(logged, curves)
        log.close()
    runs = list((tmp_path / "out" / "wandb").glob("offline-run-*"))
    assert len(runs) == len(rows)
    run = find_runs(tmp_path / "out")[rows[0]["cell_id"]].run
    assert (len(run.job_type), len(run.display_name)) == (64, 128)


@pytest.mark.usefixtures("no_key")
def test_a_setting_that_wandb_refuses_is_one_line_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(StartError, match=r"wandb can't start (?s:.*) mend WANDB_MODE and its like"):
        WandbLog("memory", str(tmp_path / "out"))


def test_runs_of_tables_in_a_bucket_lie_in_the_results_folder_here():
    assert local_folder("s3://bucket/sweeps/full") == Path("results/full")
    assert local_folder("file:///data/full") == Path("/data/full")
    assert local_folder("~/full") == Path.home() / "full"


def test_without_a_project_wandb_is_not_even_imported(tmp_path):
    code = (
        "import sys; from memrl.sft_train import main;"
        "code = main(['N=2', 'learning_rate=0.1', f'results={sys.argv[1]}']);"
        "sys.exit(code or 10 * ('wandb' in sys.modules) or 20 * ('torch' not in sys.modules))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
