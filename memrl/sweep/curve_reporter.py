"""Shows a sweep in wandb or TensorBoard while it runs: how far it is, and each condition once all of it has ended."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memrl.config import TrainConfig, fields_of
from memrl.sweep.console import SteadyConsole
from memrl.sweep.progress import ProgressLine
from memrl.sweep.run_curves import PLACES, split_runs, take_at_places
from memrl.sweep.stretch import Stretch
from memrl.tables.curve_log import CurveLog, Values
from memrl.tables.rows import LORA
from memrl.tables.schema import CURVES, EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

_SECONDS = 5.0
"""Progress is told this often."""

_SHOWN = ("absorbed_bits", "observed_bits")

_UNNAMED = (*fields_of("draw", "channel"), "algorithm", "env_type", "credit", "model_files")
"""Fields that no condition's name has: the draw's, those that the channel's own name tells, and hashes."""


class CurveReporter:
    """Takes what packs bring, and logs it.

    Args:
        log: where to.
        cells: of the sweep, by cell_id.
        earlier: curves of those of them that had finished before.

    Attributes:
        problem: why nothing is logged any more, one line; empty: all is well.
    """

    def __init__(self, log: CurveLog, cells: Mapping[str, TrainConfig], earlier: pa.Table) -> None:
        self._log = log
        self._conditions = name_conditions(cells)
        self._left: dict[str, set[str]] = {condition: set() for condition in self._conditions.values()}
        for cell_id, condition in self._conditions.items():
            self._left[condition].add(cell_id)
        self._runs: dict[str, list[dict[str, np.ndarray]]] = defaultdict(list)
        self._begun, self._next = time.monotonic(), 0.0
        self.problem = ""
        self._note(set(pc.unique(earlier["cell_id"]).to_pylist()), earlier)
        # What an earlier launch ended whole was shown then.
        for condition in [name for name, left in self._left.items() if not left]:
            del self._left[condition]

    def take(self, stretch: Stretch) -> None:
        """Takes what a stretch of a pack brought, and logs the conditions that it completes."""
        if stretch.rows:
            self._note({row["cell_id"] for row in stretch.rows}, stretch.curves)
            for condition in [name for name, left in self._left.items() if not left]:
                self._show(condition)

    def tick(self, values: Values) -> None:
        """Logs how far the sweep is, now and then."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SECONDS
            self._try(lambda: self._log.log_progress(now - self._begun, values))

    def end(self, values: Values) -> None:
        """Logs the end, and what has ended of conditions that are not whole."""
        for condition in [name for name in self._left if self._runs[name]]:
            self._show(condition)
        self._next = 0.0
        self.tick(values)

    def _note(self, ended: set[str], curves: pa.Table) -> None:
        runs = {name: split_runs(curves, name) for name in _SHOWN}
        for cell_id in ended:
            condition = self._conditions[cell_id]
            # A pack that goes on from a checkpoint tells again what had ended by then.
            if cell_id not in self._left.get(condition, ()):
                continue
            self._left[condition].remove(cell_id)
            if cell_id in runs[_SHOWN[0]]:
                self._runs[condition].append({name: take_at_places(*runs[name][cell_id]) for name in _SHOWN})

    def _show(self, condition: str) -> None:
        del self._left[condition]
        runs = self._runs.pop(condition, [])
        if runs:
            self._try(lambda: self._log.log_condition(condition, PLACES.tolist(), summarize_runs(runs)))

    def _try(self, log: Callable[[], None]) -> None:
        if self.problem:
            return
        try:
            log()
        except Exception as error:  # a server that fails must not end what is measured
            self.problem = f"not all is logged: {type(error).__name__}: {error}"


def log_cells(log: CurveLog, store: TableStore, cell_ids: Collection[str], console: SteadyConsole) -> bool:
    """Logs a run for each of these cells that has ended and has none yet; returns whether that went well."""
    rows = store.read(EPISODES_TO_MEMORIZE).filter(pc.field("agent") == LORA).to_pylist()
    told = "logging"
    with ProgressLine(lambda: told, console) as line:

        def show(done: int, missing: int) -> None:
            nonlocal told
            told = f"logging  {done:,}/{missing:,} runs"
            line.tick()

        try:
            log.log_cells([row for row in rows if row["cell_id"] in cell_ids], store.read(CURVES), show)
        except Exception as error:  # a server that fails must not hide that the cells are measured
            console.say(f"not all cells are logged: {type(error).__name__}: {error}; the same command logs the others")
            return False
    return True


def name_conditions(cells: Mapping[str, TrainConfig]) -> dict[str, str]:
    """The condition of each cell, by cell_id: its channel, and the fields in which the sweep's conditions differ."""
    settings = {
        cell_id: {k: v for k, v in cell.identity().items() if k not in _UNNAMED} for cell_id, cell in cells.items()
    }
    values: dict[str, set[object]] = defaultdict(set)
    for fields in settings.values():
        for name, value in fields.items():
            values[name] |= set() if value is None else {value}
    names = {}
    for cell_id, fields in settings.items():
        varied = {name: value for name, value in fields.items() if value is not None and len(values[name]) > 1}
        words = [f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in varied.items()]
        names[cell_id] = " ".join([cells[cell_id].channel_name, *words])
    return names


def summarize_runs(runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, list[float]]:
    """Medians of both bits over the runs of a condition, and quartiles of absorbed bits, at `PLACES`."""
    stacked = {name: np.stack([run[name] for run in runs]) for name in _SHOWN}
    lower, upper = np.quantile(stacked["absorbed_bits"], (0.25, 0.75), axis=0)
    medians = {name: np.median(values, axis=0) for name, values in stacked.items()}
    curves = medians | {"absorbed_bits_lower": lower, "absorbed_bits_upper": upper}
    return {name: values.tolist() for name, values in curves.items()}
