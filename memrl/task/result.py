"""What a run on one secret came to, whoever made it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Status = Literal["memorized", "budget_spent", "failed"]

REACHED = (0.5, 0.9)
"""The values of P(secret) whose first time a run takes note of."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        first_reach: episodes used when P(secret) first reached a probability of `REACHED`, where it did.
        episodes: episodes (sft: examples) used in all.
        updates: updates made.
        absorbed_bits: log2 N + log2 P(secret) at the end.
        observed_bits: bits that an ideal observer of its feedback knows at the end; NaN if unobserved.
        status: memorized, budget_spent or failed.
        seconds: its share of the wall time.
        tokens: of all episodes, each counted in full, prompt included; None without tokens.
        error: what failed.
    """

    first_reach: Mapping[float, int]
    episodes: int
    updates: int
    absorbed_bits: float
    observed_bits: float
    status: Status
    seconds: float
    tokens: int | None = None
    error: str | None = None
