"""A sweep: which of a grid's cells are left, training them, and what came of it."""

import importlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from memrl.config import TrainConfig
from memrl.errors import WriteError
from memrl.rollout.actor_pool import EngineRecord
from memrl.sweep.actor_logs import collect_logs
from memrl.sweep.agent_play import AgentPlay, find_unplayed
from memrl.sweep.checkpoints import Checkpoints
from memrl.sweep.console import SteadyConsole
from memrl.sweep.curve_reporter import CurveReporter, log_cells
from memrl.sweep.engines import place_trials, start_engines
from memrl.sweep.execution import Execution
from memrl.sweep.live_page import LivePage, serve_folder
from memrl.sweep.plan import Plan, choose_device, find_left, plan_packs
from memrl.sweep.progress import ProgressLine, describe_sweep, format_seconds
from memrl.sweep.race import list_races
from memrl.sweep.ray_session import start_ray
from memrl.sweep.recorder import Recorder
from memrl.sweep.rollouts import POOL, count_places, uses_engines
from memrl.sweep.stopping import StopRequest, catch_signals
from memrl.sweep.stretch import Stretch
from memrl.sweep.watchdog import watch_daemons
from memrl.tables.launches import LaunchNote
from memrl.tables.open_log import open_log
from memrl.tables.places import absolute_address, local_folder
from memrl.tables.schema import AGENTS, CURVES, EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

_MOST_SPLITS = 200
"""A sweep whose trials die more often than this for want of one guilty cell has another fault."""

_TICK_SECONDS = 0.25
"""While the agents play, the live line is looked after this often."""


class Sweep:
    """A grid's cells on their way into the tables, which the caller has opened for writing.

    Args:
        name: the grid's name.
        cells: all cells that were asked for, by cell_id.
        execution: where and how they run.
        store: their tables.
        command: the command that goes on with the sweep.
        console: where the live line and the results go.

    Attributes:
        left: the cells that have not finished, by cell_id.
        unplayed: the cells for which the baseline agents have not played.
        stop: whether somebody wants the sweep to stop.

    Raises:
        StartError: wandb is to log the cells, and can't start.
    """

    def __init__(
        self,
        name: str,
        cells: Mapping[str, TrainConfig],
        execution: Execution,
        store: TableStore,
        command: str,
        console: SteadyConsole,
    ) -> None:
        self._name, self._cells, self._execution = name, cells, execution
        self._store, self._command, self._console = store, command, console
        self.left = find_left(store, cells, execution)
        self._num_diverged = len(store.diverged_cell_ids() & cells.keys() - self.left.keys())
        rows = store.read(EPISODES_TO_MEMORIZE, ["cell_id", "status"]).to_pylist()
        self._played = set(store.read(AGENTS, ["cell_id"])["cell_id"].to_pylist())
        self.unplayed = find_unplayed(cells.values(), self._played)
        self.stop = StopRequest()
        self._interrupted = self.left.keys() - {row["cell_id"] for row in rows if row["status"] == "failed"}
        self._checkpoints = Checkpoints(store.address)
        self._recorder = Recorder(store, len(cells), cells.keys() - self.left.keys(), traces=execution.timeline)
        self._agents = AgentPlay(self.unplayed)
        self._log = open_log(execution.log_to, execution.wandb_project, store.address)
        if self._log is not None and self._log.notice:
            console.say(self._log.notice)
        self._reporter: CurveReporter | None = None
        self._unwritable = self._agents_problem = ""
        self._phase, self._phase_begun = "", time.monotonic()
        self._packs_left: set[int] = set()
        self._num_trials = self._num_splits = 0
        self._packs: list[Sequence[TrainConfig]] = []
        self._formed_for: Mapping[str, object] = {}
        self._seconds = 0.0
        self._line = ProgressLine(self._describe, console)
        self._folder = local_folder(store.address) if "://" not in store.address else None
        self._live = LivePage(self._folder, name, command)

    def plan(self, engines: Sequence[EngineRecord], num_cpus: float, num_gpus: float) -> Plan:
        """Packs the cells that are left for the CPUs and GPUs that engines leave to trials.

        A pack that an earlier launch had not trained to its end goes on as it was formed, finished cells included, so
        that its results are those of an undisturbed one to the bit.
        """
        execution = self._execution
        num_cpus, num_gpus = count_places(engines, execution, num_cpus, num_gpus)
        num_cpus = max(num_cpus, execution.num_threads)
        self._formed_for = {
            "device": choose_device(execution, num_gpus),
            "pack_size": execution.pack_size,
            "stop_conditions": execution.stop_conditions,
        }
        begun = [
            pack
            for pack in self._checkpoints.find_packs(self._cells, self._formed_for)
            if self._interrupted & {cell.cell_id for cell in pack}
        ]
        again = {cell.cell_id for pack in begun for cell in pack}
        afresh = [cell for cell_id, cell in self.left.items() if cell_id not in again]
        plan = plan_packs(afresh, execution, num_cpus, num_gpus)
        self._packs = [*begun, *plan.packs]
        self._list_packs()
        return replace(
            plan,
            packs=[*self._packs],
            races=list_races(self._cells.values()) if execution.stop_conditions else (),
            checkpoints=absolute_address(self._store.address),
            placements=place_trials(plan, engines, execution),
            pool=POOL if engines else "",
            colocated=execution.colocated and bool(engines),
        )

    def _list_packs(self) -> None:
        # Where they can't be listed, packs leave no checkpoints.
        with suppress(OSError):
            self._checkpoints.list_packs([pack for pack in self._packs if pack], self._formed_for)

    def run(self) -> None:
        """Trains the cells that are left and writes their rows as they end; then writes those of the agents.

        The first Ctrl-C or SIGTERM stops the trials and keeps what has ended; the second one stops at once.

        Raises:
            StartError: Ray or the engines can't be started.
        """
        start = time.monotonic()
        note = LaunchNote(self._store, self._name, self._command, len(self.left))
        # A cell that failed before is tried again, so its old row goes.
        self._store.drop_cells(self.left)
        if self._execution.serve and self._folder is not None:
            self._console.say(f"live: {serve_folder(self._folder)}")
        self._start_log()
        with self._line, catch_signals(self.stop):
            try:
                if self.left:
                    self._train()
                with self._writing():
                    self._recorder.flush()
                if self._wants_agents() and not self.should_stop():
                    self._add_agents()
            finally:
                self._agents.stop()
                with self._writing():
                    self._recorder.flush()
                    self._store.compact()
                    note.end()
                self._show(has_ended=True)
        self._seconds = time.monotonic() - start

    def _start_log(self) -> None:
        if self._log is not None and self.left:
            finished = pa.array(self._cells.keys() - self.left.keys(), pa.string())
            earlier = self._store.read(CURVES).filter(pc.field("cell_id").isin(finished))
            self._reporter = CurveReporter(self._log, self._cells, earlier)

    def _train(self) -> None:
        self._wait_for("starting Ray")
        # Ray's daemons take seconds to start and leave this process idle: it loads Tune meanwhile.
        loading = threading.Thread(target=importlib.import_module, args=("memrl.sweep.trial",))
        loading.start()
        cells = list(self.left.values())
        num_engines = self._execution.num_rollout_actors if uses_engines(cells) else 0
        with (
            start_ray(self._execution, num_engines) as ray_session,
            collect_logs(local_folder(self._store.address) / "logs", ray_session.log_folder),
        ):
            loading.join()
            from memrl.sweep.trial import tune_packs

            if ray_session.dashboard_url:
                self._console.say(f"dashboard: http://{ray_session.dashboard_url}")
            if num_engines:
                self._wait_for("starting vLLM")
            with start_engines(cells, self._execution) as engines:
                plan = self.plan(engines, ray_session.num_cpus, ray_session.num_gpus)
                self._num_trials = plan.num_trials
                self._begin(self._packs)
                self._wait_for("loading the model")
                with watch_daemons(self._end_without_ray):
                    while self._packs_left and not self.should_stop():
                        tune_packs(plan, self)
                        # The packs that were split meanwhile go on as what they were split into.
                        plan = replace(plan, packs=[*self._packs], first_due=len(plan.packs))

    def _end_without_ray(self, daemon: str) -> None:
        """Ends the process, from the watchdog's thread: without its daemons Ray may do so at any moment."""
        if self.stop:  # Ctrl-C reaches the daemons, too
            return
        self._line.stop()
        told = f"error: Ray's {daemon} has ended; what has finished is kept. To go on: {self._command}"
        print(told, file=sys.stderr, flush=True)
        os._exit(1)

    def _add_agents(self) -> None:
        """Waits for the agents, which have played beside the last trials, and writes their rows."""
        self._wait_for("baseline agents play")
        self._agents.start()
        while not (self._agents.wait(_TICK_SECONDS) or self.stop):
            self._line.tick()
            self._show()
        if self.stop:
            return
        with self._writing():
            # Cells that an earlier launch has played for may share some of their agents' rows with these.
            rows = [row for row in self._agents.rows if row["cell_id"] not in self._played]
            self._store.append(AGENTS, rows)
        self._agents_problem = "; ".join(f"the baseline agents can't play: {told}" for told in self._agents.problems)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Takes note that the tables can't be written; the trials then stop."""
        try:
            yield
        except WriteError as error:
            self._unwritable = str(error)

    def _begin(self, packs: Sequence[Sequence[TrainConfig]]) -> None:
        """Takes note of the last ones of the packs."""
        self._recorder.begin(packs, self._num_trials)
        self._packs_left |= set(range(len(self._packs) - len(packs), len(self._packs)))

    def take(self, pack: int, stretch: Stretch) -> None:
        """Takes what a stretch of a pack brought."""
        with self._writing():
            self._recorder.take(pack, stretch)
        self._live.take(stretch)
        if self._reporter is not None:
            self._reporter.take(stretch)
        self._phase = ""
        if stretch.too_large:
            self._split(pack)
        if not stretch.live or stretch.too_large:
            self._end(pack)

    def _split(self, pack: int) -> None:
        """Lets the cells of a pack that have not ended go on as two packs, from its checkpoint."""
        # Cells of one channel stay together, and with them what is wrong with it.
        left = sorted(self._recorder.list_left(pack), key=lambda cell: (cell.channel_name, cell.lora_rank, cell.N))
        middle = (len(left) + 1) // 2
        halves = [half for half in (left[:middle], left[middle:]) if half]
        self._recorder.close(pack)
        with suppress(OSError):
            self._checkpoints.split(self._packs[pack], halves)
        # The next launch must not find it beside its halves.
        self._packs[pack] = ()
        self._packs += halves
        self._list_packs()
        self._begin(halves)

    def take_trace(self, pack: int, trace: str) -> None:
        """Takes a pack's timeline."""
        with self._writing():
            self._recorder.take_trace(pack, trace)

    def fail(self, pack: int, error: str) -> None:
        """Takes note of a trial that died once too often: one of its cells may be the cause, so its pack is split.

        Where the whole sweep is being stopped, that is no failure of its cells.
        """
        if not self.stop and len(self._recorder.list_left(pack)) > 1 and self._num_splits < _MOST_SPLITS:
            self._num_splits += 1
            self._split(pack)
        elif not self.stop:
            with self._writing():
                self._recorder.fail(pack, error)
            self._live.fail(error)
        self._end(pack)

    def should_stop(self) -> bool:
        """Whether all trials are to end now."""
        self._line.tick()
        self._show()
        self._agents.wait(0.0)
        return bool(self.stop or self._unwritable)

    def _end(self, pack: int) -> None:
        self._packs_left.discard(pack)
        # Not earlier: until no pack is left for a trial's place, its core has better things to do.
        if len(self._packs_left) < self._num_trials and self._wants_agents():
            self._agents.start()

    def _wants_agents(self) -> bool:
        """Whether the baseline agents are to play: where nothing trained, there is nothing to compare them with."""
        return bool(self.unplayed) and self._recorder.has_measured

    def _show(self, *, has_ended: bool = False) -> None:
        """Brings the live page up to date, now and then."""
        recorder = self._recorder
        numbers = (self._describe(), recorder.statuses, recorder.num_cells, recorder.num_finished)
        if has_ended:
            self._live.write(*numbers, has_ended=True)
        else:
            self._live.tick(*numbers)
        if self._reporter is not None:
            show = self._reporter.end if has_ended else self._reporter.tick
            show(recorder.tell_progress())

    def _wait_for(self, phase: str) -> None:
        self._phase, self._phase_begun = phase, time.monotonic()
        self._live.next = 0.0
        self._show()

    def _describe(self) -> str:
        if self.stop:
            return describe_sweep(self._name, self._recorder, "stopping")
        return describe_sweep(self._name, self._recorder, self._phase, time.monotonic() - self._phase_begun)

    def finish(self) -> bool:
        """Prints the table of all cells and writes the report; returns whether all of it is sound."""
        from memrl.sweep.closing import compare_with_reference, print_table, write_report

        if not self.left:
            self._console.say(f"{self._name}: all {len(self._cells):,} cells were finished already")
        if self._num_diverged:
            told = (
                f"{self._num_diverged:,} of them diverged in an earlier launch; retry_diverged=True trains these again"
            )
            self._console.say(told)
        print_table(self._store, self._cells, self._console)
        if self.left:
            self._say_counts()
        for problem in filter(None, (self._unwritable, self._agents_problem)):
            self._console.say(f"error: {problem}")
        logged = self._end_log()
        if self.stop or self._unwritable:
            self._console.say(f"Stopped; what has finished is kept. To go on: {self._command}")
            return False
        report_written = write_report(self._store, self._name, len(self._cells), self._command, self._console)
        compare_with_reference(self._store, self._name, self._console)
        self._checkpoints.clear()
        failed = self._recorder.statuses["failed"] or self._agents_problem or self._store.damaged
        return report_written and logged and not failed

    def _end_log(self) -> bool:
        """Logs each cell where that was asked for, and closes the log; returns whether all is logged."""
        if self._log is None:
            return True
        wants_cells = self._execution.log_cells and not self.stop
        logged = not wants_cells or log_cells(self._log, self._store, self._cells, self._console)
        self._log.close()
        problem = self._reporter.problem if self._reporter is not None else ""
        if problem:
            self._console.say(problem)
        return logged and not problem

    def _say_counts(self) -> None:
        recorder, took = self._recorder, format_seconds(self._seconds)
        ended, failed = recorder.statuses.total(), recorder.statuses["failed"]
        self._console.say(f"{ended:,} cells and {recorder.episodes:,} episodes in {took}")
        if failed:
            self._console.say(f"{failed:,} cells failed, the first one as {recorder.first_error}")
            diverged = self.left.keys() & self._store.diverged_cell_ids() if not self._execution.retry_diverged else ()
            self._console.say(f"To try them again: {self._command}{' retry_diverged=True' if diverged else ''}")
