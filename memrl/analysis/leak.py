"""The no-leak check: on average, nobody absorbs more than an ideal observer of the same feedback could know.

For a channel that is a function of (guess, secret), observed_bits is log2 N + log2 of the observer's posterior at the
secret, so d = absorbed - observed = log2(P_policy(S) / posterior(S)) in every cell, not only on average. Given what the
learner saw, E[2^d] <= 1, because a policy's probabilities sum to at most 1 over the secrets that are still possible.
Two statements follow, and a leak breaks one of them:

- the mean of d over secrets is at most 0; it is compared with its 99 % half-width, update by update. A prior that is
  nearly uniform neglects a few answers, and prefers all others by a little: secrets that miss the few agree on a d
  above 0. So their spread counts as no less than that of the prior over all secrets, sqrt(2 KL / ln 2) by its
  divergence;
- 2^d is evidence against "no leak" (an e-value), and so is any bet prod over secrets of 1 - b + b 2^d with b in [0, 1].
  By Markov's inequality an honest run exceeds a product of 100 with probability at most 1 %, whatever its spread. With
  b = 1 the bet is 2^(sum of d). A leak in a few cells widens the half-width along with the mean (5 % of 64 cells move a
  mean by 1.8 standard errors, however large the leak), but it can't hide from the bet.

Cells that share a secret (learning rates, ranks) are averaged first; secrets are independent, cells are not.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from memrl.analysis.cells import number_groups
from memrl.analysis.curves import Curves, carry_forward_sums

LEAK_CONFIDENCE = 0.99
EVIDENCE_LIMIT_BITS = float(np.log2(1.0 / (1.0 - LEAK_CONFIDENCE)))
"""log2 of the evidence that an honest run exceeds at one update with probability at most 1 %: 6.64 bits."""

ENOUGH_SECRETS = 64
_ROUNDING_BITS = 1e-9
_BETS = ((1.0, 0.5), (0.5, 0.1), (0.25, 0.1), (0.125, 0.1), (0.0625, 0.1), (0.03125, 0.1))
"""Stakes b and their weights; the evidence is the weighted mean of the bets."""


def judge_leaks(curve: pd.DataFrame) -> pd.DataFrame:
    """Says for every (channel, N) whether its policies absorbed more than their observers knew.

    Args:
        curve: the rows of `leak_curve`.

    Returns:
        One row per (channel, N): channel, N, num_secrets, num_cells; `update`, the one at which the mean rises farthest
        above its limit, with mean_difference_bits and half_width_bits there; evidence_bits, the largest over updates;
        evidence_limit_bits; verdict: `leak` (at some update the mean exceeds its half-width, or the evidence its
        limit), `no leak`, `no leak seen (few secrets)` below 64 secrets, or `not observed`.
    """
    if curve.empty:
        return curve
    return pd.DataFrame([_judge(rows) for _, rows in curve.groupby(["channel", "N"], sort=True)])


def leak_curve(curves: Curves, cells: pd.DataFrame) -> pd.DataFrame:
    """Mean absorbed - mean observed at every update of every (channel, N).

    Returns:
        One row per (channel, N, update): channel, N, update, num_secrets, num_cells, mean_difference_bits,
        half_width_bits (99 %, Student's t over secrets, with at least the spread of the prior), evidence_bits.
    """
    pieces = [curve.assign(channel=channel, N=N) for channel, N, curve in _each_group(curves, cells)]
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame()


def _each_group(curves: Curves, cells: pd.DataFrame) -> Iterator[tuple[str, int, pd.DataFrame]]:
    if cells.empty:
        return
    group, keys = number_groups(cells, ["channel", "N"])
    row_group = group[curves.cell]
    order = np.argsort(row_group, kind="stable")
    bounds = np.searchsorted(row_group[order], np.arange(len(keys) + 1))
    seeds, prior = cells["seed"].to_numpy(), _prior_spread(cells)
    for number, (channel, N) in enumerate(keys.itertuples(index=False)):
        rows = order[bounds[number] : bounds[number + 1]]
        if len(rows):
            yield str(channel), int(N), _difference_curve(curves, rows, seeds, prior[curves.cell[rows]].max())


def _prior_spread(cells: pd.DataFrame) -> np.ndarray:
    """The standard deviation of d over secrets before the first update, by the prior's divergence, in bits (cells,)."""
    divergence, num_keys = (pd.to_numeric(cells[name]).to_numpy(float) for name in ("prior_kl_bits", "num_keys"))
    # That of long sequences is measured on a sample of them, and may come out below 0.
    divergence = np.maximum(np.nan_to_num(divergence), 0.0)
    return np.sqrt(2.0 / np.log(2.0) * divergence * np.nan_to_num(num_keys, nan=1.0))


def _difference_curve(curves: Curves, rows: np.ndarray, seeds: np.ndarray, least_spread: float) -> pd.DataFrame:
    """The check's numbers at every update of one (channel, N)."""
    first, update, cell = curves.is_first[rows], curves.update[rows], curves.cell[rows]
    difference = curves.absorbed[rows] - curves.observed[rows]
    _, secret = np.unique(seeds[cell], return_inverse=True)
    cells_of_secret = np.bincount(secret[first]).astype(np.float64)
    shape = (len(cells_of_secret), int(update.max()) + 1)
    gap, odds = (
        carry_forward_sums(values, first, secret, update, shape) / cells_of_secret[:, None]
        for values in (difference, np.exp2(difference))
    )
    n = shape[0]
    z = stats.t.ppf(0.5 + LEAK_CONFIDENCE / 2, n - 1) if n > 1 else np.inf
    spread = np.maximum(gap.std(axis=0, ddof=1), least_spread) if n > 1 else np.ones(shape[1])
    return pd.DataFrame(
        {
            "update": np.arange(shape[1]),
            "num_secrets": n,
            "num_cells": int(first.sum()),
            "mean_difference_bits": gap.mean(axis=0),
            "half_width_bits": z * spread / np.sqrt(n),
            "evidence_bits": _evidence_bits(np.maximum(odds, 0.0)),
        }
    )


def _evidence_bits(odds: np.ndarray) -> np.ndarray:
    """log2 of the weighted mean of the bets on 2^d; odds (secrets, updates), result (updates,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bets = [np.log2(weight) + np.log2(1.0 - stake + stake * odds).sum(axis=0) for stake, weight in _BETS]
        return np.logaddexp2.reduce(bets)


def _judge(curve: pd.DataFrame) -> dict[str, object]:
    excess = (curve["mean_difference_bits"] - curve["half_width_bits"]).to_numpy()
    observed = np.isfinite(curve["mean_difference_bits"]).any()
    worst = curve.iloc[int(np.nanargmax(excess)) if np.isfinite(excess).any() else 0]
    evidence = float(curve["evidence_bits"].max())
    few = int(worst["num_secrets"]) < ENOUGH_SECRETS
    leaks = observed and (bool((excess > _ROUNDING_BITS).any()) or evidence > EVIDENCE_LIMIT_BITS)
    fine = "no leak seen (few secrets)" if few else "no leak"
    return {
        "channel": worst["channel"],
        "N": int(worst["N"]),
        "num_secrets": int(worst["num_secrets"]),
        "num_cells": int(worst["num_cells"]),
        "update": int(worst["update"]),
        "mean_difference_bits": float(worst["mean_difference_bits"]),
        "half_width_bits": float(worst["half_width_bits"]),
        "evidence_bits": evidence,
        "evidence_limit_bits": EVIDENCE_LIMIT_BITS,
        "verdict": "leak" if leaks else fine if observed else "not observed",
    }
