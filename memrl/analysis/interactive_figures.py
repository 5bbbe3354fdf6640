"""The report's figures for a browser: plots of plotly, grouped by the N that a reader may choose."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from memrl.analysis.figure_data import CALIBRATED_KL_BITS, MALFORMED_LIMIT, Figure, level_range, lowest_bits, rate_range
from memrl.analysis.style import (
    GRAY,
    INK,
    LOSS_COLORS,
    LOSS_LABELS,
    agent_dash,
    agent_label,
    channel_label,
    channel_look,
    channel_looks,
    order_channels,
)
from memrl.analysis.wording import format_estimate, format_number

_PATTERNS = {"absorbed": "", "absorption_loss": ".", "exploration_loss": "/"}


@dataclass(frozen=True)
class Plot:
    """One plot of a figure.

    Attributes:
        title: stands above it.
        traces: plotly traces.
        layout: plotly layout, without what all plots share.
        height: pixels.
        is_wide: whether it takes the page's whole width.
    """

    title: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 260
    is_wide: bool = False


@dataclass(frozen=True)
class View:
    """The plots that a figure shows together: all, or those of one N."""

    label: str
    plots: list[Plot] = field(default_factory=list)


def draw_views(figures: dict[str, Figure]) -> dict[str, list[View]]:
    """The views of every figure; a figure with one view needs no choice."""
    return {name: _DRAWERS[name](figure.data) for name, figure in figures.items()}


def draw_ledger(data: pd.DataFrame) -> list[View]:
    """Stacked shares, and the three levels in bits; a view an N."""
    return [View(f"N = {N}", [_ledger_shares(rows), _ledger_levels(rows)]) for N, rows in _each_N(data)]


def _ledger_shares(rows: pd.DataFrame) -> Plot:
    names = [channel_label(channel) for channel in rows["channel"]]
    traces = []
    for part, color in LOSS_COLORS.items():
        column = "absorbed_rate" if part == "absorbed" else part
        text = [format_estimate(*x) for x in rows[[column, f"{column}_lower", f"{column}_upper"]].to_numpy()]
        trace = go.Bar(
            y=names,
            x=_plain(rows[f"share_{part}"]),
            name=LOSS_LABELS[part],
            orientation="h",
            marker={"color": color, "line": {"color": "#555555", "width": 1}, "pattern": _pattern(part)},
            customdata=text,
            hovertemplate="%{y}<br>%{customdata} bits per episode<br>%{x:.1%} of capacity",
        )
        traces.append(_trace(trace))
    axis = {"tickformat": ".0%", "range": [0, 1], "tickvals": [0, 0.5, 1]}
    return Plot("Share of an episode's capacity", traces, _bars(axis, len(rows)), 150 + 34 * len(rows), is_wide=True)


def _pattern(part: str) -> dict[str, Any]:
    return {
        "shape": _PATTERNS[part],
        "fillmode": "overlay",
        "fgcolor": "#5F5F5F",
        "fgopacity": 0.7,
        "size": 6,
        "solidity": 0.2,
    }


def _ledger_levels(rows: pd.DataFrame) -> Plot:
    names = [channel_label(channel) for channel in rows["channel"]]
    levels = [
        ("capacity", "capacity_bits", "diamond-open", INK),
        ("observed", "observed_rate", "circle", LOSS_COLORS["absorption_loss"]),
        ("absorbed", "absorbed_rate", "square", LOSS_COLORS["absorbed"]),
    ]
    traces = []
    for name, column, symbol, color in levels:
        bars = _error_bars(rows, column, "error_x") if f"{column}_lower" in rows else {}
        marker = {"symbol": symbol, "size": 11, "color": color, "line": {"color": INK, "width": 1}}
        hover = "%{y}<br>" + name + ": %{x:.3g} bits per episode"
        values = _positive(rows[column])
        scatter = go.Scatter(y=names, x=values, name=name, mode="markers", marker=marker, hovertemplate=hover, **bars)
        traces.append(_trace(scatter))
    axis = _log_axis("bits per episode", limits=[math.log10(end) for end in level_range(rows)])
    return Plot("Bits per episode, 95 % intervals", traces, _bars(axis, len(rows)), 160 + 34 * len(rows), is_wide=True)


def _bars(x_axis: dict[str, Any], num_rows: int) -> dict[str, Any]:
    """A layout of horizontal rows, first channel on top, with the legend below."""
    y_axis = {"autorange": "reversed", "automargin": True, "range": [-0.6, num_rows - 0.4]}
    return {"barmode": "stack", "xaxis": x_axis, "yaxis": y_axis, "legend": _LEGEND_BELOW, "showlegend": True}


_LEGEND_BELOW = {
    "orientation": "h",
    "traceorder": "normal",
    "yref": "container",
    "y": 0,
    "yanchor": "bottom",
    "x": 0,
    "xref": "container",
}


def draw_episodes(data: pd.DataFrame) -> list[View]:
    """One plot a channel: E50 against N."""
    known = data.loc[np.isfinite(data["e50"].to_numpy()) & (data["e50"] > 0).to_numpy(), "e50"]
    y_range = [math.log10(known.min() / 1.7), math.log10(known.max() * 3)]
    x_range = [math.log10(data["N"].min() / 1.2), math.log10(data["N"].max() * 1.2)]
    layout = {
        "xaxis": _log_axis("N", limits=x_range),
        "yaxis": _log_axis("episodes", limits=y_range),
        "showlegend": False,
    }
    plots = []
    for channel in order_channels(data["channel"]):
        rows = data[(data["channel"] == channel).to_numpy()]
        ends = [float(data["N"].min()), float(data["N"].max())]
        line = {"color": "#BBBBBB", "width": 1}
        traces = [_trace(go.Scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip"))]
        for agent, part in rows.groupby("agent", sort=False):
            traces += _episodes_traces(str(agent), part.sort_values("N"), channel)
        plots.append(Plot(channel_label(channel), traces, layout))
    return [View("all", plots)]


def _episodes_traces(agent: str, rows: pd.DataFrame, channel: str) -> list[dict[str, Any]]:
    look, reached = channel_look(channel), rows["reached"].astype(bool).to_numpy()
    if agent == "published":
        marker = {"symbol": "star-open", "size": 12, "color": INK, "line": {"width": 1.5}}
        text = ["" if r else " not reached" for r in reached]
        hover = "published: N = %{x}, %{y}%{text}"
        points = {"x": _plain(rows["N"]), "y": _plain(rows["e50"]), "marker": marker, "hovertemplate": hover}
        shown = go.Scatter(mode="markers", name="published", text=text, **points)
        return [_trace(shown), *_arrows(rows["N"][~reached], rows["e50"][~reached] * 1.9, INK)]
    text = [_episodes_text(row) for row in rows.to_dict("records")]
    points = {"x": _plain(rows["N"]), "y": _positive(rows["e50"]), "customdata": text, "name": agent_label(agent)}
    hover = agent_label(agent) + ", N = %{x}<br>%{customdata}"
    if agent != "lora":
        line = {"color": GRAY, "dash": agent_dash(agent), "width": 2}
        return [_trace(go.Scatter(mode="lines", line=line, hovertemplate=hover, **points))]
    marker = {"symbol": look.symbol, "size": 8, "color": look.color}
    style = {"mode": "lines+markers", "line": {"color": look.color, "width": 2}, "marker": marker}
    shown = go.Scatter(hovertemplate=hover, **style, **points, **_error_bars(rows, "e50", "error_y"))
    return [_trace(shown), *_arrows(rows["N"][~reached], rows["e50_at_least"][~reached], look.color)]


def _episodes_text(row: Mapping[Any, Any]) -> str:
    text = f"E50 {format_estimate(row['e50'], row['e50_lower'], row['e50_upper'])}"
    text += f"<br>{row['num_reached']:.0f} of {row['num_cells']:.0f} runs got there"
    if isinstance(row["learning_rates"], str) and row["learning_rates"]:
        text += f"<br>learning rate {row['learning_rates']}"
    for name, agent in (("e50_vs_optimal", row["reference_agent"]), ("e50_vs_tabular_pg", "tabular_pg")):
        if row["agent"] == "lora" and np.isfinite(row[name]) and row[name] > 0:
            text += f"<br>{format_number(row[name])} × {agent_label(str(agent))}"
    return text


def _arrows(x: pd.Series, y: pd.Series, color: str) -> list[dict[str, Any]]:
    if not len(x):
        return []
    marker = {"symbol": "arrow-up", "size": 11, "color": color}
    arrows = go.Scatter(x=_plain(x), y=_plain(y), mode="markers", marker=marker, hovertemplate="more than %{y:,.0f}")
    return [_trace(arrows)]


def draw_rate(data: pd.DataFrame) -> list[View]:
    """Bits per episode against effective capacity, one series a channel."""
    ends = [float(data["capacity_best_bits"].min()) * 0.7, float(data["capacity_best_bits"].max()) * 1.4]
    line = {"color": "#999999", "width": 1}
    traces = [_trace(go.Scatter(x=ends, y=ends, mode="lines", line=line, name="nothing lost", hoverinfo="skip"))]
    for channel, look in channel_looks(data["channel"]).items():
        for agent, suffix in (("lora", ""), ("tabular_pg", "-open")):
            rows = data[((data["channel"] == channel) & (data["agent"] == agent)).to_numpy()].sort_values("N")
            if rows.empty:
                continue
            text = [
                f"N = {row['N']}: {format_number(row['bits_per_episode'])} of "
                f"{format_number(row['capacity_best_bits'])} bits ({100 * row['rate_vs_capacity']:.2g} %)"
                for row in rows.to_dict("records")
            ]
            name = channel_label(channel) + ("" if agent == "lora" else f", {agent_label(agent)}")
            scatter = go.Scatter(
                x=_plain(rows["capacity_best_bits"]),
                y=_plain(rows["bits_per_episode"]),
                name=name,
                mode="lines+markers" if agent == "lora" else "markers",
                line={"color": look.color, "dash": look.dash, "width": 1.5},
                marker={"symbol": look.symbol + suffix, "size": 9, "color": look.color},
                customdata=text,
                showlegend=agent == "lora",
                hovertemplate=name + "<br>%{customdata}",
                **_error_bars(rows, "bits_per_episode", "error_y", look.color),
            )
            traces.append(_trace(scatter))
    axes = {
        "xaxis": _log_axis("effective capacity, bits per episode"),
        "yaxis": _log_axis("absorbed, bits per episode", limits=[math.log10(end) for end in rate_range(data)]),
    }
    layout = {**axes, "legend": _LEGEND_BELOW, "showlegend": True}
    return [View("all", [Plot("", traces, layout, 460 + 8 * len(traces), is_wide=True)])]


def draw_learning(data: pd.DataFrame) -> list[View]:
    """One plot a channel: observed and absorbed bits against episodes; a view an N."""
    views = []
    for N, of_N in _each_N(data):
        plots = []
        for channel in order_channels(of_N["channel"]):
            rows = of_N[((of_N["channel"] == channel) & (of_N["episodes"] > 0)).to_numpy()]
            signal = math.log2(N)
            traces = [
                trace
                for name, dash in (("observed", "dash"), ("absorbed", "solid"))
                for trace in _band(rows, name, dash)
            ]
            ends, line = (
                [float(rows["episodes"].min()), float(rows["episodes"].max())],
                {"color": INK, "dash": "dot", "width": 1},
            )
            traces.append(_trace(go.Scatter(x=ends, y=[signal] * 2, mode="lines", line=line, hoverinfo="skip")))
            low = lowest_bits(rows["absorbed_bits"], N)
            axes = {
                "xaxis": _log_axis("episodes", rows["episodes"]),
                "yaxis": {"title": {"text": "bits"}, "range": [low, signal * 1.08]},
            }
            plots.append(Plot(channel_label(channel), traces, {**axes, "showlegend": False}))
        views.append(View(f"N = {N}", plots))
    return views


def _band(rows: pd.DataFrame, name: str, dash: str) -> list[dict[str, Any]]:
    """A mean with its band."""
    color = channel_look(str(rows["channel"].iloc[0])).color
    mean, half = rows[f"{name}_bits"].to_numpy(), rows[f"{name}_half_width"].fillna(0).to_numpy()
    x = _plain(rows["episodes"])
    edge = {"mode": "lines", "line": {"width": 0, "shape": "hv"}, "hoverinfo": "skip"}
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    fill = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},0.2)"}
    hover = name + " after %{x:,.0f} episodes: %{y:.3g} ± %{customdata:.2g} bits"
    line = {"color": color, "dash": dash, "width": 2, "shape": "hv"}
    shown = go.Scatter(x=x, y=_plain(mean), mode="lines", line=line, customdata=_plain(half), hovertemplate=hover)
    return [
        _trace(go.Scatter(x=x, y=_plain(mean - half), **edge)),
        _trace(go.Scatter(x=x, y=_plain(mean + half), **edge, **fill)),
        _trace(shown),
    ]


def draw_maps(data: pd.DataFrame) -> list[View]:
    """One plot a channel: median E50 by rank and learning rate; a view an N."""
    views = []
    for N, of_N in _each_N(data):
        plots = []
        for channel in order_channels(of_N["channel"]):
            rows = of_N[(of_N["channel"] == channel).to_numpy()]
            plots.append(Plot(channel_label(channel), *_map(rows), height=130 + 34 * rows["lora_rank"].nunique()))
        views.append(View(f"N = {N}", plots))
    return views


def _map(rows: pd.DataFrame) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    table = rows.pivot_table(index="lora_rank", columns="learning_rate", values="e50", aggfunc="first")
    values = table.to_numpy(dtype=float)
    shown = np.log10(np.where(np.isfinite(values) & (values > 0), values, np.nan))
    low, high = (float(f(shown)) if np.isfinite(shown).any() else 0.0 for f in (np.nanmin, np.nanmax))
    x, y = [f"{rate:g}" for rate in table.columns], [f"{rank:g}" for rank in table.index]
    text = [["×" if np.isinf(v) else format_number(v) for v in row] for row in values]
    heat = go.Heatmap(
        x=x,
        y=y,
        z=[_plain(row) for row in shown],
        text=text,
        colorscale=[[0, "#3A3A3A"], [1, "#F4F4F4"]],
        zmin=low - max(0.15, 0.2 * (high - low)),
        zmax=high + max(0.15, 0.1 * (high - low)),
        showscale=False,
        hovertemplate="rank %{y}, learning rate %{x}: E50 %{text}",
        xgap=2,
        ygap=2,
    )
    best = [int(np.nanargmin(row)) if np.isfinite(row).any() else -1 for row in values]
    shapes = [
        {
            "type": "rect",
            "x0": column - 0.5,
            "x1": column + 0.5,
            "y0": row - 0.5,
            "y1": row + 0.5,
            "line": {"color": "#D55E00", "width": 3},
        }
        for row, column in enumerate(best)
        if column >= 0
    ]
    annotations = [
        {
            "x": column,
            "y": row,
            "text": text[row][column],
            "showarrow": False,
            "font": {"size": 12, "color": _text_color(value, low + 0.35 * (high - low))},
        }
        for (row, column), value in np.ndenumerate(shown)
    ]
    axis = {"type": "category", "showgrid": False, "categoryorder": "array"}
    x_axis = {**axis, "categoryarray": x, "range": [-0.5, len(x) - 0.5], "title": {"text": "learning rate"}}
    y_axis = {**axis, "categoryarray": y, "range": [len(y) - 0.5, -0.5], "title": {"text": "rank"}}
    return [_trace(heat)], {
        "xaxis": x_axis,
        "yaxis": y_axis,
        "shapes": shapes,
        "annotations": annotations,
        "showlegend": False,
    }


def _text_color(value: float, dark_below: float) -> str:
    """What can be read on a cell of the map: the page's ink where there is no cell."""
    if math.isnan(value):
        return INK
    return "#FFFFFF" if value < dark_below else "#000000"


def draw_prior(data: pd.DataFrame) -> list[View]:
    """Divergence from uniform, and mass on malformed answers, against N."""
    looks = {"single_step": ("circle-open", INK), "multi_step": ("square-open", "#009E73")}
    columns = (
        ("prior_kl_bits", "KL(uniform ‖ policy), bits", CALIBRATED_KL_BITS),
        ("malformed_mass", "mass on malformed answers", MALFORMED_LIMIT),
    )
    x_axis = _log_axis("N") | {"tickmode": "array", "tickvals": sorted({int(N) for N in data["N"]})}
    plots = []
    for column, title, limit in columns:
        traces = []
        for environment, rows in data.groupby("env_type"):
            symbol, color = looks.get(str(environment), ("triangle-up-open", GRAY))
            marker = {"symbol": symbol, "size": 9, "color": color, "line": {"width": 2}}
            hover = f"{environment}, N = %{{x}}: %{{y:.3g}}"
            points = {"x": _plain(rows["N"]), "y": _plain(rows[column]), "name": str(environment)}
            style = {"mode": "markers", "marker": marker, "cliponaxis": False}
            traces.append(_trace(go.Scatter(hovertemplate=hover, **style, **points)))
        line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": limit, "y1": limit}
        shapes = [{**line, "line": {"color": INK, "dash": "dash", "width": 1}}]
        axes = {"xaxis": x_axis, "yaxis": {"range": [0, 1.15 * max(limit, float(data[column].max()))]}}
        layout = {**axes, "shapes": shapes, "legend": _LEGEND_BELOW, "showlegend": True}
        plots.append(Plot(title, traces, layout, 300))
    return [View("all", plots)]


def draw_leak(data: pd.DataFrame) -> list[View]:
    """Mean absorbed - mean observed with its 99 % band; a view an N."""
    views = []
    for N, of_N in _each_N(data):
        plots = []
        for channel in order_channels(of_N["channel"]):
            rows = of_N[(of_N["channel"] == channel).to_numpy()]
            half = rows["half_width_bits"].where(np.isfinite(rows["half_width_bits"].to_numpy()), 0.0)
            shown = pd.DataFrame(
                {
                    "channel": channel,
                    "episodes": rows["update"] + 1,
                    "difference_bits": rows["mean_difference_bits"],
                    "difference_half_width": half,
                }
            )
            top = max(0.5, float((shown["difference_bits"] + half).max()) * 1.1)
            low = float((shown["difference_bits"] - half).min()) * 1.05
            line = {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": 0,
                "y1": 0,
                "line": {"color": INK, "width": 1},
            }
            axes = {
                "xaxis": _log_axis("update + 1", shown["episodes"]),
                "yaxis": {"title": {"text": "bits"}, "range": [low, top]},
            }
            traces = _band(shown, "difference", "solid")
            traces[-1]["hovertemplate"] = "update + 1 = %{x}: %{y:.3g} ± %{customdata:.2g} bits"
            plots.append(Plot(channel_label(channel), traces, {**axes, "shapes": [line], "showlegend": False}, 220))
        views.append(View(f"N = {N}", plots))
    return views


def _each_N(data: pd.DataFrame) -> list[tuple[int, pd.DataFrame]]:
    return [(int(N), rows) for N, rows in data.groupby("N", sort=True)]  # pyright: ignore[reportArgumentType]


def _log_axis(title: str, values: pd.Series | None = None, limits: list[float] | None = None) -> dict[str, Any]:
    """A logarithmic axis with a label at each power of ten, or also at 2 and 5 where values span little more."""
    spans_little = values is not None and len(values) > 0 and values.max() < 30 * values.min()
    axis = {"type": "log", "title": {"text": title}, "dtick": "D2" if spans_little else 1}
    return axis | ({"range": limits} if limits else {})


def _error_bars(rows: pd.DataFrame, name: str, which: str, color: str = INK) -> dict[str, Any]:
    """Asymmetric error bars; an open end is drawn as four times the value."""
    value, lower, upper = (rows[column].to_numpy(dtype=float) for column in (name, f"{name}_lower", f"{name}_upper"))
    shown = np.isfinite(value)
    value, lower = np.where(shown, value, 0.0), np.where(shown & np.isfinite(lower), lower, value)
    above = np.where(shown, np.where(np.isinf(upper), 3 * value, upper - value), 0.0)
    below = np.where(shown, np.clip(value - lower, 0, 0.999 * np.abs(value)), 0.0)
    bars = {"type": "data", "symmetric": False, "array": _plain(above), "arrayminus": _plain(below)}
    return {which: {**bars, "thickness": 1.2, "width": 4, "color": color}}


def _positive(values: pd.Series) -> list[float | None]:
    return _plain(np.where(values.to_numpy(dtype=float) > 0, values.to_numpy(dtype=float), np.nan))


def _plain(values: Any) -> list[Any]:
    """Python numbers, five significant digits; None where there is no finite number."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in np.asarray(values, dtype=float)]


def _trace(trace: Any) -> dict[str, Any]:
    """A plotly trace, checked by plotly, as a dict without the box that plotly writes beside a hover text."""
    found: dict[str, Any] = trace.to_plotly_json()
    if "hovertemplate" in found:
        found["hovertemplate"] += "<extra></extra>"
    return found


_DRAWERS: dict[str, Callable[[pd.DataFrame], list[View]]] = {
    "ledger": draw_ledger,
    "episodes": draw_episodes,
    "rate": draw_rate,
    "learning": draw_learning,
    "maps": draw_maps,
    "prior": draw_prior,
    "leak": draw_leak,
}
