"""How numbers are written for readers."""

import numpy as np


def format_estimate(value: float, lower: float, upper: float) -> str:
    """An estimate with its interval, three significant digits.

    >>> format_estimate(0.01234, 0.009, float("inf")), format_estimate(float("inf"), 120, float("inf"))
    ('0.0123 [0.009, ∞)', 'more than 120')
    >>> format_estimate(1.5, -float("inf"), 2.0)
    '1.5 (−∞, 2]'
    """
    if np.isinf(value) and value > 0:
        return f"more than {format_number(lower)}" if np.isfinite(lower) else "not reached"
    start = "(−∞" if np.isneginf(lower) else f"[{format_number(lower)}"
    end = "∞)" if np.isinf(upper) else f"{format_number(upper)}]"
    return f"{format_number(value)} {start}, {end}"


def format_number(value: float, digits: int = 3) -> str:
    """A number for a reader: significant digits, thousands set apart, no exponent unless it is tiny.

    >>> [format_number(x) for x in (12345.6, 0.000012, 64.0, float("inf"), float("nan"))]
    ['12,346', '1.2e-05', '64', 'not reached', '–']
    """
    if np.isnan(value):
        return "–"
    if np.isinf(value):
        return "not reached" if value > 0 else "−∞"
    if abs(value) < 1e-9:
        return "0"
    text = f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
    return text.replace("-", "−", 1) if text.startswith("-") else text
