"""Which objective a run ascended, and how a sweep with several of them is told apart.

A report tells apart the usual objective (group-centered advantages, each batch used once), the one that other secrets
chose of all that a sweep tried, and distillation, which is told all that an observer knows. Whatever else was tuned,
group size, learning rate or rank, is chosen for each of them on other secrets.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from memrl.analysis.cells import IDENTITY, number_groups
from memrl.analysis.estimate import describe_choices, estimate_groups
from memrl.analysis.selection import hold_out_settings
from memrl.tables.schema import Row

USUAL, CHOSEN, DISTILLED = "usual", "chosen", "distilled"
"""How a report calls the objectives that it tells apart; distillation by other guesses than the policy's adds whose."""

REPORTED = (*IDENTITY, "objective")
"""What makes a row of the report: `hold_out_objectives` adds the last."""

OBJECTIVE_FIELDS = (
    "advantage",
    "baseline",
    "temperature",
    "entropy_bonus",
    "kl_penalty",
    "updates_per_batch",
    "loss",
)
"""Fields of a cell by which objectives differ."""

USUAL_NAME = "group-centered"
"""What `name_objectives` calls the usual objective."""

_DISTILL = re.compile(r"-distill-\w+?(?=-|$)")
_EXPLORE = {"greedy": ", greedy guesses", "thompson": ", Thompson's guesses"}


def name_objectives(cells: pd.DataFrame) -> pd.Series:
    """What each row's objective is called: by its advantage, and whatever else differs from the usual one.

    Args:
        cells: rows of episodes_to_memorize with algorithm, explore and OBJECTIVE_FIELDS.

    Returns:
        Text; empty for SFT, and for agents that need no gradient.
    """
    fields = ["algorithm", "explore", *OBJECTIVE_FIELDS]
    code, keys = number_groups(cells, fields)
    names = [_name_objective(row) for row in keys.to_dict("records")]
    return pd.Series([names[number] for number in code], index=cells.index, dtype=object)


def _name_objective(row: Row) -> str:
    if row["algorithm"] == "distill" and pd.notna(row["explore"]):
        return DISTILLED + _EXPLORE.get(str(row["explore"]), "")
    if row["algorithm"] != "rl" or pd.isna(row["advantage"]):
        return ""
    words = [USUAL_NAME if row["advantage"] == "group_centered" else str(row["advantage"]).replace("_", " ")]
    told = (("baseline", "baseline"), ("temperature", "τ ="), ("entropy_bonus", "entropy bonus"), ("kl_penalty", "KL"))
    words += [f"{word} {row[name]:g}" for name, word in told if pd.notna(row[name]) and row[name]]
    if pd.notna(row["updates_per_batch"]) and row["updates_per_batch"] > 1:
        words.append(f"{row['updates_per_batch']:g} updates a batch")
        words += [str(row["loss"])] if row["loss"] not in ("importance_sampling", None) else []
    return ", ".join(words)


def join_distilled(cells: pd.DataFrame) -> pd.DataFrame:
    """The rows, each with the name of its objective, and those of distillation on the channel that is distilled.

    Args:
        cells: rows of episodes_to_memorize.

    Returns:
        A copy with the column objective_name, and channel without the part that tells of distillation.
    """
    distilled = (cells["algorithm"] == "distill").to_numpy()
    channel = cells["channel"].where(~distilled, cells["channel"].str.replace(_DISTILL, "", regex=True))
    joined = cells.assign(channel=channel, objective_name=name_objectives(cells))
    # An agent plays the channel of a distilled cell as it plays the channel itself: its runs count once.
    again = distilled & (cells["agent"] != "lora").to_numpy() & channel.isin(channel[~distilled]).to_numpy()
    return joined[~again].reset_index(drop=True)


def split_objectives(cells: pd.DataFrame, within: Sequence[str] = IDENTITY) -> dict[str, pd.DataFrame]:
    """The cells of each objective that a report tells apart, SFT and agents apart from all.

    The cells of `chosen` are those of the objectives that some half of the secrets chose for the other, so that
    settings can be chosen among them again.

    Args:
        cells: rows of `join_distilled`.
        within: columns that make a condition.

    Returns:
        By objective; "" holds SFT, agents without a gradient, and everything where no condition has several objectives.
    """
    names = cells["objective_name"].to_numpy()
    several = cells[names != ""].groupby(list(within), dropna=False)["objective_name"].nunique()
    if cells.empty or not (several > 1).any():
        return {"": cells}
    rewarded = _is_rewarded(names)
    parts = {"": cells[names == ""], USUAL: cells[names == USUAL_NAME]}
    if len(np.unique(names[rewarded])) > 1:
        parts[CHOSEN] = keep_chosen(cells[rewarded].reset_index(drop=True), within)
    parts |= {name: cells[names == name] for name in sorted(set(names[~rewarded]) - {""})}
    return {name: part.reset_index(drop=True) for name, part in parts.items() if len(part)}


def keep_chosen(cells: pd.DataFrame, within: Sequence[str] = IDENTITY) -> pd.DataFrame:
    """The cells of the objectives that were chosen, in each condition, on other secrets."""
    chosen = hold_out_settings(cells, within)
    keys = [*within, "objective_name"]
    which = pd.MultiIndex.from_frame(chosen[keys].astype(str))
    return cells[pd.MultiIndex.from_frame(cells[keys].astype(str)).isin(which)].reset_index(drop=True)


def hold_out_objectives(cells: pd.DataFrame, within: Sequence[str] = IDENTITY) -> pd.DataFrame:
    """The cells at settings that other secrets chose, once for each objective that a report tells apart.

    Args:
        cells: rows of `join_distilled`, of one or more agents.
        within: columns that make a condition.

    Returns:
        Rows of `hold_out_settings` with the column objective: usual, chosen, distilled, or "" (`split_objectives`).
        Where a condition was tried under the usual objective alone, its rows are not there again as the chosen one.
    """
    parts = split_objectives(cells, within)
    if CHOSEN in parts and USUAL in parts:
        parts[CHOSEN] = parts[CHOSEN][~_only_usual(cells, parts[CHOSEN], within)].reset_index(drop=True)
    chosen = [hold_out_settings(part, within).assign(objective=name) for name, part in parts.items()]
    return pd.concat(chosen, ignore_index=True)


def _only_usual(cells: pd.DataFrame, chosen: pd.DataFrame, within: Sequence[str]) -> np.ndarray:
    """Which of the chosen cells are of a condition that no other objective than the usual was tried in."""
    rewarded = cells[_is_rewarded(cells["objective_name"].to_numpy())]
    tried = rewarded.groupby(list(within), dropna=False)["objective_name"].agg(set).reset_index()
    alone = tried[[names == {USUAL_NAME} for names in tried["objective_name"]]]
    keys, found = (pd.MultiIndex.from_frame(table[list(within)].astype(str)) for table in (alone, chosen))
    return np.asarray(found.isin(keys))


def _is_rewarded(names: np.ndarray) -> np.ndarray:
    return np.array([name != "" and not name.startswith(DISTILLED) for name in names], dtype=bool)


def find_edges(chosen: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Whether the learning rates that were chosen are the smallest or largest that were tried.

    Args:
        chosen: rows of `hold_out_objectives`.
        cells: those that they were chosen from.

    Returns:
        One row per condition and objective with two rates or more: the columns REPORTED; learning_rates that were
        chosen and rates_tried, as text; at_edge: whether a chosen one is at an end of them.
    """
    condition = [*IDENTITY, "objective_name"]
    tried = cells.groupby(condition, dropna=False)["learning_rate"].agg(["min", "max", "nunique"])
    rows = chosen[[*REPORTED, "objective_name", "learning_rate"]].drop_duplicates().join(tried, on=condition)
    rows = rows[(rows["nunique"] > 1).to_numpy()]
    at_edge = rows["learning_rate"].eq(rows["min"]) | rows["learning_rate"].eq(rows["max"])
    rows = rows.assign(
        at_edge=at_edge,
        learning_rates=[f"{rate:g}" for rate in rows["learning_rate"]],
        rates_tried=[f"{low:g} to {high:g}" for low, high in zip(rows["min"], rows["max"], strict=True)],
    )
    joined = {name: (name, lambda texts: ", ".join(dict.fromkeys(texts))) for name in ("learning_rates", "rates_tried")}
    return (
        rows.groupby(list(REPORTED), sort=False, dropna=False).agg(at_edge=("at_edge", "any"), **joined).reset_index()
    )


def estimate_objectives(cells: pd.DataFrame) -> pd.DataFrame:
    """E50 of every objective at every group size, each at settings that other secrets chose.

    Args:
        cells: rows of `join_distilled`, of trained policies.

    Returns:
        One row per condition, objective and group size: the columns IDENTITY, objective_name and group_size, those of
        `estimate_groups`, and learning_rates, the rates that were chosen, as text; no row where a sweep has one
        objective and one group size in every condition.
    """
    by = [*IDENTITY, "objective_name", "group_size"]
    sized = cells.assign(objective_name=cells["objective_name"].replace("", "SFT"))
    _, distinct = number_groups(sized[sized["objective_name"] != "SFT"], by)
    if not distinct.duplicated(list(IDENTITY)).any():
        return pd.DataFrame(columns=by)
    chosen = hold_out_settings(sized, by)
    rates = describe_choices(chosen, by)["learning_rates"]
    return estimate_groups(chosen, by).assign(learning_rates=rates.to_numpy())


def pivot_kept(ledger: pd.DataFrame) -> pd.DataFrame:
    """The share of the observed bits that each objective kept, side by side.

    Args:
        ledger: rows of `build_ledger` with the column objective.

    Returns:
        One row per channel, N and model: capacity_bits, and kept_OBJECTIVE with _lower and _upper for each objective,
        NaN where it was not tried.
    """
    on = ["channel", "N", "model"]
    names = [name for name in dict.fromkeys(ledger["objective"]) if name]
    table = ledger[ledger["objective"].isin(names).to_numpy()].drop_duplicates(on)[[*on, "capacity_bits"]]
    for name in names:
        own = ledger[(ledger["objective"] == name).to_numpy()]
        columns = {f"kept{end}": f"kept_{name}{end}" for end in ("", "_lower", "_upper")}
        table = table.merge(own[[*on, *columns]].rename(columns=columns), on=on, how="left")
    return table
