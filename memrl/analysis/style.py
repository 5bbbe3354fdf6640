"""What channels and agents are called in every figure and table, their order, and their colors.

Colors are Okabe and Ito's, which color-blind readers tell apart, without the yellow that paper swallows.
"""

import re
from collections.abc import Iterable

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

_FAMILIES = {
    "sft": INK,
    "per_bit": GREEN,
    "distance": BLUE,
    "binned_distance": SKY,
    "bit_count": PURPLE,
    "binary": VERMILION,
    "custom": ORANGE,
}
"""One color a kind of reward, in the order in which figures list them."""

_AGENTS = {
    "lora": ("LoRA policy", []),
    "optimal": ("optimal agent", [1, 1.5]),
    "greedy": ("greedy agent", [4, 2, 1, 2]),
    "uniform": ("uniform guessing", [4, 2]),
    "tabular_pg": ("tabular policy gradient", [8, 2]),
}
"""An agent's name for a reader, and its dash."""


def channel_color(channel: str) -> str:
    """The color of a channel, by its kind of reward."""
    return _FAMILIES[channel_family(channel)]


def pick_shades(num: int) -> list[str]:
    """Shades of blue from light to dark, one for each of an ordered few.

    >>> pick_shades(2)
    ['#9ec9e8', '#08407a']
    """
    light, dark = np.array([0x9E, 0xC9, 0xE8]), np.array([0x08, 0x40, 0x7A])
    shares = np.linspace(0.0, 1.0, num) if num > 1 else np.ones(1)
    return ["#" + bytes((light + share * (dark - light)).astype(np.uint8)).hex() for share in shares]


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
        agents = ["lora", *order_agents(table["agent"])]
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


def order_agents(agents: Iterable[str]) -> list[str]:
    """Distinct baseline agents in the order of figures; neither trained policies nor published numbers.

    >>> order_agents(["uniform", "lora", "optimal", "published"])
    ['optimal', 'uniform']
    """
    known = list(_AGENTS)
    rest = set(agents) - {"lora", "published"}
    return sorted(rest, key=lambda agent: (known.index(agent) if agent in known else len(known), agent))


def agent_label(agent: str) -> str:
    """An agent's name for a reader."""
    return _AGENTS[agent][0] if agent in _AGENTS else agent.replace("_", " ")


def agent_dash(agent: str) -> list[float]:
    """An agent's dash: lengths in points, drawn and left out by turns."""
    return _AGENTS[agent][1] if agent in _AGENTS else [2, 2]
