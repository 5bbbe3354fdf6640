"""The table that a sweep ends with: what it took to memorize, by N and channel."""

import math
from collections.abc import Iterable

import pandas as pd
from rich.table import Table

from memrl.analysis.cells import measured_cells
from memrl.analysis.estimate import estimate_groups
from memrl.analysis.selection import hold_out_settings
from memrl.tables.schema import EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

_GROUP = ["N", "channel"]


def summarize(store: TableStore, cell_ids: Iterable[str]) -> Table:
    """Builds the table of a sweep's cells.

    Args:
        store: where the rows are.
        cell_ids: the cells to count; rows of others are left out.
    """
    rows = store.read(EPISODES_TO_MEMORIZE).to_pandas()
    shown = summarize_rows(rows[rows["cell_id"].isin(set(cell_ids)) & (rows["agent"] == "lora")])
    table = Table(title="Episodes to memorize, medians", title_justify="left", title_style="bold", box=None)
    for name in shown.columns:
        table.add_column(name, justify="left" if name == "channel" else "right", no_wrap=True)
    for _, row in shown.iterrows():
        table.add_row(*row)
    return table


def summarize_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per N and channel, as text.

    `memorized` counts the cells of all settings. What follows is of the setting (learning rate, rank, ...) that was
    chosen on the other half of the seeds: Kaplan-Meier medians of the episodes to P(secret) = 0.5 and 0.9, where `>`
    says that too few runs got there; and the bits that the median run has absorbed at 0.9, over its episodes.

    Args:
        rows: of episodes_to_memorize, of trained policies.

    Returns:
        Columns N, channel, memorized, failed (if any did), E50, E90 and bits/episode.
    """
    counts = rows.assign(memorized=rows["status"] == "memorized", failed=rows["status"] == "failed").groupby(_GROUP)
    table = pd.DataFrame({"memorized": counts["memorized"].sum(), "failed": counts["failed"].sum()})
    sizes = counts.size()
    table["memorized"] = [f"{done}/{size}" for done, size in zip(table["memorized"], sizes, strict=True)]
    if not rows["status"].eq("failed").any():
        table = table.drop(columns="failed")
    measured = measured_cells(rows)
    if not measured.empty:
        table = table.join(_describe_chosen(measured))
    return table.reset_index().fillna("").astype(str)


def _describe_chosen(measured: pd.DataFrame) -> pd.DataFrame:
    chosen = hold_out_settings(measured, within=["agent", *_GROUP, "model"])
    estimates = estimate_groups(chosen, _GROUP)
    longest = chosen.groupby(_GROUP, as_index=False).agg(longest=("episodes", "max"))
    estimates = estimates.merge(longest, on=_GROUP)
    columns = {
        "E50": [_format_median(*pair) for pair in zip(estimates["e50"], estimates["longest"], strict=True)],
        "E90": [_format_median(*pair) for pair in zip(estimates["e90"], estimates["longest"], strict=True)],
        "bits/episode": [f"{value:.2g}" for value in estimates["bits_per_episode"]],
    }
    return pd.DataFrame(columns, index=pd.MultiIndex.from_frame(estimates[_GROUP]))


def _format_median(median: float, longest: float) -> str:
    return f"{median:,.0f}" if math.isfinite(median) else f"> {longest:,.0f}"
