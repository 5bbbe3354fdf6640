"""How episodes to memorize grow with N: a power of N, or N plus an overhead?

Two models with two parameters each are fitted to log medians: the power law E = a N^b, and the additive overhead
E = c + a N. On a short range of N an overhead looks like an exponent below 1, so the exponent alone decides nothing.
"""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from memrl.analysis.cells import number_groups
from memrl.analysis.resample import draw_weights, percentile_interval
from memrl.analysis.survival import PADDING, estimate_quantile, resample_medians

_SMALLEST_ERROR = 0.02
"""Standard error of a log median, at least: medians of whole episodes are never exact."""

_NUM_SIMULATIONS = 999
_LEVEL = 0.05
_ROUNDING = 1e-9
_CONCLUSIONS = {
    (True, False): "exponent",
    (False, True): "overhead",
    (False, False): "either",
    (True, True): "neither",
}
"""By whether the overhead model and the power law are rejected."""


@dataclass(frozen=True)
class ModelComparison:
    """Power law against additive overhead.

    Attributes:
        overhead: c of E = c + a N, episodes.
        per_secret: a of E = c + a N, episodes per value of the secret.
        delta_aic: AIC of the overhead model minus that of the power law; positive favors the power law.
        p_overhead: bootstrap p-value of the overhead model (small: the power law fits too much better by chance).
        p_power: bootstrap p-value of the power law.
        conclusion: `exponent`, `overhead`, `either` or `neither`, at the 5 % level.
    """

    overhead: float
    per_secret: float
    delta_aic: float
    p_overhead: float
    p_power: float
    conclusion: str


def arrange_by_seed(values: np.ndarray, rows: np.ndarray, num_rows: int, seeds: np.ndarray, fill: float) -> np.ndarray:
    """Lays values out with one column a seed, so that the columns of all rows are resampled together.

    Returns:
        float64 array (num_rows, distinct seeds), `fill` where a row has no such seed.
    """
    distinct, column = np.unique(seeds, return_inverse=True)
    table = np.full((num_rows, len(distinct)), fill)
    table[rows, column] = values
    return table


def group_medians(cells: pd.DataFrame, group: np.ndarray, num_groups: int, quantity: str = "e50") -> tuple:
    """Kaplan-Meier medians of groups, and of the same groups in bootstrap resamples of the seeds.

    Args:
        cells: measured cells, at most one per group and seed.
        group: int (cells,).
        num_groups: number of groups.
        quantity: e50 or e90.

    Returns:
        Medians (groups,) and resampled medians (groups, resamples), in episodes; inf where not reached.
    """
    seeds = cells["seed"].to_numpy()
    times = arrange_by_seed(cells[quantity].to_numpy(), group, num_groups, seeds, PADDING)
    censored = arrange_by_seed(cells[f"{quantity}_censored"].to_numpy(), group, num_groups, seeds, 1.0) > 0
    weights = draw_weights(times.shape[1])
    return estimate_quantile(times, censored).value, resample_medians(times, censored, weights)


def fit_exponent(N: np.ndarray, medians: np.ndarray) -> np.ndarray:
    """Slope of log E on log N by least squares.

    >>> round(float(fit_exponent(np.array([10.0, 100.0, 500.0]), np.array([19.0, 129.0, 599.0]))), 3)
    0.879

    Args:
        N: (n,).
        medians: positive, or inf where not reached; (..., n).

    Returns:
        Exponents (...); infinite where medians are, NaN where they are at both ends of N.
    """
    x = np.log(N) - np.log(N).mean()
    return np.where(x == 0, 0.0, np.log(medians) * x).sum(axis=-1) / (x * x).sum()


def exponent_interval(N: np.ndarray, resampled: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the exponent; medians that a resample does not reach are infinite.

    Args:
        N: (n,).
        resampled: medians (n, resamples).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = fit_exponent(N, resampled.T)
    lower, _ = percentile_interval(np.nan_to_num(slopes, nan=-np.inf, posinf=np.inf, neginf=-np.inf))
    _, upper = percentile_interval(np.nan_to_num(slopes, nan=np.inf, posinf=np.inf, neginf=-np.inf))
    return float(lower), float(upper)


def compare_models(N: np.ndarray, medians: np.ndarray, errors: np.ndarray) -> ModelComparison:
    """Tests the power law and the additive overhead against each other.

    Both are fitted by weighted least squares on log E. The statistic is the difference of their chi-squares (which is
    the difference of their AIC, as both have two parameters); its distribution under either model is simulated from
    that model's own fit with the given errors (Cox's test of separate families, by parametric bootstrap).

    Args:
        N: at least 3 different values; (n,).
        medians: positive and finite; (n,).
        errors: standard errors of log medians; (n,).

    Source: Cox 1962; Williams 1970 (the bootstrap).
    """
    errors = np.maximum(errors, _SMALLEST_ERROR)
    y = np.log(medians)
    stream = np.random.default_rng([len(N), _NUM_SIMULATIONS])
    noise = stream.normal(size=(_NUM_SIMULATIONS, len(N))) * errors
    power, overhead = _fit_power(N, y, errors), _fit_overhead(N, y, errors)
    delta = float(overhead[0] - power[0])
    p = {}
    for name, fitted in (("overhead", overhead[1]), ("power", power[1])):
        simulated = fitted + noise
        deltas = _fit_overhead(N, simulated, errors)[0] - _fit_power(N, simulated, errors)[0]
        beyond = deltas >= delta if name == "overhead" else deltas <= delta
        p[name] = float((1 + beyond.sum()) / (1 + _NUM_SIMULATIONS))
    rejected = (p["overhead"] < _LEVEL, p["power"] < _LEVEL)
    ratio, scale = overhead[2], overhead[3]
    return ModelComparison(float(ratio * scale), float(scale), delta, p["overhead"], p["power"], _CONCLUSIONS[rejected])


def _fit_power(N: np.ndarray, y: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chi-square (...) and fitted log medians (..., n) of the power law."""
    weight = errors**-2
    x = np.log(N) - (weight * np.log(N)).sum() / weight.sum()
    slope = (weight * x * y).sum(axis=-1) / (weight * x * x).sum()
    level = (weight * y).sum(axis=-1) / weight.sum()
    fitted = level[..., None] + slope[..., None] * x
    return (((y - fitted) / errors) ** 2).sum(axis=-1), fitted


def _fit_overhead(N: np.ndarray, y: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, ...]:
    """Chi-square (...), fitted log medians (..., n), c/a (...) and a (...) of the additive overhead.

    For a given c/a the best log a is a weighted mean, so that only c/a is searched for.
    """
    least, most = float(N.min()), float(N.max())
    ratios = np.concatenate(
        [-least * np.linspace(0.98, 0.02, 49), [0.0], least * np.geomspace(0.02, 1e4 * most / least, 400)]
    )
    shape = np.log(ratios[:, None] + N)
    weight = errors**-2
    # chi-square of y - shape less its weighted mean: the squared distance of two centered vectors
    center_y = y - (weight * y).sum(axis=-1, keepdims=True) / weight.sum()
    center_shape = shape - (weight * shape).sum(axis=-1, keepdims=True) / weight.sum()
    square = (weight * center_y**2).sum(axis=-1)[..., None] + (weight * center_shape**2).sum(axis=-1)
    square = square - 2 * (center_y * weight) @ center_shape.T
    best = square.argmin(axis=-1)
    fitted = center_shape[best] + (y - center_y)
    scale = np.exp((weight * (y - shape[best])).sum(axis=-1) / weight.sum())
    return (((y - fitted) / errors) ** 2).sum(axis=-1), fitted, ratios[best], scale


def estimate_scaling(cells: pd.DataFrame, by: tuple[str, ...] = ("agent", "channel", "model")) -> pd.DataFrame:
    """Exponents of E50 in N, and what the test says of them.

    N whose median is not reached, or is 0 (the prior knew), are left out and counted.

    Args:
        cells: measured cells at their chosen settings, at most one a (group, N, seed).
        by: columns that make a group.

    Returns:
        One row per group with at least two usable N: the columns `by`, num_N, num_left_out, smallest_N, largest_N,
        exponent with _lower and _upper; with three or more N also the fields of ModelComparison, where the
        conclusion is `flat` if the exponent's interval holds 0 (then neither model has anything to explain).
    """
    point, points = number_groups(cells, [*by, "N"])
    medians, resampled = group_medians(cells, point, len(points))
    size = cells["batch_size"].fillna(1).astype(float).groupby(point, sort=True).mean().to_numpy()
    series, keys = number_groups(points, by)
    records = []
    for number in range(len(keys)):
        rows = np.flatnonzero(series == number)
        usable = rows[np.isfinite(medians[rows]) & (medians[rows] > 0)]
        if len(usable) < 2:
            continue
        N = points["N"].to_numpy(dtype=float)[usable]
        lower, upper = exponent_interval(N, resampled[usable])
        record = {
            **keys.iloc[number].to_dict(),
            "num_N": len(usable),
            "num_left_out": len(rows) - len(usable),
            "smallest_N": int(N.min()),
            "largest_N": int(N.max()),
            "exponent": float(fit_exponent(N, medians[usable])),
            "exponent_lower": lower,
            "exponent_upper": upper,
        }
        if len(usable) >= 3:
            errors = _log_errors(medians[usable], resampled[usable], size[usable])
            record |= asdict(compare_models(N, medians[usable], errors))
            if lower <= _ROUNDING and upper >= -_ROUNDING:
                record["conclusion"] = "flat"
        records.append(record)
    return pd.DataFrame(records)


def _log_errors(medians: np.ndarray, resampled: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Standard errors of log medians: the spread of resamples, and the rounding to whole updates of `size` episodes."""
    logs = np.log(np.where(np.isfinite(resampled), np.maximum(resampled, 1e-9), np.nan))
    return np.sqrt(np.nanvar(logs, axis=1) + (size / medians) ** 2 / 12)
