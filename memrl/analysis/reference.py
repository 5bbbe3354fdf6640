"""A sweep's own medians beside those of the reference result that comes with the code."""

import numpy as np
import pandas as pd

from memrl.analysis.cells import IDENTITY, TUNED
from memrl.analysis.comparison import compare_conditions, read_trained
from memrl.analysis.figure_data import say_estimate
from memrl.tables.schema import Row
from memrl.tables.store import TableStore

SETTING = (*IDENTITY, *TUNED)


def compare_with_reference(own: TableStore, reference: TableStore) -> list[str]:
    """How far a sweep gives the reference's medians again, in one or two lines.

    Args:
        own: tables of the sweep.
        reference: tables that come with the code.
    """
    compared = compare_medians(read_trained(own), read_trained(reference))
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
    """`compare_conditions` at settings that both sweeps tried.

    Each sweep chooses its settings by its own secrets (`hold_out_settings`), from the settings that it shares with the
    other one, so that a sweep over part of the reference's grid is compared with that part.
    """
    return compare_conditions(_keep_shared(own, reference), _keep_shared(reference, own))


def _keep_shared(cells: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The cells whose setting the other table has, too."""
    keys, others = (pd.MultiIndex.from_frame(table[list(SETTING)].astype(str)) for table in (cells, other))
    return cells[np.asarray(keys.isin(others))].reset_index(drop=True)


def _describe(row: Row) -> str:
    return f"{row['channel']}, N = {row['N']} ({say_estimate(row, 'e50')} here, {say_estimate(row, 'e50_other')} there)"
