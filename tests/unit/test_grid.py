import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memrl.config import TrainConfig
from memrl.sweep.grid import MOST_CELLS, Grid, list_grids, load_grid, parse_grid, read_seeds
from memrl.sweep.grid_file import MOST_BYTES, parse_document

GRIDS = Path(__file__).parents[2] / "sweeps" / "grids"

CHANNELS = """
base: {n_steps: 50}
axes:
  N: [16, 64]
  channel:
    - {algorithm: sft}
    - {reward_type: binary}
    - {env_type: multi_step, reward_type: per_bit}
    - {env_type: multi_step, reward_type: binary}
    - {reward_type: binned_distance, reward_bins: 8}
    - {reward_type: binned_distance, reward_bins: 8, binning: equal_mass}
seeds: 2
"""


def read(text: str) -> Grid:
    return parse_grid("g", parse_document("grid g", text.encode()))


def channels(grid: Grid) -> list[str]:
    return list(dict.fromkeys(cell.channel_name for cell in grid.cells().values()))


def values(grid: Grid, name: str) -> set:
    return {getattr(cell, name) for cell in grid.cells().values()}


def test_a_grid_is_the_product_of_axes_and_seeds():
    cells = read(CHANNELS).cells()
    assert len(cells) == 2 * 6 * 2
    assert all(cell.cell_id == cell_id for cell_id, cell in cells.items())
    assert TrainConfig(N=64, seed=1, n_steps=50).cell_id in cells
    assert values(read(CHANNELS), "n_steps") == {50}


def test_cells_that_are_one_and_the_same_are_merged():
    text = "axes: {group_size: [8, 32], channel: [{algorithm: sft}, {reward_type: binary}]}"
    assert sorted((c.channel_name, c.group_size) for c in read(text).cells().values()) == [
        ("binary", 8),
        ("binary", 32),
        ("sft", 8),
    ]


def test_lists_in_an_entry_stand_for_their_product():
    text = "axes: {channel: [{reward_type: binned_distance, reward_bins: [2, 4], binning: [log, linear]}]}"
    assert len(read(text).cells()) == 4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"reward_type": ["binary"]}, ["binary", "multi_step/binary"]),
        ({"reward_type": ["binary"], "env_type": ["single_step"]}, ["binary"]),
        ({"algorithm": ["sft"]}, ["sft"]),
        ({"env_type": ["multi_step"]}, ["per_bit", "multi_step/binary"]),
        ({"binning": ["equal_mass"]}, ["binned_distance-8-equal_mass"]),
        ({"reward_bins": [4]}, ["binned_distance-4-log", "binned_distance-4-equal_mass"]),
        (
            {"reward_bins": [4, 8], "binning": ["log"]},
            ["binned_distance-4-log", "binned_distance-8-log"],
        ),
        ({"reward_type": ["distance"], "env_type": ["single_step"]}, ["distance"]),
        ({"reward_type": ["binary", "per_bit"]}, ["binary", "multi_step/binary", "per_bit"]),
    ],
)
def test_a_field_of_a_compound_axis_keeps_the_entries_that_use_it(words, expected):
    assert channels(read(CHANNELS).override(words)) == expected


def test_a_field_that_is_an_axis_gets_the_given_values():
    assert values(read(CHANNELS).override({"N": [10]}), "N") == {10}


def test_a_field_of_the_base_is_replaced_or_becomes_an_axis():
    grid = read(CHANNELS)
    assert values(grid.override({"n_steps": [9]}), "n_steps") == {9}
    assert values(grid.override({"n_steps": [9, 10]}), "n_steps") == {9, 10}
    assert values(grid.override({"learning_rate": [1e-3, 3e-3]}), "learning_rate") == {1e-3, 3e-3}
    assert values(grid.override({"lora_rank": [2]}), "lora_rank") == {2}


def test_seeds_replace_the_grids():
    assert values(read(CHANNELS).override({"seed": [5, 9]}), "seed") == {5, 9}


def test_bins_that_fit_only_with_another_override_are_accepted():
    cells = read(CHANNELS).override({"reward_bins": [32], "N": [64]}).cells().values()
    assert {cell.reward_bins for cell in cells} == {32}


def test_overriding_leaves_the_grid_as_it_was():
    grid = read(CHANNELS)
    before = grid.cells()
    grid.override({"N": [4], "reward_type": ["binary"], "n_steps": [1, 2]})
    assert grid.cells() == before


def test_an_override_that_leaves_no_channel_is_refused():
    grid = read("axes: {channel: [{algorithm: sft}, {reward_type: binary}]}")
    with pytest.raises(ValueError, match="reward_bins must be set for reward_type=binned_distance"):
        grid.override({"reward_type": ["binned_distance"]}).cells()


def test_an_invalid_cell_is_named_by_its_fields():
    grid = read("axes: {N: [4, 64], channel: [{reward_type: binned_distance, reward_bins: 8}]}")
    with pytest.raises(ValueError, match=r"reward_bins must lie in 2 \.\. N=4, got 8 \(in the cell .*N=4.*\)"):
        grid.cells()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axis: {N: [4]}", "unknown key of grid g 'axis'; did you mean 'axes'"),
        ("base: {lerning_rate: 1}", "unknown field 'lerning_rate'; did you mean 'learning_rate'"),
        ("axes: {N: 4}", "axis N must be a list of values, got 4"),
        ("axes: {N: []}", r"axis N must be a list of values, got \[\]"),
        ("axes: {lora_rnak: [1, 8]}", "axis lora_rnak must name a field.*did you mean 'lora_rank'"),
        ("axes: {channel: [{reward: binary}]}", "unknown field 'reward'"),
        ("axes: {N: [4], size: [{N: 8}]}", "axes must set a field once, got N in N and size"),
        ("axes: {seed: [1, 2]}", "must give seeds under `seeds`"),
        ("seeds: 0", "seeds must be a count from 1 or a list of integers from 0, got 0"),
        ("seeds: [1, -1]", "seeds must be a count"),
        ("seeds: []", "seeds must be a count"),
        ("seeds: many", "seeds must be a count"),
        ("[1, 2]", "grid g must be a mapping"),
        ("axes: {loss: [ppp]}", "loss must be one of importance_sampling, reinforce, ppo, got 'ppp'"),
    ],
)
def test_a_malformed_grid_is_one_clear_error(text, message):
    with pytest.raises(ValueError, match=message) as error:
        read(text).cells()
    assert "\n" not in str(error.value)


def test_numbers_may_be_written_with_an_exponent_alone(tmp_path):
    (tmp_path / "g.yaml").write_text("axes: {learning_rate: [1e-3, 3.5e-2, 1], N: [10]}")
    assert values(load_grid("g", tmp_path), "learning_rate") == {0.001, 0.035, 1}


def test_numbers_are_read_as_on_the_command_line():
    grid = read("axes: {N: [010, 1_6, 1e2], group_size: [+8]}\nbase: {n_steps: 1e3, learning_rate: 1}\nseeds: 02")
    assert values(grid, "N") == {10, 16, 100}
    assert values(grid, "group_size") == {8}
    assert values(grid, "n_steps") == {1000}
    assert values(grid, "seed") == {0, 1}


@pytest.mark.parametrize(
    "text", ["yes", "on", "true", "0x10", "0o20", "12:30", "1__0", "'16'", "1.5", "[4]", "2026-01-31"]
)
def test_what_is_no_integer_on_the_command_line_is_none_in_a_grid(text):
    with pytest.raises(ValueError, match="N must be of type int"):
        read(f"base: {{N: {text}}}").cells()
    with pytest.raises(ValueError, match="seeds must be a count"):
        read(f"seeds: [[{text}]]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes: {N: [16]}\naxes: {N: [256]}", "the key axes twice"),
        ("axes: {N: [16], N: [256]}", "the key N twice"),
        ("axes: {channel: [{algorithm: sft, algorithm: rl}]}", "the key algorithm twice"),
        ("description: &a x\nseeds: *a", "an alias, *a"),
        ("base: !!python/object:os.system {}", "could not determine a constructor"),
        ("base: 5", "base must be a mapping of fields, got 5"),
        ("base: [N]", "base must be a mapping of fields, got ['N']"),
        ("axes: [1]", "axes must be a mapping of lists, got [1]"),
        ("axes: abc", "axes must be a mapping of lists, got 'abc'"),
        ("axes: {1: [2]}", "axes must be a mapping of lists, got {1: [2]}"),
        ("description: {a: 1}", "description must be a line of text"),
        ("? [a]\n: 1", "unhashable key"),
        ("[" * 5000, "valid YAML"),
        ("N: \x00", "valid YAML"),
        ("seeds: 1000000000", "seeds must be at most 250,000 in all, got 1,000,000,000 seeds"),
        ("axes: {N: [4, 8]}\nseeds: 200000", "cells must be at most 250,000 in all, got 2 N × 200,000 seeds = 400,000"),
        (f"seeds: [{'9' * 5000}]", "valid YAML"),
    ],
)
def test_a_document_that_grids_have_no_use_for_is_one_line(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read(text).cells()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_ten_lists_of_a_hundred_are_counted_and_not_expanded():
    numbers = ", ".join(map(str, range(100)))
    entry = ", ".join(f"{name}: [{numbers}]" for name in list(TrainConfig.__annotations__)[:10] if name != "seed")
    with pytest.raises(ValueError, match="entries of axis channel must be at most"):
        read(f"axes: {{channel: [{{{entry}}}]}}")


def test_a_file_without_end_is_not_read(tmp_path):
    (tmp_path / "g.yaml").write_text("# " + "x" * MOST_BYTES)
    with pytest.raises(ValueError, match="grid g must have at most 100,000 bytes, got 100,002"):
        load_grid("g", tmp_path)


def test_a_grid_is_read_as_utf8_whatever_the_locale_and_nothing_else(tmp_path):
    (tmp_path / "g.yaml").write_bytes("description: N × channel".encode())
    assert load_grid("g", tmp_path).description == "N × channel"
    (tmp_path / "g.yaml").write_bytes("description: N × channel".encode("latin-1"))
    with pytest.raises(ValueError, match="grid g must be valid YAML, got 'utf-8' codec"):
        load_grid("g", tmp_path)


_SCALARS = st.sampled_from(
    ["1", "1e3", "010", "yes", "null", "a", "[]", "{}", "[1, 2]", "*a", "&a 1", "!!x 1", "'", "-1"]
)
_KEYS = st.sampled_from(
    ["description", "base", "axes", "seeds", "N", "seed", "channel", "algorithm", "model", "1", "{a: b}"]
)


@given(
    st.recursive(
        _SCALARS | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]")
            | st.lists(st.tuples(_KEYS, inner), max_size=4).map(
                lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
            )
        ),
        max_leaves=12,
    )
)
def test_any_document_gives_cells_or_one_line(text):
    message = ""
    try:
        assert len(read(text).cells()) <= MOST_CELLS
    except ValueError as error:
        message = str(error)
    assert "\n" not in message


@given(st.binary(max_size=200))
def test_any_bytes_give_a_document_or_one_line(content):
    message = ""
    try:
        parse_document("grid g", content)
    except ValueError as error:
        message = str(error)
    assert "\n" not in message


def test_an_unknown_grid_gets_a_suggestion(tmp_path):
    (tmp_path / "smoke.yaml").write_text("seeds: 1")
    with pytest.raises(ValueError, match="unknown grid 'smok'; did you mean 'smoke'"):
        load_grid("smok", tmp_path)
    (tmp_path / "broken.yaml").write_text("axes: [")
    with pytest.raises(ValueError, match="grid broken must be valid YAML"):
        load_grid("broken", tmp_path)


@given(st.integers(1, 50))
def test_a_count_of_seeds_stands_for_the_first_ones(count):
    assert read_seeds(count) == tuple(range(count))


@pytest.mark.parametrize("name", ["smoke", "bitrate"])
def test_the_grids_of_the_project_hold_every_channel(name):
    grid = load_grid(name, GRIDS)
    assert name in list_grids(GRIDS)
    assert grid.description
    expected = {
        "sft",
        "binary",
        "binned_distance-8-log",
        "distance",
        "per_bit",
        "multi_step/binary",
        "multi_step/bit_count",
    }
    assert expected <= set(channels(grid))


def test_bitrate_has_sixteen_secrets_of_every_condition():
    grid = load_grid("bitrate", GRIDS)
    conditions: dict[str, set[int]] = {}
    for cell in grid.cells().values():
        fields = {name: value for name, value in cell.identity().items() if name != "seed"}
        conditions.setdefault(str(fields), set()).add(cell.seed)
    assert all(len(seeds) >= 16 for seeds in conditions.values())


def test_the_reference_has_measured_every_cell_of_the_grid():
    varied = ["channel", "N", "learning_rate", "lora_rank", "seed"]
    folder = GRIDS.parent / "reference" / "bitrate" / "episodes_to_memorize"
    reference = pq.read_table(folder, columns=varied)
    asked = [{**cell.identity(), "channel": cell.channel_name} for cell in load_grid("bitrate", GRIDS).cells().values()]
    measured = {tuple(row.values()) for row in reference.to_pylist()}
    assert {tuple(cell[name] for name in varied) for cell in asked} <= measured
