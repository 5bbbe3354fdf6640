"""Two halves of a pack that alternate: one samples while the other updates, and every cell stays strictly on-policy."""

from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from memrl.config import TrainConfig
from memrl.learning.pack import Pack
from memrl.learning.state import read_configs
from memrl.learning.timeline import Timeline
from memrl.rollout.backend import RolloutBackend, SampledEpisodes, SampleRequest
from memrl.tables.schema import Row


class HalfPacks:
    """A pack whose episodes come from a backend, cut in two so that sampling and updating overlap.

    Since each policy is its own, a half that waits for its episodes does not keep the other from learning. No cell ever
    learns from another version of its adapter than its last: `Pack.learn` checks every episode's version.

    Args:
        halves: packs of unlike cells, none of which has a backend.
        backend: who samples; called from threads of its own, for one half at a time each.
        timeline: takes the spans of sampling and updating.
    """

    def __init__(self, halves: Sequence[Pack], *, backend: RolloutBackend, timeline: Timeline | None = None) -> None:
        self._backend, self._halves = backend, list(halves)
        self._pending: list[Future[list[SampledEpisodes]] | None] = [None] * len(halves)
        self._threads = ThreadPoolExecutor(max_workers=len(halves), thread_name_prefix="sample")
        self.timeline = timeline or Timeline()

    @classmethod
    def split(
        cls,
        configs: Sequence[TrainConfig],
        *,
        backend: RolloutBackend,
        device: str = "cpu",
        timeline: Timeline | None = None,
        adapters: str = "",
    ) -> "HalfPacks":
        """Cuts a pack of at least two cells in two; the arguments are those of Pack, and of half-packs."""
        halves = [Pack(half, device=device, adapters=adapters) for half in (configs[0::2], configs[1::2])]
        return cls(halves, backend=backend, timeline=timeline)

    @property
    def live(self) -> int:
        """Cells still training."""
        return sum(half.live for half in self._halves)

    @property
    def finished(self) -> bool:
        """Whether every cell has ended."""
        return all(half.finished for half in self._halves)

    @property
    def episodes(self) -> int:
        """Episodes so far, over all cells."""
        return sum(half.episodes for half in self._halves)

    def update(self) -> None:
        """Updates every live cell once; each half's next episodes are asked for as soon as its adapters are written."""
        for index in range(len(self._halves)):
            self._ask(index)
        for index, half in enumerate(self._halves):
            pending = self._pending[index]
            if pending is None:
                continue
            episodes = pending.result()
            self._pending[index] = None
            with self.timeline.record("update", f"learner, half {index}"):
                half.learn(episodes)
            self._ask(index)
        if self.finished:
            self._threads.shutdown()

    def _ask(self, index: int) -> None:
        half = self._halves[index]
        if self._pending[index] is None and not half.finished:
            self._pending[index] = self._threads.submit(self._sample, index, half.requests())

    def _sample(self, index: int, requests: list[SampleRequest]) -> list[SampledEpisodes]:
        with self.timeline.record("sample", f"rollout, half {index}"):
            return self._backend.sample(requests)

    def fail(self, error: str) -> None:
        """Ends every live cell as failed."""
        for half in self._halves:
            half.fail(error)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def list_reached(self) -> dict[str, Row]:
        """How far cells have come; see Pack.list_reached."""
        return {cell_id: reached for half in self._halves for cell_id, reached in half.list_reached().items()}

    def curtail(self, cell_ids: Collection[str]) -> None:
        """Lets cells end as stopped; see Pack.curtail."""
        for half in self._halves:
            half.curtail(cell_ids)

    def drain(self) -> tuple[list[Row], pa.Table]:
        """Takes what was recorded since the last call; see Pack.drain."""
        rows, curves = zip(*(half.drain() for half in self._halves), strict=True)
        return [row for part in rows for row in part], pa.concat_tables(curves)

    def save(self, folder: Path) -> None:
        """Writes the halves that still train into a folder, which must exist; what is being sampled is not kept.

        Raises:
            ValueError: rows were recorded that nobody has drained.
        """
        for number, half in enumerate(self._halves):
            if not half.finished:
                (folder / f"half_{number}").mkdir()
                half.save(folder / f"half_{number}")

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        backend: RolloutBackend,
        cell_ids: Collection[str] | None = None,
        timeline: Timeline | None = None,
        adapters: str = "",
    ) -> "HalfPacks":
        """The half-packs that `save` wrote; they ask for their episodes again. `cell_ids` as for a pack."""
        folders = [
            half
            for half in sorted(folder.glob("half_*"))
            if cell_ids is None or any(config.cell_id in cell_ids for config in read_configs(half))
        ]
        halves = [Pack.load(half, cell_ids=cell_ids, adapters=adapters) for half in folders]
        return cls(halves, backend=backend, timeline=timeline)
