"""Rows of episodes_to_memorize, of trained cells and of those that failed before they could train; rows of agents."""

from collections.abc import Mapping
from datetime import UTC, datetime

from memrl.config import TrainConfig, hash_fields
from memrl.tables.provenance import describe_processor, describe_versions, find_revision
from memrl.tables.schema import AGENTS_SCHEMA, EPISODES_TO_MEMORIZE_SCHEMA, Row
from memrl.task.reach import MILESTONES
from memrl.task.result import RunResult
from memrl.task.reward import Channel, build_channel
from memrl.task.secret import cell_secret
from memrl.theory.agents import AgentRun
from memrl.theory.capacity import channel_capacity
from memrl.theory.observer import observes_exactly

LORA = "lora"
"""The value of the column `agent` of a trained policy."""

_COLUMN_LIMIT = 1 << 63


def trained_row(
    config: TrainConfig,
    channel: Channel,
    result: RunResult,
    prior_kl_bits: float,
    prior_well_formed: float,
    base: Mapping[str, object],
) -> Row:
    """The row of a cell that was trained.

    Args:
        config: the cell.
        channel: its channel.
        result: how its run ended; where it failed, the capacities are null, for what failed may be the channel.
        prior_kl_bits: KL(uniform || policy) before the first update.
        prior_well_formed: mass on answers in range before the first update.
        base: the columns that tell of the base model and of what it ran on.
    """
    return {
        **_describe_cell(config),
        **base,
        **({} if result.status == "failed" else _describe_channel(channel)),
        **_describe_result(result),
        "prior_kl_bits": prior_kl_bits,
        "prior_well_formed": prior_well_formed,
    }


def failed_row(config: TrainConfig, error: str) -> Row:
    """The row of a cell that failed before it could measure anything; what was not measured is null."""
    return {**_describe_cell(config), "status": "failed", "error": error}


def agent_row(run: AgentRun) -> Row:
    """The row in `agents` of one that played a cell's channel and secret, from an exactly uniform prior."""
    config = run.config
    row = {
        **_describe(run.agent, config, run.fields),
        **_describe_channel(build_channel(config)),
        **_describe_result(run.result),
        "cell_id": agent_id(run.agent, config, run.fields),
    }
    return {name: row[name] for name in AGENTS_SCHEMA.names}


def agent_id(agent: str, config: TrainConfig, fields: Mapping[str, object]) -> str:
    """The name of an agent's row.

    Args:
        agent: who played.
        config: the cell whose channel and secret it played.
        fields: the cell's, as far as the agent has a use for them.
    """
    return hash_fields({"agent": agent, "channel": config.channel_name, **fields, "secret": _tell_secret(config)})


def _tell_secret(config: TrainConfig) -> int | str:
    """What tells the secrets of cells apart that are alike but for it; those of keys are known by their seed."""
    return cell_secret(config) if config.num_keys is None else f"seed {config.seed}"


def _describe_cell(config: TrainConfig) -> Row:
    return _describe(LORA, config, config.identity()) | {"cell_id": config.cell_id}


def _describe(agent: str, config: TrainConfig, fields: Mapping[str, object]) -> Row:
    """A row with what is known before the run: who it is, its task, and what runs; all else null."""
    return {
        **dict.fromkeys(EPISODES_TO_MEMORIZE_SCHEMA.names),
        **fields,
        "agent": agent,
        "channel": config.channel_name,
        "secret": None if config.num_keys or config.num_secrets > _COLUMN_LIMIT else cell_secret(config),
        "signal_bits": config.signal_bits,
        "created": datetime.now(UTC).replace(microsecond=0),
        "versions": describe_versions(),
        "processor": describe_processor(),
        "revision": find_revision(),
    }


def _describe_channel(channel: Channel) -> Row:
    capacity = channel_capacity(channel)
    return {
        "capacity_nominal_bits": capacity.nominal_bits,
        "capacity_uniform_bits": capacity.uniform_guess_bits,
        "capacity_best_bits": capacity.best_guess_bits,
        "capacity_is_bound": capacity.is_bound,
        "observed_is_bound": not observes_exactly(channel),
        "identifiable": capacity.identifiable,
    }


def _describe_result(result: RunResult) -> Row:
    row: Row = {}
    for name in MILESTONES:
        row[name] = result.first_reach.get(name)
        row[f"{name}_censored"] = row[name] is None
    return row | {
        "slope_bits": result.slope_bits,
        "episodes": result.episodes,
        "updates": result.updates,
        "absorbed_bits": result.absorbed_bits,
        "observed_bits": result.observed_bits,
        "status": result.status,
        "error": result.error,
        "seconds": result.seconds,
        "tokens": result.tokens,
    }
