"""Rows of episodes_to_memorize as conditions: which cells differ by their secret alone."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from memrl.config import ROLES, fields_of
from memrl.tables.rows import LORA
from memrl.tables.schema import AGENTS, AGENTS_SCHEMA, EPISODES_TO_MEMORIZE, EPISODES_TO_MEMORIZE_SCHEMA
from memrl.tables.store import TableStore
from memrl.task.reach import MILESTONES

IDENTITY = ("agent", "channel", "N", "model")
"""What a headline number is about; everything else that a cell may be told is tuned."""

_TASK_FIELDS = fields_of("task", "draw", "channel")
TUNED = tuple(name for name in fields_of(*ROLES) if name not in (*IDENTITY, *_TASK_FIELDS))
"""Fields that may be chosen, in the order in which ties are broken."""

NUMBERS = (
    "e50",
    "e90",
    "half_bits",
    "episodes",
    "updates",
    "absorbed_bits",
    "observed_bits",
    "signal_bits",
    "capacity_nominal_bits",
    "capacity_uniform_bits",
    "capacity_best_bits",
    "prior_kl_bits",
    "prior_well_formed",
    "interference",
    "adapter_parameters",
    "learning_rate",
    "lora_rank",
)
CELL_COLUMNS = (
    "cell_id",
    *IDENTITY,
    *(name for name in _TASK_FIELDS if name not in (*IDENTITY, "secret")),
    *TUNED,
    *(name for name in NUMBERS if name not in TUNED),
    "identifiable",
    "e50_censored",
    "e90_censored",
    "half_bits_censored",
    "status",
    "error",
    "seconds",
    "tokens",
    "created",
    "versions",
    "revision",
)
"""The columns of episodes_to_memorize that the analysis reads."""

assert set(CELL_COLUMNS) <= set(EPISODES_TO_MEMORIZE_SCHEMA.names)


def find_trainer(store: TableStore) -> str:
    """Whose runs a report is about: memrl's own, or where it trained none those of the trainer that has most rows."""
    names = store.read(EPISODES_TO_MEMORIZE, ["agent"]).to_pandas()["agent"].astype(str)
    return LORA if names.empty or (names == LORA).any() else str(names.value_counts().idxmax())


def read_cells(store: TableStore, trainer: str = LORA) -> pd.DataFrame:
    """Trained cells, and below them the agents, in CELL_COLUMNS; null where an agent has no such column.

    The runs of `trainer`, another one than memrl, stand as its own would.
    """
    trained = store.read(EPISODES_TO_MEMORIZE, CELL_COLUMNS)
    agents = store.read(AGENTS, [name for name in CELL_COLUMNS if name in AGENTS_SCHEMA.names])
    table = pa.concat_tables([trained, agents], promote_options="default").to_pandas()
    return table if trainer == LORA else table.assign(agent=table["agent"].astype(str).replace(trainer, LORA))


def measured_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that measured something, with plain numpy types.

    A failed cell that never reported its episodes measured nothing; a run that ended early did (it is censored).

    Args:
        table: rows of episodes_to_memorize or agents, or both; at least CELL_COLUMNS without null in cell_id, agent,
            channel, N and seed.

    Returns:
        A copy, with numbers as float64 (N and seed as int64), flags as bool, texts as such and a fresh index. What a
        censored run never reached, null in the table, holds the episodes that it used in all: whoever estimates from
        the copy must heed the flag.
    """
    table = table.astype(dict.fromkeys(table.select_dtypes("category"), object))
    cells = table.loc[table["absorbed_bits"].notna() & (table["episodes"] > 0)].reset_index(drop=True)
    for name in NUMBERS:
        cells[name] = cells[name].astype("float64")
    for name in MILESTONES:
        if name in cells:
            cells[f"{name}_censored"] = cells[f"{name}_censored"].fillna(True).astype(bool)
            cells[name] = cells[name].astype("float64").where(~cells[f"{name}_censored"], cells["episodes"])
    return cells.astype({"N": "int64", "seed": "int64"})


def count_budgets(cells: pd.DataFrame) -> np.ndarray:
    """The most episodes that each run was allowed, float64 (rows,); NaN for agents.

    See `TrainConfig.episode_budget`.
    """
    per_update = cells["batch_size"].astype(float).fillna(cells["group_size"].astype(float)).fillna(1.0)
    return np.fmin(cells["n_steps"].astype(float) * per_update, cells["max_episodes"].astype(float)).to_numpy()


def number_groups(cells: pd.DataFrame, by: Sequence[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """Numbers the distinct combinations of some columns, nulls included, in sorted order.

    >>> codes, keys = number_groups(pd.DataFrame({"N": [4, 2, 4], "credit": [None, None, None]}), ["N", "credit"])
    >>> codes.tolist(), keys["N"].tolist()
    ([1, 0, 1], [2, 4])

    Returns:
        The number of each row's combination, int64 (rows,); and one row per combination, with the columns `by`.
    """
    varying = [name for name in by if cells[name].nunique(dropna=False) > 1]
    if not varying:
        return np.zeros(len(cells), dtype=np.int64), cells[list(by)].head(1).reset_index(drop=True)
    codes = cells.groupby(varying, dropna=False, sort=True).ngroup().to_numpy(dtype=np.int64)
    _, first = np.unique(codes, return_index=True)
    return codes, cells[list(by)].iloc[first].reset_index(drop=True)
