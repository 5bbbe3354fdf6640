"""H7 and H8: how many bits a parameter of an adapter holds, under SFT and under RL.

Of every rank the number of keys is doubled until the absorbed bits grow by 5 % or less; those of the largest number of
keys, over the adapter's true parameters, are its bits per parameter. Seeds are averaged over ranks, and the interval
is that of the mean over seeds; a seed has as many secrets as keys.

- H7: under SFT it is what full models hold, 2 (Allen-Zhu and Li, 2024, arXiv 2404.05405): in [1.5, 2.5].
- H8: under RL, by the learner that absorbs most, it is as much as under SFT: the ratio lies in [0.8, 1.25].

The regions were stated before the data. Where some rank is not saturated, nothing is decided: its bits are a bound.
"""

import numpy as np
import pandas as pd

from memrl.analysis.capacity import mean_and_interval, measure_capacity
from memrl.analysis.verdicts.verdict import Hypothesis, Verdict, settle
from memrl.analysis.wording import format_estimate, format_number

H7 = Hypothesis("H7", "Bits per LoRA parameter at saturation equal the full model's 2", (1.5, 2.5))
H8 = Hypothesis("H8", "The same under RL as under SFT (ratio)", (0.8, 1.25))

_LEAST_RANKS = 2


def judge_capacity(lora: pd.DataFrame) -> list[Verdict]:
    """H7 and H8, of cells whose keys were doubled at several ranks.

    Args:
        lora: measured cells of trained policies.
    """
    found = measure_capacity(lora)
    if found.empty:
        return []
    last = found.sort_values("num_keys").groupby(["model", "learner", "N", "lora_rank"], sort=True).tail(1)
    tried = found.groupby("learner")["num_keys"].nunique()
    ranks = last.groupby("learner")["lora_rank"].nunique()
    enough = ranks.index[(ranks >= _LEAST_RANKS) & (tried >= 2)]
    last = last[last["learner"].isin(enough).to_numpy()]
    if "sft" not in set(last["learner"]):
        return []
    supervised = _average_ranks(last[(last["learner"] == "sft").to_numpy()])
    verdicts = [_judge(H7, supervised, last[(last["learner"] == "sft").to_numpy()], "SFT")]
    others = last[~(last["learner"] == "sft").to_numpy()]
    if len(others):
        best = others.groupby("learner")["bits_per_parameter"].mean().idxmax()
        rows = last[last["learner"].isin(["sft", best]).to_numpy()]
        reinforced = _average_ranks(rows[(rows["learner"] == best).to_numpy()])
        both = reinforced.index.intersection(supervised.index)
        ratio = reinforced[both] / supervised[both]
        verdicts.append(_judge(H8, ratio, rows, f"RL by {best}, over SFT"))
    return verdicts


def _average_ranks(rows: pd.DataFrame) -> pd.Series:
    """Bits per parameter of each seed, averaged over ranks."""
    return pd.DataFrame(list(rows["by_seed"])).mean(axis=0)


def _judge(hypothesis: Hypothesis, by_seed: pd.Series, rows: pd.DataFrame, whose: str) -> Verdict:
    numbers = mean_and_interval(by_seed.to_numpy())
    parts = [
        f"{format_number(row.bits_per_parameter)} ({row.learner}, rank {row.lora_rank:g}, {row.num_keys:,.0f} keys)"
        for row in rows.itertuples()
    ]
    sentence = f"{whose}: {format_estimate(*numbers)}, the mean over ranks of {', '.join(parts)} bits per parameter."
    if not rows["is_saturated"].all():
        still = f"{(~rows['is_saturated']).sum()} of {len(rows)} ranks were not saturated, so that theirs is a bound"
        return Verdict(hypothesis, "undecided", f"{sentence} {still}.", *numbers)
    return settle(hypothesis, numbers, sentence, (rows["num_cells"] * rows["num_keys"]).to_numpy().astype(np.int64))
