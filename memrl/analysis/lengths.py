"""How episodes grow with the length of a sequence: to half of its bits, by reward, credit and objective."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from memrl.analysis.cells import number_groups
from memrl.analysis.estimate import describe_choices, put_estimates
from memrl.analysis.objectives import CHOSEN, DISTILLED, USUAL, USUAL_NAME, keep_chosen
from memrl.analysis.scaling import group_medians
from memrl.analysis.selection import hold_out_settings
from memrl.analysis.survival import PADDING, Estimates, estimate_quantile, pad_rows
from memrl.analysis.verdicts.intervals import value_and_interval

LEAST_LENGTH = 8
"""Shorter sequences are drawn, but no exponent rests on them: one batch may tell all of them."""

_LINE = ("agent", "line", "objective", "N", "model")
_MEASURE = "half_bits"


def take_sequences(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells whose secret is one sequence, with the column `line`: what is told of it, whatever its length.

    Args:
        cells: rows of `objectives.join_distilled`.

    Returns:
        Rows with a `line` of `sft`, `symbol` (each symbol answers for its own reward), `to_go` (for its own and all
        later ones), `sum` (for all of them), `count` (all answer for the number of right ones), `all` (for whether all
        are right), or the reward's name.
    """
    rows = cells[(cells["secret_length"].notna() & cells["num_keys"].isna()).to_numpy()].reset_index(drop=True)
    lines = {
        ("per_element", "per_step"): "symbol",
        ("per_element", "return_to_go"): "to_go",
        ("per_element", "episode"): "sum",
        ("element_count", "episode"): "count",
        ("binary", "episode"): "all",
    }
    told = zip(rows["algorithm"], rows["reward_type"], rows["credit"], strict=True)
    return rows.assign(
        line=["sft" if how == "sft" else lines.get((reward, credit), reward) for how, reward, credit in told]
    )


def estimate_lengths(cells: pd.DataFrame) -> pd.DataFrame:
    """Episodes to half of the bits of every length, at settings that the other half of the secrets chose.

    Of trained policies the usual objective stands beside the chosen one; SFT has none, and agents have the
    usual one alone.

    Args:
        cells: rows of `objectives.join_distilled`.

    Returns:
        One row per agent, line, objective, N, model and length: secret_length, signal_bits, nominal_bits; num_cells,
        num_reached; half_bits, its Kaplan-Meier median, with _lower and _upper; most_episodes of a run; and what was
        chosen (`describe_choices`); exponent, of the episodes as a power of the bits (`fit_growth`), with _lower and
        _upper, alike in all rows of a line.
    """
    tables = []
    for objective, part in _split_lines(take_sequences(cells)).items():
        for _, own in part.groupby(["agent", "line"], sort=True):
            own = own.assign(objective=objective).reset_index(drop=True)
            table, exponent = _estimate(own), fit_growth(own, own["line"].unique().tolist())[1]
            tables.append(
                put_estimates(table, "exponent", Estimates(*np.repeat(exponent[:, None], len(table), axis=1)))
            )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _split_lines(cells: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Cells without an objective (SFT, exact agents), of the usual one, and of the one that other secrets chose.

    The chosen one is that of the verdicts (`objectives.keep_chosen`). A line that was tried under the usual
    objective alone is not there again as the chosen one.
    """
    names, trained = cells["objective_name"], (cells["agent"] == "lora").to_numpy()
    rewarded = trained & (names != "").to_numpy() & ~names.str.startswith(DISTILLED).to_numpy(dtype=bool)
    others = set(cells["line"][rewarded & (names != USUAL_NAME).to_numpy()])
    parts = {
        "": cells[(names == "").to_numpy()],
        USUAL: cells[(names == USUAL_NAME).to_numpy()],
        CHOSEN: keep_chosen(cells[rewarded & cells["line"].isin(others).to_numpy()]),
    }
    return {name: part.reset_index(drop=True) for name, part in parts.items()}


def _estimate(cells: pd.DataFrame) -> pd.DataFrame:
    by = (*_LINE, "secret_length")
    chosen = hold_out_settings(cells, by, _MEASURE)
    group, table = number_groups(chosen, by)
    num, grouped = len(table), chosen.groupby(group, sort=True)
    censored = pad_rows(chosen[f"{_MEASURE}_censored"].to_numpy(), group, num, fill=1.0) > 0
    fit = estimate_quantile(pad_rows(chosen[_MEASURE], group, num, PADDING), censored)
    table["signal_bits"] = grouped["signal_bits"].mean().to_numpy()
    table["nominal_bits"] = grouped["capacity_nominal_bits"].mean().to_numpy()
    table["num_cells"] = np.bincount(group, minlength=num)
    table["num_reached"] = np.bincount(group, weights=~chosen[f"{_MEASURE}_censored"], minlength=num).astype(np.int64)
    table["most_episodes"] = grouped["episodes"].max().to_numpy()
    return pd.concat([put_estimates(table, _MEASURE, fit), describe_choices(chosen, by)], axis=1)


def fit_growth(cells: pd.DataFrame, lines: Sequence[str], in_log: bool = False) -> tuple[pd.DataFrame, np.ndarray]:
    """Exponents of the episodes to half of the bits, and what they rest on.

    A length whose median run did not get there counts with its longest run at the lower end of the interval (and in the
    value), and as never at the upper end: what is not known opens the interval and does not close it.

    Args:
        cells: rows of `take_sequences` of one agent and objective, all settings.
        lines: the lines that share an exponent, each with a level of its own.
        in_log: whether the power is that of log2 of the bits, and not of the bits.

    Returns:
        One row per line, N, model and length: secret_length, signal_bits, num_cells, median (inf where not reached);
        and the exponent with the ends of its interval, NaN with fewer than three lengths.
    """
    long = cells[cells["line"].isin(lines).to_numpy() & (cells["secret_length"] >= LEAST_LENGTH).to_numpy()]
    chosen = hold_out_settings(long.reset_index(drop=True), (*_LINE[:2], *_LINE[3:], "secret_length"), _MEASURE)
    chosen = chosen[chosen["held_out"].to_numpy()].reset_index(drop=True)
    condition, keys = number_groups(chosen, ["line", "N", "model", "secret_length"])
    if keys["secret_length"].nunique() < 3:
        return keys, np.full(3, np.nan)
    point, resampled = group_medians(chosen, condition, len(keys), _MEASURE)
    grouped = chosen.groupby(condition, sort=True)
    keys["signal_bits"], longest = grouped["signal_bits"].mean().to_numpy(), grouped["episodes"].max().to_numpy()
    keys["num_cells"], keys["median"] = np.bincount(condition), point
    medians = np.column_stack([point, resampled])
    at_least = np.where(np.isfinite(medians), medians, longest[:, None])
    series, _ = number_groups(keys, ["line", "N", "model"])
    size = np.log2(keys["signal_bits"].to_numpy()) if in_log else keys["signal_bits"].to_numpy()
    low, high = (_pool_exponents(size, values, series) for values in (at_least, medians))
    value, lower, _ = value_and_interval(low)
    _, _, upper = value_and_interval(high)
    return keys, np.array([value, lower, upper])


def _pool_exponents(size: np.ndarray, medians: np.ndarray, series: np.ndarray) -> np.ndarray:
    """The least-squares exponent that all series share, in every resample; infinite where a median is."""
    x = np.log(size)
    for number in np.unique(series):
        x[series == number] -= x[series == number].mean()
    with np.errstate(invalid="ignore"):
        terms = np.where(x[:, None] == 0, 0.0, x[:, None] * np.log(medians))
        return terms.sum(axis=0) / (x**2).sum()
