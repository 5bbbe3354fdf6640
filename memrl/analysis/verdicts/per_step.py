"""H3 and H10: one reward per env_step.

- H3: per-step reward reaches SFT's sample efficiency. E50 of per_bit over E50 of SFT, the geometric mean over N, lies
  in [0, 2].
- H10, per_bit with a credit for each bit: episodes do not depend on the number of bits k of the secret. The exponent p
  of E50 ~ k^p over three or more N lies in [-1/4, 1/4].
"""

import numpy as np
import pandas as pd

from memrl.analysis.cells import number_groups
from memrl.analysis.scaling import group_medians
from memrl.analysis.verdicts.intervals import pooled_slope, value_and_interval
from memrl.analysis.verdicts.verdict import Hypothesis, Verdict, settle
from memrl.analysis.wording import format_estimate, format_number

H3 = Hypothesis("H3", "Per-step reward reaches the sample efficiency of SFT, within a factor of 2", (0.0, 2.0))
H10 = Hypothesis(
    "H10", "With one reward per bit, episodes do not depend on the number of bits", (-1 / 4, 1 / 4), seen_first=True
)

_FEWEST_N = 3


def judge_per_step(chosen: pd.DataFrame) -> Verdict | None:
    """H3, from E50 of per_bit (credit per step) over E50 of SFT in the same env where there is one."""
    is_sft = ((chosen["algorithm"] == "sft") & chosen["secret_length"].isna()).to_numpy()
    in_steps = (chosen["env_type"] == "multi_step").to_numpy()
    if (is_sft & in_steps).any():
        is_sft = is_sft & in_steps
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
    value, lower, upper = (float(np.exp(x)) for x in value_and_interval(np.nan_to_num(logs, nan=np.inf, posinf=np.inf)))
    sentence = (
        f"With one reward per bit it took {format_estimate(value, lower, upper)} times the episodes of SFT to reach "
        f"P(secret) = 1/2 (geometric mean over {(sides == 2).sum() // 2} N)."
    )
    return settle(H3, (value, lower, upper), sentence, np.bincount(condition)[sides == 2])


def judge_number_of_bits(chosen: pd.DataFrame) -> Verdict | None:
    """H10, from E50 of per_bit with credit per step at three or more N."""
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
    power = value_and_interval(pooled_slope(np.log(bits), logs, series))
    sentence = (
        f"E50 with one reward per bit is {_list_medians(keys['model'], bits, point)}: it goes as their number to the "
        f"power {format_estimate(*power)}."
    )
    return settle(H10, power, sentence, np.bincount(condition))


def _list_medians(model: pd.Series, bits: np.ndarray, medians: np.ndarray) -> str:
    """E50 at each number of bits, by model where there are several."""
    told = pd.Series([f"{format_number(median)} at {k:g}" for k, median in zip(bits, medians, strict=True)])
    by_model = told.groupby(model.to_numpy()).agg(", ".join)
    names = [""] if len(by_model) == 1 else [f" on {name}" for name in by_model.index]
    return "; ".join(f"{words} bits{name}" for words, name in zip(by_model, names, strict=True))
