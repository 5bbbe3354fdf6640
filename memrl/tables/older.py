"""Rows of older schema versions, as of this one.

Up to version 1 the rows of agents stood in episodes_to_memorize, and a milestone that a run never reached held the
episodes that it used in all.
"""

import pyarrow as pa
import pyarrow.compute as pc

from memrl.tables.schema import AGENTS_SCHEMA
from memrl.task.reach import MILESTONES

LAST_MIXED_VERSION = 1
"""The last version in which agents stood in episodes_to_memorize."""

NEEDED = ("agent", *(f"{name}_censored" for name in MILESTONES))
"""Columns without which the others can't be understood."""

_LORA = "lora"


def keep_trained(rows: pa.Table) -> pa.Table:
    """The rows of trained policies, with null for what was not reached.

    >>> rows = {"agent": ["lora", "lora", "greedy"], "e50": [8, 96, 5], "e50_censored": [False, True, False]}
    >>> keep_trained(pa.table(rows)).to_pydict()
    {'agent': ['lora', 'lora'], 'e50': [8, None], 'e50_censored': [False, True]}
    """
    return _blank_unreached(rows.filter(pc.equal(rows["agent"], _LORA)))


def keep_agents(rows: pa.Table) -> pa.Table:
    """The rows of agents, in the columns that agents have, with null for what was not reached."""
    return _blank_unreached(rows.filter(pc.not_equal(rows["agent"], _LORA))).select(AGENTS_SCHEMA.names)


def _blank_unreached(rows: pa.Table) -> pa.Table:
    for name in set(MILESTONES) & set(rows.column_names):
        if f"{name}_censored" in rows.column_names:
            column = rows[name]
            blank = pc.if_else(rows[f"{name}_censored"], pa.scalar(None, column.type), column)
            rows = rows.set_column(rows.column_names.index(name), name, blank)
    return rows
