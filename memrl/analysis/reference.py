"""A sweep's own medians beside those of the reference result that comes with the code."""

import numpy as np
import pandas as pd

from memrl.analysis.cells import CELL_COLUMNS, IDENTITY, TUNED, measured_cells
from memrl.analysis.estimate import estimate_groups
from memrl.analysis.selection import hold_out_settings
from memrl.analysis.style import describe_channels, sort_for_readers
from memrl.analysis.wording import format_estimate
from memrl.tables.schema import EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

SETTING = (*IDENTITY, *TUNED)
_ENDS = ("e50", "e50_lower", "e50_upper")


def compare_with_reference(own: TableStore, reference: TableStore) -> list[str]:
    """How far a sweep gives the reference's medians again, in one or two lines.

    Args:
        own: tables of the sweep.
        reference: tables that come with the code.
    """
    compared = compare_medians(_read_trained(own), _read_trained(reference))
    if compared.empty:
        return [f"reference ({reference.address}): it holds none of these settings"]
    agrees = compared["overlap"].to_numpy()
    lines = [
        f"reference ({reference.address}): the 95 % intervals of E50 overlap in {agrees.sum()} of {len(agrees)} "
        "conditions (channel and N)"
    ]
    if not agrees.all():
        lines.append(f"they do not overlap at {'; '.join(map(_describe, compared[~agrees].to_dict('records')))}")
    return lines


def compare_medians(own: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """E50 of every condition that both sweeps measured, at settings that both tried.

    Each sweep chooses its settings by its own secrets (`hold_out_settings`), from the settings that it shares with the
    other one, so that a sweep over part of the reference's grid is compared with that part.

    Args:
        own: measured cells of trained policies.
        reference: the same, of the other sweep.

    Returns:
        One row a condition (the columns IDENTITY, channels as readers call them), in reading order: e50 with _lower
        and _upper in episodes, the same with the suffix _reference, and overlap: whether the two intervals share a
        point.
    """
    own, reference = _keep_shared(own, reference), _keep_shared(reference, own)
    if own.empty:
        return pd.DataFrame()
    medians = [estimate_groups(hold_out_settings(cells))[[*IDENTITY, *_ENDS]] for cells in (own, reference)]
    compared = medians[0].merge(medians[1], on=list(IDENTITY), suffixes=("", "_reference"))
    overlap = (compared["e50_lower"] <= compared["e50_upper_reference"]) & (
        compared["e50_lower_reference"] <= compared["e50_upper"]
    )
    channels = describe_channels(own)
    labels = dict(zip(channels["name"], channels["label"], strict=True))
    compared = compared.assign(overlap=overlap, channel=compared["channel"].map(labels))
    return sort_for_readers(compared, channels["label"])


def _read_trained(store: TableStore) -> pd.DataFrame:
    table = store.read(EPISODES_TO_MEMORIZE, list(CELL_COLUMNS)).to_pandas()
    return measured_cells(table[(table["agent"] == "lora").to_numpy()])


def _keep_shared(cells: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The cells whose setting the other table has, too."""
    keys, others = (pd.MultiIndex.from_frame(table[list(SETTING)].astype(str)) for table in (cells, other))
    return cells[np.asarray(keys.isin(others))].reset_index(drop=True)


def _describe(row: dict[str, object]) -> str:
    own, reference = (format_estimate(*(row[f"{name}{suffix}"] for name in _ENDS)) for suffix in ("", "_reference"))  # pyright: ignore[reportArgumentType]
    return f"{row['channel']}, N = {row['N']} ({own} here, {reference} there)"
