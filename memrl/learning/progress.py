"""How far the cells of a pack have come."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from memrl.config import TrainConfig
from memrl.task.reach import Reach
from memrl.task.result import RunResult, Status

TRAINING: Literal["training"] = "training"
"""The status of a cell that has not ended."""


@dataclass
class Progress:
    """Counters of each cell.

    Attributes:
        batches: batches used.
        episodes: episodes (sft: examples) used.
        tokens: of all episodes, each counted in full, prompt included.
        reach: how far they came, and after how many episodes.
        absorbed_bits: at the last scoring.
        observed_bits: at the last scoring.
        seconds: the cell's share of the wall time.
        status: `TRAINING`, or how the cell ended.
        error: what failed.
    """

    batches: Int[np.ndarray, "cell"]
    episodes: Int[np.ndarray, "cell"]
    tokens: Int[np.ndarray, "cell"]
    reach: Reach
    absorbed_bits: Float[np.ndarray, "cell"]
    observed_bits: Float[np.ndarray, "cell"]
    seconds: Float[np.ndarray, "cell"]
    status: list[Status | Literal["training"]]
    error: list[str | None]

    @classmethod
    def start(cls, configs: Sequence[TrainConfig]) -> "Progress":
        """Of cells that have done nothing yet."""
        num_cells = len(configs)
        return cls(
            batches=np.zeros(num_cells, dtype=np.int64),
            episodes=np.zeros(num_cells, dtype=np.int64),
            tokens=np.zeros(num_cells, dtype=np.int64),
            reach=Reach.start(np.array([config.signal_bits for config in configs])),
            absorbed_bits=np.full(num_cells, np.nan),
            observed_bits=np.full(num_cells, np.nan),
            seconds=np.zeros(num_cells),
            status=[TRAINING] * num_cells,
            error=[None] * num_cells,
        )

    @property
    def is_training(self) -> Bool[np.ndarray, "cell"]:
        """Which cells have not ended."""
        return np.array([status == TRAINING for status in self.status], dtype=bool)

    def score(
        self,
        configs: Sequence[TrainConfig],
        secret_log2: Float[np.ndarray, "cell"],
        observed_bits: Float[np.ndarray, "cell"],
    ) -> None:
        """Takes note of log2 P(secret) before an update, and ends the cells whose time it is.

        A cell ends as memorized when P(secret) reaches the config's stop_probability, and as budget_spent when another
        update would use more updates or episodes than it allows.

        Args:
            configs: the cells.
            secret_log2: log2 P(secret).
            observed_bits: what an ideal observer knows.
        """
        measured = np.flatnonzero(np.isfinite(secret_log2))
        self.reach.note(measured, self.episodes[measured], secret_log2[measured])
        for cell, (config, log2) in enumerate(zip(configs, secret_log2.tolist(), strict=True)):
            if self.status[cell] != TRAINING:
                continue
            if not math.isfinite(log2):
                self.fail(cell, f"the policy diverged: log2 P(secret) is {log2}")
                continue
            self.absorbed_bits[cell] = config.signal_bits + log2
            self.observed_bits[cell] = observed_bits[cell]
            if log2 >= math.log2(config.stop_probability):
                self.status[cell] = "memorized"
            elif self.episodes[cell] + config.episodes_per_update > config.episode_budget:
                self.status[cell] = "budget_spent"

    def fail(self, cell: int, error: str) -> None:
        """Ends a cell as failed, unless it has ended; `error` says why."""
        if self.status[cell] == TRAINING:
            self.status[cell], self.error[cell] = "failed", error

    def fail_cells(self, errors: Mapping[int, str]) -> None:
        """Ends some cells as failed, each by its own error; see `fail`."""
        for cell, error in errors.items():
            self.fail(cell, error)

    def count(
        self, learned: Bool[np.ndarray, "cell"], episodes: Int[np.ndarray, "cell"], tokens: Int[np.ndarray, "cell"]
    ) -> None:
        """Counts a batch.

        Args:
            learned: which cells used it.
            episodes: episodes of each.
            tokens: likewise.
        """
        self.batches += learned
        self.episodes += np.where(learned, episodes, 0)
        self.tokens += np.where(learned, tokens, 0)

    def result(self, cell: int, updates_per_batch: int) -> RunResult:
        """How a cell ended that made so many updates of each batch."""
        status = self.status[cell]
        assert status != TRAINING
        return RunResult(
            self.reach.milestones(cell),
            int(self.episodes[cell]),
            int(self.batches[cell]) * updates_per_batch,
            float(self.absorbed_bits[cell]),
            float(self.observed_bits[cell]),
            status,
            float(self.seconds[cell]),
            self.reach.slope_bits(cell),
            int(self.tokens[cell]),
            self.error[cell],
        )
