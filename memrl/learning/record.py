"""What a pack leaves in the tables: a curve row per cell and update, and a row for each cell that ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from memrl.config import hash_fields
from memrl.learning.policy import PackPolicy
from memrl.learning.state import PackState
from memrl.learning.update import Update
from memrl.learning.well import measure_well
from memrl.policy.calibration import Prior
from memrl.policy.warmup_record import read_interference
from memrl.tables.rows import trained_row
from memrl.tables.schema import CURVES_SCHEMA, Row
from memrl.task.own_reward import RewardError


@dataclass
class Record:
    """Rows that nobody has taken yet.

    Attributes:
        rows: of episodes_to_memorize.
        curves: the columns of curves, by name, of each update.
    """

    rows: list[Row] = field(default_factory=list)
    curves: list[dict[str, np.ndarray]] = field(default_factory=list)

    def drain(self) -> tuple[list[Row], pa.Table]:
        """Takes all rows: those of episodes_to_memorize, and those of curves."""
        rows, curves = self.rows, CURVES_SCHEMA.empty_table()
        if self.curves:
            columns = {name: np.concatenate([each[name] for each in self.curves]) for name in CURVES_SCHEMA.names}
            curves = pa.table(columns, schema=CURVES_SCHEMA)
        self.rows, self.curves = [], []
        return rows, curves

    @property
    def is_empty(self) -> bool:
        """Whether all rows have been taken."""
        return not self.rows and not self.curves


def tabulate_update(state: PackState, done: Update, root_cell: np.ndarray) -> dict[str, np.ndarray]:
    """One curve row per cell that was measured: its state before an update, and its own episodes where it made one.

    Args:
        state: right after the update, the cells that it ended still among them.
        done: the update.
        root_cell: the cell of each root of the walk, int64 (roots,).

    Returns:
        the columns, by name.
    """
    walk, progress = done.walk, state.progress
    count = walk.outcome_counts.sum(1)
    edges = walk.edge_logprob.detach()
    real = walk.outcome_path >= 0
    logprob, gap = (
        np.where(real, values.double().cpu().numpy()[walk.outcome_path], 0.0).sum(1)
        for values in (edges, (edges - done.rollout_logprob).abs())
    )

    episodes = np.bincount(walk.outcome_cell, count, minlength=len(state))

    def average(values: np.ndarray) -> np.ndarray:
        total = np.bincount(walk.outcome_cell, values * count, minlength=len(state))
        return np.where(done.learned, total / episodes, np.nan)

    reward = np.where(np.isnan(done.rewards), 0.0, done.rewards).sum(1)
    no_well = np.full(len(state), np.nan)
    well = no_well if done.advantages is None else measure_well(walk, done.advantages, root_cell)
    uses = np.array([config.updates_per_batch for config in state.configs])
    supervised = np.array([config.algorithm == "sft" for config in state.configs])
    # Copies of what the next update writes in place.
    columns = {
        "cell_id": np.array([config.cell_id for config in state.configs], dtype=object),
        "update": (progress.batches - done.learned) * uses,
        "episodes": progress.episodes - np.where(done.learned, progress.cost, 0),
        "observed_bits": progress.observed_bits.copy(),
        "absorbed_bits": progress.absorbed_bits.copy(),
        "mean_reward": np.where(supervised, np.nan, average(reward)),
        "well_formed": average(walk.outcomes.well_formed.astype(np.float64)),
        "entropy_bits": average(-logprob / np.log(2.0)),
        "well": np.where(supervised | ~done.learned, np.nan, well),
        "gradient_norm": np.where(done.learned, done.gradient_norm, np.nan),
        "logprob_gap": average(gap) / average(real.sum(1).astype(np.float64)),
    }
    return columns if done.measured.all() else {name: column[done.measured] for name, column in columns.items()}


def describe_cell(state: PackState, policy: PackPolicy, cell: int, prior: Prior, base: Mapping[str, str | None]) -> Row:
    """The row of episodes_to_memorize of a cell that has ended.

    Args:
        state: of its pack.
        policy: likewise.
        cell: its place in both.
        prior: the base policy's distance from uniform.
        base: the columns that tell of the base model and of what it ran on.
    """
    task = policy.tasks[cell]
    ids = [int(token) for token in policy.keys[cell].prompts[0]]
    asked: Row = {"prompt_hash": hash_fields({"ids": ids}), "answer_tokens": task.max_tokens}
    config, channel = state.configs[cell], policy.channels.values[policy.channels.index[cell]]
    asked["adapter_parameters"] = state.adapters.count_parameters(cell)
    asked["interference"] = read_interference(config.model, task)
    result = state.progress.result(cell, config.updates_per_batch)
    told = (prior.kl_bits, prior.well_formed_mass, {**base, **asked})
    try:
        return trained_row(config, channel, result, *told)
    except RewardError as error:  # its capacity asks for every guess and secret
        return trained_row(config, channel, replace(result, status="failed", error=str(error)), *told)
