"""How far the cells of a pack have come."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from memrl.config import TrainConfig
from memrl.task.reach import Reach
from memrl.task.result import DIVERGED, RunResult, Status

_MEASURED_SHARE = 0.1
"""What measuring keys may cost, as a share of training."""

_COST_OF_TRAINING = 3
"""Passes over a key in training, at least, for the one that scores it: forward, and twice as much backward."""

TRAINING: Literal["training"] = "training"
"""The status of a cell that has not ended."""


@dataclass
class Progress:
    """Counters of each cell.

    Attributes:
        cost: episodes of one update.
        budget: the most episodes of the run.
        batches: batches used.
        episodes: episodes (sft: examples) used.
        tokens: of all episodes, each counted in full, prompt included.
        reach: how far they came, and after how many episodes.
        next_measurement: batches after which all keys are scored again.
        absorbed_bits: at the last scoring.
        observed_bits: at the last scoring.
        seconds: the cell's share of the wall time.
        status: `TRAINING`, or how the cell ended.
        error: what failed.
    """

    cost: Int[np.ndarray, "cell"]
    budget: Int[np.ndarray, "cell"]
    batches: Int[np.ndarray, "cell"]
    episodes: Int[np.ndarray, "cell"]
    tokens: Int[np.ndarray, "cell"]
    reach: Reach
    next_measurement: Int[np.ndarray, "cell"]
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
            cost=np.array([config.episodes_per_update for config in configs], dtype=np.int64),
            budget=np.array([config.episode_budget for config in configs], dtype=np.int64),
            batches=np.zeros(num_cells, dtype=np.int64),
            episodes=np.zeros(num_cells, dtype=np.int64),
            tokens=np.zeros(num_cells, dtype=np.int64),
            reach=Reach.start(np.array([config.signal_bits for config in configs])),
            next_measurement=np.zeros(num_cells, dtype=np.int64),
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

    def find_due(self) -> Bool[np.ndarray, "cell"]:
        """Which cells are measured now: those without keys always, and all at their start and end."""
        return self._is_spent | (self.batches >= self.next_measurement)

    @property
    def _is_spent(self) -> Bool[np.ndarray, "cell"]:
        """Which cells can't afford another update."""
        return self.episodes + self.cost > self.budget

    def score(
        self,
        configs: Sequence[TrainConfig],
        measured: Bool[np.ndarray, "cell"],
        secret_log2: Float[np.ndarray, "cell"],
        observed_bits: Float[np.ndarray, "cell"],
    ) -> None:
        """Takes note of log2 P before an update, and ends the cells whose time it is.

        A cell ends as memorized when P(secret) reaches the config's stop_probability (with keys: when the absorbed
        share of its bits does), and as budget_spent when another update would use more updates or episodes than it
        allows, or as stopped where its budget was curtailed.

        Args:
            configs: the cells.
            measured: which of them are measured.
            secret_log2: log2 P(secret), summed over keys where there are keys.
            observed_bits: what an ideal observer knows.
        """
        spent, noted = self._is_spent, np.flatnonzero(measured & np.isfinite(secret_log2))
        self.reach.note(noted, self.episodes[noted], secret_log2[noted])
        for cell, (config, log2) in enumerate(zip(configs, secret_log2.tolist(), strict=True)):
            if self.status[cell] != TRAINING:
                continue
            if not math.isfinite(log2):
                self.fail(cell, f"{DIVERGED}: log2 P(secret) is {log2}")
            elif measured[cell]:
                self._note(cell, config, log2, float(observed_bits[cell]))
                if spent[cell] and self.status[cell] == TRAINING:
                    self.status[cell] = "stopped" if self.budget[cell] < config.episode_budget else "budget_spent"

    def _note(self, cell: int, config: TrainConfig, log2: float, observed_bits: float) -> None:
        self.absorbed_bits[cell] = config.signal_bits + log2
        self.observed_bits[cell] = observed_bits
        self.next_measurement[cell] = self.batches[cell] + count_gap(config, int(self.batches[cell]))
        enough = math.log2(config.stop_probability)
        if config.num_keys is not None:
            enough = (config.stop_probability - 1.0) * config.signal_bits
        if log2 >= enough:
            self.status[cell] = "memorized"

    def curtail(self, cell: int) -> None:
        """Lets a cell make no further update: once it has been scored again, it ends as stopped."""
        self.budget[cell] = self.episodes[cell]

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


def count_gap(config: TrainConfig, batches: int) -> int:
    """Batches from a measurement of a cell's keys to the next one.

    Unless `measure_every` says it: a tenth of the batches so far, and so many at least that measuring costs about a
    tenth of training. To score a key takes one pass over its prompt and its answer, to train on it three at least.

    >>> [count_gap(TrainConfig(algorithm="sft", num_keys=600, batch_size=8), batches) for batches in (0, 100, 5000)]
    [250, 250, 500]
    """
    if config.measure_every is not None or config.num_keys is None:
        return config.measure_every or 1
    worth = config.prompts_per_update * config.updates_per_batch * _COST_OF_TRAINING
    return max(math.ceil(batches * _MEASURED_SHARE), math.ceil(config.num_keys / worth / _MEASURED_SHARE))
