"""The report's charts, one function each: the rows of a figure as an Altair chart, laid out in points."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import altair as alt
import numpy as np
import pandas as pd

from memrl.analysis.chart_parts import (
    LETTER,
    LogAxis,
    arrange_panels,
    beside_rows,
    bound_interval,
    draw_spans,
    list_sizes,
    log_ends,
    name_rows,
    pick_ticks,
    place_names,
    row_axis,
    shade_by_N,
    slot_sizes,
)
from memrl.analysis.drawing import GRID, INK, PAGE, SOFT, WIDTHS, Drawer, Width, render_svg, save_drawing, save_png
from memrl.analysis.figure_data import Figure, View
from memrl.analysis.length_chart import chart_lengths
from memrl.analysis.objective_charts import (
    chart_groups,
    chart_interference,
    chart_ledger_by_objective,
    chart_rate_by_objective,
    color_objectives,
    layers_of_learning,
    name_objectives,
)
from memrl.analysis.style import (
    BLUE,
    GRAY,
    SKY,
    VERMILION,
    agent_dash,
    agent_label,
    order_agents,
    tells_objectives,
)
from memrl.analysis.wording import format_number

LOWEST_BITS = -2.0
"""Lower end of the axis of absorbed bits: below it a policy is sure of a wrong answer, and how sure says little."""

_SHORT = 28
"""Letters of a line of a row's name in a narrow drawing."""

_LOSSES = {"absorption loss: observed, not absorbed": SKY, "exploration loss: not observed": "#DCDCDC"}
_LEVELS = {"capacity_bits": "capacity", "observed_rate": "observed", "absorbed_rate": "absorbed"}


def chart_rate(data: pd.DataFrame, width: Width) -> alt.TopLevelMixin:
    """Bits per episode of the median run as dots, one row per channel, N by shade, the capacity as a tick."""
    if tells_objectives(data):
        return chart_rate_by_objective(data, width)
    rates = ["bits_per_episode", "bits_per_episode_lower", "bits_per_episode_upper"]
    ends = log_ends(data, [*rates, "capacity_best_bits"])
    data, slots = slot_sizes(bound_interval(data, "bits_per_episode", ends))
    rows, N = name_rows(data), list_sizes(data)
    base = alt.Chart(data).encode(
        y=row_axis(rows), yOffset=alt.YOffset("slot:O", sort=slots), color=shade_by_N(N), description="said:N"
    )
    x = LogAxis("X", "bits per episode: ● absorbed by the median run, | capacity", ends)
    dots = base.transform_filter("datum.bits_per_episode > 0").mark_circle(size=24, opacity=1)
    capacity = base.mark_tick(thickness=1.4, size=6, opacity=1).encode(x=x.of("capacity_best_bits"))
    layers = alt.layer(*draw_spans(base, x), capacity, dots.encode(x=x.of("bits_per_episode")))
    return layers.properties(width=beside_rows(rows, width), height=alt.Step(max(5.5, 14.0 / len(slots))))


def chart_versus(data: pd.DataFrame, width: Width) -> alt.TopLevelMixin:
    """Ratios as dots with intervals, one row per channel, N by shade, a line where nothing differs."""
    ends = log_ends(data.assign(one=1.0), ["rate_ratio", "rate_ratio_lower", "rate_ratio_upper", "one"], shrink=0.8)
    ends = max(ends[0], 1e-2), min(ends[1], 1e2)
    data, slots = slot_sizes(bound_interval(data, "rate_ratio", ends))
    rows, N = name_rows(data), list_sizes(data)
    x = LogAxis("X", "ratio of bits per episode", ends)
    base = alt.Chart(data).encode(
        y=row_axis(rows), yOffset=alt.YOffset("slot:O", sort=slots), color=shade_by_N(N), description="said:N"
    )
    even = alt.Chart(pd.DataFrame({"one": [1.0]})).mark_rule(color=SOFT, strokeWidth=1).encode(x=x.of("one"))
    dots = base.transform_filter("datum.rate_ratio > 0")
    dots = dots.mark_circle(size=24, opacity=1).encode(x=x.of("rate_ratio"))
    layers = alt.layer(even, *draw_spans(base, x), dots)
    return layers.properties(width=beside_rows(rows, width), height=alt.Step(max(5.5, 14.0 / len(slots))))


def chart_models(data: pd.DataFrame, width: Width) -> alt.TopLevelMixin:
    """Bits per episode as dots with intervals, one row per channel, a color per model, the capacity as a tick."""
    rates = ["bits_per_episode", "bits_per_episode_lower", "bits_per_episode_upper"]
    ends = log_ends(data, [*rates, "capacity_best_bits"])
    data, rows = bound_interval(data, "bits_per_episode", ends), name_rows(data)
    models = list(dict.fromkeys(data["base"]))
    scale = alt.Scale(domain=models, range=[VERMILION, BLUE, GRAY][: len(models)])
    color = alt.Color("base:N", scale=scale, legend=alt.Legend(title=None, symbolType="circle"))
    base = alt.Chart(data).encode(
        y=row_axis(rows), yOffset=alt.YOffset("base:N", sort=models), color=color, description="said:N"
    )
    x = LogAxis("X", "bits per episode: ● absorbed by the median run, | capacity", ends)
    dots = base.transform_filter("datum.bits_per_episode > 0").mark_circle(size=24, opacity=1)
    capacity = base.mark_tick(thickness=1.4, size=6, opacity=1, color=INK).encode(
        x=x.of("capacity_best_bits"), color=alt.value(INK)
    )
    layers = alt.layer(*draw_spans(base, x), capacity, dots.encode(x=x.of("bits_per_episode")))
    return layers.properties(width=beside_rows(rows, width), height=alt.Step(7.0))


def chart_ledger(data: pd.DataFrame, width: Width) -> alt.TopLevelMixin:
    """Absorbed, observed and capacity on one axis, the two losses as bars between them, the numbers at the right."""
    data = data.sort_values("absorbed_rate", ascending=False)
    if tells_objectives(data):
        return chart_ledger_by_objective(data, width)
    rows = name_rows(data)
    ends = log_ends(data, list(_LEVELS))
    data = data.assign(floor=data["absorbed_rate"].clip(lower=ends[0]))
    x = LogAxis("X", "bits per episode over all runs: ■ absorbed, ○ observed, | capacity", ends)
    base = alt.Chart(data).encode(y=row_axis(rows), description="said:N")
    colors = alt.Scale(domain=list(_LOSSES), range=list(_LOSSES.values()))
    legend = alt.Legend(
        title=None,
        symbolType="square",
        symbolStrokeWidth=0,
        direction="horizontal" if width.num_columns > 2 else "vertical",
    )
    bars = [
        base.transform_filter(f"datum.{end} > datum.{start}")
        .transform_calculate(part=f"'{part}'")
        .mark_bar(height=7)
        .encode(x=x.of(start), x2=f"{end}:Q", color=alt.Color("part:N", scale=colors, legend=legend))
        for part, start, end in zip(
            _LOSSES, ("floor", "observed_rate"), ("observed_rate", "capacity_bits"), strict=True
        )
    ]
    spans = []
    for name in ("observed_rate", "absorbed_rate"):
        bounded = alt.Chart(bound_interval(data, name, ends)).encode(y=row_axis(rows), color=alt.value(INK))
        spans += draw_spans(bounded, x, thickness=0.5)
    marks = [
        base.mark_tick(thickness=1.4, size=9, color=INK, opacity=1).encode(x=x.of("capacity_bits")),
        base.mark_point(size=20, fill="white", stroke=BLUE, strokeWidth=1, opacity=1).encode(x=x.of("observed_rate")),
        base.transform_filter(f"datum.absorbed_rate > {ends[0]}")
        .mark_square(size=22, color=BLUE, opacity=1)
        .encode(x=x.of("absorbed_rate")),
    ]
    numbers = list(_LEVELS)[::-1] if width.num_columns > 2 else []
    plot = beside_rows(rows, width) - 34 * len(numbers)
    heads = [
        alt.Chart(pd.DataFrame([{"text": _LEVELS[name]}]))
        .mark_text(align="right", fontWeight="bold")
        .encode(x=alt.value(plot + 34 * place), y=alt.value(-5), text="text:N")
        for place, name in enumerate(numbers, 1)
    ]
    texts = [
        alt.Chart(data.assign(text=data[name].map(format_number)))
        .mark_text(align="right")
        .encode(x=alt.value(plot + 34 * place), y=row_axis(rows), text="text:N")
        for place, name in enumerate(numbers, 1)
    ]
    return alt.layer(*bars, *spans, *marks, *heads, *texts).properties(width=plot, height=alt.Step(13))


def chart_episodes(data: pd.DataFrame, width: Width) -> alt.TopLevelMixin:
    """E50 against N on two logarithmic axes, every channel a line with its name at the end."""
    if tells_objectives(data):
        # One line a channel, of the objective that a reader would use; the figure of agents has them all.
        place = data["objective"].map({"chosen": 0, "usual": 1, "": 0}).fillna(2)
        first = data.assign(place=place).sort_values("place")
        data = first.drop_duplicates(["agent", "channel", "N", "model"]).sort_index()
    own = data[(data["agent"] == "lora").to_numpy()]
    channels, N = list(dict.fromkeys(own["channel"])), list_sizes(own)
    data = data[data["N"].isin(N).to_numpy()].assign(
        at=data["e50"].where(np.isfinite(data["e50"]), data["e50_at_least"]),
        dodged=data["N"] * 1.018 ** (data["channel"].map(channels.index) - (len(channels) - 1) / 2),
    )
    ends = log_ends(data, ["at", "e50_lower", "e50_upper"], shrink=0.7)
    own = bound_interval(data[(data["agent"] == "lora").to_numpy()], "e50", ends, "at")
    plot = width.points - 26 - LETTER * (max(map(len, channels)) + 3)
    height = 0.62 * width.points if width.num_columns < 4 else 0.5 * width.points
    x = LogAxis("X", "N", (min(N) / 1.25, max(N) * 1.12), N)
    y = LogAxis("Y", "episodes to memorize, E50", ends)
    color = alt.Color("color:N", scale=None)
    base = alt.Chart(own).encode(x=x.of("dodged"), color=color, description="said:N")
    lines = alt.Chart(own[np.isfinite(own["e50"])]).mark_line(strokeWidth=0.9)
    names = place_names(own, ends, height)
    layers = [
        alt.Chart(pd.DataFrame({"N": [min(N), max(N)]}))
        .mark_line(color=GRID, strokeWidth=3)
        .encode(x.of("N"), y.of("N")),
        lines.encode(x=x.of("dodged"), y=y.of("at"), color=color, detail="channel:N"),
        *draw_spans(base, y, thickness=0.7),
        base.transform_filter("datum.e50 > 0").mark_circle(size=20, opacity=1).encode(y=y.of("at")),
        alt.Chart(data[(data["agent"] == "published").to_numpy()])
        .mark_point(shape="cross", size=26, strokeWidth=1, opacity=1)
        .encode(x=x.of("dodged"), y=y.of("at"), color=color, description="said:N"),
        alt.Chart(names)
        .mark_rule(strokeWidth=0.4)
        .encode(x=alt.value(plot + 1), x2=alt.value(plot + 9), y=y.of("last"), y2="place:Q", color=color),
        alt.Chart(names).mark_text(align="left").encode(x=alt.value(plot + 11), y=y.of("place"), text="channel:N"),
    ]
    return alt.layer(*layers).properties(width=plot, height=height)


def chart_agents(data: pd.DataFrame, width: Width) -> alt.TopLevelMixin:
    """E50 against N, one panel per channel, beside the agents that share its channel."""
    own = (data["agent"] == "lora").to_numpy()
    N, agents = list_sizes(data[own]), order_agents(data["agent"])
    data = data[data["agent"].isin(["lora", *agents]).to_numpy() & data["N"].isin(N).to_numpy()]
    data = data.assign(at=data["e50"].where(np.isfinite(data["e50"]), data["e50_at_least"]))
    data = data[(data["at"] > 0).to_numpy()].assign(who=data["agent"].map(agent_label))
    ends = log_ends(data, ["at", "e50_lower", "e50_upper"], shrink=0.7)
    x, y = LogAxis("X", "N", (min(N) / 1.2, max(N) * 1.2), N), LogAxis("Y", "E50", ends, pick_ticks(*ends, most=4))
    dashes = alt.Scale(domain=[*map(agent_label, agents)], range=[agent_dash(agent) for agent in agents])
    legend = alt.Legend(title="■ LoRA policy, and in gray:", symbolSize=120, columns=2 * width.num_columns - 3)
    base = alt.Chart().encode(x=x.of("N"), description="said:N")
    policy = base.transform_filter("datum.agent == 'lora'")
    if tells_objectives(data[(data["agent"] == "lora").to_numpy()]):
        data = name_objectives(data)
        policy = policy.encode(color=color_objectives(data[(data["agent"] == "lora").to_numpy()], width))
    else:
        policy = policy.encode(color=alt.value(INK))
    layers = [
        base.transform_filter("datum.agent != 'lora'")
        .mark_line(strokeWidth=1, color=GRAY)
        .encode(y=y.of("at"), strokeDash=alt.StrokeDash("who:N", scale=dashes, legend=legend)),
        *draw_spans(policy, y, thickness=0.7),
        policy.transform_filter("datum.e50 > 0").mark_square(size=20, opacity=1).encode(y=y.of("at")),
    ]
    return arrange_panels(layers, bound_interval(data, "e50", ends, "at"), width, 0.85)


def chart_learning(data: pd.DataFrame, width: Width) -> alt.TopLevelMixin:
    """Absorbed bits against episodes, median and quartiles of runs, one panel per channel, and what was observed."""
    data = data[(data["episodes"] > 0).to_numpy()]
    bits = float(np.log2(data["N"].iloc[0]))
    ends = float(data["episodes"].min()), float(data["episodes"].max())
    x = LogAxis("X", "episodes", ends, pick_ticks(*ends, most=4))
    scale = alt.Scale(domain=[LOWEST_BITS, bits * 1.04], nice=False, clamp=True)
    axis = alt.Axis(title="bits", values=list(range(int(LOWEST_BITS), int(bits) + 1, 2)))
    known = (
        alt.Chart()
        .mark_rule(color=SOFT, strokeWidth=0.6, strokeDash=[1, 2])
        .encode(y=alt.Y(datum=bits, scale=scale, axis=axis))
    )
    if tells_objectives(data):
        data = name_objectives(data)
        return arrange_panels([known, *layers_of_learning(width, data, x, scale, axis)], data, width, 0.75)
    base = alt.Chart().encode(x=x.of("episodes"))
    observed, absorbed, low = (
        alt.Y(f"{name}:Q", scale=scale, axis=axis) for name in ("observed_median", "absorbed_median", "absorbed_low")
    )
    steps = "step-after"
    layers = [
        known,
        base.mark_area(color=SKY, opacity=0.45, interpolate=steps).encode(y=low, y2="absorbed_high:Q"),
        base.mark_line(color=INK, strokeWidth=0.9, strokeDash=[3, 2], interpolate=steps).encode(y=observed),
        base.mark_line(color=BLUE, strokeWidth=1.4, interpolate=steps).encode(y=absorbed),
    ]
    return arrange_panels(layers, data, width, 0.75)


def chart_maps(data: pd.DataFrame, width: Width) -> alt.TopLevelMixin:
    """Median E50 by rank and learning rate as numbers on gray, one panel per channel, each with a scale of its own."""
    reached = np.isfinite(data["e50"]) & (data["e50"] > 0)
    logs = np.log(data["e50"].where(reached))
    lowest, highest = (logs.groupby(data["channel"]).transform(end) for end in ("min", "max"))
    best = data["e50"].where(reached).groupby([data["channel"], data["lora_rank"]]).transform("min")
    data = data.assign(
        darkness=(0.85 - 0.8 * (logs - lowest) / np.maximum(highest - lowest, 0.7)).fillna(0.0),
        text=[format_number(value) if np.isfinite(value) else "×" for value in data["e50"]],
        is_best=reached & (data["e50"] == best),
    )
    axis = {"grid": False, "ticks": False, "domain": False, "labelAngle": 0, "format": "~g"}
    base = alt.Chart().encode(
        x=alt.X("learning_rate:O", title="learning rate", axis=alt.Axis(**axis), scale=alt.Scale(padding=0)),
        y=alt.Y("lora_rank:O", title="rank", axis=alt.Axis(**axis), scale=alt.Scale(padding=0)),
        description="said:N",
    )
    layers = [
        _write_on_gray(base),
        base.transform_filter("datum.is_best").mark_rect(fill=None, stroke=VERMILION, strokeWidth=1.4),
    ]
    return arrange_panels(layers, data, width, 13 * data["lora_rank"].nunique())


def chart_collapse(data: pd.DataFrame, width: Width) -> alt.TopLevelMixin:
    """Shares of runs as numbers on gray, one row per channel, one column per learning rate."""
    if width.num_columns < 4:
        data = data.assign(channel=[fill(name, _SHORT, break_on_hyphens=False) for name in data["channel"]])
    rows = name_rows(data)
    counts = [f"{row['num_lost']}/{row['num_reached']}" for row in data.to_dict("records")]
    data = data.assign(text=counts, darkness=0.85 * data["share_lost"].fillna(0.0))
    axis = alt.Axis(grid=False, ticks=False, domain=False, labelAngle=0, format="~g", titleAnchor="end")
    rates = alt.X("learning_rate:O", title="learning rate", axis=axis, scale=alt.Scale(padding=0))
    base = alt.Chart(data).encode(x=rates, y=row_axis(rows, grid=False), description="said:N")
    step = 13 if max(row.count("\n") for row in rows) == 0 else 20
    return _write_on_gray(base).properties(width=beside_rows(rows, width), height=alt.Step(step))


def _write_on_gray(base: alt.Chart) -> alt.LayerChart:
    """Cells of a map: the column `darkness` from 0 to 1 as gray, and the column `text` on it."""
    gray = alt.Color("darkness:Q", scale=alt.Scale(domain=[0, 1], range=["#FFFFFF", "#000000"]), legend=None)
    ink = alt.when("datum.darkness > 0.45").then(alt.value("#FFFFFF")).otherwise(alt.value(INK))
    cells = base.mark_rect(stroke="#FFFFFF", strokeWidth=1).encode(color=gray)
    return alt.LayerChart(layer=[cells, base.mark_text().encode(text="text:N", color=ink)])


_CHARTS: dict[str, Drawer] = {
    "rate": chart_rate,
    "lengths": chart_lengths,
    "ledger": chart_ledger,
    "episodes": chart_episodes,
    "learning": chart_learning,
    "collapse": chart_collapse,
    "maps": chart_maps,
    "agents": chart_agents,
    "versus": chart_versus,
    "models": chart_models,
    "groups": chart_groups,
    "interference": chart_interference,
}


@dataclass(frozen=True)
class Drawing:
    """One drawing of a figure: what it shows, and its SVG by width."""

    view: View
    svgs: dict[Width, str]


def draw_figure(figure: Figure) -> list[Drawing]:
    """Every view of a figure, at every width."""
    return [
        Drawing(view, {width: render_svg(_CHARTS[figure.name](view.rows, width), width) for width in WIDTHS})
        for view in figure.views()
    ]


def save_drawings(drawings: Iterable[Drawing], folder: Path) -> None:
    """Writes drawings at every width as SVG and PDF, and at the page's width as PNG too."""
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        for width, svg in drawing.svgs.items():
            save_drawing(svg, folder / f"{drawing.view.stem}{width.suffix}")
        save_png(drawing.svgs[PAGE], folder / f"{drawing.view.stem}.png")
