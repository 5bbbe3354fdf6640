"""H4 and H5: the rank of the adapter, and its learning rate.

- H4: E does not depend on the rank in RL. E50 at the lowest rank over E50 at the highest, by a common power of the rank
  over all channels and N, lies in [2/3, 3/2]; each rank at a learning rate chosen on other secrets.
- H5: the best learning rate does not depend on the rank. The best rate at the lowest rank over the best at the highest,
  by a common power of the rank, lies in [1/2, 2].
"""

import numpy as np
import pandas as pd

from memrl.analysis.cells import IDENTITY, number_groups
from memrl.analysis.resample import draw_weights
from memrl.analysis.scaling import arrange_by_seed, group_medians
from memrl.analysis.selection import hold_out_settings
from memrl.analysis.verdicts.intervals import pooled_slope, ratio_of_ends
from memrl.analysis.verdicts.verdict import MOST_LEFT_OUT, Hypothesis, Verdict, settle
from memrl.analysis.wording import format_estimate

H4 = Hypothesis(
    "H4", "Low rank is enough: E does not depend on the LoRA rank in RL, within a factor of 1.5", (2 / 3, 3 / 2)
)
H5 = Hypothesis("H5", "The best learning rate does not depend on the rank, within a factor of 2", (1 / 2, 2.0))


def judge_rank(cells: pd.DataFrame) -> Verdict | None:
    """H4, from E50 of every rank of the RL channels, each at a learning rate chosen on other secrets."""
    cells = cells[(cells["algorithm"] == "rl").to_numpy()].reset_index(drop=True)
    chosen = hold_out_settings(cells, (*IDENTITY, "lora_rank"))
    chosen = chosen[chosen["held_out"].to_numpy()].reset_index(drop=True)
    condition, keys = number_groups(chosen, [*IDENTITY, "lora_rank"])
    series, _ = number_groups(keys, IDENTITY)
    several = np.bincount(series, minlength=1) >= 2
    if not len(keys) or not several.any():
        return None
    point, resampled = group_medians(chosen, condition, len(keys))
    reached = np.isfinite(point) & (point > 0)
    whole = several & (np.bincount(series, weights=~reached, minlength=len(several)) == 0)
    usable = whole[series]
    left_out = (
        f"{several.sum() - whole.sum()} of {several.sum()} are left out, where the median run did not get there "
        "at some rank"
    )
    if whole.sum() < MOST_LEFT_OUT * several.sum():
        sentence = f"Too few combinations of channel and N can be compared: {left_out}."
        return Verdict(H4, "undecided", sentence)
    ranks = keys["lora_rank"].to_numpy(dtype=float)[usable]
    with np.errstate(divide="ignore"):
        logs = np.log(np.column_stack([point, resampled])[usable])
    slopes = pooled_slope(np.log(ranks), logs, series[usable])
    value, lower, upper = ratio_of_ends(slopes, ranks)
    sentence = (
        f"E50 at rank {ranks.min():g} is {format_estimate(value, lower, upper)} times that at rank {ranks.max():g}, "
        f"over {whole.sum()} combination{'' if whole.sum() == 1 else 's'} of channel and N"
        f"{f' ({left_out})' if whole.sum() < several.sum() else ''}."
    )
    return settle(H4, (value, lower, upper), sentence, np.bincount(condition)[usable])


def judge_learning_rate(cells: pd.DataFrame) -> Verdict | None:
    """H5, from the learning rate with the smallest mean E50 at every rank of the RL channels.

    Resampled secrets may choose a rate that these secrets could not: where rates were stopped, nothing is judged.
    """
    cells = cells[(cells["algorithm"] == "rl").to_numpy()].reset_index(drop=True)
    columns = [*IDENTITY, "lora_rank", "learning_rate"]
    cells = hold_out_settings(cells, columns)
    condition, keys = number_groups(cells, columns)
    block, ranks = number_groups(keys, columns[:-1])
    series, _ = number_groups(ranks, IDENTITY)
    num_rates = np.bincount(block, minlength=len(ranks))
    tried = (np.bincount(series, minlength=1) >= 2)[series] & (num_rates >= 3) if len(keys) else np.zeros(0, dtype=bool)
    if not tried.any():
        return None
    if (cells["status"] == "stopped").any():
        return Verdict(H5, "undecided", "Rates that could no longer be chosen were stopped (stop_conditions=True).")
    best, at_edge = _best_rates(cells, condition, keys["learning_rate"].to_numpy(dtype=float), block, len(ranks))
    if at_edge[tried].mean() > MOST_LEFT_OUT:
        sentence = (
            f"The best learning rate is the smallest or largest that was tried in {at_edge[tried].sum()} of "
            f"{tried.sum()} combinations of channel, N and rank, so that it may lie beyond."
        )
        return Verdict(H5, "undecided", sentence)
    lora_ranks = ranks["lora_rank"].to_numpy(dtype=float)[tried]
    slopes = pooled_slope(np.log(lora_ranks), np.log(best[tried]), series[tried])
    value, lower, upper = ratio_of_ends(slopes, lora_ranks)
    sentence = (
        f"The best learning rate at rank {lora_ranks.min():g} is {format_estimate(value, lower, upper)} times that "
        f"at rank {lora_ranks.max():g}, over {tried.sum()} combinations of channel, N and rank (in "
        f"{at_edge[tried].sum()} of them it is the smallest or largest that was tried)."
    )
    return settle(H5, (value, lower, upper), sentence, np.bincount(condition)[tried[block]])


def _best_rates(
    cells: pd.DataFrame, condition: np.ndarray, rates: np.ndarray, block: np.ndarray, num_blocks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Best learning rate of every block and resample, (blocks, 1 + resamples), and whether the first is at an end.

    The best rate has the smallest mean of E50, in which a censored run counts with all episodes that it used: the rule
    by which settings are chosen.
    """
    seeds, num = cells["seed"].to_numpy(), len(rates)
    times = arrange_by_seed(cells["e50"].to_numpy(), condition, num, seeds, 0.0)
    present = arrange_by_seed(np.ones(len(cells)), condition, num, seeds, 0.0)
    weights = np.vstack([np.ones(times.shape[1]), draw_weights(times.shape[1])]).T
    drawn = present @ weights
    score = np.divide(times @ weights, drawn, out=np.full_like(drawn, np.inf), where=drawn > 0)
    best, at_edge = np.empty((num_blocks, score.shape[1])), np.zeros(num_blocks, dtype=bool)
    for number in range(num_blocks):
        rows = np.flatnonzero(block == number)
        best[number] = rates[rows][score[rows].argmin(axis=0)]
        at_edge[number] = best[number, 0] in (rates[rows].min(), rates[rows].max())
    return best, at_edge
