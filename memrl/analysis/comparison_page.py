"""The page that shows two sweeps side by side."""

import re
from pathlib import Path

import pandas as pd

from memrl.analysis.charts import draw_figure, save_drawings
from memrl.analysis.comparison import (
    compare_conditions,
    describe_comparison,
    differ_in_model,
    list_differences,
    name_of_other,
    read_trained,
)
from memrl.analysis.figure_data import Figure, say_estimate
from memrl.analysis.page import describe_figure, read_template, to_csv
from memrl.analysis.tabulation import tabulate
from memrl.tables.store import TableStore

_COLUMNS = ("channel", "N", "bits_per_episode", "bits_per_episode_other", "rate_ratio", "e50", "e50_other", "overlap")


def versus_figure(both: pd.DataFrame, names: tuple[str, str]) -> Figure:
    """Bits per episode of the second sweep over those of the first."""
    known = both["rate_ratio_lower"].notna() & both["rate_ratio_upper"].notna()
    both = both[known.to_numpy()]
    said = [
        f"{row['channel']}, N = {row['N']}: {say_estimate(row, 'rate_ratio')} times as many bits per episode"
        for row in both.to_dict("records")
    ]
    return Figure(
        "versus",
        f"{names[1]} over {names[0]}",
        f"Bits per episode of the median run in {names[1]} over those in {names[0]}, each at the settings that it "
        "chose, with 95 % interval (the secrets of both taken as independent). To the right of 1 the former is faster. "
        "An arrow is an interval that goes on beyond the axis.",
        both.assign(said=said),
    )


def models_figure(both: pd.DataFrame) -> Figure:
    """Bits per episode of each condition on both models, beside the capacity."""
    rates = [f"bits_per_episode{end}" for end in ("", "_lower", "_upper")]
    other = {name_of_other(name): name for name in ("model", *rates)}
    of_first = both[["channel", "N", "capacity_best_bits", "model", *rates]]
    of_second = both[["channel", "N", "capacity_best_bits", *other]].rename(columns=other)
    # Not `model`, by which figures are divided.
    data = pd.concat([of_first, of_second], ignore_index=True).rename(columns={"model": "base"})
    data["base"] = data["base"].str.split("@").str[0]
    said = [
        f"{row['channel']}, N = {row['N']}, {row['base']}: {say_estimate(row, 'bits_per_episode')} bits per episode"
        for row in data.to_dict("records")
    ]
    return Figure(
        "models",
        "Bits per episode, by model",
        "Dots: bits that the median run absorbed per episode until P(secret) = 0.9, each model at the settings that it "
        "chose, with 95 % interval over secrets. Ticks: what one episode can tell at most. An arrow is an interval "
        "that goes on beyond the axis; one without a dot says that fewer than half of the runs got there.",
        data.assign(said=said),
        one_N=True,
    )


def name_columns(names: tuple[str, str]) -> dict[str, str]:
    """Heads of the columns that one of the two sweeps has."""
    first, second = names if names[0] != names[1] else ("first", "second")
    return {
        **{"bits_per_episode": f"bits/episode, {first}", "bits_per_episode_other": f"bits/episode, {second}"},
        **{"e50": f"E50, {first}", "e50_other": f"E50, {second}", "rate_ratio": f"{second} / {first}"},
    }


def write_comparison(
    addresses: tuple[str, str], names: tuple[str, str], folder: Path, command: str
) -> tuple[Path, str]:
    """Writes versus-NAME.html and its figure beside the first sweep's report.

    Args:
        addresses: of the tables of both sweeps.
        names: how the page calls them.
        folder: where the page goes.
        command: the command that made it.

    Returns:
        The path of the page, and its answer in one sentence.

    Raises:
        ValueError: a sweep has no measured cell, or they share no condition.
    """
    first, second = (read_trained(TableStore(address)) for address in addresses)
    both = compare_conditions(first, second)
    if both.empty:
        raise ValueError(
            f"grid must name two sweeps that share a condition (channel, N, model), got {' and '.join(names)}"
        )
    figures = [versus_figure(both, names), *([models_figure(both)] if differ_in_model(first, second) else [])]
    drawings = [draw_figure(figure) for figure in figures]
    stem = f"versus-{re.sub(r'[^A-Za-z0-9._-]+', '-', names[1]).strip('-')}"
    for figure, drawn in zip(figures, drawings, strict=True):
        save_drawings(drawn, folder / stem)
        (folder / stem / f"{figure.name}.csv").write_text(to_csv(figure), "utf-8")
    answer = describe_comparison(both, names)
    page = folder / f"{stem}.html"
    page.write_text(
        read_template("versus.html.j2").render(
            names=names,
            answer=answer,
            addresses=addresses,
            differences=list_differences(first, second),
            figures=[describe_figure(*each, folder=stem) for each in zip(figures, drawings, strict=True)],
            table=tabulate(
                both.assign(overlap=both["overlap"].map({True: "yes", False: "no"})), _COLUMNS, name_columns(names)
            ),
            command=command,
        ),
        "utf-8",
    )
    return page, answer
