"""The table that a sweep ends with: what it took to memorize, by N and channel."""

import math
from collections.abc import Iterable

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from memrl.analysis.cells import measured_cells
from memrl.analysis.estimate import describe_choices, estimate_groups
from memrl.analysis.selection import hold_out_settings
from memrl.tables.schema import EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

_GROUP = ["N", "channel"]


def summarize(store: TableStore, cell_ids: Iterable[str]) -> Table:
    """Builds the table of a sweep's cells.

    `cells`, `memorized` and `failed` count all settings. The episodes and rates are those of the setting (learning
    rate, rank, ...) that was chosen on the other half of the seeds: Kaplan-Meier medians, where `>` says that too few
    runs got there, and absorbed bits over episodes.

    Args:
        store: where the rows are.
        cell_ids: the cells to count; rows of others are left out.
    """
    rows = store.read(EPISODES_TO_MEMORIZE).to_pandas()
    rows = rows[rows["cell_id"].isin(set(cell_ids)) & (rows["agent"] == "lora")]
    shown = summarize_rows(rows)
    table = Table(title="Episodes to memorize, medians", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for name in shown.columns:
        justify = "left" if name == "channel" else "right"
        table.add_column(name, justify=justify, overflow="fold" if name == "channel" else "ellipsis")
    for _, row in shown.iterrows():
        table.add_row(*row)
    return table


def summarize_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """One row an N and channel, as text.

    Args:
        rows: of episodes_to_memorize, of trained policies.

    Returns:
        Columns N, channel, cells, memorized, failed, E50, E90, bits/episode and setting.
    """
    counts = rows.assign(memorized=rows["status"] == "memorized", failed=rows["status"] == "failed")
    counts = counts.groupby(_GROUP).agg(
        cells=("cell_id", "size"), memorized=("memorized", "sum"), failed=("failed", "sum")
    )
    measured = measured_cells(rows)
    if measured.empty:
        return counts.reset_index().astype(str)
    chosen = hold_out_settings(measured, within=["agent", *_GROUP, "model"])
    estimates = pd.concat([estimate_groups(chosen, _GROUP), describe_choices(chosen, _GROUP)], axis=1)
    most = pd.Series(chosen.groupby(_GROUP)["episodes"].max()).tolist()
    shown = pd.DataFrame(
        {
            **{name: estimates[name] for name in _GROUP},
            **{name.upper(): _format_medians(estimates[name].tolist(), most) for name in ("e50", "e90")},
            "bits/episode": [f"{value:.3g}" for value in estimates["bits_per_episode"]],
            "learning rate": estimates["learning_rates"],
            "rank": estimates["lora_ranks"],
        }
    )
    return counts.reset_index().merge(shown, on=_GROUP, how="left").fillna("").astype(str)


def _format_medians(medians: list[float], most: list[float]) -> list[str]:
    return [
        f"{median:,.0f}" if math.isfinite(median) else f"> {bound:,.0f}"
        for median, bound in zip(medians, most, strict=True)
    ]
