"""Charts of sweeps that tell objectives apart: one color each, wherever they stand."""

import altair as alt
import numpy as np
import pandas as pd

from memrl.analysis.chart_parts import (
    LogAxis,
    arrange_panels,
    beside_rows,
    bound_interval,
    draw_spans,
    log_ends,
    name_rows,
    pick_ticks,
    row_axis,
    slot_sizes,
)
from memrl.analysis.drawing import INK, SOFT, Width
from memrl.analysis.style import objective_colors, objective_label
from memrl.analysis.wording import format_number

_SHAPES = {"": "circle", "usual": "circle", "chosen": "triangle-up"}
_OTHER_SHAPE = "diamond"
_HEAD = 40
"""Points that a column of numbers takes."""


def color_objectives(data: pd.DataFrame, width: Width) -> alt.Color:
    """The color of each objective, with a legend; reads the column `of`."""
    colors = objective_colors(data["objective"])
    scale = alt.Scale(domain=[objective_label(name) for name in colors], range=list(colors.values()))
    columns = 2 if width.num_columns < 4 else 4
    legend = alt.Legend(title=None, symbolType="square", symbolOpacity=1, columns=columns, orient="top")
    return alt.Color("of:N", scale=scale, legend=legend)


def name_objectives(data: pd.DataFrame) -> pd.DataFrame:
    """The rows with the column `of`, what a reader calls their objective."""
    return data.assign(of=data["objective"].map(objective_label))


def chart_rate_by_objective(data: pd.DataFrame, width: Width) -> alt.TopLevelMixin:
    """Bits per episode, one row per channel: a line from the usual objective to the chosen one, then distillation."""
    rates = ["bits_per_episode", "bits_per_episode_lower", "bits_per_episode_upper"]
    ends = log_ends(data, [*rates, "capacity_best_bits"])
    rows, (data, slots) = name_rows(data), slot_sizes(data)
    arrows = _join_ends(data, "bits_per_episode")
    data = name_objectives(bound_interval(data, "bits_per_episode", ends))
    x = LogAxis("X", "bits per episode: absorbed by the median run, | capacity", ends)
    place = {"y": row_axis(rows), "yOffset": alt.YOffset("slot:O", sort=slots)}
    base = alt.Chart(data).encode(**place, color=color_objectives(data, width), description="said:N")
    reached = base.transform_filter("datum.bits_per_episode > 0").encode(x=x.of("bits_per_episode"))
    marks = [
        reached.transform_filter(f"datum.objective == '{name}'").mark_point(
            shape=_SHAPES.get(name, _OTHER_SHAPE), size=24, filled=True, opacity=1
        )
        for name in objective_colors(data["objective"])
    ]
    capacity = base.mark_tick(thickness=1.4, size=6, opacity=1).encode(
        x=x.of("capacity_best_bits"), color=alt.value(INK)
    )
    layers = [*draw_spans(base, x, thickness=0.5), capacity]
    if len(arrows):
        shafts = alt.Chart(arrows).mark_rule(color=SOFT, strokeWidth=1.1)
        layers.append(shafts.encode(**place, x=x.of("usual"), x2="chosen:Q"))
    return alt.layer(*layers, *marks).properties(
        width=beside_rows(rows, width), height=alt.Step(max(7.0, 18.0 / len(slots)))
    )


def _join_ends(data: pd.DataFrame, name: str) -> pd.DataFrame:
    """One row per channel and slot that has a positive value under both the usual objective and the chosen one."""
    wide = data[data["objective"].isin(["usual", "chosen"]).to_numpy() & (data[name] > 0).to_numpy()]
    wide = wide.pivot_table(index=["channel", "slot"], columns="objective", values=name, sort=False)
    return wide.dropna().reset_index() if {"usual", "chosen"} <= set(wide) else data.head(0)


def chart_ledger_by_objective(data: pd.DataFrame, width: Width) -> alt.TopLevelMixin:
    """What each objective was told and what it kept, one row per channel; the share kept as numbers at the right."""
    data = name_objectives(data)
    rows, objectives = name_rows(data), list(objective_colors(data["objective"]))
    ends = log_ends(data, ["capacity_bits", "observed_rate", "absorbed_rate"])
    data = data.assign(floor=data["absorbed_rate"].clip(lower=ends[0]))
    x = LogAxis("X", "bits per episode over all runs: ■ absorbed, ○ observed, | capacity", ends)
    base = alt.Chart(data).encode(
        y=row_axis(rows),
        yOffset=alt.YOffset("objective:N", sort=objectives),
        color=color_objectives(data, width),
        description="said:N",
    )
    shown = [name for name in objectives if name] if width.num_columns > 2 else []
    plot = beside_rows(rows, width) - _HEAD * len(shown)
    layers = [
        base.mark_rule(strokeWidth=2.5, opacity=0.3).encode(x=x.of("floor"), x2="observed_rate:Q"),
        base.mark_tick(thickness=1.2, size=5, opacity=1).encode(x=x.of("capacity_bits"), color=alt.value(INK)),
        base.mark_point(size=14, filled=False, strokeWidth=1, opacity=1).encode(x=x.of("observed_rate")),
        base.transform_filter(f"datum.absorbed_rate > {ends[0]}")
        .mark_square(size=18, opacity=1)
        .encode(x=x.of("absorbed_rate")),
    ]
    for place, name in enumerate(shown, 1):
        kept = data[(data["objective"] == name).to_numpy()]
        texts = kept.assign(text=[_percent(share) for share in kept["kept"]])
        head = pd.DataFrame([{"text": name.partition(",")[0]}])
        at = alt.value(plot + _HEAD * place)
        layers += [
            alt.Chart(head).mark_text(align="right", fontWeight="bold").encode(x=at, y=alt.value(-5), text="text:N"),
            alt.Chart(texts).mark_text(align="right").encode(x=at, y=row_axis(rows), text="text:N"),
        ]
    return alt.layer(*layers).properties(width=plot, height=alt.Step(max(5.0, 15.0 / len(objectives))))


def _percent(share: float) -> str:
    return f"{format_number(100 * share, 2)} %" if np.isfinite(share) else "–"


def layers_of_learning(
    width: Width, data: pd.DataFrame, x: LogAxis, scale: alt.Scale, axis: alt.Axis
) -> list[alt.Chart]:
    """Absorbed bits of each objective against episodes, with the middle half of runs, and what was observed."""
    base = alt.Chart().encode(x=x.of("episodes"), color=color_objectives(data, width))
    observed, absorbed, low = (
        alt.Y(f"{name}:Q", scale=scale, axis=axis) for name in ("observed_median", "absorbed_median", "absorbed_low")
    )
    steps = "step-after"
    return [
        base.mark_area(opacity=0.2, interpolate=steps).encode(y=low, y2="absorbed_high:Q"),
        base.mark_line(strokeWidth=0.7, strokeDash=[3, 2], interpolate=steps).encode(y=observed),
        base.mark_line(strokeWidth=1.4, interpolate=steps).encode(y=absorbed),
    ]


def chart_groups(data: pd.DataFrame, width: Width) -> alt.TopLevelMixin:
    """E50 against group size, one line per objective, one panel per channel."""
    data = data.assign(at=data["e50"].where(np.isfinite(data["e50"]), data["most_episodes"]))
    data = data[(data["at"] > 0).to_numpy()]
    sizes = sorted(data["group_size"].unique())
    ends = log_ends(data, ["at", "e50_lower", "e50_upper"], shrink=0.7)
    x = LogAxis("X", "episodes of a group", (min(sizes) / 1.2, max(sizes) * 1.2), sizes)
    y = LogAxis("Y", "E50", ends, pick_ticks(*ends, most=4))
    legend = alt.Legend(title=None, columns=1 if width.num_columns < 4 else 3, orient="top", labelLimit=0)
    base = alt.Chart().encode(
        x=x.of("group_size"), color=alt.Color("objective_name:N", legend=legend), description="said:N"
    )
    layers = [
        base.mark_line(strokeWidth=1).encode(y=y.of("at")),
        *draw_spans(base, y, thickness=0.6),
        base.transform_filter("isFinite(datum.e50)").mark_circle(size=18, opacity=1).encode(y=y.of("at")),
    ]
    return arrange_panels(layers, bound_interval(data, "e50", ends, "at"), width, 0.85)


def chart_interference(data: pd.DataFrame, width: Width) -> alt.TopLevelMixin:
    """Share of runs that reached P(secret) = 1/2 against the base's interference, one line per objective."""
    data = name_objectives(data)
    axis = alt.Axis(values=[0, 0.5, 1], format="%")
    base = alt.Chart().encode(
        x=alt.X("interference:Q", title="interference", scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("share:Q", title="runs that reached 1/2", scale=alt.Scale(domain=[0, 1]), axis=axis),
        color=color_objectives(data, width),
        description="said:N",
    )
    layers = [base.mark_line(strokeWidth=1), base.mark_circle(size=22, opacity=1)]
    return arrange_panels(layers, data, width, 0.85)
