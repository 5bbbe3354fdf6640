"""What packs report: counted for the eye, and written to the tables."""

import time
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import get_args

import pyarrow as pa
import pyarrow.compute as pc

from memrl.channels import label_channel
from memrl.config import TrainConfig
from memrl.sweep.forecast import Forecast
from memrl.sweep.stretch import Stretch
from memrl.tables.rows import failed_row
from memrl.tables.schema import CURVES, EPISODES_TO_MEMORIZE, Row
from memrl.tables.store import TableStore
from memrl.task.result import Status

_FLUSH_SECONDS = 1.0
_MOST_TIME_FLUSHING = 0.02
"""Rows are written when a second has passed and writing has taken no more than this share of the time."""

_FORECAST_SECONDS = 1.0
_MOST_TIME_FORECASTING = 0.02
"""Likewise, for the time left."""

_RATE_SECONDS = 10.0
"""Episodes per second are counted over this long."""
_LEAST_SECONDS = 1.0


class Recorder:
    """Counts what the packs of a sweep report and writes what has ended.

    Args:
        store: the sweep's tables.
        num_cells: cells of the sweep.
        finished: those of them that had finished before; what is told of them again is passed over.
        traces: whether to write the packs' timelines.
    """

    def __init__(
        self, store: TableStore, num_cells: int, finished: Collection[str] = (), *, traces: bool = False
    ) -> None:
        self.num_cells, self.num_finished = num_cells, len(finished)
        self._known = set(finished)
        self.statuses: Counter[str] = Counter()
        self.first_error = ""
        self._store = store
        self._traces = traces
        self._packs: list[Sequence[TrainConfig]] = []
        self._ended: list[set[str]] = []
        self._episodes: list[int] = []
        self._ended_episodes: list[int] = []
        self._recent: deque[tuple[float, int]] = deque()
        self._started: float | None = None
        self._stretches: list[Stretch] = []
        self._next_flush = self._next_forecast = self._forecast_at = 0.0
        self._forecast, self._left = Forecast(), None

    def begin(self, packs: Sequence[Sequence[TrainConfig]], num_trials: int = 1) -> None:
        """Takes note of packs that will run, so many at once; trials report by their numbers, in their order."""
        self._packs += packs
        self._forecast.begin([[c for c in pack if c.cell_id not in self._known] for pack in packs], num_trials)
        self._ended += [self._known & {cell.cell_id for cell in pack} for pack in packs]
        self._episodes += [0] * len(packs)
        self._ended_episodes += [0] * len(packs)

    @property
    def num_done(self) -> int:
        """Cells that have ended, one way or another."""
        return self.num_finished + self.statuses.total()

    @property
    def has_measured(self) -> bool:
        """Whether a cell has ended otherwise than by failing, now or in an earlier launch."""
        return self.num_done > self.statuses["failed"]

    @property
    def episodes(self) -> int:
        """Episodes of this run, of all cells."""
        return sum(self._episodes)

    @property
    def has_started(self) -> bool:
        """Whether a trial has reported."""
        return self._started is not None

    def episodes_per_s(self) -> float:
        """Episodes per second over the last ten seconds; 0 in the first one, which tells nothing yet."""
        if len(self._recent) < 2:
            return 0.0
        (start, before), (end, now) = self._recent[0], self._recent[-1]
        return (now - before) / (end - start) if end - start >= _LEAST_SECONDS else 0.0

    def tell_progress(self) -> dict[str, float]:
        """How far the sweep is: cells that have ended, by how, and episodes."""
        by_status = {name: self.statuses[name] for name in get_args(Status)}
        return {"cells": self.num_done, **by_status, "episodes": self.episodes, "episodes_per_s": self.episodes_per_s()}

    def seconds_left(self) -> float | None:
        """The time that the packs still take (`memrl.sweep.forecast`); None before there is anything to go by."""
        return None if self._left is None else max(0.0, self._left - (time.monotonic() - self._forecast_at))

    def _look_ahead(self, now: float) -> None:
        """Estimates the time left, now and then; not where it is asked for, which the live line does in its thread."""
        if now >= self._next_forecast:
            self._left, self._forecast_at = self._forecast.seconds_left(), now
            self._next_forecast = now + max(_FORECAST_SECONDS, (time.monotonic() - now) / _MOST_TIME_FORECASTING)

    def take(self, pack: int, stretch: Stretch) -> None:
        """Takes what a stretch of a pack brought."""
        now = time.monotonic()
        self._started = self._started or now
        self._episodes[pack] = stretch.episodes
        self._forecast.see(pack, stretch.updates, now)
        self._recent.append((now, self.episodes))
        while now - self._recent[0][0] > _RATE_SECONDS:
            self._recent.popleft()
        stretch = self._pass_over_known(stretch)
        if stretch.rows or stretch.curves.num_rows:
            self._keep(pack, stretch)
        self._look_ahead(now)
        if self._stretches and now >= self._next_flush:
            self.flush()

    def take_trace(self, pack: int, trace: str) -> None:
        """Writes a pack's timeline, if timelines are wanted."""
        if self._traces:
            self._store.write_text(f"timeline/pack-{pack:05d}.json", trace)

    def fail(self, pack: int, error: str) -> None:
        """Writes a failed row for each cell of a pack whose trial died."""
        rows = [failed_row(cell, f"the trial died: {error}") for cell in self.list_left(pack)]
        self._keep(pack, Stretch(rows))
        self.flush()

    def list_left(self, pack: int) -> list[TrainConfig]:
        """The cells of a pack that have not ended."""
        return [cell for cell in self._packs[pack] if cell.cell_id not in self._ended[pack]]

    def close(self, pack: int) -> None:
        """Takes note that the cells of a pack that have not ended go on in other packs."""
        self._packs[pack] = [cell for cell in self._packs[pack] if cell.cell_id in self._ended[pack]]
        self._forecast.close(pack)
        self._episodes[pack] = self._ended_episodes[pack]

    def flush(self) -> None:
        """Writes what has ended and is not written yet, curves first: a cell counts as finished by its row."""
        stretches, self._stretches = self._stretches, []
        if not stretches:
            return
        start = time.monotonic()
        self._store.append(CURVES, pa.concat_tables([stretch.curves for stretch in stretches]))
        rows = [row for stretch in stretches for row in stretch.rows]
        counted_as = {row["cell_id"]: row["status"] for row in rows}
        for row in self._store.append(EPISODES_TO_MEMORIZE, rows):
            self.statuses[counted_as[row["cell_id"]]] -= 1
            self._count(row)
        end = time.monotonic()
        self._next_flush = end + max(_FLUSH_SECONDS, (end - start) / _MOST_TIME_FLUSHING)

    def _pass_over_known(self, stretch: Stretch) -> Stretch:
        """Without what was told before: a pack that goes on from a checkpoint tells it again."""
        again = [row["cell_id"] for row in stretch.rows if row["cell_id"] in self._known]
        self._known.update(row["cell_id"] for row in stretch.rows)
        if not again:
            return stretch
        rows = [row for row in stretch.rows if row["cell_id"] not in again]
        return replace(stretch, rows=rows, curves=stretch.curves.filter(~pc.field("cell_id").isin(again)))

    def _keep(self, pack: int, stretch: Stretch) -> None:
        self._stretches.append(stretch)
        for row in stretch.rows:
            self._ended[pack].add(row["cell_id"])
            self._ended_episodes[pack] += row["episodes"] or 0
            self._forecast.end(pack, row["cell_id"], row["updates"])
            self._count(row)

    def _count(self, row: Row) -> None:
        self.statuses[row["status"]] += 1
        if row["error"] and not self.first_error:
            self.first_error = f"{label_channel(row)}, N = {row['N']}: {row['error']}"
