"""What a run has reached so far, cell by cell, and the row it leaves when it ends."""

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import chz

from memrl.config import TrainConfig
from memrl.policy.calibration import Prior
from memrl.task.reward import Channel
from memrl.theory.capacity import channel_capacity


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
    status: str = "training"
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
        for probability in (0.5, 0.9):
            if secret_log2 >= math.log2(probability):
                self.first_reach.setdefault(probability, self.episodes)
        if secret_log2 >= math.log2(self.config.stop_probability):
            self.status = "memorized"
        elif self.episodes + self.config.episodes_per_update > self.config.episode_budget:
            self.status = "budget_spent"

    def fail(self, error: str) -> None:
        """Ends the run as failed; `error` says why."""
        self.status, self.error = "failed", error

    def to_row(self, versions: str, revision: str | None) -> dict[str, Any]:
        """The cell's row of the table episodes_to_memorize."""
        fields = chz.asdict(self.config) | self.config.identity()
        return {
            **fields,
            "cell_id": self.config.cell_id,
            "agent": "lora",
            "channel": self.config.channel_name,
            "secret": self.secret,
            "signal_bits": math.log2(self.config.N),
            **self._capacity_columns(),
            "prior_kl_bits": self.prior.kl_bits,
            "prior_well_formed": self.prior.well_formed_mass,
            **self._reach_columns("e50", 0.5),
            **self._reach_columns("e90", 0.9),
            "episodes": self.episodes,
            "updates": self.updates,
            "absorbed_bits": self.absorbed_bits,
            "observed_bits": self.observed_bits,
            "bits_per_episode": self.absorbed_bits / self.episodes if self.episodes else math.nan,
            "status": self.status,
            "error": self.error,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions,
            "revision": revision,
        }

    def _capacity_columns(self) -> dict[str, Any]:
        """Null for a failed cell: what failed may be the channel's own function."""
        capacity = None if self.status == "failed" else channel_capacity(self.channel)
        return {
            "capacity_nominal_bits": capacity and capacity.nominal_bits,
            "capacity_uniform_bits": capacity and capacity.uniform_guess_bits,
            "capacity_best_bits": capacity and capacity.best_guess_bits,
            "identifiable": capacity and capacity.identifiable,
        }

    def _reach_columns(self, name: str, probability: float) -> dict[str, Any]:
        reached = self.first_reach.get(probability)
        return {name: self.episodes if reached is None else reached, f"{name}_censored": reached is None}
