"""The page that shows two sweeps side by side."""

import re
from pathlib import Path

import pandas as pd

from memrl.analysis.charts import draw_figure, save_drawings
from memrl.analysis.comparison import compare_conditions, describe_comparison, list_differences, read_trained
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
    figure = versus_figure(both, names)
    drawings = draw_figure(figure)
    stem = f"versus-{re.sub(r'[^A-Za-z0-9._-]+', '-', names[1]).strip('-')}"
    save_drawings(drawings, folder / stem)
    (folder / stem / "versus.csv").write_text(to_csv(figure), "utf-8")
    answer = describe_comparison(both, names)
    page = folder / f"{stem}.html"
    page.write_text(
        read_template("versus.html.j2").render(
            names=names,
            answer=answer,
            addresses=addresses,
            differences=list_differences(first, second),
            figure=describe_figure(figure, drawings, folder=stem),
            table=tabulate(both.assign(overlap=both["overlap"].map({True: "yes", False: "no"})), _COLUMNS),
            command=command,
        ),
        "utf-8",
    )
    return page, answer
