"""Curves as step functions: carried forward, averaged, and read for when the observer knew."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memrl.analysis.curves import carry_forward_sums, collect_curves, quartile_curves, when_observer_knew


def build_table(cells):
    """A curves table from {cell_id: [(update, episodes, observed, absorbed), ...]}, rows shuffled."""
    rows = [(name, *row) for name, steps in cells.items() for row in steps]
    frame = pd.DataFrame(rows, columns=["cell_id", "update", "episodes", "observed_bits", "absorbed_bits"])
    return frame.assign(well=np.nan).sample(frac=1, random_state=0)


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


def test_quartiles_carry_finished_cells_forward():
    steps = {f"{i}": [(0, 0, 0.0, 0.0), (1, 8, 6.0, float(i))] for i in range(4)}
    later = {"4": [(0, 0, 0.0, 0.0), (1, 8, 1.0, -40.0), (2, 16, 2.0, 5.0)]}
    curves = collect_curves(build_table(steps | later), pd.DataFrame({"cell_id": list("01234")}))
    found = quartile_curves(curves, np.zeros(5, dtype=int), pd.DataFrame({"channel": ["binary"], "N": [64]}))
    assert found["episodes"].tolist() == [0, 8, 16]
    assert found["observed_median"].tolist() == [0.0, 6.0, 6.0]
    # One run that collapsed moves a mean by 8 bits, and the median by one place.
    assert found["absorbed_median"].tolist() == [0.0, 1.0, 2.0]
    assert found["absorbed_low"].tolist() == [0.0, 0.0, 1.0]
    assert found["absorbed_high"].tolist() == [0.0, 2.0, 3.0]
    assert set(found["num_secrets"]) == {5}


@given(st.integers(0, 1000))
def test_quartiles_equal_a_loop_over_cells(seed):
    stream = np.random.default_rng(seed)
    cells = {}
    for name in "abcdefg":
        updates = np.concatenate([[0], np.sort(stream.choice(np.arange(1, 9), size=3, replace=False))])
        cells[name] = [(int(u), int(8 * u), *stream.normal(size=2)) for u in updates]
    curves = collect_curves(build_table(cells), pd.DataFrame({"cell_id": list(cells)}))
    found = quartile_curves(curves, np.zeros(7, dtype=int), pd.DataFrame({"channel": ["binary"]}))
    for row in found.to_dict("records"):
        last = [[step for step in steps if step[1] <= row["episodes"]][-1] for steps in cells.values()]
        assert row["absorbed_median"] == np.sort([step[3] for step in last])[3]
        assert row["observed_median"] == np.sort([step[2] for step in last])[3]


def test_long_curves_are_thinned_to_their_points_and_keep_their_ends():
    steps = [(u, u, min(u / 100, 6.0), 0.0) for u in range(2000)]
    curves = collect_curves(build_table({"a": steps}), pd.DataFrame({"cell_id": ["a"]}))
    found = quartile_curves(curves, np.zeros(1, dtype=int), pd.DataFrame({"channel": ["binary"]}), num_points=40)
    assert len(found) <= 41
    assert found["episodes"].iloc[0] == 0
    assert found["episodes"].iloc[-1] == 1999
    np.testing.assert_allclose(found["observed_median"], np.minimum(found["episodes"] / 100, 6.0))
