"""From cells to numbers with intervals: episodes to memorize, rates, ratios, and the ledger in bits."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from memrl.analysis.cells import IDENTITY, number_groups
from memrl.analysis.resample import (
    divide_estimates,
    estimate_ratio,
    estimate_ratio_difference,
    estimate_ratio_of_ratios,
)
from memrl.analysis.survival import PADDING, Estimates, estimate_quantile, pad_rows

_CONSTANTS = (
    "signal_bits",
    "capacity_nominal_bits",
    "capacity_uniform_bits",
    "capacity_best_bits",
    "prior_kl_bits",
    "prior_well_formed",
    "interference",
)
"""What every cell of a group shares, but for rounding."""

REFERENCE_AGENTS = ("optimal", "greedy", "weighing")
"""Who could do best: the first of these that has rows for a channel and N."""


def put_estimates(table: pd.DataFrame, name: str, fit: Estimates) -> pd.DataFrame:
    """A copy of the table with the columns NAME, NAME_lower and NAME_upper."""
    return table.assign(**{name: fit.value, f"{name}_lower": fit.lower, f"{name}_upper": fit.upper})


def get_estimates(table: pd.DataFrame, name: str) -> Estimates:
    """The columns NAME, NAME_lower and NAME_upper of a table."""
    return Estimates(*(table[column].to_numpy(dtype=float) for column in (name, f"{name}_lower", f"{name}_upper")))


def estimate_groups(cells: pd.DataFrame, by: Sequence[str] = IDENTITY) -> pd.DataFrame:
    """Episodes to memorize and rates of every combination of some columns, with 95 % intervals.

    Args:
        cells: measured cells.
        by: the columns.

    Returns:
        One row per combination: the columns `by`; num_cells, num_reached (P(secret) reached 1/2), num_memorized (0.9);
        most_episodes of a run;
        e50 and e90, Kaplan-Meier medians in episodes; bits_per_episode, what the median run has absorbed when
        P(secret) reaches 0.9, over its episodes, 0 where the median is not reached; each with _lower and _upper;
        signal, capacities and prior of the group, in bits.
    """
    group, table = number_groups(cells, by)
    num = len(table)
    table["num_cells"] = np.bincount(group, minlength=num)
    for flag, name in (("e50_censored", "num_reached"), ("e90_censored", "num_memorized")):
        table[name] = np.bincount(group, weights=~cells[flag], minlength=num).astype(np.int64)
    table["most_episodes"] = cells["episodes"].groupby(group, sort=True).max().to_numpy()
    for name in ("e50", "e90"):
        censored = pad_rows(cells[f"{name}_censored"].to_numpy(), group, num, fill=1.0) > 0
        table = put_estimates(table, name, estimate_quantile(pad_rows(cells[name], group, num, PADDING), censored))
    means = cells.groupby(group, sort=True)[list(_CONSTANTS)].mean()
    table = pd.concat([table, means.reset_index(drop=True)], axis=1)
    # Not the mean of absorbed bits over episodes: a policy that collapsed on another answer has absorbed minus
    # dozens of bits, so that one run in ten would set the sign of the mean.
    bits = table["signal_bits"] + np.log2(0.9)
    table["bits_per_episode"], table["bits_per_episode_lower"] = bits / table["e90"], bits / table["e90_upper"]
    # Where so few runs got there that the median is open at both ends, it still lies beyond the longest run.
    table["bits_per_episode_upper"] = bits / np.minimum(table["e90_lower"], table["most_episodes"])
    return table


def describe_choices(chosen: pd.DataFrame, by: Sequence[str] = IDENTITY) -> pd.DataFrame:
    """What was chosen, as text, and whether on other secrets.

    Args:
        chosen: rows of `hold_out_objectives`.
        by: columns that make a group.

    Returns:
        One row per combination of `by`, in the order of `estimate_groups`: learning_rates, lora_ranks, group_sizes,
        objectives (what they are called), held_out.
    """
    group, _ = number_groups(chosen, by)
    grouped = chosen.groupby(group, sort=True)
    return pd.DataFrame(
        {
            "learning_rates": grouped["learning_rate"].agg(_list_distinct),
            "lora_ranks": grouped["lora_rank"].agg(_list_distinct),
            "group_sizes": grouped["group_size"].agg(_list_distinct),
            "objectives": grouped["objective_name"].agg(_join_names),
            "held_out": grouped["held_out"].all(),
        }
    ).reset_index(drop=True)


def _list_distinct(values: pd.Series) -> str:
    return ", ".join(f"{value:g}" for value in np.unique(values.dropna()))


def _join_names(names: pd.Series) -> str:
    return " / ".join(sorted(set(names) - {""}))


def compare_with_agents(estimates: pd.DataFrame) -> pd.DataFrame:
    """Adds to rows of `estimate_groups` how they compare with what could be told, and with who could do best.

    Returns:
        The table with rate_vs_capacity (bits_per_episode / capacity_best_bits), e50_vs_optimal (over the optimal agent,
        or the greedy one where there is no optimal one; `reference_agent` says which) and e50_vs_tabular_pg, each
        with _lower and _upper; NaN where the agent has no rows.
    """
    capacity = estimates["capacity_best_bits"].to_numpy()
    rate = get_estimates(estimates, "bits_per_episode")
    table = put_estimates(
        estimates, "rate_vs_capacity", Estimates(*(x / capacity for x in (rate.value, rate.lower, rate.upper)))
    )
    own = get_estimates(estimates, "e50")
    reference = _e50_of_agents(estimates, REFERENCE_AGENTS)
    table["reference_agent"] = reference["agent"].to_numpy()
    table = put_estimates(table, "e50_vs_optimal", divide_estimates(own, get_estimates(reference, "e50")))
    tabular = _e50_of_agents(estimates, ("tabular_pg",))
    return put_estimates(table, "e50_vs_tabular_pg", divide_estimates(own, get_estimates(tabular, "e50")))


def _e50_of_agents(estimates: pd.DataFrame, agents: Sequence[str]) -> pd.DataFrame:
    """For each row the e50 of the first of some agents that has its channel and N; NaN where none has."""
    numbers = ["agent", "e50", "e50_lower", "e50_upper"]
    rows = estimates[estimates["agent"].isin(agents)]
    rows = rows.assign(order=rows["agent"].map(list(agents).index)).sort_values(["order", "e50"])
    found = pd.DataFrame(index=estimates.index, columns=numbers)
    # Where an agent played under several objectives, the one that a row is about; else what it had.
    for on in (["channel", "N", "objective"], ["channel", "N"]):
        if set(on) <= set(estimates):
            first = rows.drop_duplicates(on)[[*on, *numbers]]
            matched = estimates[on].merge(first, on=on, how="left", validate="many_to_one").set_index(estimates.index)
            found = found.where(found["agent"].notna(), matched[numbers])
    return found.astype(dict.fromkeys(numbers[1:], float))


def count_collapses(cells: pd.DataFrame, by: Sequence[str] = ("channel", "learning_rate")) -> pd.DataFrame:
    """How many runs gave the secret probability 1/2 at some time, and how many of these ended below it.

    Args:
        cells: measured cells, of trained policies.
        by: columns that make a group.

    Returns:
        One row per group: the columns `by`, num_cells, num_reached, num_lost, and share_lost, NaN where none got there;
        well, the mean share of env_steps in the well, where the cells have that column.
    """
    group, table = number_groups(cells, by)
    reached = ~cells["e50_censored"].to_numpy()
    lost = reached & (cells["absorbed_bits"] < cells["signal_bits"] - 1.0).to_numpy()
    for name, flags in (("num_cells", np.ones(len(cells))), ("num_reached", reached), ("num_lost", lost)):
        table[name] = np.bincount(group, weights=flags, minlength=len(table)).astype(np.int64)
    if "well" in cells:
        table["well"] = cells["well"].groupby(group, sort=True).mean().to_numpy()
    return table.assign(share_lost=table["num_lost"] / table["num_reached"].where(table["num_reached"] > 0))


def build_ledger(
    cells: pd.DataFrame, known_episodes: np.ndarray, known_bits: np.ndarray, by: Sequence[str] = IDENTITY
) -> pd.DataFrame:
    """Where the bits of an episode went, per group: capacity = exploration loss + absorption loss + absorbed.

    Each is a rate in bits per episode, over the episodes that it took: capacity_bits is what one episode can tell (the
    best single guess); observed_rate is what the ideal observer gained per episode until it was one bit short of the
    secret (after that an episode has nothing left to tell); absorbed_rate is what the policy absorbed per episode over
    the whole run. exploration_loss = capacity - observed_rate, absorption_loss = observed_rate - absorbed_rate. An
    exploration loss below 0 says that guesses chosen in view of earlier answers told more than the best first guess.
    Rates are means over runs, as capacities are: bits of all runs over episodes of all runs. A run that ends surer of a
    wrong answer than its prior was has absorbed nothing (0 bits, not minus dozens), in all its episodes.

    Args:
        cells: measured cells, of trained policies.
        known_episodes: episodes until the observer knew (curves.when_observer_knew); (cells,), NaN where not observed.
        known_bits: observed bits then; (cells,).
        by: columns that make a group.

    Returns:
        One row per group: the columns `by`, num_cells, capacity_bits, nominal_bits, known_episodes (median),
        observed_rate, absorbed_rate, exploration_loss, absorption_loss, and kept = absorbed_rate / observed_rate; each
        rate, loss and share with _lower and _upper.
    """
    cells = cells.assign(known_episodes=known_episodes, known_bits=known_bits)
    cells = cells[np.isfinite(known_bits)].reset_index(drop=True)
    group, table = number_groups(cells, by)
    if cells.empty:
        return table
    num, grouped = len(table), cells.groupby(group, sort=True)
    table["num_cells"] = np.bincount(group, minlength=num)
    table["capacity_bits"] = grouped["capacity_best_bits"].mean().to_numpy()
    table["nominal_bits"] = grouped["capacity_nominal_bits"].mean().to_numpy()
    table["known_episodes"] = grouped["known_episodes"].median().to_numpy()
    names = ("known_bits", "known_episodes", "absorbed_bits", "episodes")
    known, known_in, absorbed, episodes = (pad_rows(cells[name], group, num, fill=0.0) for name in names)
    absorbed = np.maximum(absorbed, 0.0)
    present = episodes > 0
    observed_rate = estimate_ratio(known, known_in, present)
    table = put_estimates(table, "observed_rate", observed_rate)
    table = put_estimates(table, "absorbed_rate", estimate_ratio(absorbed, episodes, present))
    capacity = table["capacity_bits"].to_numpy()
    exploration = Estimates(*(capacity - x for x in (observed_rate.value, observed_rate.upper, observed_rate.lower)))
    table = put_estimates(table, "exploration_loss", exploration)
    loss = estimate_ratio_difference((known, known_in), (absorbed, episodes), present)
    table = put_estimates(table, "absorption_loss", loss)
    return put_estimates(table, "kept", estimate_ratio_of_ratios((absorbed, episodes), (known, known_in), present))
