"""Episodes to memorize with right-censoring: Kaplan-Meier quantiles and their intervals, for many conditions at once.

A run that ends before the policy knows its secret is right-censored: it says "more than that", and is neither dropped
nor set to its budget. Arrays hold one condition a row; rows of unequal length are padded with `PADDING`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from scipy import stats

PADDING = -1.0
"""A time at which a padded entry leaves, censored: before any event, so that it is never at risk."""

_SLACK = 1e-9
"""Rounding that survival may carry when it is compared with a quantile."""


@dataclass(frozen=True)
class Estimates:
    """Point estimates with 95 % intervals.

    Attributes:
        value: the estimate; NaN where there is nothing to estimate from, inf where too many runs are censored.
        lower: lower end of the interval.
        upper: upper end of the interval; inf where censoring leaves it open.
    """

    value: Float[np.ndarray, "*shape"]
    lower: Float[np.ndarray, "*shape"]
    upper: Float[np.ndarray, "*shape"]


def pad_rows(
    values: ArrayLike, rows: Int[np.ndarray, "cell"], num_rows: int, fill: float
) -> Float[np.ndarray, "{num_rows} column"]:
    """Lays values out as one row per condition, in order of appearance, padded with `fill`.

    >>> pad_rows(np.array([3.0, 5.0, 4.0]), np.array([0, 1, 0]), 2, fill=-1.0).tolist()
    [[3.0, 4.0], [5.0, -1.0]]

    Args:
        values: one per cell.
        rows: the condition of each cell, 0 .. num_rows-1.
        num_rows: number of conditions.
        fill: what stands where a condition has fewer cells than another.

    Returns:
        As many columns as the condition with the most cells has.
    """
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=num_rows)
    starts = np.cumsum(counts) - counts
    columns = np.arange(len(rows)) - np.repeat(starts, counts)
    padded = np.full((num_rows, int(counts.max(initial=0))), fill, dtype=np.float64)
    padded[rows[order], columns] = np.asarray(values, dtype=np.float64)[order]
    return padded


def survival_steps(
    times: Float[np.ndarray, "*batch run"], censored: Bool[np.ndarray, "*batch run"]
) -> tuple[Float[np.ndarray, "*batch run"], Float[np.ndarray, "*batch run"], Float[np.ndarray, "*batch run"]]:
    """Kaplan-Meier survival after each observation, in order of time.

    S(t) = prod over events at or before t of 1 - 1 / r_i, where r_i runs are still at risk. Tied events are taken one
    after the other, which gives the same product.

    Args:
        times: times to the event or to the end of the run.
        censored: whether the run ended without the event.

    Returns:
        times in ascending order, survival S after each, and Greenwood's sum for var(log S). Censored observations come
        after events at the same time.

    Source: Kaplan and Meier 1958; Greenwood 1926. scipy.stats.ecdf gives the same for one unweighted sample.
    """
    order = np.lexsort((censored, times), axis=-1)
    times = np.take_along_axis(times, order, axis=-1)
    events = ~np.take_along_axis(censored, order, axis=-1)
    at_risk = np.arange(times.shape[-1], 0, -1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        survival = np.cumprod(np.where(events, 1.0 - 1.0 / at_risk, 1.0), axis=-1)
        greenwood = np.cumsum(np.where(events, 1.0 / (at_risk * (at_risk - 1.0)), 0.0), axis=-1)
    return times, survival, greenwood


def estimate_quantile(
    times: Float[np.ndarray, "condition run"],
    censored: Bool[np.ndarray, "condition run"],
    quantile: float = 0.5,
    confidence: float = 0.95,
) -> Estimates:
    """Kaplan-Meier quantile of a right-censored time, with an interval by inversion of the score test.

    The estimate is the first time at which S falls to p = 1 - quantile (the middle of the step where S equals it). The
    interval holds every t with |S(t) - p| <= z sqrt(p (1 - p) / n(t)), where n(t) = S (1 - S) / var(S) is the number of
    uncensored runs that would estimate S as well. S is read in the middle of its steps, and the ends are interpolated
    between events in log(1 + t), so that coverage does not jump with the number of runs.

    >>> fit = estimate_quantile(np.array([[1.0, 2, 3, 4, 5]]), np.array([[False, False, False, True, True]]))
    >>> fit.value.tolist(), fit.upper.tolist()
    ([3.0], [inf])

    Args:
        times: times to the event or to the end of the run, padded with PADDING.
        censored: whether the run ended without the event; True at padding.
        quantile: 0.5 for the median.
        confidence: of the interval.

    Returns:
        One estimate per condition, in the unit of `times`.

    Raises:
        ValueError: the quantile does not lie strictly between 0 and 1.

    Source: Brookmeyer and Crowley 1982 (inverting a test of S(t) = p), Cutler and Ederer 1958 (effective sample size),
    Hettmansperger and Sheather 1986 (interpolation).
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile must lie strictly between 0 and 1, got {quantile}")
    times, censored = np.asarray(times, dtype=np.float64), np.asarray(censored, dtype=bool)
    ordered, survival, greenwood = survival_steps(times, censored)
    value = _first_step(ordered, survival, 1.0 - quantile)
    scores = _score_steps(survival, greenwood, (ordered > PADDING).sum(axis=-1), 1.0 - quantile)
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    lower, upper = _crossing_time(ordered, scores, -z), _crossing_time(ordered, scores, z)
    empty = (ordered > PADDING).sum(axis=-1) == 0
    return Estimates(*(np.where(empty, np.nan, x) for x in (value, np.minimum(lower, value), np.maximum(upper, value))))


def _score_steps(
    survival: Float[np.ndarray, "*batch run"],
    greenwood: Float[np.ndarray, "*batch run"],
    num_runs: Int[np.ndarray, "*batch"],
    target: float,
) -> Float[np.ndarray, "*batch run"]:
    """(p - S) / sqrt(p (1 - p) / n) in the middle of each step of S, NaN where S does not step."""
    before = np.concatenate([np.ones((*survival.shape[:-1], 1)), survival[..., :-1]], axis=-1)
    before_greenwood = np.concatenate([np.zeros((*survival.shape[:-1], 1)), greenwood[..., :-1]], axis=-1)
    # Where the last run leaves, S = 0 has no variance of its own: the step before it stands in.
    last = survival <= 0
    height, spread = np.where(last, before, survival), np.where(last, before_greenwood, greenwood)
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = np.where(spread > 0, (1.0 - height) / (height * spread), np.maximum(num_runs[..., None], 1))
    scores = (target - (before + survival) / 2) / np.sqrt(target * (1.0 - target) / effective)
    return np.where(survival < before, scores, np.nan)


def _crossing_time(
    ordered: Float[np.ndarray, "*batch run"], scores: Float[np.ndarray, "*batch run"], level: float
) -> Float[np.ndarray, "*batch"]:
    """When the scores first reach a level, interpolated in log(1 + t) from the event before; inf where never."""
    logs = np.log1p(np.maximum(ordered, 0.0))
    crossing = np.full(ordered.shape[:-1], np.inf)
    log_before, score_before = np.zeros_like(crossing), np.full_like(crossing, np.nan)
    for i in range(ordered.shape[-1]):
        score, log_time = scores[..., i], logs[..., i]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(np.isnan(score_before), 1.0, (level - score_before) / (score - score_before))
        here = np.expm1(log_before + np.clip(share, 0.0, 1.0) * (log_time - log_before))
        crossing = np.where((score >= level) & np.isinf(crossing), here, crossing)
        steps = ~np.isnan(score)
        log_before, score_before = np.where(steps, log_time, log_before), np.where(steps, score, score_before)
    return crossing


def resample_medians(
    times: Float[np.ndarray, "condition run"],
    censored: Bool[np.ndarray, "condition run"],
    weights: Float[np.ndarray, "resample run"],
) -> Float[np.ndarray, "condition resample"]:
    """Kaplan-Meier medians of bootstrap resamples that draw the same columns (secrets) in every condition.

    >>> resample_medians(np.array([[1.0, 2, 3]]), np.zeros((1, 3), bool), np.array([[1.0, 1, 1], [3, 0, 0]])).tolist()
    [[2.0, 1.0]]

    Args:
        times: times to the event or to the end of the run, padded with PADDING.
        censored: whether the run ended without the event.
        weights: how often each resample drew each column.

    Returns:
        Medians; inf where a resample does not reach its median, or drew no run.
    """
    order = np.lexsort((censored, times), axis=-1)
    ordered = np.take_along_axis(times, order, axis=-1)
    events = ~np.take_along_axis(censored, order, axis=-1) & (ordered > PADDING)
    columns = np.ascontiguousarray(weights.T)
    at_risk = (ordered > PADDING).astype(np.float64)
    at_risk = sum((columns[order[:, i]] * at_risk[:, i, None] for i in range(times.shape[1])), np.zeros(()))
    survival = np.ones_like(at_risk)
    first, below = np.full_like(at_risk, np.inf), np.full_like(at_risk, np.inf)
    for i in range(times.shape[1]):
        drawn = columns[order[:, i]] * (ordered[:, i, None] > PADDING)
        share = np.divide(drawn, at_risk, out=np.zeros_like(drawn), where=events[:, i, None] & (drawn > 0))
        survival *= 1.0 - share
        at_risk = at_risk - drawn
        now = ordered[:, i, None]
        first = np.where(np.isinf(first) & (survival <= 0.5 + _SLACK), now, first)
        below = np.where(np.isinf(below) & (survival < 0.5 - _SLACK), now, below)
    return np.where(np.isfinite(below), (first + below) / 2, first)


def _first_step(
    ordered: Float[np.ndarray, "*batch run"], survival: Float[np.ndarray, "*batch run"], target: float
) -> Float[np.ndarray, "*batch"]:
    """First time with S <= target; the middle of the step where S equals the target and a later event ends it."""
    first = _time_where(ordered, survival <= target + _SLACK)
    below = _time_where(ordered, survival < target - _SLACK)
    return np.where(np.isfinite(first) & np.isfinite(below), (first + below) / 2, first)


def _time_where(
    ordered: Float[np.ndarray, "*batch run"], holds: Bool[np.ndarray, "*batch run"]
) -> Float[np.ndarray, "*batch"]:
    """The first time at which a condition holds; inf where it never does."""
    index = holds.argmax(axis=-1)[..., None]
    return np.where(holds.any(axis=-1), np.take_along_axis(ordered, index, axis=-1)[..., 0], np.inf)
