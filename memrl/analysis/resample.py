"""Bootstrap intervals over secrets, for many conditions at once."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Real

from memrl.analysis.survival import Estimates

NUM_RESAMPLES = 999
_SEED = 20250929
_CHUNK = 400
"""Conditions whose resamples are held in memory together."""

_SMALLEST_ERROR = 0.2
"""A resample's standard error, as a share of the sample's, at least: a resample of few distinct values has none."""

Smooth = Callable[[Float[np.ndarray, "*batch p"]], Float[np.ndarray, "..."]]
"""Means (..., p) to one value (...), or to the gradient (..., p)."""


def draw_weights(
    num_secrets: int, num_resamples: int = NUM_RESAMPLES
) -> Float[np.ndarray, "{num_resamples} {num_secrets}"]:
    """How often each resample draws each secret; the same numbers for the same arguments.

    Returns:
        Counts; every row sums to `num_secrets`.
    """
    stream = np.random.default_rng([_SEED, num_secrets, num_resamples])
    return stream.multinomial(num_secrets, np.full(num_secrets, 1.0 / num_secrets), size=num_resamples).astype(float)


def percentile_interval(
    resampled: Float[np.ndarray, "*batch resample"], confidence: float = 0.95
) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    """The middle `confidence` of resampled values along the last axis; ends may be inf.

    >>> low, high = percentile_interval(np.arange(999.0))
    >>> float(low), float(high)
    (24.0, 974.0)
    """
    ordered = np.sort(resampled, axis=-1)
    count = ordered.shape[-1]
    index = max(round((count + 1) * (1 - confidence) / 2) - 1, 0)
    return np.asarray(ordered[..., index]), np.asarray(ordered[..., count - 1 - index])


def studentized_interval(
    samples: Float[np.ndarray, "condition secret p"],
    present: Bool[np.ndarray, "condition secret"],
    statistic: Smooth,
    gradient: Smooth,
    log_scale: bool = False,
) -> Estimates:
    """Bootstrap-t interval of a smooth function g of means, one condition a row.

    t* = (g* - g) / se*, with se^2 = grad^T Cov grad / (n-1) by the delta method; the interval is
    [g - t*_(97.5 %) se, g - t*_(2.5 %) se]. It follows the skew of g, which the plain percentile interval does not.

    Args:
        samples: one p-vector per secret.
        present: which secrets a condition has.
        statistic: g, from means (..., p) to (...).
        gradient: of g, from means (..., p) to (..., p).
        log_scale: build the interval for log g where g is positive, so that it stays positive.

    Returns:
        One estimate per condition. A condition without a secret is NaN; with one secret its interval is (-inf, inf).

    Source: Efron and Tibshirani 1993, section 12.5.
    """
    counts = present.sum(axis=1)
    out = np.full((3, len(samples)), np.nan)
    for n in np.unique(counts[counts > 0]):
        rows = np.flatnonzero(counts == n)
        for chunk in np.split(rows, range(_CHUNK, len(rows), _CHUNK)):
            values = samples[chunk][present[chunk]].reshape(len(chunk), n, samples.shape[2])
            out[:, chunk] = _studentize(values, statistic, gradient, log_scale)
    return Estimates(*out)


def _studentize(
    values: Float[np.ndarray, "condition secret p"], statistic: Smooth, gradient: Smooth, log_scale: bool
) -> Float[np.ndarray, "3 condition"]:
    """Value, lower and upper end for conditions of equal size."""
    n = values.shape[1]
    value, error = _value_and_error(values, np.ones((1, n)) / n, statistic, gradient)
    value, error = value[:, 0], error[:, 0]
    if n == 1:
        return np.stack([value, np.full_like(value, -np.inf), np.full_like(value, np.inf)])
    drawn, drawn_error = _value_and_error(values, draw_weights(n) / n, statistic, gradient)
    drawn_error = np.maximum(drawn_error, _SMALLEST_ERROR * error[:, None])
    use_log = log_scale & (value > 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        plain = (drawn - value[:, None]) / drawn_error
        logged = np.where(drawn > 0, np.log(drawn / value[:, None]) * drawn / drawn_error, -np.inf)
        pivots = np.where(use_log[:, None], logged, plain)
        low, high = percentile_interval(np.nan_to_num(pivots, nan=0.0, posinf=np.inf, neginf=-np.inf))
        log_ends = [value * np.exp(-t * error / value) for t in (high, low)]
        ends = [np.where(use_log, x, value - t * error) for x, t in zip(log_ends, (high, low), strict=True)]
    exact = error <= 1e-12 * np.abs(value)
    return np.stack([value, *(np.where(exact, value, end) for end in ends)])


def _value_and_error(
    values: Float[np.ndarray, "condition secret p"],
    weights: Float[np.ndarray, "resample secret"],
    statistic: Smooth,
    gradient: Smooth,
) -> tuple[Float[np.ndarray, "condition resample"], Float[np.ndarray, "condition resample"]]:
    """The statistic and its standard error under each row of weights (which sum to 1)."""
    n, p = values.shape[1:]
    centered = values - values.mean(axis=1, keepdims=True)
    shift = np.einsum("rn,cnp->crp", weights, centered, optimize=True)
    products = (centered[..., :, None] * centered[..., None, :]).reshape(len(values), n, p * p)
    second = np.einsum("rn,cnq->crq", weights, products, optimize=True).reshape(*shift.shape[:2], p, p)
    means = shift + values.mean(axis=1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = gradient(means)
        square = np.einsum("crp,crpq,crq->cr", slope, second, slope, optimize=True)
        square -= np.einsum("crp,crp->cr", slope, shift) ** 2
        return statistic(means), np.sqrt(np.maximum(square, 0.0) / max(n - 1, 1))


def estimate_ratio(
    numerator: Real[np.ndarray, "condition secret"],
    denominator: Real[np.ndarray, "condition secret"],
    present: Bool[np.ndarray, "condition secret"],
) -> Estimates:
    """Ratio of sums, such as bits per episode, with its bootstrap-t interval.

    sum(numerator) / sum(denominator) is the long-run rate of memorizing secret after secret (renewal-reward), and takes
    censored runs for what they are: so many bits, in so many episodes.

    Args:
        numerator: what is summed.
        denominator: positive.
        present: which secrets a condition has.

    Returns:
        One estimate per condition.
    """
    samples = np.stack([numerator, denominator], axis=-1)
    return studentized_interval(samples, present, _ratio, _ratio_gradient, log_scale=True)


def estimate_ratio_difference(
    first: tuple[Real[np.ndarray, "condition secret"], Real[np.ndarray, "condition secret"]],
    second: tuple[Real[np.ndarray, "condition secret"], Real[np.ndarray, "condition secret"]],
    present: Bool[np.ndarray, "condition secret"],
) -> Estimates:
    """Difference of two ratios of sums over the same secrets, with its bootstrap-t interval.

    Args:
        first: numerator and denominator of the ratio that counts positive.
        second: those of the ratio that is taken away.
        present: which secrets a condition has.

    Returns:
        One estimate per condition.
    """
    samples = np.stack([*first, *second], axis=-1)
    return studentized_interval(
        samples,
        present,
        lambda m: _ratio(m[..., :2]) - _ratio(m[..., 2:]),
        lambda m: np.concatenate([_ratio_gradient(m[..., :2]), -_ratio_gradient(m[..., 2:])], axis=-1),
    )


def estimate_ratio_of_ratios(
    first: tuple[Real[np.ndarray, "condition secret"], Real[np.ndarray, "condition secret"]],
    second: tuple[Real[np.ndarray, "condition secret"], Real[np.ndarray, "condition secret"]],
    present: Bool[np.ndarray, "condition secret"],
) -> Estimates:
    """Ratio of two ratios of sums over the same secrets, with its bootstrap-t interval.

    Args:
        first: numerator and denominator of the ratio on top.
        second: those of the ratio below.
        present: which secrets a condition has.

    Returns:
        One estimate per condition.
    """

    def quotient(means: np.ndarray) -> np.ndarray:
        return _ratio(means[..., :2]) / _ratio(means[..., 2:])

    def gradient(means: np.ndarray) -> np.ndarray:
        top, below, other_top, other_below = np.moveaxis(means, -1, 0)
        slope = other_below / (below * other_top)
        parts = (slope, -top * slope / below, -top * slope / other_top, top / (below * other_top))
        return np.stack(parts, axis=-1)

    samples = np.stack([*first, *second], axis=-1)
    return studentized_interval(samples, present, quotient, gradient, log_scale=True)


def _ratio(means: Float[np.ndarray, "*batch p"]) -> Float[np.ndarray, "*batch"]:
    return means[..., 0] / means[..., 1]


def _ratio_gradient(means: Float[np.ndarray, "*batch p"]) -> Float[np.ndarray, "*batch p"]:
    return np.stack([1.0 / means[..., 1], -means[..., 0] / means[..., 1] ** 2], axis=-1)


def divide_estimates(top: Estimates, bottom: Estimates) -> Estimates:
    """The ratio of two independent positive estimates, from their intervals on the log scale (MOVER).

    With l, u the ends of log top and l', u' those of log bottom, the interval of the log ratio is
    d - sqrt((log top - l)^2 + (u' - log bottom)^2) to d + sqrt((u - log top)^2 + (log bottom - l')^2). Where both come
    from few secrets it is somewhat too wide (97 to 98 % for two medians of 16).

    >>> one = Estimates(np.array([8.0]), np.array([4.0]), np.array([16.0]))
    >>> exact = Estimates(np.array([2.0]), np.array([2.0]), np.array([2.0]))
    >>> ratio = divide_estimates(one, exact)
    >>> [round(float(x[0]), 9) for x in (ratio.value, ratio.lower, ratio.upper)]
    [4.0, 2.0, 8.0]

    Source: Zou and Donner 2008.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = ([np.log(np.maximum(x, 0.0)) for x in (e.value, e.lower, e.upper)] for e in (top, bottom))
        below = np.sqrt((a[0] - a[1]) ** 2 + (b[2] - b[0]) ** 2)
        above = np.sqrt((a[2] - a[0]) ** 2 + (b[0] - b[1]) ** 2)
        ratio = top.value / bottom.value
        lower, upper = np.exp(a[0] - b[0] - below), np.exp(a[0] - b[0] + above)
        open_top, open_bottom = np.isinf(top.value), np.isinf(bottom.value)
        lower = np.where(open_top, top.lower / bottom.upper, np.where(open_bottom, 0.0, lower))
        upper = np.where(open_top, np.inf, np.where(open_bottom, top.upper / bottom.lower, upper))
    return Estimates(np.where(open_top & open_bottom, np.nan, ratio), lower, upper)
