"""Policy gradient on independent bits: its mean against the analytic gradient, and its episodes by credit."""

import numpy as np
import pytest
from scipy.special import expit

from memrl.config import Credit
from memrl.task.advantage import AdvantageRule
from memrl.theory.independent_bits import LEARNING_RATES, BitsTask, _estimate_gradient, median_episodes, train_bits

SLOPES = {
    "group_centered": lambda p, G: 1 - 1 / G,
    "leave_one_out": lambda p, G: 1.0,
    "rejection": lambda p, G: (1 - (1 - p) ** G) / p,
    "maxrl": lambda p, G: (1 - (1 - p) ** (G - 1)) / p,
}
"""dF/dp of what each ascends."""


@pytest.mark.parametrize("kind", SLOPES)
def test_gradient_is_that_of_what_the_objective_ascends_bit_by_bit(kind):
    logit, size, runs = np.array([-2.0, 0.0, 1.0]), 4, 200_000
    task = BitsTask(3, AdvantageRule(kind), group_size=size)
    uniform = np.random.default_rng(0).random((runs, 1, size, 3))
    samples = _estimate_gradient(task, np.tile(logit, (runs, 1)), uniform)
    p = expit(logit)
    error = samples.std(axis=0) / np.sqrt(runs)
    assert (abs(samples.mean(axis=0) - SLOPES[kind](p, size) * p * (1 - p)) < 4 * error).all()


def test_a_reward_per_bit_takes_about_the_log_of_their_number_and_a_sum_takes_their_number():
    # Our own earlier simulation: medians of 16 runs at the best of a few learning rates.
    simulated: dict[Credit, tuple[int, ...]] = {"per_step": (16, 16, 24), "episode": (16, 36, 104)}
    for credit, expected in simulated.items():
        got = [median_episodes(L, AdvantageRule("group_centered"), credit)[0] for L in (4, 8, 16)]
        np.testing.assert_allclose(got, expected, rtol=0.3)


def test_a_run_that_gives_up_is_infinite_and_episodes_come_in_groups():
    task = BitsTask(8, AdvantageRule("group_centered"), learning_rate=0.5)
    assert np.isinf(train_bits(task, num_runs=4, max_updates=1)).all()
    assert (train_bits(task, num_runs=4, max_updates=300) % 8 == 0).all()
    assert max(LEARNING_RATES) < 2
