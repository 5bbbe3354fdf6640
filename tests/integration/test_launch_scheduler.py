"""One of Ray Tune's own schedulers over packs of one cell each."""

import logging

import pytest
import ray
from ray.tune.experiment import Trial  # noqa: TID251
from ray.tune.schedulers import FIFOScheduler, TrialScheduler  # noqa: TID251

from memrl.config import TrainConfig
from memrl.sweep.packing import pack_cells
from memrl.sweep.plan import Plan
from memrl.sweep.recorder import Recorder
from memrl.sweep.trial import tune_packs
from memrl.tables.store import TableStore


class StopIdleCells(FIFOScheduler):
    """Stops a trial that has used many episodes and absorbed next to nothing."""

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict) -> str:
        idle = result["episodes"] > 320 and result["absorbed_bits"] < 0.5
        return TrialScheduler.STOP if idle else TrialScheduler.CONTINUE


class Listener(Recorder):
    def take_trace(self, pack: int, trace: str) -> None:
        assert trace

    def should_stop(self) -> bool:
        return False


@pytest.mark.slow
def test_a_scheduler_of_tune_stops_cells_that_learn_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    learning = [TrainConfig(N=8, learning_rate=1e-2, n_steps=200, seed=seed) for seed in range(2)]
    idle = [TrainConfig(N=8, learning_rate=1e-12, n_steps=1_000_000, seed=seed) for seed in range(3)]
    packs = pack_cells([*idle, *learning], pack_size=1)
    store = TableStore(str(tmp_path))
    store.create()
    recorder = Listener(store, num_cells=5)
    recorder.begin(packs)
    with ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL):
        tune_packs(Plan(packs, num_trials=2), recorder, scheduler=StopIdleCells())
    recorder.flush()
    assert store.finished_cell_ids() == {cell.cell_id for cell in learning}
    assert recorder.num_done == 2
