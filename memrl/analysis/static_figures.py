"""The report's figures as PNG and SVG, for papers and for pages without scripts."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from memrl.analysis.figure_data import CALIBRATED_KL_BITS, MALFORMED_LIMIT, Figure, level_range, lowest_bits, rate_range
from memrl.analysis.style import (
    GRAY,
    INK,
    LOSS_COLORS,
    LOSS_LABELS,
    Look,
    agent_label,
    agent_line,
    channel_label,
    channel_look,
    channel_looks,
    order_channels,
)
from memrl.analysis.wording import format_number

_WIDTH = 8.0
"""Inches; every figure fills a page's width, and its margins are given in inches too."""

_COLUMNS = 4
Style = dict[str, Any]
"""Keywords of a matplotlib artist."""

_HATCHES = {"absorbed": "", "absorption_loss": "....", "exploration_loss": "////"}
_EDGE = "#555555"
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 7.6,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titley": 1.02,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "hatch.color": "#8A8A8A",
    "svg.hashsalt": "memrl",
}


def save_figures(figures: dict[str, Figure], folder: Path, first_N: int) -> list[Path]:
    """Draws every figure as PNG and SVG.

    Args:
        figures: from collect_figures.
        folder: where the files go; made if missing.
        first_N: the N of figures that show one N.

    Returns:
        Paths of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(_STYLE):
        for name, figure in figures.items():
            canvas = _DRAWERS[name](figure.data, first_N)
            png, svg = folder / f"{name}.png", folder / f"{name}.svg"
            canvas.savefig(png, dpi=160)
            canvas.savefig(svg, metadata={"Date": None})
            paths += [png, svg]
    return paths


def draw_ledger(data: pd.DataFrame, first_N: int) -> Canvas:
    """Stacked shares beside the three levels in bits, for one N."""
    rows = _of_N(data, first_N).iloc[::-1]
    canvas, (left, right) = _place(1, 2, height=0.4 + 0.3 * len(rows), left=2.0, bottom=1.0, wspace=0.14)
    y, start = np.arange(len(rows)), np.zeros(len(rows))
    for part, color in LOSS_COLORS.items():
        share = rows[f"share_{part}"].to_numpy()
        left.barh(y, share, left=start, height=0.68, color=color, hatch=_HATCHES[part], edgecolor=_EDGE, linewidth=0.5)
        start = start + share
    left.set(xlim=(0, 1), yticks=y, yticklabels=[channel_label(c) for c in rows["channel"]])
    left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
    left.set_title(f"Share of an episode's capacity, N = {first_N}")
    _draw_levels(right, rows, y)
    right.set(yticks=y, yticklabels=[], ylim=left.get_ylim())
    patches = [
        Patch(facecolor=color, hatch=_HATCHES[part], edgecolor=_EDGE, label=LOSS_LABELS[part])
        for part, color in LOSS_COLORS.items()
    ]
    below = -0.25 / (0.4 + 0.3 * len(rows))
    left.legend(handles=patches, loc="upper left", bbox_to_anchor=(-0.02, below))
    right.legend(loc="upper left", bbox_to_anchor=(-0.02, below))
    return canvas


def _draw_levels(axes: Axes, rows: pd.DataFrame, y: np.ndarray) -> None:
    """Capacity, observed and absorbed in bits per episode on a logarithmic axis."""
    levels = [
        ("capacity", "capacity_bits", "D", "white"),
        ("observed", "observed_rate", "o", LOSS_COLORS["absorption_loss"]),
        ("absorbed", "absorbed_rate", "s", LOSS_COLORS["absorbed"]),
    ]
    positive = rows["absorbed_rate"].where(rows["absorbed_rate"] > 0)
    axes.hlines(y, positive, rows["capacity_bits"], color="#B5B5B5", linewidth=1.2, zorder=1)
    for label, column, marker, fill in levels:
        if f"{column}_lower" in rows:
            low, high = (rows[f"{column}_{end}"] for end in ("lower", "upper"))
            axes.hlines(y, low.where(low > 0), high, color=INK, linewidth=1.0, zorder=2)
        style: Style = {"markerfacecolor": fill, "markeredgecolor": INK, "markersize": 6, "linestyle": "", "zorder": 3}
        axes.plot(rows[column].where(rows[column] > 0), y, marker=marker, label=label, **style)
    axes.set_title("Bits per episode, 95 % intervals")
    axes.set_xlim(*level_range(rows))
    _use_log(axes, "x")


def draw_episodes(data: pd.DataFrame, first_N: int) -> Canvas:
    """One panel a channel: E50 against N."""
    agents = [a for a in data["agent"].unique() if a not in ("lora", "published")]
    bottom = 0.8 if len(agents) < 3 else 1.0
    canvas, panels = _panels(
        order_channels(data["channel"]),
        "N",
        "episodes to P(secret) = 1/2",
        height=1.55,
        left=0.9,
        bottom=bottom,
        hspace=0.55,
    )
    N_range = np.array([data["N"].min(), data["N"].max()], dtype=float)
    known = data.loc[np.isfinite(data["e50"]) & (data["e50"] > 0), "e50"]
    for place, (channel, axes) in enumerate(panels):
        rows, look = data[(data["channel"] == channel).to_numpy()], channel_look(channel)
        axes.plot(N_range, N_range, color="#BBBBBB", linewidth=0.8, zorder=0)
        for agent, found in rows.groupby("agent", sort=False):
            part = found.sort_values("N")
            if agent == "lora":
                _draw_reached(axes, part, look)
            elif agent == "published":
                _draw_published(axes, part)
            else:
                axes.plot(part["N"], part["e50"], color=GRAY, linestyle=agent_line(str(agent)), linewidth=1.4)
        _use_log(axes, "x")
        _use_log(axes, "y")
        axes.set_ylim(known.min() / 1.6, known.max() * 4.5)
        if place % _COLUMNS:
            axes.set_yticklabels([])
    star: Style = {"marker": "*", "markerfacecolor": "white", "markersize": 9, "linestyle": ""}
    handles = [Line2D([], [], color=INK, marker="o", label="LoRA policy, 95 % interval")]
    handles += [Line2D([], [], color=GRAY, linestyle=agent_line(a), label=agent_label(a)) for a in agents]
    handles.append(Line2D([], [], color=INK, label="published (MLP)", **star))
    canvas.legend(handles=handles, loc="lower center", ncols=min(len(handles), 4))
    return canvas


def _draw_reached(axes: Axes, rows: pd.DataFrame, look: Look) -> None:
    """Medians with intervals; an arrow at the least that is known where the median was not reached."""
    is_reached = rows["reached"].astype(bool).to_numpy()
    reached = rows[is_reached & (rows["e50"] > 0).to_numpy()]
    upper = np.where(np.isfinite(reached["e50_upper"]), reached["e50_upper"], reached["e50"] * 4)
    errors = np.stack([reached["e50"] - reached["e50_lower"], upper - reached["e50"]]).astype(float)
    style: Style = {"color": look.color, "marker": look.marker, "markersize": 5, "linewidth": 1.5, "capsize": 2}
    axes.errorbar(reached["N"], reached["e50"], yerr=np.maximum(errors, 0), **style)
    missed = rows[~is_reached]
    _draw_arrows(axes, missed["N"], missed["e50_at_least"], look.color)


def _draw_published(axes: Axes, rows: pd.DataFrame) -> None:
    style: Style = {"markersize": 9, "markerfacecolor": "white", "markeredgecolor": INK, "linestyle": "", "zorder": 5}
    axes.plot(rows["N"], rows["e50"], marker="*", **style)
    missed = rows[~rows["reached"].astype(bool).to_numpy()]
    _draw_arrows(axes, missed["N"], missed["e50"] * 1.6, INK)


def _draw_arrows(axes: Axes, x: pd.Series, y: pd.Series, color: str) -> None:
    for at, low in zip(x, y, strict=True):
        axes.annotate("", (at, low * 2.4), (at, low), arrowprops={"arrowstyle": "->", "color": color})


def draw_rate(data: pd.DataFrame, first_N: int) -> Canvas:
    """Bits per episode against effective capacity, one series a channel."""
    canvas, (axes,) = _place(1, 1, height=4.2, left=0.75, bottom=0.55, right=2.1, top=0.1)
    low, high = float(data["capacity_best_bits"].min()) * 0.7, float(data["capacity_best_bits"].max()) * 1.4
    axes.plot([low, high], [low, high], color="#999999", linewidth=1, zorder=0)
    axes.annotate("nothing lost", (high, high), color="#666666", ha="right", va="bottom", fontsize=8)
    for channel, look in channel_looks(data["channel"]).items():
        rows = data[(data["channel"] == channel).to_numpy()].sort_values(["agent", "N"])
        own, tabular = (rows[(rows["agent"] == agent).to_numpy()] for agent in ("lora", "tabular_pg"))
        rate = own["bits_per_episode"]
        errors = np.stack([(rate - own["bits_per_episode_lower"]), (own["bits_per_episode_upper"] - rate)]).astype(
            float
        )
        errors = np.where(np.isfinite(errors), np.maximum(errors, 0), 0)
        style: Style = {
            "color": look.color,
            "marker": look.marker,
            "linestyle": look.line,
            "markersize": 5.5,
            "capsize": 2,
        }
        axes.errorbar(own["capacity_best_bits"], rate, errors, linewidth=1.1, label=channel_label(channel), **style)
        style: Style = {"color": look.color, "marker": look.marker, "linestyle": "", "markersize": 6}
        axes.plot(tabular["capacity_best_bits"], tabular["bits_per_episode"], markerfacecolor="white", **style)
    axes.set(xlabel="effective capacity, bits per episode", ylabel="absorbed, bits per episode", ylim=rate_range(data))
    _use_log(axes, "x")
    _use_log(axes, "y")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=8)
    return canvas


def draw_learning(data: pd.DataFrame, first_N: int) -> Canvas:
    """One panel a channel: observed and absorbed bits against episodes, for one N."""
    data = _of_N(data, first_N)
    canvas, panels = _panels(order_channels(data["channel"]), "episodes", "bits", height=1.45, hspace=0.5)
    for channel, axes in panels:
        rows, look = data[((data["channel"] == channel) & (data["episodes"] > 0)).to_numpy()], channel_look(channel)
        for name, line in (("observed", "--"), ("absorbed", "-")):
            mean, half = rows[f"{name}_bits"], rows[f"{name}_half_width"].fillna(0)
            band: Style = {"color": look.color, "alpha": 0.22, "linewidth": 0, "step": "post"}
            axes.fill_between(rows["episodes"], mean - half, mean + half, **band)
            axes.plot(rows["episodes"], mean, color=look.color, linestyle=line, linewidth=1.5, drawstyle="steps-post")
        axes.axhline(math.log2(first_N), color=INK, linestyle=":", linewidth=1)
        axes.set_ylim(lowest_bits(rows["absorbed_bits"], first_N), math.log2(first_N) * 1.08)
        _use_few_labels(axes)
        _use_log(axes, "x")
    handles = [
        Line2D([], [], color=INK, linestyle="--", label="observed"),
        Line2D([], [], color=INK, label="absorbed"),
        Line2D([], [], color=INK, linestyle=":", label=f"log₂ N, N = {first_N}"),
    ]
    canvas.legend(handles=handles, loc="lower center", ncols=3)
    return canvas


def draw_maps(data: pd.DataFrame, first_N: int) -> Canvas:
    """One panel a channel: median E50 by rank and learning rate, for one N."""
    data = _of_N(data, first_N)
    ranks, rates = data["lora_rank"].nunique(), data["learning_rate"].nunique()
    columns = max(1, min(_COLUMNS, 22 // max(rates, 5)))
    size = {"height": 0.25 + 0.27 * ranks, "hspace": 0.55, "bottom": 0.5}
    canvas, panels = _panels(order_channels(data["channel"]), "learning rate", "LoRA rank", columns=columns, **size)
    for channel, axes in panels:
        rows = data[(data["channel"] == channel).to_numpy()]
        table = rows.pivot_table(index="lora_rank", columns="learning_rate", values="e50", aggfunc="first")
        _draw_map(axes, table)
    return canvas


def _draw_map(axes: Axes, table: pd.DataFrame) -> None:
    values = table.to_numpy(dtype=float)
    shown = np.log10(np.where(np.isfinite(values) & (values > 0), values, np.nan))
    low, high = (float(f(shown)) if np.isfinite(shown).any() else 0.0 for f in (np.nanmin, np.nanmax))
    low, high = low - max(0.15, 0.4 * (high - low)), high + max(0.15, 0.1 * (high - low))
    axes.imshow(shown, cmap="gray", aspect="auto", vmin=low, vmax=high)
    for (row, column), value in np.ndenumerate(values):
        is_dark = np.isfinite(shown[row, column]) and shown[row, column] < low + 0.5 * (high - low)
        is_best = np.isfinite(value) and column == int(np.nanargmin(values[row]))
        text = "×" if np.isinf(value) else format_number(value)
        style: Style = {"color": "white" if is_dark else INK, "weight": "bold" if is_best else "normal"}
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, **style)
        if is_best:
            frame: Style = {"fill": False, "edgecolor": "#D55E00", "linewidth": 1.8}
            axes.add_patch(Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, **frame))
    axes.set(xticks=range(table.shape[1]), xticklabels=[f"{rate:g}" for rate in table.columns])
    axes.set(yticks=range(table.shape[0]), yticklabels=[f"{rank:g}" for rank in table.index])
    axes.tick_params(labelsize=7.5, length=0)
    axes.grid(visible=False)


def draw_prior(data: pd.DataFrame, first_N: int) -> Canvas:
    """Divergence from uniform, and mass on malformed answers, against N."""
    canvas, panels = _place(1, 2, height=1.7, left=0.6, bottom=0.85, wspace=0.2)
    looks = {"single_step": ("o", INK, 0.97), "multi_step": ("s", "#009E73", 1.03)}
    limits = (CALIBRATED_KL_BITS, MALFORMED_LIMIT)
    titles = ("KL(uniform ‖ policy), bits", "mass on malformed answers")
    for axes, column, limit, title in zip(panels, ("prior_kl_bits", "malformed_mass"), limits, titles, strict=True):
        for environment, rows in data.groupby("env_type"):
            marker, color, shift = looks.get(str(environment), ("^", GRAY, 1.0))
            style: Style = {"color": color, "markersize": 5.5, "label": str(environment), "linestyle": ""}
            # Not clipped: a good prior lies on the axis.
            style |= {"markerfacecolor": "white", "clip_on": False, "zorder": 4}
            axes.plot(rows["N"] * shift, rows[column], marker=marker, **style)
        axes.axhline(limit, color=INK, linestyle="--", linewidth=1)
        axes.set(xlabel="N", title=title, ylim=(0, 1.15 * max(limit, float(data[column].max()))))
        _use_log(axes, "x")
        axes.set_xticks(sorted(set(data["N"])))
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="lower center", ncols=2)
    return canvas


def draw_leak(data: pd.DataFrame, first_N: int) -> Canvas:
    """Mean absorbed - mean observed against updates with its 99 % band, one panel a channel, for one N."""
    data = _of_N(data, first_N)
    names = order_channels(data["channel"])
    canvas, panels = _panels(names, "update + 1", "absorbed − observed, bits", height=1.3, hspace=0.55, bottom=0.5)
    for channel, axes in panels:
        rows, look = data[(data["channel"] == channel).to_numpy()], channel_look(channel)
        x, mean = rows["update"] + 1, rows["mean_difference_bits"]
        half = rows["half_width_bits"].where(np.isfinite(rows["half_width_bits"]), 0.0)
        axes.fill_between(x, mean - half, mean + half, color=look.color, alpha=0.25, linewidth=0)
        axes.plot(x, mean, color=look.color, linewidth=1.5)
        axes.axhline(0, color=INK, linewidth=1)
        axes.set_ylim(top=max(0.5, float((mean + half).max()) * 1.1))
        _use_few_labels(axes)
        _use_log(axes, "x")
    return canvas


def _use_few_labels(axes: Axes) -> None:
    """At most five labels up an axis of bits, in whole bits where these suffice."""
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))


def _of_N(data: pd.DataFrame, N: int) -> pd.DataFrame:
    return data[(data["N"] == N).to_numpy()]


def _place(
    rows: int,
    columns: int,
    height: float,
    left: float = 0.7,
    right: float = 0.15,
    bottom: float = 0.8,
    top: float = 0.3,
    hspace: float = 0.45,
    wspace: float = 0.12,
) -> tuple[Canvas, list[Axes]]:
    """Axes `height` inches high between margins in inches; hspace is in inches too, wspace a share of a column."""
    total = bottom + top + rows * height + (rows - 1) * hspace
    canvas = Canvas(figsize=(_WIDTH, total))
    grid = canvas.subplots(rows, columns, squeeze=False)
    canvas.subplots_adjust(
        left=left / _WIDTH,
        right=1 - right / _WIDTH,
        bottom=bottom / total,
        top=1 - top / total,
        hspace=hspace / height,
        wspace=wspace,
    )
    return canvas, list(grid.flat)


def _panels(
    channels: Sequence[str], x_label: str, y_label: str, height: float, columns: int = _COLUMNS, **margins: float
) -> tuple[Canvas, Iterator[tuple[str, Axes]]]:
    """One titled panel a channel, empty places left blank; labels stand once, below and at the left."""
    columns = min(columns, len(channels))
    rows = math.ceil(len(channels) / columns)
    canvas, axes = _place(rows, columns, height, **({"wspace": 0.27} | margins))
    for place, panel in enumerate(axes):
        panel.set_visible(place < len(channels))
        if place < len(channels):
            panel.set_title(channel_label(channels[place]))
        if place + columns >= len(channels):
            panel.set_xlabel(x_label)
    canvas.text(0.012, 0.5, y_label, rotation=90, ha="left", va="center")
    return canvas, zip(channels, axes, strict=False)


def _use_log(axes: Axes, which: str) -> None:
    """A logarithmic axis with few labels, written as plain numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high < 30 * low else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    axis.set_minor_locator(NullLocator())


_DRAWERS: dict[str, Callable[[pd.DataFrame, int], Canvas]] = {
    "ledger": draw_ledger,
    "episodes": draw_episodes,
    "rate": draw_rate,
    "learning": draw_learning,
    "maps": draw_maps,
    "prior": draw_prior,
    "leak": draw_leak,
}
