"""TensorBoard's event files, read back record by record."""

import struct
from pathlib import Path

import numpy as np
import pytest
from simulated_sweep import simulate_sweep
from tensorboardX.proto.event_pb2 import Event

from memrl.config import TrainConfig
from memrl.sweep.curve_reporter import CurveReporter, name_conditions
from memrl.sweep.run_curves import PLACES
from memrl.sweep.stretch import Stretch
from memrl.tables.schema import CURVES_SCHEMA
from memrl.tables.tensorboard_log import TensorBoardLog

CELLS = [TrainConfig(N=N, seed=seed, learning_rate=3e-3) for N in (16, 64) for seed in range(3)]


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each scalar of a run: records of TFRecord files (length, its crc, an event, its crc)."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


@pytest.fixture(scope="module")
def simulated():
    """Rows and curves of six runs, as those of `CELLS`."""
    rows, curves = simulate_sweep(Ns=(16, 64), processes=("binary",), ranks=(1,), rates=(3e-3,), num_seeds=3)
    ids = dict(zip(rows["cell_id"].to_pylist(), [cell.cell_id for cell in CELLS], strict=True))
    rows = [row | {"cell_id": ids[row["cell_id"]]} for row in rows.to_pylist()]
    renamed = [point | {"cell_id": ids[point["cell_id"]]} for point in curves.to_pylist()]
    return rows, type(curves).from_pylist(renamed, schema=CURVES_SCHEMA)


def test_a_condition_is_drawn_as_soon_as_all_of_its_cells_have_ended(tmp_path, simulated):
    rows, curves = simulated
    log = TensorBoardLog(str(tmp_path))
    reporter = CurveReporter(log, {cell.cell_id: cell for cell in CELLS}, CURVES_SCHEMA.empty_table())
    folder = tmp_path / "tensorboard" / "conditions"
    for row in rows[:2]:
        reporter.take(Stretch([row], only(curves, row)))
    assert not folder.exists()
    # The first is told again, as by a pack that goes on from a checkpoint.
    for row in [*rows[2:5], rows[0]]:
        reporter.take(Stretch([row], only(curves, row)))
    assert [path.name for path in folder.iterdir()] == ["binary_N=16"]
    events = read_events(folder / "binary_N=16")
    assert events.keys() == {"absorbed_bits", "absorbed_bits_lower", "absorbed_bits_upper", "observed_bits"}
    assert [step for step, _ in events["absorbed_bits"]] == PLACES.tolist()
    assert events["absorbed_bits"][-1][1] == pytest.approx(np.median([last_bits(curves, row) for row in rows[:3]]))
    # Two of three have ended: of the sweep's end they are what there is.
    reporter.end({"cells": 5.0})
    log.close()
    assert sorted(path.name for path in folder.iterdir()) == ["binary_N=16", "binary_N=64"]
    assert [value for _, value in read_events(tmp_path / "tensorboard" / "sweep")["progress/cells"]] == [5.0]
    assert reporter.problem == ""


def only(curves, row):
    return type(curves).from_pylist([p for p in curves.to_pylist() if p["cell_id"] == row["cell_id"]], CURVES_SCHEMA)


def last_bits(curves, row) -> float:
    return only(curves, row)["absorbed_bits"].to_pylist()[-1]


def test_what_an_earlier_launch_has_ended_counts_and_is_not_drawn_again(tmp_path, simulated):
    rows, curves = simulated
    earlier = [only(curves, row) for row in rows[:4]]
    log = TensorBoardLog(str(tmp_path))
    before = type(curves).from_batches([batch for table in earlier for batch in table.to_batches()])
    reporter = CurveReporter(log, {cell.cell_id: cell for cell in CELLS}, before)
    for row in rows[4:]:
        reporter.take(Stretch([row], only(curves, row)))
    reporter.end({})
    folder = tmp_path / "tensorboard" / "conditions"
    assert [path.name for path in folder.iterdir()] == ["binary_N=64"]
    last = read_events(folder / "binary_N=64")["absorbed_bits"][-1][1]
    assert last == pytest.approx(np.median([last_bits(curves, row) for row in rows[3:]]))


def test_each_cell_gets_one_run_however_often_it_is_logged(tmp_path, simulated):
    rows, curves = simulated
    for logged in (rows[:2], rows, rows):
        TensorBoardLog(str(tmp_path)).log_cells(logged, curves)
    runs = sorted((tmp_path / "tensorboard" / "cells").iterdir())
    assert sorted(run.name.partition("-")[0] for run in runs) == sorted(row["cell_id"] for row in rows)
    for row in rows:
        (run,) = (tmp_path / "tensorboard" / "cells").glob(f"{row['cell_id']}-*")
        points = only(curves, row).to_pylist()
        drawn = read_events(run)["absorbed_bits"]
        assert [step for step, _ in drawn] == [point["episodes"] for point in points]
        assert [value for _, value in drawn] == pytest.approx([point["absorbed_bits"] for point in points], rel=1e-6)


def test_a_condition_is_named_by_what_tells_it_from_others():
    cells = [
        TrainConfig(N=16, learning_rate=rate, seed=seed, credit=credit, env_type="multi_step", reward_type="per_bit")
        for rate in (1e-3, 3e-3)
        for seed in range(2)
        for credit in ("per_step", "episode")
    ]
    names = name_conditions({cell.cell_id: cell for cell in [*cells, TrainConfig(N=16, algorithm="sft")]})
    assert sorted(set(names.values())) == [
        "per_bit batch_size=32 learning_rate=0.001",
        "per_bit batch_size=32 learning_rate=0.003",
        "per_bit-episode batch_size=32 learning_rate=0.001",
        "per_bit-episode batch_size=32 learning_rate=0.003",
        "sft batch_size=1 learning_rate=0.003",
    ]


class Unreachable(TensorBoardLog):
    def log_condition(self, condition, episodes, curves):
        raise ConnectionError("the server is gone")


def test_a_log_that_fails_is_told_and_ends_nothing(tmp_path, simulated):
    rows, curves = simulated
    reporter = CurveReporter(Unreachable(str(tmp_path)), {c.cell_id: c for c in CELLS}, CURVES_SCHEMA.empty_table())
    reporter.take(Stretch(rows, curves))
    reporter.end({})
    assert reporter.problem == "not all is logged: ConnectionError: the server is gone"
