"""What charts are built from: logarithmic axes, intervals with open ends, rows with names, names beside lines."""

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from memrl.analysis.drawing import Width
from memrl.analysis.style import pick_shades

LETTER = 3.6
"""Points that a letter takes, about."""


class LogAxis:
    """A logarithmic axis that several layers share; ticks at given values, or where `pick_ticks` puts them."""

    def __init__(
        self, channel: str, title: str, ends: tuple[float, float], ticks: Sequence[float] | None = None
    ) -> None:
        self.channel = channel
        self.title = title
        self.ends = ends
        self.ticks = list(ticks) if ticks is not None else pick_ticks(*ends)

    def of(self, field: str) -> Any:
        """The encoding of one field."""
        scale = alt.Scale(type="log", domain=list(self.ends), nice=False, clamp=True)
        anchor = "end" if self.channel == "X" else "middle"
        axis = alt.Axis(values=self.ticks, format=",~g", labelOverlap=False, titleAnchor=anchor)
        return {"X": alt.X, "Y": alt.Y}[self.channel](f"{field}:Q", title=self.title, scale=scale, axis=axis)


def pick_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Where a logarithmic axis carries labels: at 1, 2 and 5 where that is few enough, or else at powers of ten.

    >>> pick_ticks(3.0, 110.0), pick_ticks(0.004, 20.0), pick_ticks(3.0, 110.0, most=4)
    ([5.0, 10.0, 20.0, 50.0, 100.0], [0.01, 0.1, 1.0, 10.0], [10.0, 100.0])

    Args:
        low: lower end of the axis, positive.
        high: upper end.
        most: how many labels there is room for.
    """
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    fine, coarse = (
        [
            tick
            for power in range(first, last + 1)
            for step in steps
            if low <= (tick := float(f"{step}e{power}")) <= high
        ]
        for steps in ((1, 2, 5), (1,))
    )
    return fine if len(fine) <= most or len(coarse) < 2 else coarse


def log_ends(data: pd.DataFrame, names: Iterable[str], shrink: float = 0.5) -> tuple[float, float]:
    """Ends of a logarithmic axis that shows every positive finite number of some columns."""
    values = data[list(names)].to_numpy(dtype=float)
    values = values[np.isfinite(values) & (values > 0)]
    return float(values.min()) * shrink, float(values.max()) / shrink


def bound_interval(
    data: pd.DataFrame, name: str, ends: tuple[float, float], where_missing: str | None = None
) -> pd.DataFrame:
    """Adds start and end of an interval as far as the axis shows it, and whether it goes on beyond.

    Where there is no estimate, the interval starts at the column `where_missing` and is open above.
    """
    value = data[name].to_numpy(dtype=float)
    lower, upper = (data[f"{name}_{end}"].to_numpy(dtype=float) for end in ("lower", "upper"))
    if where_missing is not None:
        missing = ~np.isfinite(value)
        lower, upper = np.where(missing, data[where_missing], lower), np.where(missing, np.inf, upper)
    known = ~(np.isnan(lower) | np.isnan(upper))
    inset = (ends[1] / ends[0]) ** 0.02
    inside = ends[0] * inset, ends[1] / inset
    return data.assign(
        start=np.clip(lower, *inside),
        end=np.clip(upper, *inside),
        opens_below=lower < inside[0],
        opens_above=upper > inside[1],
    )[known]


def draw_spans(base: alt.Chart, axis: LogAxis, thickness: float = 0.9) -> list[alt.Chart]:
    """Intervals as lines, with an arrow where one goes on beyond the axis."""
    along, arrows = (
        ("x", ("triangle-left", "triangle-right")) if axis.channel == "X" else ("y", ("triangle-down", "triangle-up"))
    )
    line = base.mark_rule(strokeWidth=thickness).encode(**{along: axis.of("start"), f"{along}2": "end:Q"})
    heads = [
        base.transform_filter(f"datum.{flag}")
        .mark_point(shape=shape, size=14, filled=True, opacity=1)
        .encode(**{along: axis.of(end)})
        for flag, end, shape in zip(("opens_below", "opens_above"), ("start", "end"), arrows, strict=True)
    ]
    return [line, *heads]


def row_axis(rows: list[str], grid: bool = True) -> alt.Y:
    """One row per name, in this order; a name may have several lines."""
    axis = alt.Axis(title=None, grid=grid, ticks=False, domain=False, labelLimit=0, labelPadding=6)
    if any("\n" in row for row in rows):
        axis.labelExpr, axis.labelOffset = r"split(datum.label, '\n')", -3
    return alt.Y("channel:N", sort=rows, axis=axis, scale=alt.Scale(paddingInner=0.25, paddingOuter=0.15))


def name_rows(data: pd.DataFrame) -> list[str]:
    """Labels of the channels in the order in which they come."""
    return list(dict.fromkeys(data["channel"]))


def beside_rows(rows: list[str], width: Width) -> float:
    """What the rows' labels leave of the width."""
    return width.points - LETTER * max(len(line) for row in rows for line in row.split("\n")) - 10


def list_sizes(data: pd.DataFrame) -> list[int]:
    """The N that occur, ascending."""
    return sorted(int(N) for N in data["N"].unique())


def slot_sizes(data: pd.DataFrame) -> tuple[pd.DataFrame, list[int]]:
    """Adds the line of its row, `slot`, that each N of a channel takes, those of few N in the middle; and all slots.

    >>> slot_sizes(pd.DataFrame({"channel": ["a", "a", "a", "b"], "N": [4, 16, 64, 16]}))[0]["slot"].tolist()
    [0, 1, 2, 1]
    """
    own = data.groupby("channel")["N"].rank(method="dense").astype(int) - 1
    num = own.groupby(data["channel"]).transform("max") + 1
    most = int(num.max()) if len(data) else 0
    return data.assign(slot=own + (most - num) // 2), list(range(most))


def shade_by_N(N: list[int]) -> alt.Color:
    """Every N in a shade of its own, from light to dark."""
    legend = alt.Legend(title="N", titleOrient="left", symbolType="circle")
    return alt.Color("N:O", scale=alt.Scale(domain=N, range=pick_shades(len(N))), legend=legend)


def place_names(own: pd.DataFrame, ends: tuple[float, float], height: float) -> pd.DataFrame:
    """One row per channel: its color, last value, and a place beside it that no other name takes."""
    last = own.sort_values("N").groupby("channel").last().sort_values("at").reset_index()
    least = np.log(ends[1] / ends[0]) * 8.0 / height
    place = spread_out(np.log(last["at"].to_numpy()), least, float(np.log(ends[1])))
    return last[["channel", "color"]].assign(last=last["at"], place=np.exp(place))


def spread_out(values: np.ndarray, least: float, high: float) -> np.ndarray:
    """Moves ascending values apart until neighbors differ by `least`, as little as that takes, and stays below `high`.

    >>> spread_out(np.array([0.0, 0.1, 5.0]), 1.0, 10.0).round(2).tolist()
    [-0.45, 0.55, 5.0]
    """
    groups: list[list[float]] = []
    for value in values:
        groups.append([float(value)])
        while len(groups) > 1 and _stack(groups[-2], least)[-1] + least > _stack(groups[-1], least)[0]:
            groups[-2:] = [groups[-2] + groups[-1]]
    places = np.concatenate([_stack(group, least) for group in groups])
    return np.minimum(places, high - least * np.arange(len(places))[::-1])


def _stack(values: list[float], least: float) -> np.ndarray:
    """As many places as values, `least` apart, around their mean."""
    return np.mean(values) + least * (np.arange(len(values)) - (len(values) - 1) / 2)


def arrange_panels(
    layers: Sequence[alt.Chart | alt.LayerChart], data: pd.DataFrame, width: Width, height: float
) -> alt.FacetChart:
    """The same layers once per channel, side by side; a height up to 2 is a share of a panel's width."""
    plot = width.points / width.num_columns - 34
    header = alt.Header(title=None, labelAnchor="start", labelFontWeight="bold", labelFontSize=7.5, labelPadding=3)
    panels = alt.Facet("channel:N", sort=list(dict.fromkeys(data["channel"])), header=header)
    chart = alt.layer(*layers, data=data).properties(width=plot, height=plot * height if height <= 2 else height)
    return chart.facet(panels, columns=width.num_columns, spacing=8).resolve_axis(x="independent", y="independent")
