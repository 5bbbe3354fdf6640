"""What channels and agents are called in every figure and table, their order, and their colors."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from memrl.channels import channel_kind, label_channel

INK = "#111111"
SKY, BLUE, VERMILION, GRAY = "#56B4E9", "#0072B2", "#D55E00", "#767676"
_PALETTE = (INK, "#009E73", BLUE, SKY, "#CC79A7", VERMILION, "#E69F00")
"""Okabe and Ito's colors, which color-blind readers tell apart, without the yellow that paper swallows."""

_CHANNEL_COLUMNS = (
    "channel",
    "algorithm",
    "env_type",
    "reward_type",
    "reward_bins",
    "binning",
    "credit",
    "secret_length",
    "capacity_best_bits",
)

_OBJECTIVES = {"": (INK, "SFT"), "usual": (BLUE, "usual objective"), "chosen": (VERMILION, "chosen objective")}
_OTHER_OBJECTIVES = ("#009E73", "#E69F00", "#CC79A7")
"""Colors of distillation, by whose guesses it asks."""

_AGENTS = {
    "lora": ("LoRA policy", []),
    "optimal": ("optimal agent", [1, 1.5]),
    "greedy": ("greedy agent", [4, 2, 1, 2]),
    "weighing": ("coin weighing", [6, 2, 1, 2, 1, 2]),
    "uniform": ("uniform guessing", [4, 2]),
    "tabular_pg": ("tabular policy gradient", [8, 2]),
}
"""An agent's name for a reader, and its dash."""


LINES = {
    "sft": ("SFT", INK),
    "symbol": ("reward per symbol", BLUE),
    "to_go": ("rewards to go", "#009E73"),
    "sum": ("their sum to every symbol", "#CC79A7"),
    "count": ("number of right symbols", VERMILION),
    "all": ("all right or not", "#E69F00"),
}
"""What is told of a sequence: its name for a reader, and its color."""


def describe_channels(cells: pd.DataFrame) -> pd.DataFrame:
    """The channels of some cells in reading order: SFT first, then by what an episode can tell.

    Args:
        cells: rows of trained policies, with their fields and capacity_best_bits.

    Returns:
        One row per channel: name (as in the tables), label (for a reader), kind of reward, and color, one per kind.
    """
    channels = cells[list(_CHANNEL_COLUMNS)].drop_duplicates("channel")
    rows = channels.to_dict("records")
    kinds = [row["algorithm"] if row["algorithm"] == "sft" else row["reward_type"] for row in rows]
    whole = [not channel_kind(row["algorithm"], row["reward_type"]).per_step for row in rows]
    told = cells.groupby("channel")["capacity_best_bits"].mean().reindex(channels["channel"])
    labels = [label_channel(row) for row in rows]
    table = pd.DataFrame({"name": channels["channel"].to_list(), "label": labels, "kind": kinds})
    distilled = np.array([row["algorithm"] == "distill" for row in rows])
    twice = table["label"].duplicated(keep=False)
    table["label"] = table["label"].where(~twice | ~distilled, table["label"] + ", distilled")
    twice = table["label"].duplicated(keep=False)
    table["label"] = table["label"].where(~twice, table["label"] + " (" + table["name"] + ")")
    is_rl = channels["algorithm"].ne("sft").to_numpy()
    order = np.lexsort([table["label"], whole, -told.round(3).to_numpy(), is_rl])
    table = table.iloc[order].reset_index(drop=True)
    return table.assign(color=[_PALETTE[code % len(_PALETTE)] for code in pd.factorize(table["kind"])[0]])


def sort_for_readers(table: pd.DataFrame, channels: Iterable[str]) -> pd.DataFrame:
    """Rows by agent (trained policies first) and channel.

    Args:
        table: with the columns agent and channel, or channel alone.
        channels: every channel, in reading order.
    """
    if table.empty:
        return table
    keys = [table["channel"].map({channel: place for place, channel in enumerate(channels)}).to_numpy()]
    if "agent" in table:
        agents = ["lora", *order_agents(table["agent"])]
        keys.append(table["agent"].map(agents.index).to_numpy())
    return table.iloc[np.lexsort(keys)].reset_index(drop=True)


def pick_shades(num: int) -> list[str]:
    """Shades of blue from light to dark, one for each of an ordered few.

    >>> pick_shades(2)
    ['#6baed6', '#08306b']
    """
    light, dark = np.array([0x6B, 0xAE, 0xD6]), np.array([0x08, 0x30, 0x6B])
    shares = np.linspace(0.0, 1.0, num) if num > 1 else np.ones(1)
    return ["#" + bytes((light + share * (dark - light)).astype(np.uint8)).hex() for share in shares]


def tells_objectives(data: pd.DataFrame) -> bool:
    """Whether rows tell several objectives apart, and SFT from them."""
    return "objective" in data and data["objective"].nunique() > 1


def objective_colors(objectives: Iterable[str]) -> dict[str, str]:
    """The color of each objective, in reading order.

    >>> objective_colors(["distilled", "usual"])
    {'usual': '#0072B2', 'distilled': '#009E73'}
    """
    present = set(objectives)
    others = sorted(present - set(_OBJECTIVES))
    colors = {name: color for name, (color, _) in _OBJECTIVES.items() if name in present}
    return colors | {name: _OTHER_OBJECTIVES[place % 3] for place, name in enumerate(others)}


def objective_label(objective: str) -> str:
    """What a reader calls an objective."""
    return _OBJECTIVES[objective][1] if objective in _OBJECTIVES else objective


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
