"""Curves as step functions: carried forward, averaged, and read for when the observer knew."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memrl.analysis.curves import carry_forward_sums, collect_curves, mean_curves, when_observer_knew


def build_table(cells):
    """A curves table from {cell_id: [(update, episodes, observed, absorbed), ...]}, rows shuffled."""
    rows = [(name, *row) for name, steps in cells.items() for row in steps]
    frame = pd.DataFrame(rows, columns=["cell_id", "update", "episodes", "observed_bits", "absorbed_bits"])
    return frame.sample(frac=1, random_state=0)


TWO_CELLS = {
    "b": [(0, 0, 0.0, 0.0), (1, 8, 3.0, 1.0), (2, 16, 6.0, 5.5)],
    "a": [(0, 0, 0.0, -0.1), (1, 8, 1.0, 0.0), (2, 16, 2.0, 0.5), (3, 24, 5.0, 0.7), (4, 32, 6.0, 5.7)],
}


@given(st.integers(0, 1000))
def test_sums_equal_a_loop_over_cells(seed):
    stream = np.random.default_rng(seed)
    lengths, num_positions = stream.integers(1, 7, size=5), 6
    series = stream.integers(0, 2, size=5)
    expected, rows = np.zeros((2, num_positions)), []
    for cell, length in enumerate(lengths):
        position = np.concatenate([[0], np.sort(stream.choice(np.arange(1, 9), size=length - 1, replace=False))])
        values = stream.normal(size=length)
        for t in range(num_positions):
            expected[series[cell], t] += values[np.flatnonzero(position <= t)[-1]]
        rows += [(v, p == 0, series[cell], p) for v, p in zip(values, position, strict=True)]
    values, first, group, position = (np.array(column) for column in zip(*rows, strict=True))
    found = carry_forward_sums(values, first, group, position, (2, num_positions))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("as_dictionary", [False, True])
def test_rows_are_sorted_and_those_of_unknown_cells_left_out(as_dictionary):
    table = pa.Table.from_pandas(build_table(TWO_CELLS | {"unknown": [(0, 0, 9.0, 9.0)]}), preserve_index=False)
    if as_dictionary:
        table = table.set_column(0, "cell_id", table["cell_id"].dictionary_encode())
    curves = collect_curves(table, pd.DataFrame({"cell_id": ["a", "b"]}))
    assert curves.cell.tolist() == [0] * 5 + [1] * 3
    assert curves.update.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert curves.absorbed.tolist() == [-0.1, 0.0, 0.5, 0.7, 5.7, 0.0, 1.0, 5.5]
    assert curves.is_first.tolist() == [True, False, False, False, False, True, False, False]


def test_observer_knows_when_it_is_one_bit_short():
    curves = collect_curves(build_table(TWO_CELLS), pd.DataFrame({"cell_id": ["a", "b", "no rows"]}))
    episodes, bits = when_observer_knew(curves, np.array([6.0, 6.0, 6.0]))
    assert episodes.tolist()[:2] == [24.0, 16.0]
    assert bits.tolist()[:2] == [5.0, 6.0]
    assert np.isnan(episodes[2])
    episodes, bits = when_observer_knew(curves, np.array([10.0, 6.0, 6.0]))
    assert (episodes[0], bits[0]) == (32.0, 6.0)


def test_mean_carries_finished_cells_forward():
    curves = collect_curves(build_table(TWO_CELLS), pd.DataFrame({"cell_id": ["a", "b"]}))
    mean = mean_curves(curves, np.zeros(2, dtype=int), pd.DataFrame({"channel": ["binary"], "N": [64]}))
    assert mean["episodes"].tolist() == [0, 8, 16, 24, 32]
    assert mean["observed_bits"].tolist() == [0.0, 2.0, 4.0, 5.5, 6.0]
    np.testing.assert_allclose(mean["absorbed_bits"], [-0.05, 0.5, 3.0, 3.1, 5.6])
    assert mean["absorbed_half_width"].iloc[2] == pytest.approx(1.96 * np.std([0.5, 5.5], ddof=1) / np.sqrt(2))


def test_long_curves_are_thinned_to_their_points_and_keep_their_ends():
    steps = [(u, u, min(u / 100, 6.0), 0.0) for u in range(2000)]
    curves = collect_curves(build_table({"a": steps}), pd.DataFrame({"cell_id": ["a"]}))
    mean = mean_curves(curves, np.zeros(1, dtype=int), pd.DataFrame({"channel": ["binary"]}), num_points=40)
    assert len(mean) <= 41
    assert mean["episodes"].iloc[0] == 0
    assert mean["episodes"].iloc[-1] == 1999
    np.testing.assert_allclose(mean["observed_bits"], np.minimum(mean["episodes"] / 100, 6.0))
