"""What a run on one secret came to, whoever made it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Status = Literal["memorized", "budget_spent", "stopped", "failed"]

DIVERGED = "the policy diverged"
"""How the error begins of a run whose numbers are no numbers any more, and that would end so again."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        first_reach: episodes used when each of `MILESTONES` was first reached, where it was.
        episodes: episodes (sft: examples) used in all.
        updates: updates made.
        absorbed_bits: log2 N + log2 P(secret) at the end.
        observed_bits: bits that an ideal observer of its feedback knows at the end; NaN if unobserved.
        status: memorized, budget_spent, stopped (its learning rate could no longer be chosen) or failed.
        slope_bits: bits per episode between 10 % and 50 % of the signal, where it came so far and that was measured.
        seconds: its share of the wall time.
        tokens: of all episodes, each counted in full, prompt included; None without tokens.
        error: what failed.
    """

    first_reach: Mapping[str, int]
    episodes: int
    updates: int
    absorbed_bits: float
    observed_bits: float
    status: Status
    seconds: float
    slope_bits: float | None = None
    tokens: int | None = None
    error: str | None = None
