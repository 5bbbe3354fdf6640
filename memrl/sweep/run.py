"""Running a sweep: Ray, trials, one live line, and the tables."""

import importlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console

from memrl.config import TrainConfig
from memrl.sweep.actor_logs import collect_logs
from memrl.sweep.agent_play import AgentPlay
from memrl.sweep.execution import Execution
from memrl.sweep.pack_run import Parcel
from memrl.sweep.plan import Plan, count_local_cpus, count_local_gpus, plan_packs
from memrl.sweep.progress import ProgressLine
from memrl.sweep.recorder import Recorder
from memrl.sweep.rollouts import POOL, count_places, place_trials, start_engines, uses_engines
from memrl.tables.store import TableStore
from memrl.tables.wandb_log import local_folder

if TYPE_CHECKING:
    from memrl.rollout.actor_pool import EngineRecord

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Trials' workers get an environment of their own from Tune, so workers that wait without one are of no use.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # `uv run` would make Ray pack the checkout and start every worker through uv.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Finished cells are known from our own tables, so Tune's record of itself is of no use while it runs.
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
}
"""Settings of Ray and Tune, where the user has set nothing else."""

_OBJECT_STORE_BYTES = 512 * 1024**2
"""Shared memory for what trials report; Ray would take a third of the machine's memory."""


class RefusedError(Exception):
    """A sweep can't start by what it was asked for, which shows only once Ray or an engine is asked; one line."""


@dataclass(frozen=True)
class Outcome:
    """How a launch ended.

    Attributes:
        recorder: the counts.
        interrupted: whether the user stopped it.
        seconds: wall time from Ray's start to the last row.
    """

    recorder: Recorder
    interrupted: bool
    seconds: float


def run_sweep(
    name: str,
    cells: Sequence[TrainConfig],
    grid_cells: Sequence[TrainConfig],
    execution: Execution,
    store: TableStore,
    console: Console,
) -> Outcome:
    """Trains the cells and writes their rows as they end.

    The first Ctrl-C stops the trials and keeps what has ended; the second one stops at once.

    Args:
        name: the grid's name.
        cells: the cells that are left.
        grid_cells: all cells of the sweep, those that finished before included; the baseline agents play them.
        execution: where and how.
        store: the tables.
        console: where the live line goes.

    Raises:
        RefusedError: the engines can't be started.
    """
    start = time.monotonic()
    recorder = Recorder(store, len(grid_cells), len(grid_cells) - len(cells), traces=execution.timeline)
    watch = _Watch(recorder, ProgressLine(name, recorder, console), AgentPlay(grid_cells))
    with watch.line, _catch_interrupts(watch):
        try:
            with (
                _start_ray(execution, uses_engines(cells), console) as (num_cpus, num_gpus),
                collect_logs(local_folder(store.address) / "logs"),
                _start_engines(cells, execution, watch.line) as engines,
            ):
                num_cpus, num_gpus = count_places(engines, execution, num_cpus, num_gpus)
                plan = plan_packs(cells, execution, max(num_cpus, execution.num_threads), num_gpus)
                watch.begin(plan)
                _run_trials(plan, watch, engines, execution)
                if watch.agents.ident is not None and not watch.interrupted:
                    watch.line.phase = "playing the baseline agents"
                    recorder.add_agents(watch.agents.rows())
        finally:
            recorder.flush()
    return Outcome(recorder, watch.interrupted, time.monotonic() - start)


class _Watch:
    """Stands between trials and the user: hands on what trials report, and tells them to stop."""

    def __init__(self, recorder: Recorder, line: ProgressLine, agents: AgentPlay) -> None:
        self.recorder, self.line, self.agents = recorder, line, agents
        self.interrupted = False
        self._packs_left: set[int] = set()
        self._places = 0

    def begin(self, plan: Plan) -> None:
        self.recorder.begin(plan.packs)
        self._packs_left, self._places = set(range(len(plan.packs))), plan.num_trials
        self.line.phase = "stopping" if self.interrupted else "loading the model"

    def should_stop(self) -> bool:
        self.line.tick()
        return self.interrupted

    def take(self, pack: int, parcel: Parcel, *, live: int, episodes: int) -> None:
        self.recorder.take(pack, parcel, live=live, episodes=episodes)
        self.line.phase = "stopping" if self.interrupted else ""
        if not live:
            self._end(pack)

    def take_trace(self, pack: int, trace: str) -> None:
        self.recorder.take_trace(pack, trace)

    def fail(self, pack: int, error: str) -> None:
        self.recorder.fail(pack, error)
        self._end(pack)

    def _end(self, pack: int) -> None:
        self._packs_left.discard(pack)
        # Not earlier: until no pack is left for a trial's place, its core has better things to do.
        if len(self._packs_left) < self._places and self.agents.ident is None:
            self.agents.start()


@contextmanager
def _catch_interrupts(watch: _Watch) -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if watch.interrupted:
            raise KeyboardInterrupt
        watch.interrupted = True
        watch.line.phase = "stopping"

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _start_ray(execution: Execution, with_engines: bool, console: Console) -> Iterator[tuple[float, float]]:
    """Starts Ray on this machine, or joins a cluster; yields its CPUs and GPUs."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    # Ray's daemons take seconds to start and leave this process idle: it loads Tune meanwhile.
    loading = threading.Thread(target=importlib.import_module, args=("memrl.sweep.trial",))
    loading.start()
    import ray

    if execution.address is not None:
        cluster = ray.init(execution.address, log_to_driver=False, logging_level=logging.CRITICAL)
        if cluster.dashboard_url:
            console.print(f"dashboard: http://{cluster.dashboard_url}", soft_wrap=True, markup=False, highlight=False)
        available = ray.cluster_resources()
        num_cpus, num_gpus = available.get("CPU", 0.0), available.get("GPU", 0.0)
    else:
        os.environ["OMP_NUM_THREADS"] = str(execution.num_threads)
        num_cpus, num_gpus = count_local_cpus(), count_local_gpus()
        trials = execution.num_trials or max(1, num_cpus // execution.num_threads)
        engines = execution.num_rollout_actors if with_engines else 0
        # Said in so many words: else Ray would join whatever cluster runs on this machine.
        ray.init(
            "local",
            # Engines have a CPU each; where they leave none to a trial, they share.
            num_cpus=max(num_cpus, trials * execution.num_threads) + engines,
            num_gpus=num_gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            object_store_memory=_OBJECT_STORE_BYTES,
        )
    loading.join()
    try:
        yield num_cpus, num_gpus
    finally:
        ray.shutdown()


@contextmanager
def _start_engines(
    cells: Sequence[TrainConfig], execution: Execution, line: ProgressLine
) -> "Iterator[Sequence[EngineRecord]]":
    """Starts the engines that the cells need; yields where they run."""
    if not uses_engines(cells):
        yield ()
        return
    line.phase = "starting vLLM"
    try:
        rollout = start_engines(cells, execution)
    except ValueError as error:
        raise RefusedError(str(error)) from error
    try:
        yield rollout.stats()["engines"]
    finally:
        rollout.shut_down()


def _run_trials(plan: Plan, watch: _Watch, engines: "Sequence[EngineRecord]", execution: Execution) -> None:
    from memrl.sweep.trial import tune_packs

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    tune_packs(
        plan.packs,
        watch,
        watch.should_stop,
        num_trials=plan.num_trials,
        placements=place_trials(plan, engines, execution),
        device=plan.device,
        num_threads=plan.num_threads,
        pool=POOL if engines else "",
        colocated=execution.colocated and bool(engines),
    )
