"""H9: interference decides whether the usual objective reaches the secret, and hardly matters where log p is ascended.

Bases differ in interference, the mean cosine of the gradients that different places of one answer send to a fresh
adapter. Of every channel and N that was tried on several bases, the number is the share of runs that reached
P(secret) = 1/2 on the base of the least interference, less that on the base of the most; the mean over these
conditions, each at settings chosen on other secrets.

- H9a: under the usual objective that difference lies in [0.5, 1].
- H9b: under the best of the objectives that ascend log p (rejection, maxrl), it lies in [-0.2, 0.2].

Bases count as different where their interference differs by 0.3 or more. The regions were stated before the data.
"""

import numpy as np
import pandas as pd

from memrl.analysis.cells import number_groups
from memrl.analysis.objectives import USUAL_NAME
from memrl.analysis.resample import draw_weights
from memrl.analysis.scaling import arrange_by_seed
from memrl.analysis.selection import hold_out_settings
from memrl.analysis.verdicts.intervals import value_and_interval
from memrl.analysis.verdicts.verdict import Hypothesis, Verdict, settle
from memrl.analysis.wording import format_estimate, format_number

H9A = Hypothesis(
    "H9a", "Interference decides whether the usual objective reaches the secret (share lost to it)", (0.5, 1.0)
)
H9B = Hypothesis("H9b", "Interference hardly matters to objectives that ascend log p (share lost to it)", (-0.2, 0.2))

LEAST_SPREAD = 0.3
"""Between the interference of two bases that count as different."""

ASCEND_LOG = ("rejection", "maxrl")


def judge_interference(lora: pd.DataFrame) -> list[Verdict]:
    """H9a and H9b, of the cells of trained policies, where they ran on bases whose interference differs.

    Args:
        lora: rows of `objectives.join_distilled`.
    """
    known = lora[lora["interference"].notna().to_numpy() & (lora["algorithm"] == "rl").to_numpy()]
    usual = (H9A, known[(known["objective_name"] == USUAL_NAME).to_numpy()], "the usual objective")
    logs = (H9B, known[known["advantage"].isin(ASCEND_LOG).to_numpy()], "objectives that ascend log p")
    verdicts = [_judge(hypothesis, cells.reset_index(drop=True), whose) for hypothesis, cells, whose in (usual, logs)]
    return [verdict for verdict in verdicts if verdict is not None]


def _judge(hypothesis: Hypothesis, cells: pd.DataFrame, whose: str) -> Verdict | None:
    if cells.empty:
        return None
    chosen = hold_out_settings(cells)
    chosen = chosen[chosen["held_out"].to_numpy()].reset_index(drop=True)
    row, keys = number_groups(chosen, ["channel", "N", "model"])
    keys["interference"] = chosen["interference"].groupby(row, sort=True).mean().to_numpy()
    ends = keys.groupby(["channel", "N"])["interference"].agg(["idxmin", "idxmax", "min", "max"])
    ends = ends[(ends["max"] - ends["min"] >= LEAST_SPREAD).to_numpy()]
    if ends.empty:
        return None
    reached = (~chosen["e50_censored"]).to_numpy().astype(float)
    seeds = chosen["seed"].to_numpy()
    hits, runs = (arrange_by_seed(x, row, len(keys), seeds, 0.0) for x in (reached, np.ones_like(reached)))
    weights = np.vstack([np.ones(hits.shape[1]), draw_weights(hits.shape[1])]).T
    drawn = runs @ weights
    share = np.divide(hits @ weights, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0)
    low, high = (share[ends[name].to_numpy()].mean(axis=0) for name in ("idxmin", "idxmax"))
    numbers = value_and_interval(low - high)
    sentence = (
        f"Under {whose} {100 * low[0]:.0f} % of the runs reached P(secret) = 1/2 on the base with the least "
        f"interference ({format_number(ends['min'].mean())}) and {100 * high[0]:.0f} % on that with the most "
        f"({format_number(ends['max'].mean())}): a difference of {format_estimate(*numbers)}, over {len(ends)} "
        "combinations of channel and N."
    )
    used = np.bincount(row, minlength=len(keys))[np.concatenate([ends["idxmin"], ends["idxmax"]])]
    return settle(hypothesis, numbers, sentence, used)
