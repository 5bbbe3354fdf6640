"""Two sweeps side by side: planted ratios are found, with their intervals."""

import pandas as pd
import pytest
from simulated_sweep import simulate_sweep, write_sweep

from memrl.analysis.cells import measured_cells
from memrl.analysis.comparison import compare_conditions, describe_comparison, list_differences
from memrl.analysis.comparison_page import models_figure
from memrl.report import main

GRID = {"Ns": (64, 256), "processes": ("sft", "binary", "per_bit"), "ranks": (8,), "rates": (3e-3,)}


def measure(**grid):
    return measured_cells(simulate_sweep(**grid)[0].to_pandas())


@pytest.fixture(scope="module")
def cells():
    return measure(**GRID)


def test_a_sweep_beside_itself_differs_nowhere(cells):
    both = compare_conditions(cells, cells)
    assert both["rate_ratio"].tolist() == [1.0] * 6
    assert both["overlap"].all()
    assert both["channel"].tolist() == ["SFT", "SFT", "per bit", "per bit", "binary", "binary"]
    assert list_differences(cells, cells) == []
    assert "more bits per episode than a in 0 of 6 conditions (channel and N), fewer in 0;" in describe_comparison(
        both, ("a", "b")
    )


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_planted_ratios_are_found(cells, factor):
    slow = cells.assign(**{name: factor * cells[name] for name in ("e50", "e90", "episodes")})
    both = compare_conditions(cells, slow)
    assert both["rate_ratio"].to_numpy() == pytest.approx(1 / factor)
    assert (both["rate_ratio_lower"] < 1.001 / factor).all()
    assert (both["rate_ratio_upper"] > 0.999 / factor).all()
    assert (both["rate_ratio_upper"] > 1.1 * both["rate_ratio_lower"]).sum() >= 4


def test_each_sweep_keeps_the_settings_that_it_chose(cells):
    other = cells.assign(advantage="leave_one_out", learning_rate=0.5)
    assert compare_conditions(cells, other)["rate_ratio"].tolist() == [1.0] * 6
    assert list_differences(cells, other) == [
        "learning_rate: 0.003 / 0.5",
        "advantage: group_centered / leave_one_out",
    ]


def test_sweeps_of_one_model_each_are_compared_by_channel_and_N(cells):
    both = compare_conditions(cells, cells.assign(model="pretrained@0123"))
    assert both["rate_ratio"].tolist() == [1.0] * 6
    assert set(both["model_other"]) == {"pretrained@0123"}
    data = models_figure(both).data
    assert data.groupby("base")["bits_per_episode"].sum().nunique() == 1
    assert data["base"].value_counts().to_dict() == {cells["model"].iloc[0]: 6, "pretrained": 6}


def test_sweeps_of_several_models_are_compared_model_by_model(cells):
    several = pd.concat([cells, cells.assign(model="pretrained@0123")], ignore_index=True)
    assert set(compare_conditions(cells, several)["model"]) == set(cells["model"])


def test_conditions_of_one_sweep_alone_are_left_out(cells):
    both = compare_conditions(cells, cells[(cells["N"] == 64).to_numpy()].reset_index(drop=True))
    assert set(both["N"]) == {64}
    assert compare_conditions(cells, cells.head(0)).empty


def test_the_command_writes_a_page_of_two_folders(tmp_path, capsys):
    for name, slope in (("a", 0.0), ("b", 0.5)):
        write_sweep(str(tmp_path / name), **GRID, rank_slope=slope)
    assert main(["grid=tiny", f"results={tmp_path}/a,{tmp_path}/b"]) == 0
    answer, place = capsys.readouterr().out.splitlines()
    assert f"{tmp_path}/b absorbed more bits per episode than {tmp_path}/a in 0 of 6 conditions" in answer
    page = (tmp_path / "a" / place.rpartition("/")[2]).read_text("utf-8")
    assert answer.split(";")[0] in page
    assert "times as many bits per episode</title>" in page
    drawn = next((tmp_path / "a").glob("versus-*/versus.csv"))
    assert len(pd.read_csv(drawn)) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grid=a,b,c"], "grid must name one sweep or two, got a,b,c"),
        (["grid=a,b", "results=x"], "results must hold one address for each sweep, got x"),
    ],
)
def test_more_than_two_sweeps_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
