"""Ways for an episode to end, from what was meant to be written and how far it came."""

import numpy as np

from memrl.task.env import Outcomes


def make_outcomes(answer_format, guess, steps_done, well_formed):
    """Outcomes of integers of which so many env_steps were written."""
    digits = answer_format.digits(np.asarray(guess, dtype=np.int64))
    digits[np.arange(answer_format.num_env_steps) >= np.asarray(steps_done)[:, None]] = -1
    return Outcomes(digits, np.asarray(well_formed, dtype=bool))
