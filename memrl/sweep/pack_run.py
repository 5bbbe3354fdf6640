"""One pack's training, stretch by stretch, with every failure kept inside."""

import math
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from memrl.config import TrainConfig
from memrl.errors import tell_error
from memrl.learning.half_packs import HalfPacks
from memrl.learning.pack import Pack
from memrl.learning.timeline import Timeline
from memrl.rollout.backend import RolloutBackend
from memrl.sweep.race import Race
from memrl.sweep.stretch import Stretch
from memrl.tables.rows import failed_row
from memrl.tables.schema import CURVES_SCHEMA, EPISODES_TO_MEMORIZE_SCHEMA, Row

_TRAINER, _ROWS, _CURVES, _UPDATES = "trainer", "rows.parquet", "curves.parquet", "updates.txt"
"""The parts of a saved run."""


Trainer = Pack | HalfPacks
"""Cells that train together: a pack, or two halves of one that alternate."""

StartTrainer = Callable[[Sequence[TrainConfig]], Trainer]


class PackRun:
    """Trains a pack, stretch by stretch.

    A failure ends the pack and becomes a row for each cell that was still training; nothing is raised. Where several
    cells take more memory than there is, none of them has failed: the run ends, and says so.

    Args:
        trainer: the pack; None: none of its cells could start.
        failed_rows: of the cells that could not start.
        too_large: why those that could start alone can't start together; empty: they can.
        timeline: takes a span for each round.
        holds_curves: whether the curves of cells that are still training are held back, so that the tables hold whole
            cells only: what is interrupted starts afresh, and leaves no rows behind.
        races: among its cells; the outpaced ones are stopped.
    """

    def __init__(
        self,
        trainer: Trainer | None,
        *,
        failed_rows: Sequence[Row] = (),
        too_large: str = "",
        timeline: Timeline | None = None,
        holds_curves: bool = True,
        races: Sequence[Race] = (),
    ) -> None:
        self._trainer = trainer
        self._races = races
        self._failed_rows = list(failed_rows)
        self._too_large = too_large
        self._timeline = timeline or Timeline()
        self._holds_curves = holds_curves
        self._held = CURVES_SCHEMA.empty_table()
        self._ended_rows: list[Row] = []
        self._ended_curves = CURVES_SCHEMA.empty_table()
        self._last_bits: dict[str, tuple[float, float]] = {}
        self._updates = 0

    @classmethod
    def start(
        cls,
        cells: Sequence[TrainConfig],
        start: StartTrainer,
        timeline: Timeline | None = None,
        races: Sequence[Race] = (),
    ) -> "PackRun":
        """Starts what can start of a pack; the other cells become failed rows.

        Args:
            cells: the pack.
            start: makes the trainer of some cells; see `start_pack`.
            timeline: what this process did before, for the same trace.
            races: among the cells.
        """
        timeline = timeline or Timeline()
        with timeline.record("start", "pack"):
            trainer, failed_rows, too_large = _start_what_can(cells, start)
        return cls(trainer, failed_rows=failed_rows, too_large=too_large, timeline=timeline, races=races)

    def save(self, folder: Path) -> None:
        """Writes all that `load` needs into a folder, which must exist; between two stretches of a run that goes on."""
        assert self._trainer is not None, "a run that goes on has a trainer"
        (folder / _TRAINER).mkdir()
        self._trainer.save(folder / _TRAINER)
        pq.write_table(pa.Table.from_pylist(self._ended_rows, schema=EPISODES_TO_MEMORIZE_SCHEMA), folder / _ROWS)
        pq.write_table(pa.concat_tables([self._ended_curves, self._held]), folder / _CURVES)
        (folder / _UPDATES).write_text(str(self._updates), encoding="utf-8")

    @classmethod
    def load(
        cls,
        folder: Path,
        load: Callable[[Path], Trainer],
        cell_ids: Sequence[str],
        timeline: Timeline | None = None,
        *,
        holds_curves: bool = True,
        races: Sequence[Race] = (),
    ) -> "PackRun":
        """The run that `save` wrote: its first stretch brings once more all that had ended by then.

        Args:
            folder: where it lies.
            load: makes the trainer of these cells; see `load_pack`.
            cell_ids: the cells that go on; of others that were saved with them nothing is brought.
            timeline: what this process did before, for the same trace.
            holds_curves: as for a new run.
            races: likewise.
        """
        timeline = timeline or Timeline()
        with timeline.record("load", "pack"):
            rows, curves = (_read_cells(folder / name, cell_ids) for name in (_ROWS, _CURVES))
            trainer = load(folder / _TRAINER)
            ended = rows.to_pylist()
            run = cls(trainer, failed_rows=ended, timeline=timeline, holds_curves=holds_curves, races=races)
            run._held = curves.cast(CURVES_SCHEMA)
            run._updates = int((folder / _UPDATES).read_text(encoding="utf-8"))
        run._note_bits(run._held)
        return run

    @property
    def finished(self) -> bool:
        """Whether no cell is left to train."""
        return self._trainer is None or self._trainer.finished or bool(self._too_large)

    @property
    def updates(self) -> int:
        """Updates made so far."""
        return self._updates

    @property
    def trace(self) -> str:
        """The Chrome trace of its start, and of sampling and updating so far."""
        return self._timeline.to_chrome_trace()

    def advance(self, seconds: float) -> Stretch:
        """Trains for about this long, at least one update, or to the end; returns what ended since the last call."""
        trainer, deadline = self._trainer, time.monotonic() + seconds
        if trainer is None or self.finished:
            return self.end_stretch()
        try:
            while not trainer.finished:
                with self._timeline.record("round", "pack"):
                    trainer.update()
                self._updates += 1
                self._stop_outpaced(trainer)
                if time.monotonic() >= deadline:
                    break
        except Exception as error:
            traceback.print_exc()
            if is_out_of_memory(error) and trainer.live > 1:
                self._too_large = describe_error(error)
            else:
                trainer.fail(describe_error(error))
        return self.end_stretch()

    def _stop_outpaced(self, trainer: Trainer) -> None:
        due = [race for race in self._races if self._updates % race.every == 0]
        if due:
            ended = {row["cell_id"]: row for row in [*self._failed_rows, *self._ended_rows]}
            so_far = ended | trainer.list_reached()
            trainer.curtail({cell_id for race in due for cell_id in race.list_outpaced(so_far)})

    def end_stretch(self) -> Stretch:
        """How far it is, and what has ended since the last stretch."""
        rows, self._failed_rows = self._failed_rows, []
        curves = CURVES_SCHEMA.empty_table()
        if self._trainer is not None:
            ended, recorded = self._trainer.drain()
            rows += ended
            self._note_bits(recorded)
            curves = self._release({row["cell_id"] for row in rows}, recorded)
        self._ended_rows += rows
        absorbed, observed = (_mean([bits[i] for bits in self._last_bits.values()]) for i in (0, 1))
        live, episodes = (self._trainer.live, self._trainer.episodes) if self._trainer is not None else (0, 0)
        return Stretch(rows, curves, live, self._updates, episodes, absorbed, observed, self._too_large)

    def _note_bits(self, curves: pa.Table) -> None:
        # Rows come in the order of updates, so the last one of a cell stays.
        columns = [curves[name].to_pylist() for name in ("cell_id", "absorbed_bits", "observed_bits")]
        self._last_bits.update({cell_id: bits for cell_id, *bits in zip(*columns, strict=True)})

    def _release(self, ended: set[str], recorded: pa.Table) -> pa.Table:
        """The curve rows that may go to the tables now."""
        self._held = pa.concat_tables([self._held, recorded])
        if not self._holds_curves:
            released, self._held = self._held, CURVES_SCHEMA.empty_table()
        elif not ended:
            return CURVES_SCHEMA.empty_table()
        else:
            has_ended = pc.field("cell_id").isin(list(ended))
            released, self._held = self._held.filter(has_ended), self._held.filter(~has_ended)
        self._ended_curves = pa.concat_tables([self._ended_curves, released])
        return released


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _read_cells(path: Path, cell_ids: Sequence[str]) -> pa.Table:
    table = pq.read_table(path)
    return table.filter(pc.field("cell_id").isin(list(cell_ids)))


def _start_what_can(cells: Sequence[TrainConfig], start: StartTrainer) -> tuple[Trainer | None, list[Row], str]:
    """A trainer of the cells that can start, a failed row for each that can't, and why the others can't together."""
    try:
        return start(cells), [], ""
    except Exception as error:
        traceback.print_exc()
        told, is_too_large = describe_error(error), is_out_of_memory(error) and len(cells) > 1
    # Out here, where the error holds what was built no longer.
    errors = _find_faults(cells, start, _likeness)
    if is_too_large and not errors:
        return None, [], told
    errors = errors or _find_faults(cells, start, lambda cell: cell.cell_id)
    if not errors:  # each alone, but not together
        errors = {cell.cell_id: told for cell in cells}
    rows = [failed_row(cell, errors[cell.cell_id]) for cell in cells if cell.cell_id in errors]
    sound = [cell for cell in cells if cell.cell_id not in errors]
    if not sound:
        return None, rows, ""
    trainer, more, too_large = _start_what_can(sound, start)
    return trainer, rows + more, too_large


def _likeness(cell: TrainConfig) -> object:
    return cell.num_secrets, cell.env_type, cell.channel_name, cell.lora_rank


def _find_faults(
    cells: Sequence[TrainConfig], start: StartTrainer, likeness: Callable[[TrainConfig], object]
) -> dict[str, str]:
    """The errors of the cells that can't start alone, by cell_id; one cell of each likeness is tried."""
    groups: dict[object, list[TrainConfig]] = {}
    for cell in cells:
        groups.setdefault(likeness(cell), []).append(cell)
    errors: dict[str, str] = {}
    for group in groups.values():
        try:
            start(group[:1])
        except Exception as error:
            errors |= dict.fromkeys((cell.cell_id for cell in group), describe_error(error))
    return errors


def start_pack(
    cells: Sequence[TrainConfig],
    device: str,
    backend: RolloutBackend | None = None,
    *,
    alternates: bool = True,
    timeline: Timeline | None = None,
    adapters: str = "",
) -> Trainer:
    """A pack, or two halves that alternate where a backend samples and there is more than one cell.

    Args:
        cells: the pack.
        device: where it trains.
        backend: who samples; None: the learner's own weights.
        alternates: whether a backend samples for one half of the pack while the other updates; not where sampler and
            learner share a GPU, which each then has in turn for the whole pack.
        timeline: takes the halves' spans of sampling and updating.
        adapters: folder where the adapter of each cell that ends is kept; empty: nowhere.

    Raises:
        ValueError: the model can't be read, or is not calibrated for a cell's prompt.
    """
    if backend is None or len(cells) == 1 or not alternates:
        return Pack(cells, device=device, backend=backend, adapters=adapters)
    return HalfPacks.split(cells, device=device, backend=backend, timeline=timeline, adapters=adapters)


def load_pack(
    folder: Path,
    cell_ids: Collection[str],
    backend: RolloutBackend | None = None,
    timeline: Timeline | None = None,
    adapters: str = "",
) -> Trainer:
    """What `start_pack` has made, as it was saved into a folder, or some of its cells; else as `start_pack`."""
    if backend is not None and any(folder.glob("half_*")):
        return HalfPacks.load(folder, cell_ids=cell_ids, backend=backend, timeline=timeline, adapters=adapters)
    return Pack.load(folder, cell_ids=cell_ids, backend=backend, adapters=adapters)


def set_up_torch(num_threads: int | None) -> None:
    """Sets how torch computes in this process.

    Args:
        num_threads: CPU threads; None: as many as torch takes.
    """
    # Adam's moments of a gradient that has vanished would else be denormal numbers, which CPUs are slow at.
    torch.set_flush_denormal(True)
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, of the machine or of a GPU.

    >>> [is_out_of_memory(error) for error in (MemoryError(), RuntimeError("CUDA out of memory"), OSError())]
    [True, True, False]
    """
    told = str(error).lower()
    is_told = any(words in told for words in ("out of memory", "can't allocate memory", "cannot allocate memory"))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_told)


def describe_error(error: BaseException) -> str:
    """The error and where it came from, in one line.

    >>> try:
    ...     int("x")
    ... except ValueError as error:
    ...     print(describe_error(error).partition(" (")[0])
    ValueError: invalid literal for int() with base 10: 'x'
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {tell_error(error)}{where}"
