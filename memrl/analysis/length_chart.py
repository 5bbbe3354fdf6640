"""The chart of episodes against the length of a sequence."""

import altair as alt
import numpy as np
import pandas as pd

from memrl.analysis.chart_parts import LETTER, LogAxis, bound_interval, draw_spans, log_ends, spread_out
from memrl.analysis.drawing import Width
from memrl.analysis.wording import format_number


def chart_lengths(data: pd.DataFrame, width: Width) -> alt.TopLevelMixin:
    """Episodes to half of the bits against bits, both logarithmic, every line with its name and exponent at the end."""
    order = list(dict.fromkeys(data["name"]))
    data = data.assign(
        at=data["half_bits"].where(np.isfinite(data["half_bits"]), data["half_bits_at_least"]),
        dodged=data["signal_bits"] * 1.012 ** (data["name"].map(order.index) - (len(order) - 1) / 2),
    )
    ends = log_ends(data, ["at", "half_bits_lower", "half_bits_upper", "bound"], shrink=0.8)
    own = bound_interval(data[(data["agent"] == "lora").to_numpy()], "half_bits", ends, "at")
    height = (0.62 if width.num_columns < 4 else 0.5) * width.points
    names = _place_names(data, ends, height)
    plot = width.points - 30 - 0.92 * LETTER * names["text"].map(len).max()
    bits = sorted(data["signal_bits"].unique())
    x = LogAxis("X", "bits of the sequence", (min(bits) / 1.15, max(bits) * 1.1), bits)
    y = LogAxis("Y", "episodes to half of the bits", ends)
    color = alt.Color("color:N", scale=None)
    base = alt.Chart(own).encode(x=x.of("dodged"), color=color, description="said:N")
    chosen, usual = "datum.objective != 'usual'", "datum.objective == 'usual'"
    tables = alt.Chart(data[(data["agent"] != "lora").to_numpy() & np.isfinite(data["half_bits"])])
    bounds = data[(data["agent"] == "lora").to_numpy()].drop_duplicates(["line", "signal_bits"])
    reached = alt.Chart(own[np.isfinite(own["half_bits"])])
    lines = {"x": x.of("dodged"), "color": color, "detail": "name:N"}
    layers = [
        alt.Chart(bounds).mark_line(strokeWidth=0.8, strokeDash=[5, 3]).encode(**lines, y=y.of("bound")),
        tables.mark_line(strokeWidth=1, strokeDash=[1, 2]).encode(**lines, y=y.of("at"), description="said:N"),
        reached.transform_filter(chosen).mark_line(strokeWidth=1.4).encode(**lines, y=y.of("at")),
        reached.transform_filter(usual).mark_line(strokeWidth=0.8).encode(**lines, y=y.of("at")),
        *draw_spans(base, y, thickness=0.7),
        base.transform_filter(f"isFinite(datum.half_bits) && {chosen}")
        .mark_circle(size=24, opacity=1)
        .encode(y=y.of("at")),
        base.transform_filter(f"isFinite(datum.half_bits) && {usual}")
        .mark_point(size=20, fill="white", strokeWidth=1, opacity=1)
        .encode(y=y.of("at")),
        alt.Chart(names)
        .mark_rule(strokeWidth=0.4)
        .encode(x=alt.value(plot + 1), x2=alt.value(plot + 9), y=y.of("last"), y2="place:Q", color=color),
        alt.Chart(names).mark_text(align="left").encode(x=alt.value(plot + 11), y=y.of("place"), text="text:N"),
    ]
    return alt.layer(*layers).properties(width=plot, height=height)


def _place_names(data: pd.DataFrame, ends: tuple[float, float], height: float) -> pd.DataFrame:
    """One row per line of a trained policy: its name with its exponent, at a place that no other name takes."""
    own = data[(data["agent"] == "lora").to_numpy()]
    last = own.sort_values("signal_bits").groupby("name").last().sort_values("at").reset_index()
    least = np.log(ends[1] / ends[0]) * 8.5 / height
    place = np.exp(spread_out(np.log(last["at"].to_numpy()), least, float(np.log(ends[1]))))
    return last[["color"]].assign(last=last["at"], place=place, text=[_name(row) for row in last.to_dict("records")])


def _name(row: dict[str, float]) -> str:
    if not np.isfinite(row["exponent"]):
        return f"{row['name']}"
    numbers = (format_number(row[f"exponent{end}"], 2) for end in ("", "_lower", "_upper"))
    value, lower, upper = numbers
    return f"{row['name']}: {value} [{lower}, {upper.replace('not reached', '∞')}]"
