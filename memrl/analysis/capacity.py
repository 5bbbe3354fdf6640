"""Bits that an adapter holds: what it has absorbed of more and more keyed secrets, until more are no use."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from memrl.analysis.cells import number_groups

CONFIDENCE = 0.95
SATURATED_WITHIN = 0.05
"""Absorbed bits that grow by no more over a doubling of the keys have come to their end."""

_CONDITION = ("model", "learner", "N", "lora_rank", "num_keys")
_TUNED = ("learning_rate", "group_size", "batch_size", "updates_per_batch", "advantage", "n_steps")


def name_learners(cells: pd.DataFrame) -> pd.Series:
    """Who learned, by what, whatever the number of keys: sft, or a reward and what was made of it.

    >>> rows = [("sft", None, None), ("rl", "binary", "rejection"), ("distill", "binary", None)]
    >>> name_learners(pd.DataFrame(rows, columns=["algorithm", "reward_type", "advantage"])).tolist()
    ['sft', 'binary by rejection', 'binary by distill']
    """
    how = cells["advantage"].where(cells["algorithm"] == "rl", cells["algorithm"])
    return (cells["reward_type"].astype(str) + " by " + how.astype(str)).where(cells["algorithm"] != "sft", "sft")


def measure_capacity(cells: pd.DataFrame) -> pd.DataFrame:
    """Absorbed bits, and bits per parameter, of every learner, rank and number of keys.

    Of several settings that with the most absorbed bits on average stands for them.

    Args:
        cells: measured cells of trained policies, with `adapter_parameters`.

    Returns:
        One row per model, learner, N, rank and number of keys, in this order: those columns, `num_cells`,
        `signal_bits`, `adapter_parameters`, `absorbed_bits`, `bits_per_parameter` with `_lower` and `_upper` (95 %,
        Student's t over seeds; NaN of one seed), and `is_saturated`: whether half as many keys, or more, came to
        within 5 % of as many bits. Cells without keys have no row.
    """
    keyed = cells[cells["num_keys"].notna() & cells["adapter_parameters"].notna()]
    if keyed.empty:
        return pd.DataFrame()
    keyed = keyed.assign(learner=name_learners(keyed)).reset_index(drop=True)
    tuned = [name for name in _TUNED if name in keyed]
    setting, _ = number_groups(keyed, [*_CONDITION, *tuned])
    keyed["mean_bits"] = keyed["absorbed_bits"].groupby(setting).transform("mean")
    best = keyed["mean_bits"] >= keyed.groupby(list(_CONDITION))["mean_bits"].transform("max") - 1e-9
    rows = [_describe(names, group) for names, group in keyed[best].groupby(list(_CONDITION), sort=True)]
    found = pd.DataFrame(rows)
    series = ["model", "learner", "N", "lora_rank"]
    before = found.groupby(series)[["num_keys", "absorbed_bits"]].shift(1)
    doubled = found["num_keys"] >= 2 * before["num_keys"]
    grew = found["absorbed_bits"] > (1.0 + SATURATED_WITHIN) * before["absorbed_bits"]
    return found.assign(is_saturated=doubled & ~grew)


def _describe(names: Sequence[object], group: pd.DataFrame) -> dict[str, object]:
    density = (group["absorbed_bits"] / group["adapter_parameters"]).to_numpy()
    mean, lower, upper = mean_and_interval(density)
    return {
        **dict(zip(_CONDITION, names, strict=True)),
        "num_cells": len(group),
        "signal_bits": float(group["signal_bits"].iloc[0]),
        "adapter_parameters": int(group["adapter_parameters"].iloc[0]),
        "absorbed_bits": float(group["absorbed_bits"].mean()),
        "bits_per_parameter": mean,
        "bits_per_parameter_lower": lower,
        "bits_per_parameter_upper": upper,
        "by_seed": dict(zip(group["seed"].tolist(), density.tolist(), strict=True)),
    }


def mean_and_interval(values: np.ndarray) -> tuple[float, float, float]:
    """A mean with its 95 % interval by Student's t, NaN where there is one value alone.

    >>> [round(x, 3) for x in mean_and_interval(np.array([1.0, 2.0, 3.0]))]
    [2.0, -0.484, 4.484]
    """
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half
