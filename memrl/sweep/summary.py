"""The table that a sweep ends with: what it took to memorize, by N and channel."""

import math
from collections.abc import Iterable
from pathlib import PurePosixPath

import pandas as pd
from rich.table import Table

from memrl.analysis.cells import measured_cells
from memrl.analysis.estimate import estimate_groups
from memrl.analysis.selection import hold_out_settings
from memrl.analysis.style import describe_channels, sort_for_readers
from memrl.analysis.wording import format_number
from memrl.tables.schema import EPISODES_TO_MEMORIZE, Row
from memrl.tables.store import TableStore

_GROUP = ["model", "N", "channel"]
_NARROWEST = 10
"""Letters of a name on a line, at least."""


def summarize(store: TableStore, cell_ids: Iterable[str]) -> tuple[str, Table]:
    """The title and the table of a sweep's cells: where it is too wide, names go on in a next line.

    Args:
        store: where the rows are.
        cell_ids: the cells to count; rows of others are left out.
    """
    rows = store.read(EPISODES_TO_MEMORIZE).to_pandas()
    rows = rows[rows["cell_id"].isin(set(cell_ids)) & (rows["agent"] == "lora")]
    num_rows, shown = len(rows), summarize_rows(rows)
    num_cells = len(set(cell_ids))
    so_far = f"; so far, of {num_rows:,} of {num_cells:,} cells" if num_rows < num_cells else ""
    table = Table(box=None, header_style="bold")
    for name in shown.columns:
        if name in ("model", "channel"):
            table.add_column(name, overflow="fold", min_width=_NARROWEST)
        else:
            widest = max(map(len, [name, *shown[name]]))
            table.add_column(name, justify="right", no_wrap=True, min_width=widest)
    for _, row in shown.iterrows():
        table.add_row(*row)
    return f"Episodes to memorize, medians{so_far}", table


def summarize_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per model, N and channel, as text, channels as readers call them and in their order.

    `memorized` counts the cells of all settings. What follows is of the setting (learning rate, rank, ...) that was
    chosen on the other half of the seeds: Kaplan-Meier medians of the episodes to P(secret) = 0.5 and 0.9, where `>`
    says that too few runs got there; and the bits that the median run has absorbed at 0.9, over its episodes.

    Args:
        rows: of episodes_to_memorize, of trained policies.

    Returns:
        Columns model (if there are several), N, channel, memorized, failed (if any did), E50, E90 and bits/episode.
    """
    if rows.empty:
        return pd.DataFrame(columns=["N", "channel", "memorized"])
    status = rows["status"].astype(object)
    counts = rows.assign(memorized=status == "memorized", failed=status == "failed").groupby(_GROUP, observed=True)
    table = pd.DataFrame({"memorized": counts["memorized"].sum(), "failed": counts["failed"].sum()})
    sizes = counts.size()
    table["memorized"] = [f"{done}/{size}" for done, size in zip(table["memorized"], sizes, strict=True)]
    if not rows["status"].eq("failed").any():
        table = table.drop(columns="failed")
    measured = measured_cells(rows)
    if not measured.empty:
        table = table.join(_describe_chosen(measured))
    channels = describe_channels(rows)
    names = dict(zip(channels["name"], channels["label"], strict=True))
    table = table.reset_index().assign(channel=lambda found: found["channel"].astype(object).map(names))
    table = sort_for_readers(table, channels["label"]).sort_values(["model", "N"], kind="stable")
    if table["model"].nunique() == 1:
        table = table.drop(columns="model")
    else:
        table["model"] = [PurePosixPath(model).name for model in table["model"]]
    return table.fillna("").astype(str)


def _describe_chosen(measured: pd.DataFrame) -> pd.DataFrame:
    chosen = hold_out_settings(measured, within=["agent", *_GROUP])
    estimates = estimate_groups(chosen, _GROUP)
    longest = chosen.groupby(_GROUP, as_index=False).agg(longest=("episodes", "max"))
    estimates = estimates.merge(longest, on=_GROUP)
    columns = {
        "E50": [_format_median(*pair) for pair in zip(estimates["e50"], estimates["longest"], strict=True)],
        "E90": [_format_median(*pair) for pair in zip(estimates["e90"], estimates["longest"], strict=True)],
        "bits/episode": [_format_rate(row) for row in estimates.to_dict("records")],
    }
    return pd.DataFrame(columns, index=pd.MultiIndex.from_frame(estimates[_GROUP]))


def _format_median(median: float, longest: float) -> str:
    return f"{median:,.1f}".removesuffix(".0") if math.isfinite(median) else f"> {longest:,.0f}"


def _format_rate(row: Row) -> str:
    rate, most = row["bits_per_episode"], row["bits_per_episode_upper"]
    return format_number(rate, 2) if rate > 0 else f"< {format_number(most, 2)}" if math.isfinite(most) else "–"
