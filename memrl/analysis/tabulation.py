"""Tables for readers: what they call a column, and how they write its numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from memrl.analysis.objectives import pivot_kept
from memrl.analysis.style import agent_label, tells_objectives
from memrl.analysis.wording import format_estimate, format_number

_MOST_FAILED_ROWS = 200
_TESTED = ("overhead", "per_secret", "delta_aic", "p_overhead", "p_power")
"""What the test of an exponent against an overhead says."""

_LABELS = {
    "agent": "agent",
    "channel": "channel",
    "num_cells": "runs",
    "num_reached": "reached 1/2",
    "num_memorized": "reached 0.9",
    "e50": "E50",
    "e90": "E90",
    "bits_per_episode": "bits/episode",
    "rate_vs_capacity": "rate / capacity",
    "kept": "kept",
    "kept_usual": "kept by the usual objective",
    "kept_chosen": "by the chosen one",
    "kept_distilled": "by the posterior",
    "num_lost": "lost it again",
    "well": "in the well",
    "share_lost": "share lost",
    "objective_name": "objective",
    "objectives": "which",
    "at_edge": "at the edge",
    "e50_vs_optimal": "E50 / best agent",
    "e50_vs_tabular_pg": "E50 / tabular PG",
    "learning_rate": "learning rate",
    "learning_rates": "learning rate",
    "rates_tried": "tried",
    "lora_rank": "rank",
    "group_size": "group of",
    "capacity_bits": "capacity",
    "num_left_out": "N left out",
    "capacity_best_bits": "capacity",
    "delta_aic": "ΔAIC",
    "p_overhead": "p(overhead)",
    "p_power": "p(power)",
    "overhead": "c",
    "per_secret": "a",
}


@dataclass(frozen=True)
class Column:
    """A column of a table on the page."""

    label: str
    is_text: bool


@dataclass(frozen=True)
class Table:
    """A table on the page: each cell is its text, followed by the number to sort by where the text is none."""

    columns: list[Column]
    rows: list[list[list[str | float | None]]]


def tabulate(data: pd.DataFrame, columns: Sequence[str], labels: Mapping[str, str] | None = None) -> Table:
    """A table for readers: an estimate and its interval become one column, sorted by the estimate.

    Labels are heads that this table has of its own.

    >>> frame = pd.DataFrame({"channel": ["SFT"], "e50": [2.0], "e50_lower": [1.0], "e50_upper": [2.0]})
    >>> tabulate(frame, ["channel", "e50"]).rows
    [[['SFT'], ['2 [1, 2]', 2.0]]]
    """
    heads, cells = [], []
    for name in columns:
        values = data[name]
        is_text = not pd.api.types.is_numeric_dtype(values)
        label = (labels or {}).get(name) or _LABELS.get(name, name.replace("_", " "))
        heads.append(Column(label, is_text))
        cells.append(_format_column(data, name, is_text))
    return Table(heads, [list(row) for row in zip(*cells, strict=True)])


def _format_column(data: pd.DataFrame, name: str, is_text: bool) -> list[list[str | float | None]]:
    values = data[name].tolist()
    if is_text:
        words = agent_label if name == "agent" else str
        return [[words(value) if isinstance(value, str) and value else "–"] for value in values]
    if f"{name}_lower" in data:
        ends = data[[f"{name}_lower", f"{name}_upper"]].to_numpy(dtype=float)
        texts = [
            _format_interval(value, low, high) for value, (low, high) in zip(data[name].to_numpy(), ends, strict=True)
        ]
    elif name in ("N", "num_cells", "num_reached", "num_lost", "num_memorized", "seed", "lora_rank", "num_left_out"):
        texts = [format_number(value, 9).replace(",", "") for value in values]
    else:
        texts = [format_number(value) for value in values]
    return [
        [text, None if math.isnan(v) else float(np.clip(v, -1e300, 1e300))]
        for text, v in zip(texts, values, strict=True)
    ]


def _format_interval(value: float, lower: float, upper: float) -> str:
    """An estimate with its interval as far as it is known.

    >>> _format_interval(2.0, 1.0, 3.0), _format_interval(2.0, np.nan, np.nan), _format_interval(np.nan, 0.0, 1.0)
    ('2 [1, 3]', '2', '–')
    >>> _format_interval(0.0, 0.0, 0.8), _format_interval(0.0, 0.0, np.nan), _format_interval(0.0, 0.0, 0.0)
    ('less than 0.8', '–', '0 [0, 0]')
    """
    if math.isnan(value):
        return "–"
    if math.isnan(lower):
        return format_number(value)
    if value == lower == 0 and upper != 0:
        # A ratio to an agent that did not get there: all that is known is what it lies below.
        return f"less than {format_number(upper)}" if math.isfinite(upper) else "–"
    return format_estimate(value, lower, upper)


def name_keys(columns: Sequence[str], data: pd.DataFrame) -> list[str]:
    """The columns, with model and objective after the channel where there are several."""
    more = [name for name in ("model", "objective") if name in data and data[name].nunique() > 1]
    more += ["objectives"] if "objective" in more and "objectives" in data else []
    return [name for column in columns for name in ([column, *more] if column == "channel" else [column])]


def tabulate_kept(ledger: pd.DataFrame) -> Table | None:
    """What each objective kept of what was told; None where none is told apart."""
    if not tells_objectives(ledger):
        return None
    table = pivot_kept(ledger)
    shares = [name for name in table if name.startswith("kept_") and not name.endswith(("_lower", "_upper"))]
    return tabulate(table, name_keys(["channel", "N", "capacity_bits", *shares], table))


def tabulate_lost(lost: pd.DataFrame) -> Table | None:
    """Runs that reached 1/2, that lost it, and the share in the well; None where no objective is told apart."""
    if not tells_objectives(lost):
        return None
    columns = ["channel", "N", "num_cells", "num_reached", "num_lost", "well"]
    return tabulate(lost, name_keys(columns, lost))


def tabulate_objectives(objectives: pd.DataFrame) -> Table | None:
    """E50 of every objective at every group size; None where there is one of each."""
    if objectives.empty:
        return None
    columns = ("channel", "N", "objective_name", "group_size", "num_cells", "num_reached", "e50", "learning_rates")
    return tabulate(objectives, name_keys(columns, objectives))


def tabulate_edges(edges: pd.DataFrame) -> Table | None:
    """The conditions whose chosen learning rate is at an end of those that were tried; None where none is."""
    rows = edges[edges["at_edge"].to_numpy(dtype=bool)]
    if rows.empty:
        return None
    return tabulate(rows, name_keys(["channel", "N", "learning_rates", "rates_tried"], rows))


def split_agents(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of trained policies, and those of the agents beside them."""
    if table.empty:
        return table, table
    own = (table["agent"] == "lora").to_numpy()
    return table[own], table[~own]


def tabulate_scaling(scaling: pd.DataFrame) -> Table | None:
    """Exponents and the test against an overhead; None where there is none."""
    if scaling.empty:
        return None
    data = scaling.assign(
        range=[f"{a} to {b}" for a, b in zip(scaling["smallest_N"], scaling["largest_N"], strict=True)]
    )
    if "conclusion" in data:
        data["conclusion"] = data["conclusion"].fillna("–")
        # Where nothing grows, both models fit a constant, and what else they say is noise.
        data.loc[(data["conclusion"] == "flat").to_numpy(), list(_TESTED)] = np.nan
    names = [
        "channel",
        *(["agent"] if data["agent"].nunique() > 1 else []),
        "range",
        "num_left_out",
        "exponent",
        "conclusion",
        *_TESTED,
    ]
    return tabulate(data, name_keys([name for name in names if name in data], data))


def tabulate_failed(failed: pd.DataFrame) -> Table | None:
    """Failed cells, at most 200; None where there is none."""
    if failed.empty:
        return None
    return tabulate(failed.head(_MOST_FAILED_ROWS), [str(name) for name in failed])


def tabulate_settings(conditions: pd.DataFrame) -> Table:
    """Every setting, with the columns that differ."""
    start = list(conditions.columns[: conditions.columns.get_loc("num_cells")])
    constant = {name for name in ("model",) if conditions[name].nunique() == 1}
    several = [name for name in start if name not in constant and name not in ("channel", "N", "agent")]
    keys = ["channel", "N", *(["agent"] if conditions["agent"].nunique() > 1 else []), *several]
    numbers = ["num_cells", "num_memorized", "e50", "e90", "bits_per_episode"]
    return tabulate(conditions, [*keys, *numbers])
