"""Launching a sweep: what is left to do, doing it, and what came of it."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from memrl.config import TrainConfig
from memrl.sweep.execution import Execution
from memrl.sweep.plan import count_local_cpus, count_local_gpus, plan_packs
from memrl.sweep.progress import format_seconds
from memrl.sweep.recorder import Recorder
from memrl.tables.places import has_tables
from memrl.tables.schema import CURVES, EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
"""Exit codes: cells failed, or tables were damaged; bad input that only Ray or an engine could tell; Ctrl-C."""


@dataclass(frozen=True)
class Launch:
    """One launch of a sweep.

    Attributes:
        name: the grid's name.
        cells: all cells that were asked for, by cell_id.
        execution: where and how they run.
        store: their tables.
        command: the command that goes on with the sweep.
        reference: folder of the grid's reference result, which the medians are compared with where it has tables.
    """

    name: str
    cells: Mapping[str, TrainConfig]
    execution: Execution
    store: TableStore
    command: str
    reference: str

    def preview(self, console: Console) -> None:
        """Prints what would run and where its tables would lie; runs nothing."""
        left = self._cells_left()
        console.print(f"{self.name}: {len(self.cells):,} cells, {len(self.cells) - len(left):,} of them finished")
        if left:
            plan = plan_packs(list(left.values()), self.execution, count_local_cpus(), count_local_gpus())
            _print_plain(console, f"to run: {plan.describe()}")
        self._print_addresses(console)

    def run(self, console: Console) -> int:
        """Trains the cells that have not finished and prints the table of all; returns the exit code.

        The caller has opened the store for writing.
        """
        for line in self.store.damaged:
            _print_plain(console, line)
        left = self._cells_left()
        if not left:
            console.print(f"{self.name}: all {len(self.cells):,} cells were finished already")
            self._print_table(console)
            self._write_report(console)
            self._compare_with_reference(console)
            return FAILED if self.store.damaged else 0
        from memrl.sweep.run import RefusedError, run_sweep

        # A cell that failed before is tried again, so its old row goes.
        self.store.drop_cells(left)
        cells = list(self.cells.values())
        try:
            outcome = run_sweep(self.name, list(left.values()), cells, self.execution, self.store, console)
        except RefusedError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return REFUSED
        self.store.compact()
        self._log_to_wandb(left, console)
        self._print_table(console)
        self._print_counts(outcome.recorder, outcome.seconds, console)
        if outcome.interrupted:
            _print_plain(console, f"Stopped; what has finished is kept. To go on: {self.command}")
            return INTERRUPTED
        self._write_report(console)
        self._compare_with_reference(console)
        return FAILED if outcome.recorder.statuses["failed"] or self.store.damaged else 0

    def _print_counts(self, recorder: Recorder, seconds: float, console: Console) -> None:
        ended, took = recorder.statuses.total(), format_seconds(seconds)
        console.print(f"{ended:,} cells and {recorder.episodes:,} episodes in {took}")
        failed = recorder.statuses["failed"]
        if failed:
            _print_plain(console, f"{failed:,} cells failed, the first one as {recorder.first_error}")
            _print_plain(console, f"To try them again: {self.command}")

    def _cells_left(self) -> dict[str, TrainConfig]:
        finished = self.store.finished_cell_ids()
        return {cell_id: cell for cell_id, cell in self.cells.items() if cell_id not in finished}

    def _print_table(self, console: Console) -> None:
        from memrl.sweep.summary import summarize

        console.print(summarize(self.store, self.cells))
        self._print_addresses(console)

    def _write_report(self, console: Console) -> None:
        from memrl.analysis.page import write_report

        try:
            num_planned = len(self.cells)
            report = write_report(self.store.address, grid=self.name, num_planned=num_planned, command=self.command)
        except Exception as error:  # a picture that can't be drawn must not hide that the cells are measured
            _print_plain(console, f"no report: {type(error).__name__}: {error}")
        else:
            _print_plain(console, f"report: {report}")

    def _compare_with_reference(self, console: Console) -> None:
        if not has_tables(self.reference) or Path(self.reference).resolve() == Path(self.store.address).resolve():
            return
        from memrl.analysis.reference import compare_with_reference

        for line in compare_with_reference(self.store, TableStore(self.reference)):
            _print_plain(console, line)

    def _log_to_wandb(self, cells: Mapping[str, TrainConfig], console: Console) -> None:
        if self.execution.wandb_project is None:
            return
        from memrl.tables.wandb_log import WandbLog

        log = WandbLog(self.execution.wandb_project, self.store.address)
        if log.notice:
            _print_plain(console, log.notice)
        rows = self.store.read(EPISODES_TO_MEMORIZE).to_pylist()
        ended = [row for row in rows if row["cell_id"] in cells and row["agent"] == "lora"]
        log.log_cells(ended, self.store.read(CURVES))

    def _print_addresses(self, console: Console) -> None:
        for title, table in (("tables: ", EPISODES_TO_MEMORIZE), ("        ", CURVES)):
            _print_plain(console, f"{title}{self.store.table_address(table)}")


def _print_plain(console: Console, text: str) -> None:
    """Prints text that may be copied: unwrapped, and with its brackets as they are."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)
