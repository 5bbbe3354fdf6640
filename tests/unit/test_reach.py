"""Milestones and slopes of runs against plain loops."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memrl.task.reach import MILESTONES, Reach

MEASURED = st.lists(st.tuples(st.integers(1, 9), st.floats(-12, -1e-3)), min_size=1, max_size=12)


def note_all(signal_bits, points):
    reach = Reach.start(np.array([signal_bits]))
    for episodes, log2 in points:
        reach.note(np.array([0]), np.array([episodes]), np.array([log2]))
    return reach


def first_at(points, level):
    return next((episodes for episodes, log2 in points if log2 >= level), None)


def cross(points, signal_bits, share):
    """Where the straight lines between measurements first come to a share of the signal."""
    levels = [(episodes, signal_bits + log2 - share * signal_bits) for episodes, log2 in points]
    if levels[0][1] >= 0:
        return levels[0][0]
    for (begun, low), (ended, high) in pairwise(levels):
        if high >= 0:
            return begun + (ended - begun) * low / (low - high)
    return None


@settings(max_examples=200)
@given(st.floats(2, 12), MEASURED)
def test_milestones_and_slope_are_those_of_a_plain_loop(signal_bits, steps):
    points, episodes = [(0, -signal_bits)], 0
    for more, log2 in steps:
        episodes += more
        points.append((episodes, log2))
    reach = note_all(signal_bits, points)
    levels = zip(MILESTONES, (-1.0, math.log2(0.9), -signal_bits / 2), strict=True)
    expected = {name: first_at(points, level) for name, level in levels}
    assert reach.milestones(0) == {name: first for name, first in expected.items() if first is not None}
    begun, ended = (cross(points, signal_bits, share) for share in (0.1, 0.5))
    if begun is None or ended is None:
        assert reach.slope_bits(0) is None
    else:
        assert reach.slope_bits(0) == pytest.approx(0.4 * signal_bits / (ended - begun), rel=1e-9)


def test_a_straight_rise_has_its_own_slope_however_rarely_it_is_measured():
    for every in (1, 7, 40):
        reach = note_all(30.0, [(n, min(n * 0.25, 29.9) - 30.0) for n in range(0, 121, every)])
        assert reach.slope_bits(0) == pytest.approx(0.25)


def test_a_run_that_knew_half_from_the_start_has_no_slope():
    assert note_all(8.0, [(0, -3.0), (4, -1.0)]).slope_bits(0) is None


def test_runs_that_are_kept_go_on_as_they_were():
    reach = Reach.start(np.array([4.0, 8.0, 16.0]))
    reach.note(np.arange(3), np.full(3, 2), np.array([-2.0, -6.0, -12.0]))
    reach.keep(np.array([0, 2]))
    again = Reach.start(np.array([4.0, 16.0]))
    again.restore(reach.arrays())
    again.note(np.array([1]), np.array([6]), np.array([-8.0]))
    assert [again.milestones(run) for run in range(2)] == [{"half_bits": 2}, {"half_bits": 6}]
    assert again.slope_bits(1) == pytest.approx(6.4 / (6 - 2))
