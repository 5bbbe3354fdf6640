"""Numbers with intervals from resampled secrets, the same secrets for all conditions of one N."""

import numpy as np

from memrl.analysis.resample import percentile_interval


def value_and_interval(resampled: np.ndarray) -> tuple[float, float, float]:
    """The first entry, and the percentile interval of the others; NaN counts against both ends."""
    lower, _ = percentile_interval(np.nan_to_num(resampled[1:], nan=-np.inf, posinf=np.inf, neginf=-np.inf))
    _, upper = percentile_interval(np.nan_to_num(resampled[1:], nan=np.inf, posinf=np.inf, neginf=-np.inf))
    return float(resampled[0]), float(lower), float(upper)


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


def ratio_of_ends(slopes: np.ndarray, ranks: np.ndarray) -> tuple[float, float, float]:
    """Value at the lowest rank over value at the highest, from slopes on log rank."""
    span = np.log(ranks.min()) - np.log(ranks.max())
    with np.errstate(over="ignore"):
        value, lower, upper = (float(np.exp(x)) for x in value_and_interval(slopes * span))
    return value, lower, upper
