"""What a hypothesis is, and how an interval decides it.

Each hypothesis is put as one number and a region in which it holds. The verdict is `supported` where the 95 % interval
lies inside the region, `refuted` where the interval and the region have nothing in common, and `undecided` otherwise
(Kruschke's region of practical equivalence), and wherever a condition that it rests on has fewer than 8 secrets. A
hypothesis that the sweep has no data for gets no verdict.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from memrl.analysis.wording import format_number

Outcome = Literal["supported", "refuted", "undecided"]

FEWEST_SECRETS = 8
"""No verdict rests on a condition with fewer."""

MOST_LEFT_OUT = 0.5
"""No verdict where more than this share of the groups can't be used."""


@dataclass(frozen=True)
class Hypothesis:
    """A claim, and where the number that it is about must lie.

    Attributes:
        name: H1a, H1b, H2 and so on.
        claim: in words.
        region: where the number lies if the claim holds, both ends included.
        seen_first: whether the region was stated after a first look at data.
    """

    name: str
    claim: str
    region: tuple[float, float]
    seen_first: bool = False

    @property
    def holds_in(self) -> str:
        """The region in words.

        >>> Hypothesis("H5", "", (0.5, 2.0)).holds_in
        '0.5 to 2'
        """
        return f"{format_number(self.region[0])} to {format_number(self.region[1])}"


@dataclass(frozen=True)
class Verdict:
    """What the intervals say of one hypothesis.

    Attributes:
        hypothesis: which.
        outcome: supported, refuted or undecided.
        sentence: one sentence with the figures that decided.
        value: the number that decided, NaN where there is none.
        lower: lower end of its 95 % interval.
        upper: upper end.
        objective: whose runs decided, where a sweep has several objectives: usual or chosen.
    """

    hypothesis: Hypothesis
    outcome: Outcome
    sentence: str
    value: float = np.nan
    lower: float = np.nan
    upper: float = np.nan
    objective: str = ""

    @property
    def name(self) -> str:
        """That of the hypothesis, and of the objective where that was told apart."""
        return f"{self.hypothesis.name}, {self.objective} objective" if self.objective else self.hypothesis.name


def decide(lower: float, upper: float, region: tuple[float, float]) -> Outcome:
    """Compares an interval with a region.

    >>> decide(0.9, 1.1, (0.75, 1.25)), decide(2.0, 3.0, (0.75, 1.25)), decide(0.5, 1.0, (0.75, 1.25))
    ('supported', 'refuted', 'undecided')
    """
    if np.isnan(lower) or np.isnan(upper):
        return "undecided"
    if region[0] <= lower and upper <= region[1]:
        return "supported"
    return "refuted" if upper < region[0] or lower > region[1] else "undecided"


def settle(hypothesis: Hypothesis, numbers: tuple[float, float, float], sentence: str, runs: np.ndarray) -> Verdict:
    """The verdict on a number with its interval, if every condition that it rests on has enough runs.

    Args:
        hypothesis: which.
        numbers: the value, and the ends of its interval.
        sentence: one sentence with these figures.
        runs: of each condition.
    """
    outcome, fewest = decide(numbers[1], numbers[2], hypothesis.region), int(runs.min())
    if fewest < FEWEST_SECRETS:
        outcome = "undecided"
        sentence += f" It takes {FEWEST_SECRETS} secrets in every condition to decide; here one has {fewest}."
    return Verdict(hypothesis, outcome, sentence, *numbers)
