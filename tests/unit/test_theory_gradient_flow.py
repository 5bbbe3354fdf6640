"""Closed-form times against an integration of all N logits, and against what theory states for one half."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from gradient_flow import Objective, gradient_flow_time
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

SLOPES: dict[Objective, Callable[[float], float]] = {
    "probability": lambda p: 1.0,
    "arcsin_sqrt": lambda p: 0.5 / math.sqrt(p * (1 - p)),
    "log_probability": lambda p: 1 / p,
}


def integrate_logits(N, objective, reach):
    """Follows the gradient of F(p_0) in all N logits until p_0 reaches its goal."""

    def softmax(logits):
        weight = np.exp(logits - logits.max())
        return weight / weight.sum()

    def ascend(_, logits):
        p = softmax(logits)
        return SLOPES[objective](p[0]) * p[0] * (np.eye(N)[0] - p)

    def arrive(_, logits):
        return softmax(logits)[0] - reach

    arrive.terminal = True  # pyright: ignore[reportFunctionMemberAccess] (as solve_ivp asks)
    flow = solve_ivp(ascend, (0, 100 * N), np.zeros(N), events=arrive, rtol=1e-9, atol=1e-10, method="LSODA")
    return flow.t_events[0][0]


@pytest.mark.parametrize("objective", SLOPES)
@pytest.mark.parametrize(("N", "reach"), [(2, 0.7), (5, 0.5), (30, 0.5), (30, 0.9)])
def test_time_equals_the_integrated_flow_of_all_logits(N, objective, reach):
    assert gradient_flow_time(N, objective, reach) == pytest.approx(integrate_logits(N, objective, reach), rel=1e-5)


@given(st.integers(2, 5000))
def test_time_to_one_half_has_the_stated_form(N):
    log = (N - 1) / N * math.log(N - 1)
    assert gradient_flow_time(N) == pytest.approx(N - 2 + 2 * log, abs=1e-8 * N)
    assert gradient_flow_time(N, "arcsin_sqrt") == pytest.approx(4 * (N - 2) * math.sqrt(N - 1) / N, abs=1e-8 * N)
    assert gradient_flow_time(N, "log_probability") == pytest.approx(1 - 2 / N + log, abs=1e-8 * N)


@given(st.integers(3, 1000), st.floats(0.01, 0.99))
def test_time_grows_with_the_goal_and_plateaus_are_ordered(N, share):
    reach = 1 / N + share * (0.5 - 1 / N)
    log, arcsin, plain = (gradient_flow_time(N, objective, reach) for objective in reversed(SLOPES))
    assert 0 < log <= 2 * arcsin <= 4 * plain
    assert plain < gradient_flow_time(N, "probability", 0.5 + share * 0.4)


def test_a_goal_out_of_range_is_refused():
    assert gradient_flow_time(4, reach=0.25) == 0.0
    for reach in (0.2, 1.0):
        with pytest.raises(ValueError, match=r"reach must lie in 1/N=0\.25 \.\. 1, got"):
            gradient_flow_time(4, reach=reach)
