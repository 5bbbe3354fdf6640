"""H1 and H2: what a scalar reward teaches, against what its channel can tell.

- H1a, binary: far below 1 bit per episode at large N. Bits per episode of the median run at the largest N lie in
  [0, 0.1].
- H1b: because of exploration. Of what an episode can tell (effective capacity) and the policies did not absorb, the
  share that was not observed lies in [0.5, 1], at the largest N, in the mean over runs.
- H2, binned_distance: the rate grows linearly in log2 B. The exponent p of rate ~ (log2 B)^p, common to all N, lies in
  [0.75, 1.25]; over bins that identify the secret.
"""

import numpy as np
import pandas as pd

from memrl.analysis.cells import number_groups
from memrl.analysis.estimate import estimate_groups
from memrl.analysis.resample import draw_weights
from memrl.analysis.scaling import group_medians
from memrl.analysis.verdicts.intervals import pooled_slope, value_and_interval
from memrl.analysis.verdicts.verdict import Hypothesis, Verdict, settle
from memrl.analysis.wording import format_estimate, format_number

H1A = Hypothesis("H1a", "Binary reward: far below 1 bit per episode at large N", (0.0, 0.1))
H1B = Hypothesis("H1b", "Binary reward: most of the loss is exploration, what the guesses never asked", (0.5, 1.0))
H2 = Hypothesis("H2", "Distance reward: the rate grows linearly in log₂ B", (0.75, 1.25))

_FEWEST_BINS = 3


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
    return settle(H1A, rate, sentence, np.array([len(cells)]))


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
    share = value_and_interval(np.divide(lost, missing, out=np.full_like(lost, np.nan), where=missing > 0))
    sentence = (
        f"At N = {cells['N'].iloc[0]}, of the {format_number(missing[0])} bits per episode that the channel can tell "
        f"and the policies did not absorb, a share of {format_estimate(*share)} never appeared in the rewards; the "
        "rest appeared, and was not absorbed."
    )
    return settle(H1B, share, sentence, np.array([len(cells)]))


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
        return Verdict(H2, "undecided", sentence)
    with np.errstate(divide="ignore"):
        log_rates = -np.log(np.column_stack([point, resampled])[rows])
    value, lower, upper = value_and_interval(pooled_slope(np.log(np.log2(bins[rows])), log_rates, series[rows]))
    found = ", ".join(f"{N}" for N in np.unique(keys["N"].to_numpy()[rows]))
    sentence = (
        f"From B = {bins[rows].min():g} to {bins[rows].max():g} at N = {found} the bits per episode go as log₂ B to "
        f"the power {format_estimate(value, lower, upper)}; linear growth has the power 1."
    )
    if not np.isfinite([lower, upper]).all():
        sentence += " It is open where runs are too few: of some resampled secrets fewer than half got to 0.9."
    return settle(H2, (value, lower, upper), sentence, np.bincount(condition)[rows])
