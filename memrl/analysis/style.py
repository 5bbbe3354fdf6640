"""How channels and agents look in every figure: color, marker and dash, so that any one of the three is enough.

Colors are Okabe and Ito's, which color-blind readers tell apart, without the yellow that paper swallows. Black stands
for the ink of the page: a dark page turns it light.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

INK = "#111111"
ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE, GRAY = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#767676",
)
LOSS_COLORS = {"absorbed": BLUE, "absorption_loss": SKY, "exploration_loss": "#DCDCDC"}
"""Dark, middle and light also in black and white."""

LOSS_LABELS = {
    "absorbed": "absorbed",
    "absorption_loss": "absorption loss (observed, not absorbed)",
    "exploration_loss": "exploration loss (not even observed)",
}


@dataclass(frozen=True)
class Look:
    """Color, marker and dash of a series; marker and dash are named for matplotlib and for plotly."""

    color: str
    marker: str
    symbol: str
    dash: str
    line: str


_FAMILIES = {
    "sft": Look(INK, "o", "circle", "solid", "-"),
    "per_bit": Look(GREEN, "s", "square", "solid", "-"),
    "distance": Look(BLUE, "^", "triangle-up", "solid", "-"),
    "binned_distance": Look(SKY, "D", "diamond", "dash", "--"),
    "bit_count": Look(PURPLE, "v", "triangle-down", "dashdot", "-."),
    "binary": Look(VERMILION, "X", "x", "solid", "-"),
    "custom": Look(ORANGE, "P", "cross", "dot", ":"),
}
"""One look a kind of reward, in the order in which figures list them."""

_VARIANTS = (
    {"marker": "p", "symbol": "pentagon", "dash": "dot", "line": ":"},
    {"marker": "h", "symbol": "hexagon", "dash": "longdash", "line": "-"},
    {"marker": "d", "symbol": "diamond-tall", "dash": "dashdot", "line": "-."},
    {"marker": "8", "symbol": "octagon", "dash": "dash", "line": "--"},
)

_AGENTS = {
    "lora": ("LoRA policy", "solid", "-"),
    "optimal": ("optimal agent", "dot", ":"),
    "greedy": ("greedy agent", "dashdot", "-."),
    "uniform": ("uniform guessing", "dash", "--"),
    "tabular_pg": ("tabular policy gradient", "longdash", (0, (8, 3))),
}


def channel_look(channel: str) -> Look:
    """The look of a channel, by its kind of reward."""
    return _FAMILIES[channel_family(channel)]


def channel_looks(channels: Iterable[str]) -> dict[str, Look]:
    """Looks of channels that share one figure: those of one kind differ by marker and dash.

    >>> [look.marker for look in channel_looks(["binned_distance-4-log", "binned_distance-8-log"]).values()]
    ['D', 'p']
    """
    looks: dict[str, Look] = {}
    seen: dict[str, int] = {}
    for channel in order_channels(channels):
        family = channel_family(channel)
        looks[channel] = _FAMILIES[family]
        if seen.get(family):
            looks[channel] = replace(_FAMILIES[family], **_VARIANTS[(seen[family] - 1) % len(_VARIANTS)])
        seen[family] = seen.get(family, 0) + 1
    return looks


def channel_family(channel: str) -> str:
    """The kind of reward: the channel's name without bins, binning, credit and environment.

    >>> [channel_family(c) for c in ("binned_distance-8-log", "multi_step/bit_count", "per_bit-episode", "m:f")]
    ['binned_distance', 'bit_count', 'per_bit', 'custom']
    """
    name = channel.rpartition("/")[2].partition("-")[0]
    return name if name in _FAMILIES else "custom"


def order_channels(channels: Iterable[str]) -> list[str]:
    """Distinct channels in the order of figures: by kind of reward, environment, then the numbers in the name.

    >>> order_channels(["binary", "binned_distance-16-log", "sft", "binned_distance-4-log"])
    ['sft', 'binned_distance-4-log', 'binned_distance-16-log', 'binary']
    """
    families = list(_FAMILIES)

    def place(channel: str) -> tuple[int, bool, tuple[int, ...], str]:
        numbers = tuple(int(digits) for digits in re.findall(r"-(\d+)", channel))
        return families.index(channel_family(channel)), "multi_step" in channel, numbers, channel

    return sorted(set(channels), key=place)


def sort_for_readers(table: pd.DataFrame, agents_first: bool = True) -> pd.DataFrame:
    """Rows by agent (trained policies first) and channel, or by channel alone, in the order of figures."""
    if table.empty:
        return table
    place = {channel: i for i, channel in enumerate(order_channels(table["channel"]))}
    keys = [table["channel"].map(place).to_numpy()]
    if agents_first:
        agents = [*_AGENTS, *sorted(set(table["agent"]) - set(_AGENTS))]
        keys.append(table["agent"].map(agents.index).to_numpy())
    return table.iloc[np.lexsort(keys)].reset_index(drop=True)


def channel_label(channel: str) -> str:
    """A channel's name for a reader.

    >>> channel_label("binned_distance-8-log"), channel_label("multi_step/binary"), channel_label("per_bit-episode")
    ('distance, 8 log bins', 'binary, multi-step', 'per bit, episode credit')
    """
    environment, _, name = channel.rpartition("/")
    kind, *details = name.split("-")
    words = {"sft": "SFT", "per_bit": "per bit", "bit_count": "bit count"}.get(kind, kind)
    if kind == "binned_distance" and len(details) == 2:
        words = f"distance, {details[0]} {details[1].replace('_', '-')} bins"
    elif kind == "per_bit" and details:
        words = f"per bit, {details[0].replace('_', ' ')} credit"
    return f"{words}, multi-step" if environment == "multi_step" else words


def agent_label(agent: str) -> str:
    """An agent's name for a reader."""
    return _AGENTS[agent][0] if agent in _AGENTS else agent.replace("_", " ")


def agent_dash(agent: str) -> str:
    """An agent's dash in plotly's words."""
    return _AGENTS[agent][1] if agent in _AGENTS else "dot"


def agent_line(agent: str) -> Any:
    """An agent's dash in matplotlib's words."""
    return _AGENTS[agent][2] if agent in _AGENTS else ":"
