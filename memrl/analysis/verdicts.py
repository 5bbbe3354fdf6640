"""Verdicts on the hypotheses that a sweep has data for, decided by intervals alone.

Each hypothesis is put as one number and a region in which it holds. The verdict is `supported` where the 95 % interval
lies inside the region, `refuted` where the interval and the region have nothing in common, and `undecided` otherwise
(Kruschke's region of practical equivalence), and wherever a condition that it rests on has fewer than 8 secrets. A
hypothesis that the sweep has no data for gets no verdict.

- H1a, binary: far below 1 bit per episode at large N. Bits per episode of the median run at the largest N lie in
  [0, 0.1].
- H1b: because of exploration. Of what an episode can tell (effective capacity) and the policies did not absorb, the
  share that was not observed lies in [0.5, 1], at the largest N, in the mean over runs.
- H2, binned_distance: the rate grows linearly in log2 B. The exponent p of rate ~ (log2 B)^p, common to all N, lies in
  [0.75, 1.25]; over bins that identify the secret.
- H3: per-step reward reaches SFT's sample efficiency. E50 of per_bit over E50 of SFT, the geometric mean over N, lies
  in [0, 2].
- H4: E does not depend on the rank in RL. E50 at the lowest rank over E50 at the highest, by a common power of the rank
  over all channels and N, lies in [2/3, 3/2]; each rank at a learning rate chosen on other secrets.
- H5: the best learning rate does not depend on the rank. The best rate at the lowest rank over the best at the highest,
  by a common power of the rank, lies in [1/2, 2].
- H6, per_bit with a credit for each bit: episodes do not depend on the number of bits k of the secret. The exponent p
  of E50 ~ k^p over three or more N lies in [-1/4, 1/4].

Intervals of H1b to H6 are percentiles over resampled secrets, the same secrets for all conditions of one N.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from memrl.analysis.cells import IDENTITY, number_groups
from memrl.analysis.estimate import estimate_groups
from memrl.analysis.resample import draw_weights, percentile_interval
from memrl.analysis.scaling import arrange_by_seed, group_medians
from memrl.analysis.selection import hold_out_settings
from memrl.analysis.wording import format_estimate, format_number

Outcome = Literal["supported", "refuted", "undecided"]

HYPOTHESES = {
    "H1a": "Binary reward: far below 1 bit per episode at large N",
    "H1b": "Binary reward: most of the loss is exploration, what the guesses never asked",
    "H2": "Distance reward: the rate grows linearly in log₂ B",
    "H3": "Per-step reward reaches the sample efficiency of SFT, within a factor of 2",
    "H4": "Low rank is enough: E does not depend on the LoRA rank in RL, within a factor of 1.5",
    "H5": "The best learning rate does not depend on the rank, within a factor of 2",
    "H6": "With one reward per bit, episodes do not depend on the number of bits",
}
FAR_BELOW_A_BIT = (0.0, 0.1)
MOSTLY_EXPLORATION = (0.5, 1.0)
LINEAR = (0.75, 1.25)
AS_EFFICIENT = (0.0, 2.0)
SAME_EPISODES = (2 / 3, 3 / 2)
SAME_RATE = (1 / 2, 2.0)
INDEPENDENT = (-1 / 4, 1 / 4)
FEWEST_SECRETS = 8
"""No verdict rests on a condition with fewer."""

_FEWEST_BINS = 3
_FEWEST_N = 3
_MOST_LEFT_OUT = 0.5
"""No verdict where more than this share of the groups can't be used."""


@dataclass(frozen=True)
class Verdict:
    """What the intervals say of one hypothesis.

    Attributes:
        name: H1a … H6.
        outcome: supported, refuted or undecided.
        sentence: one sentence with the figures that decided.
        value: the number that decided, NaN where there is none.
        lower: lower end of its 95 % interval.
        upper: upper end.
        region: where the hypothesis holds.
    """

    name: str
    outcome: Outcome
    sentence: str
    value: float = np.nan
    lower: float = np.nan
    upper: float = np.nan
    region: tuple[float, float] = (np.nan, np.nan)


def decide(lower: float, upper: float, region: tuple[float, float]) -> Outcome:
    """Compares an interval with a region.

    >>> decide(0.9, 1.1, (0.75, 1.25)), decide(2.0, 3.0, (0.75, 1.25)), decide(0.5, 1.0, (0.75, 1.25))
    ('supported', 'refuted', 'undecided')
    """
    if np.isnan(lower) or np.isnan(upper):
        return "undecided"
    if region[0] <= lower and upper <= region[1]:
        return "supported"
    return "refuted" if upper < region[0] or lower > region[1] else "undecided"


def describe_region(region: tuple[float, float]) -> str:
    """Where a hypothesis holds, in words.

    >>> describe_region((0.5, 2.0)), describe_region((np.nan, np.nan))
    ('0.5 to 2', '–')
    """
    return "–" if np.isnan(region).any() else f"{format_number(region[0])} to {format_number(region[1])}"


def _settle(
    name: str, numbers: tuple[float, float, float], region: tuple[float, float], sentence: str, runs: np.ndarray
) -> Verdict:
    """The verdict on a number with its interval, if every condition that it rests on has enough runs."""
    outcome, fewest = decide(numbers[1], numbers[2], region), int(runs.min())
    if fewest < FEWEST_SECRETS:
        outcome = "undecided"
        sentence += f" It takes {FEWEST_SECRETS} secrets in every condition to decide; here one has {fewest}."
    return Verdict(name, outcome, sentence, *numbers, region)


def judge_hypotheses(cells: pd.DataFrame, chosen: pd.DataFrame, known: tuple[np.ndarray, np.ndarray]) -> list[Verdict]:
    """Verdicts on the hypotheses that there is data for.

    Args:
        cells: measured cells of trained policies, all settings.
        chosen: those at settings chosen on other secrets (`hold_out_settings`).
        known: episodes and bits of `when_observer_knew` for the rows of `chosen`.
    """
    held_out = chosen["held_out"].to_numpy()
    chosen, known = chosen[held_out].reset_index(drop=True), (known[0][held_out], known[1][held_out])
    verdicts = [
        judge_binary(chosen),
        judge_exploration(chosen, known),
        judge_bins(chosen),
        judge_per_step(chosen),
        judge_rank(cells),
        judge_learning_rate(cells),
        judge_number_of_bits(chosen),
    ]
    return [verdict for verdict in verdicts if verdict is not None]


def _largest_binary(chosen: pd.DataFrame) -> np.ndarray:
    """Which cells are binary, single-step and of the largest such N."""
    binary = ((chosen["reward_type"] == "binary") & (chosen["env_type"] == "single_step")).to_numpy()
    return binary & (chosen["N"] == chosen["N"][binary].max()).to_numpy()


def judge_binary(chosen: pd.DataFrame) -> Verdict | None:
    """H1a, from the median run of the binary channel at the largest N."""
    cells = chosen[_largest_binary(chosen)]
    if cells.empty:
        return None
    row = estimate_groups(cells.reset_index(drop=True), ("N",)).iloc[0]
    rate = (float(row["bits_per_episode"]), float(row["bits_per_episode_lower"]), float(row["bits_per_episode_upper"]))
    found = format_estimate(*rate) if rate[0] > 0 else f"less than {format_number(rate[2])}"
    sentence = (
        f"At N = {int(row['N'])} the median run absorbed {found} bits per episode; the channel can tell "
        f"{format_number(row['capacity_best_bits'])}."
    )
    return _settle("H1a", rate, FAR_BELOW_A_BIT, sentence, np.array([len(cells)]))


def judge_exploration(chosen: pd.DataFrame, known: tuple[np.ndarray, np.ndarray]) -> Verdict | None:
    """H1b, (capacity - observed) / (capacity - absorbed) of the binary channel at the largest N, bits over episodes."""
    rows = _largest_binary(chosen) & np.isfinite(known[1])
    if not rows.any():
        return None
    cells, capacity = chosen[rows], float(chosen["capacity_best_bits"][rows].mean())
    absorbed = np.maximum(cells["absorbed_bits"].to_numpy(), 0.0)
    sums = np.stack([known[1][rows], known[0][rows], absorbed, cells["episodes"]], axis=1)
    drawn = np.vstack([np.ones(len(cells)), draw_weights(len(cells))]) @ sums
    missing = capacity - drawn[:, 2] / drawn[:, 3]
    lost = capacity - drawn[:, 0] / drawn[:, 1]
    share = _value_and_interval(np.divide(lost, missing, out=np.full_like(lost, np.nan), where=missing > 0))
    sentence = (
        f"At N = {cells['N'].iloc[0]}, of the {format_number(missing[0])} bits per episode that the channel can tell "
        f"and the policies did not absorb, a share of {format_estimate(*share)} never appeared in the rewards; the "
        "rest appeared, and was not absorbed."
    )
    return _settle("H1b", share, MOSTLY_EXPLORATION, sentence, np.array([len(cells)]))


def judge_bins(chosen: pd.DataFrame) -> Verdict | None:
    """H2, from the rate of the median run at three or more numbers of bins of one N and binning.

    Bins that do not identify the secret are left out: there P(secret) can't reach 0.9 by following the reward.
    """
    usable = (chosen["reward_type"] == "binned_distance").to_numpy() & (chosen["identifiable"] == True).to_numpy()  # noqa: E712
    cells = chosen[usable].reset_index(drop=True)
    condition, keys = number_groups(cells, ["binning", "N", "model", "reward_bins"])
    series, _ = number_groups(keys, ["binning", "N", "model"])
    several = np.bincount(series, minlength=1) >= _FEWEST_BINS
    if not several.any():
        return None
    bins = keys["reward_bins"].to_numpy(dtype=float)
    point, resampled = group_medians(cells, condition, len(keys), "e90")
    reached = np.bincount(series, weights=~(np.isfinite(point) & (point > 0)), minlength=len(several)) == 0
    rows = (several & reached)[series]
    if not rows.any():
        sentence = (
            "It takes the median run to P(secret) = 0.9 with three or more numbers of bins at one N; at every N that "
            "has them, fewer than half of the runs got there with one of these."
        )
        return Verdict("H2", "undecided", sentence, region=LINEAR)
    with np.errstate(divide="ignore"):
        log_rates = -np.log(np.column_stack([point, resampled])[rows])
    value, lower, upper = _value_and_interval(pooled_slope(np.log(np.log2(bins[rows])), log_rates, series[rows]))
    found = ", ".join(f"{N}" for N in np.unique(keys["N"].to_numpy()[rows]))
    sentence = (
        f"From B = {bins[rows].min():g} to {bins[rows].max():g} at N = {found} the bits per episode go as log₂ B to "
        f"the power {format_estimate(value, lower, upper)}; linear growth has the power 1."
    )
    if not np.isfinite([lower, upper]).all():
        sentence += " It is open where runs are too few: of some resampled secrets fewer than half got to 0.9."
    return _settle("H2", (value, lower, upper), LINEAR, sentence, np.bincount(condition)[rows])


def judge_per_step(chosen: pd.DataFrame) -> Verdict | None:
    """H3, from E50 of per_bit (credit per step) over E50 of SFT in the same env where there is one."""
    is_sft = (chosen["algorithm"] == "sft").to_numpy()
    in_steps = (chosen["env_type"] == "multi_step").to_numpy()
    if (is_sft & in_steps).any():
        is_sft &= in_steps
    is_per_bit = ((chosen["reward_type"] == "per_bit") & (chosen["credit"] == "per_step")).to_numpy()
    cells = chosen.assign(is_sft=is_sft)[is_sft | is_per_bit].reset_index(drop=True)
    condition, keys = number_groups(cells, ["is_sft", "N", "model"])
    sides = keys.groupby(["N", "model"])["is_sft"].transform("nunique").to_numpy() if len(keys) else np.zeros(0)
    if not (sides == 2).any():
        return None
    point, resampled = group_medians(cells, condition, len(keys))
    medians = np.column_stack([point, resampled])
    usable = (sides == 2) & (point > 0)
    sign = np.where(keys["is_sft"], -1.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = (sign[usable, None] * np.log(medians[usable])).sum(axis=0) / (usable.sum() / 2)
    value, lower, upper = (
        float(np.exp(x)) for x in _value_and_interval(np.nan_to_num(logs, nan=np.inf, posinf=np.inf))
    )
    sentence = (
        f"With one reward per bit it took {format_estimate(value, lower, upper)} times the episodes of SFT to reach "
        f"P(secret) = 1/2 (geometric mean over {(sides == 2).sum() // 2} N)."
    )
    return _settle("H3", (value, lower, upper), AS_EFFICIENT, sentence, np.bincount(condition)[sides == 2])


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
    if whole.sum() < _MOST_LEFT_OUT * several.sum():
        sentence = f"Too few combinations of channel and N can be compared: {left_out}."
        return Verdict("H4", "undecided", sentence, region=SAME_EPISODES)
    ranks = keys["lora_rank"].to_numpy(dtype=float)[usable]
    with np.errstate(divide="ignore"):
        logs = np.log(np.column_stack([point, resampled])[usable])
    slopes = pooled_slope(np.log(ranks), logs, series[usable])
    value, lower, upper = _ratio_of_ends(slopes, ranks)
    sentence = (
        f"E50 at rank {ranks.min():g} is {format_estimate(value, lower, upper)} times that at rank {ranks.max():g}, "
        f"over {whole.sum()} combinations of channel and N{f' ({left_out})' if whole.sum() < several.sum() else ''}."
    )
    return _settle("H4", (value, lower, upper), SAME_EPISODES, sentence, np.bincount(condition)[usable])


def judge_learning_rate(cells: pd.DataFrame) -> Verdict | None:
    """H5, from the learning rate with the smallest mean E50 at every rank of the RL channels."""
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
    best, at_edge = _best_rates(cells, condition, keys["learning_rate"].to_numpy(dtype=float), block, len(ranks))
    if at_edge[tried].mean() > _MOST_LEFT_OUT:
        sentence = (
            f"The best learning rate is the smallest or largest that was tried in {at_edge[tried].sum()} of "
            f"{tried.sum()} combinations of channel, N and rank, so that it may lie beyond."
        )
        return Verdict("H5", "undecided", sentence, region=SAME_RATE)
    lora_ranks = ranks["lora_rank"].to_numpy(dtype=float)[tried]
    slopes = pooled_slope(np.log(lora_ranks), np.log(best[tried]), series[tried])
    value, lower, upper = _ratio_of_ends(slopes, lora_ranks)
    sentence = (
        f"The best learning rate at rank {lora_ranks.min():g} is {format_estimate(value, lower, upper)} times that "
        f"at rank {lora_ranks.max():g}, over {tried.sum()} combinations of channel, N and rank (in "
        f"{at_edge[tried].sum()} of them it is the smallest or largest that was tried)."
    )
    return _settle("H5", (value, lower, upper), SAME_RATE, sentence, np.bincount(condition)[tried[block]])


def judge_number_of_bits(chosen: pd.DataFrame) -> Verdict | None:
    """H6, from E50 of per_bit with credit per step at three or more N."""
    usable = ((chosen["reward_type"] == "per_bit") & (chosen["credit"] == "per_step")).to_numpy()
    cells = chosen[usable].reset_index(drop=True)
    condition, keys = number_groups(cells, ["model", "N"])
    if keys["N"].nunique() < _FEWEST_N:
        return None
    series, _ = number_groups(keys, ["model"])
    bits = np.log2(keys["N"].to_numpy(dtype=float))
    point, resampled = group_medians(cells, condition, len(keys))
    with np.errstate(divide="ignore"):
        logs = np.log(np.column_stack([point, resampled]))
    power = _value_and_interval(pooled_slope(np.log(bits), logs, series))
    listed = [f"{format_number(median)} at {k:g}" for k, median in zip(bits, point, strict=True)]
    sentence = (
        f"E50 with one reward per bit is {', '.join(listed)} bits: it goes as their number to the power "
        f"{format_estimate(*power)}."
    )
    return _settle("H6", power, INDEPENDENT, sentence, np.bincount(condition))


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


def pooled_slope(x: np.ndarray, y: np.ndarray, series: np.ndarray) -> np.ndarray:
    """Least-squares slope that all series share, each with a level of its own.

    >>> x, series = np.array([0.0, 1.0, 0.0, 1.0]), np.array([0, 0, 1, 1])
    >>> pooled_slope(x, np.array([[0.0], [2.0], [5.0], [9.0]]), series).tolist()
    [3.0]

    Args:
        x: (points,).
        y: (points, resamples); a series with a value that is not finite is left out of that resample.
        series: int (points,).

    Returns:
        Slopes (resamples,); NaN where nothing is left.
    """
    top, bottom = np.zeros(y.shape[1]), np.zeros(y.shape[1])
    for number in np.unique(series):
        rows = series == number
        centered = x[rows] - x[rows].mean()
        finite = np.isfinite(y[rows]).all(axis=0)
        top += np.where(finite, (centered[:, None] * np.where(np.isfinite(y[rows]), y[rows], 0.0)).sum(axis=0), 0.0)
        bottom += np.where(finite, (centered**2).sum(), 0.0)
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def _value_and_interval(resampled: np.ndarray) -> tuple[float, float, float]:
    """The first entry, and the percentile interval of the others; NaN counts against both ends."""
    lower, _ = percentile_interval(np.nan_to_num(resampled[1:], nan=-np.inf, posinf=np.inf, neginf=-np.inf))
    _, upper = percentile_interval(np.nan_to_num(resampled[1:], nan=np.inf, posinf=np.inf, neginf=-np.inf))
    return float(resampled[0]), float(lower), float(upper)


def _ratio_of_ends(slopes: np.ndarray, ranks: np.ndarray) -> tuple[float, float, float]:
    """Value at the lowest rank over value at the highest, from slopes on log rank."""
    span = np.log(ranks.min()) - np.log(ranks.max())
    with np.errstate(over="ignore"):
        value, lower, upper = (float(np.exp(x)) for x in _value_and_interval(slopes * span))
    return value, lower, upper
