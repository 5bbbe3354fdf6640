"""H6: how the episodes to half of a sequence's bits grow with the number of its symbols.

- H6a: those of a summed reward grow about linearly. The exponent p of episodes ~ L^p over three or more lengths from 8
  on lies in [3/4, 5/4]; each symbol answers for the sum of all rewards, or is told their number.
- H6b: those of a reward per step grow at most logarithmically. The exponent q of episodes ~ (log2 L)^q, over the same
  lengths, is at most 1.

L counts bits, L log2 N of them. A length whose median run does not get there opens the interval upwards. The regions
were stated before the data, after theory (docs/sources.md) and a table of independent symbols.
"""

import numpy as np
import pandas as pd

from memrl.analysis.lengths import fit_growth, take_sequences
from memrl.analysis.verdicts.verdict import Hypothesis, Verdict, settle
from memrl.analysis.wording import format_estimate, format_number

H6A = Hypothesis(
    "H6a", "The episodes of a summed reward grow about linearly with the number of symbols (power)", (3 / 4, 5 / 4)
)
H6B = Hypothesis(
    "H6b", "Those of a reward per step grow at most logarithmically (power of the logarithm)", (-np.inf, 1.0)
)


def judge_lengths(cells: pd.DataFrame) -> list[Verdict]:
    """H6a and H6b, where a sweep has sequences of three or more lengths.

    Args:
        cells: measured cells of trained policies, all settings of one objective.
    """
    sequences = take_sequences(cells)
    verdicts = [
        _judge(H6A, sequences, "With the sum of all rewards for every symbol", ("sum", "count"), False),
        _judge(H6B, sequences, "With a reward for each symbol", ("symbol",), True),
    ]
    return [verdict for verdict in verdicts if verdict is not None]


def _judge(
    hypothesis: Hypothesis, cells: pd.DataFrame, how: str, lines: tuple[str, ...], in_log: bool
) -> Verdict | None:
    keys, numbers = fit_growth(cells, lines, in_log)
    if np.isnan(numbers).all():
        return None
    listed = [f"{format_number(row['median'])} at {row['signal_bits']:g}" for row in keys.to_dict("records")]
    power = "their number's logarithm" if in_log else "their number"
    sentence = (
        f"{how}, half of the bits took {', '.join(listed)} bits: the episodes go as {power} to the power "
        f"{format_estimate(*numbers)}"
    )
    if in_log:
        sentence += f", and as their number to the power {format_estimate(*fit_growth(cells, lines)[1])}"
    value, lower, upper = (float(number) for number in numbers)
    return settle(hypothesis, (value, lower, upper), f"{sentence}.", keys["num_cells"].to_numpy())
