"""What a run has reached so far, cell by cell, and the row it leaves when it ends."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from memrl.config import TrainConfig
from memrl.policy.calibration import Prior
from memrl.tables.rows import trained_row
from memrl.task.result import REACHED, RunResult, Status
from memrl.task.reward import Channel


@dataclass
class CellProgress:
    """One cell's run.

    Attributes:
        config: the cell.
        secret: what is hidden.
        channel: what an episode tells.
        prior: the base policy's distance from uniform.
        updates: updates made.
        episodes: episodes (sft: examples) used.
        first_reach: episodes used when P(secret) first reached 0.5 and 0.9, by that probability.
        absorbed_bits: at the last scoring.
        observed_bits: at the last scoring.
        seconds: the cell's share of the wall time.
        tokens: of all its episodes, each counted in full, prompt included.
        status: training, memorized, budget_spent or failed.
        error: what failed.
    """

    config: TrainConfig
    secret: int
    channel: Channel
    prior: Prior
    updates: int = 0
    episodes: int = 0
    first_reach: dict[float, int] = field(default_factory=dict)
    absorbed_bits: float = math.nan
    observed_bits: float = math.nan
    seconds: float = 0.0
    tokens: int = 0
    status: Status | Literal["training"] = "training"
    error: str | None = None

    def record_score(self, secret_log2: float, observed_bits: float) -> None:
        """Takes note of log2 P(secret) before an update, and ends the run if it is time to.

        A run ends as memorized when P(secret) reaches the config's stop_probability, and as budget_spent when another
        update would use more updates or episodes than it allows.
        """
        if not math.isfinite(secret_log2):
            self.fail(f"the policy diverged: log2 P(secret) is {secret_log2}")
            return
        self.absorbed_bits = math.log2(self.config.N) + secret_log2
        self.observed_bits = observed_bits
        for probability in REACHED:
            if secret_log2 >= math.log2(probability):
                self.first_reach.setdefault(probability, self.episodes)
        if secret_log2 >= math.log2(self.config.stop_probability):
            self.status = "memorized"
        elif self.episodes + self.config.episodes_per_update > self.config.episode_budget:
            self.status = "budget_spent"

    def fail(self, error: str) -> None:
        """Ends the run as failed; `error` says why."""
        self.status, self.error = "failed", error

    def to_row(self) -> dict[str, Any]:
        """The row of a cell that has ended, for the table episodes_to_memorize."""
        assert self.status != "training"
        result = RunResult(
            self.first_reach,
            self.episodes,
            self.updates,
            self.absorbed_bits,
            self.observed_bits,
            self.status,
            self.seconds,
            self.tokens,
            self.error,
        )
        return trained_row(self.config, self.channel, result, self.prior.kl_bits, self.prior.well_formed_mass)
