"""Choosing the learning rate (and whatever else was tuned) on other secrets than those that are reported."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from memrl.analysis.cells import IDENTITY, TUNED, count_budgets, number_groups
from memrl.analysis.survival import PADDING, estimate_quantile, pad_rows

_FEWEST = 0.5
"""A setting with fewer runs than this share of the fullest one is no candidate (sweeps are looked at half-finished)."""


def hold_out_settings(cells: pd.DataFrame, within: Sequence[str] = IDENTITY, quantity: str = "e50") -> pd.DataFrame:
    """Keeps each cell whose setting was chosen by the other half of the seeds.

    Even seeds choose the setting at which odd seeds are reported, and odd seeds the one for even seeds, so that every
    secret is reported and none had a say in its own setting. A half chooses the setting with the smallest mean of the
    quantity, where a censored run counts with the largest budget of the condition, so that a setting at which some
    policies collapse, or whose budget is small, pays for them; then, for ties, the smallest Kaplan-Meier
    median; then, where no setting got there, the smallest mean of half_bits; then the smallest learning rate, and the
    order of TUNED. Where there is only one setting, nothing is chosen.
    Where the other half has no run yet, the cell's own half chooses, and `held_out` is False.

    Args:
        cells: measured cells.
        within: columns that are not chosen: one choice for every combination of them.
        quantity: e50 or e90.

    Returns:
        The chosen cells, with a bool column `held_out`.
    """
    tuned = [name for name in TUNED if name not in within]
    group, groups = number_groups(cells, within)
    setting, _ = number_groups(cells, [*within, *tuned])
    half = cells["seed"].to_numpy() % 2
    best = np.stack([_best_settings(cells, group, setting, half == h, len(groups), quantity) for h in (0, 1)])
    num_settings = np.bincount(np.unique(np.stack([group, setting]), axis=1)[0], minlength=len(groups))
    other, own = best[1 - half, group], best[half, group]
    sole = num_settings[group] == 1
    held_out = sole | (other >= 0)
    keep = sole | (setting == np.where(other >= 0, other, own))
    return cells.assign(held_out=held_out)[keep].reset_index(drop=True)


def _best_settings(
    cells: pd.DataFrame, group: np.ndarray, setting: np.ndarray, chooses: np.ndarray, num_groups: int, quantity: str
) -> np.ndarray:
    """The setting that the choosing cells prefer in each group, -1 where none of them ran; int64 (groups,)."""
    best = np.full(num_groups, -1, dtype=np.int64)
    if not chooses.any():
        return best
    present, rows = np.unique(setting[chooses], return_inverse=True)
    censored = pad_rows(cells[f"{quantity}_censored"].to_numpy()[chooses], rows, len(present), fill=1.0) > 0
    padded = pad_rows(cells[quantity].to_numpy()[chooses], rows, len(present), PADDING)
    median = estimate_quantile(padded, censored).value
    mean = _mean_episodes(cells[chooses], group[chooses], rows, quantity)
    half = _mean_episodes(cells[chooses], group[chooses], rows, "half_bits") if "half_bits" in cells else mean
    count = np.bincount(rows)
    first = np.unique(rows, return_index=True)[1]
    owner = group[chooses][first]
    rate = cells["learning_rate"].to_numpy()[chooses][first]
    fullest = np.zeros(num_groups)
    np.maximum.at(fullest, owner, count)
    sparse = count < _FEWEST * fullest[owner]
    order = np.lexsort((present, np.nan_to_num(rate, nan=0.0), half, median, mean, sparse, owner))
    leader = order[np.unique(owner[order], return_index=True)[1]]
    best[owner[leader]] = present[leader]
    return best


def _mean_episodes(cells: pd.DataFrame, group: np.ndarray, rows: np.ndarray, quantity: str) -> np.ndarray:
    """The mean of a quantity over each setting (settings,); a censored run counts with its group's largest budget."""
    times, longest = cells[quantity].to_numpy(), np.zeros(group.max() + 1)
    np.maximum.at(longest, group, np.fmax(count_budgets(cells), times))
    counted = np.where(cells[f"{quantity}_censored"].to_numpy(), longest[group], times)
    return np.bincount(rows, weights=counted) / np.bincount(rows)
