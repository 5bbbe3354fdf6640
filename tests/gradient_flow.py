"""How long a tabular softmax policy takes on the binary channel when its updates are small and exact: closed forms."""

import math
from typing import Literal

Objective = Literal["probability", "arcsin_sqrt", "log_probability"]


def gradient_flow_time(N: int, objective: Objective = "probability", reach: float = 0.5) -> float:
    """Time in which gradient flow over N logits takes P(secret) from 1/N to `reach`, in units of 1 / learning rate.

    With all other arms alike, ascending F(p) moves p by dp/dt = F'(p) p^2 (1-p)^2 N / (N-1). To 1/2 this takes
    probability (REINFORCE): N - 2 + 2 ((N-1)/N) ln(N-1);
    arcsin_sqrt, F = arcsin sqrt p: 4 (N-2) sqrt(N-1) / N; the std-normalized group advantage ascends twice this F;
    log_probability (SFT, rejection sampling): 1 - 2/N + ((N-1)/N) ln(N-1).

    >>> round(gradient_flow_time(64), 3) == round(62 + 2 * (63 / 64) * math.log(63), 3)
    True

    Args:
        N: number of arms, at least 2.
        objective: what is ascended.
        reach: P(secret) at the end, from 1/N to below 1.

    Returns:
        The time, 0 where the policy starts there.

    Raises:
        ValueError: `reach` is out of range.

    Source: Mei et al. 2020, arXiv 2005.06392, lemma 1 (the softmax gradient); Davis and Recht 2025, arXiv 2510.13651
        (the objectives); integrated here.
    """
    if not 1 / N <= reach < 1:
        raise ValueError(f"reach must lie in 1/N={1 / N:g} .. 1, got {reach}")
    return (N - 1) / N * (_elapsed(reach, objective) - _elapsed(1 / N, objective))


def _elapsed(p: float, objective: Objective) -> float:
    """An antiderivative of 1 / (F'(p) p^2 (1-p)^2)."""
    odds = math.log(p / (1 - p))
    if objective == "probability":
        return 2 * odds - 1 / p + 1 / (1 - p)
    if objective == "arcsin_sqrt":
        return 4 * (2 * p - 1) / math.sqrt(p * (1 - p))
    return odds + 1 / (1 - p)
