"""One pack's training as its trial sees it: in slices of time, with every failure kept inside."""

import math
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from memrl.config import TrainConfig
from memrl.learning.timeline import Timeline
from memrl.rollout.backend import RolloutBackend
from memrl.tables.rows import failed_row
from memrl.tables.schema import CURVES_SCHEMA


@dataclass(frozen=True)
class Parcel:
    """Rows of cells that have ended, ready for the tables.

    Attributes:
        rows: of episodes_to_memorize, one a cell.
        curves: all curve rows of these cells.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: pa.Table = field(default_factory=CURVES_SCHEMA.empty_table)


class PackRun:
    """Trains a pack, slice by slice.

    A failure ends the pack and becomes a row for each cell that was still training; nothing is raised.

    Args:
        cells: the pack.
        device: where it trains.
        backend: who samples; None: the learner's own weights.
        alternates: whether a backend samples for one half of the pack while the other updates; not where sampler and
            learner share a GPU, which each then has in turn for the whole pack.
        timeline: what its process did before, for the same trace.
    """

    def __init__(
        self,
        cells: Sequence[TrainConfig],
        *,
        device: str = "cpu",
        backend: RolloutBackend | None = None,
        alternates: bool = True,
        timeline: Timeline | None = None,
    ) -> None:
        self._alternates = alternates
        self.updates = 0
        self._timeline = timeline or Timeline()
        self._held = CURVES_SCHEMA.empty_table()
        self._last_bits: dict[str, float] = {}
        self._failed_rows: list[dict[str, Any]] = []
        self._pack: Any = None
        with self._timeline.record("start", "pack"):
            self._start(cells, device, backend)
        if hasattr(self._pack, "timeline"):
            # Half-packs record more finely who samples and who updates.
            self._pack.timeline.spans[:0] = self._timeline.spans
            self._timeline = self._pack.timeline

    @property
    def finished(self) -> bool:
        """Whether no cell is left to train."""
        return self._pack is None or self._pack.finished

    @property
    def episodes(self) -> int:
        """Episodes so far, over all cells."""
        return 0 if self._pack is None else self._pack.episodes

    @property
    def live(self) -> int:
        """Cells still training."""
        return 0 if self._pack is None else self._pack.live

    @property
    def absorbed_bits(self) -> float:
        """Mean over the cells of the bits that each had absorbed at its last scoring; NaN before the first one."""
        return sum(self._last_bits.values()) / len(self._last_bits) if self._last_bits else math.nan

    @property
    def trace(self) -> str:
        """The Chrome trace of its start, and of sampling and updating so far."""
        return self._timeline.to_chrome_trace()

    def advance(self, seconds: float) -> Parcel:
        """Trains for about this long, or to the end, and returns what ended since the last call.

        At least one update is made. The curves of cells that are still training are held back, so that the tables hold
        whole cells only: what is interrupted starts afresh, and leaves no rows behind.
        """
        deadline = time.monotonic() + seconds
        try:
            while not self.finished:
                with self._timeline.record("round", "pack"):
                    self._pack.update()
                self.updates += 1
                if time.monotonic() >= deadline:
                    break
        except Exception as error:
            self._pack.fail(describe_error(error))
        return self._take()

    def _start(self, cells: Sequence[TrainConfig], device: str, backend: RolloutBackend | None) -> None:
        try:
            self._pack = start_pack(cells, device, backend, alternates=self._alternates)
        except Exception as error:
            sound = _cells_that_start(cells, device, backend)
            if 0 < len(sound) < len(cells):
                self._start(sound, device, backend)
            else:
                sound = []
            self._failed_rows += [failed_row(cell, describe_error(error)) for cell in cells if cell not in sound]

    def _take(self) -> Parcel:
        failed, self._failed_rows = self._failed_rows, []
        if self._pack is None:
            return Parcel(failed)
        rows, curves = self._pack.drain()
        self._held = pa.concat_tables([self._held, curves])
        # Rows come in the order of updates, so the last one of a cell stays.
        self._last_bits.update(zip(curves["cell_id"].to_pylist(), curves["absorbed_bits"].to_pylist(), strict=True))
        if not rows:
            return Parcel(failed)
        has_ended = pc.field("cell_id").isin([row["cell_id"] for row in rows])
        ended, self._held = self._held.filter(has_ended), self._held.filter(~has_ended)
        return Parcel(failed + rows, ended)


def _cells_that_start(cells: Sequence[TrainConfig], device: str, backend: RolloutBackend | None) -> list[TrainConfig]:
    """The cells of those prompts and channels for which one cell alone makes a pack."""
    groups: dict[tuple[object, ...], list[TrainConfig]] = {}
    for cell in cells:
        groups.setdefault((cell.N, cell.env_type, cell.channel_name), []).append(cell)
    sound: list[TrainConfig] = []
    for group in groups.values():
        with suppress(Exception):
            start_pack(group[:1], device, backend)
            sound += group
    return sound


def start_pack(
    cells: Sequence[TrainConfig], device: str, backend: RolloutBackend | None, *, alternates: bool = True
) -> Any:
    """A pack, or two halves that alternate where a backend samples and there is more than one cell."""
    # Imported here, so that a worker that can't import torch says so in its cells' rows.
    from memrl.learning.half_packs import HalfPacks
    from memrl.learning.pack import Pack

    if backend is None or len(cells) == 1 or not alternates:
        return Pack(cells, device=device, backend=backend)
    return HalfPacks(cells, device=device, backend=backend)


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
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
