"""All hypotheses, and the verdicts on those that a sweep has data for."""

import numpy as np
import pandas as pd

from memrl.analysis.verdicts.adapters import H4, H5, judge_learning_rate, judge_rank
from memrl.analysis.verdicts.capacity import H7, H8
from memrl.analysis.verdicts.channels import H1A, H1B, H2, judge_binary, judge_bins, judge_exploration
from memrl.analysis.verdicts.interference import H9A, H9B
from memrl.analysis.verdicts.lengths import H6A, H6B, judge_lengths
from memrl.analysis.verdicts.per_step import H3, H10, judge_number_of_bits, judge_per_step
from memrl.analysis.verdicts.verdict import Verdict

HYPOTHESES = (H1A, H1B, H2, H3, H4, H5, H6A, H6B, H7, H8, H9A, H9B, H10)


def describe_late() -> str:
    """In brackets, which regions were stated after a first look at data.

    >>> describe_late()
    ' (that of H10 after a first look at them)'
    """
    late = [hypothesis.name for hypothesis in HYPOTHESES if hypothesis.seen_first]
    return (
        f" ({'those' if len(late) > 1 else 'that'} of {' and '.join(late)} after a first look at them)" if late else ""
    )


def judge_hypotheses(cells: pd.DataFrame, chosen: pd.DataFrame, known: tuple[np.ndarray, np.ndarray]) -> list[Verdict]:
    """Verdicts on the hypotheses that there is data for.

    Args:
        cells: measured cells of trained policies, all settings.
        chosen: those at settings chosen on other secrets (`hold_out_settings`).
        known: episodes and bits of `when_observer_knew` for the rows of `chosen`.
    """
    held_out = chosen["held_out"].to_numpy()
    chosen, known = chosen[held_out].reset_index(drop=True), (known[0][held_out], known[1][held_out])
    verdicts = [
        judge_binary(chosen),
        judge_exploration(chosen, known),
        judge_bins(chosen),
        judge_per_step(chosen),
        judge_rank(cells),
        judge_learning_rate(cells),
        *judge_lengths(cells),
        judge_number_of_bits(chosen),
    ]
    return [verdict for verdict in verdicts if verdict is not None]
