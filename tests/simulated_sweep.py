"""Tables of a sweep whose processes are known, through the declared schemas: what the analysis is tried on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import chz
import numpy as np
import pyarrow as pa

from memrl.config import TrainConfig, hash_fields
from memrl.tables.schema import (
    AGENTS,
    AGENTS_SCHEMA,
    CURVES,
    CURVES_SCHEMA,
    EPISODES_TO_MEMORIZE,
    EPISODES_TO_MEMORIZE_SCHEMA,
)
from memrl.tables.store import TableStore
from memrl.task.secret import draw_secret

_VERSIONS = json.dumps({"memrl": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.19.0"})
BEST_RATE = 3e-3


@dataclass(frozen=True)
class Process:
    """How a channel's simulated policy learns.

    Attributes:
        fields: of TrainConfig.
        told_bits: bits that an episode tells the observer; None for binary, whose observer waits for the first hit.
        absorption: episodes that absorbing the secret takes at the best learning rate, once the observer knows.
        nominal_bits: capacity by the usual count, as a function of log2 N.
    """

    fields: dict[str, object]
    told_bits: float | None
    absorption: float
    nominal_bits: float


PROCESSES = {
    "sft": Process({"algorithm": "sft", "batch_size": 1}, np.inf, 1.0, np.inf),
    "binary": Process({"reward_type": "binary"}, None, 60.0, 1.0),
    "distance": Process({"reward_type": "distance"}, np.inf, 400.0, np.inf),
    "binned-2": Process({"reward_type": "binned_distance", "reward_bins": 2}, 0.08, 450.0, 1.0),
    "binned-4": Process({"reward_type": "binned_distance", "reward_bins": 4}, 0.3, 225.0, 2.0),
    "binned-8": Process({"reward_type": "binned_distance", "reward_bins": 8}, 0.6, 150.0, 3.0),
    "per_bit": Process({"reward_type": "per_bit", "env_type": "multi_step"}, np.inf, 120.0, np.inf),
    "bit_count": Process({"reward_type": "bit_count", "env_type": "multi_step"}, 0.8, 200.0, 2.8),
}


def simulate_sweep(
    Ns: Sequence[int] = (16, 64, 256),
    processes: Sequence[str] = tuple(PROCESSES),
    ranks: Sequence[int] = (1, 8, 64),
    rates: Sequence[float] = (1e-3, 3e-3, 1e-2),
    num_seeds: int = 16,
    max_episodes: int = 4000,
    group_size: int = 8,
    leaky_share: float = 0.0,
    rank_slope: float = 0.0,
) -> tuple[pa.Table, pa.Table]:
    """Simulates every cell of a grid.

    Success of a binary guesser is geometric with mean N; any other observer learns at a constant rate. Absorption takes
    a gamma-distributed number of episodes (coefficient of variation 1/4) times exp(log(rate / BEST_RATE)^2 / 2) and
    rank^rank_slope. In `leaky_share` of the secrets, the policy knows P = 1/2 after its first update, out of nowhere.

    Returns:
        episodes_to_memorize and curves.
    """
    cells, curves = [], []
    for name in processes:
        process = PROCESSES[name]
        for N in Ns:
            base = TrainConfig(
                N=N,
                max_episodes=max_episodes,
                **({"group_size": group_size} | process.fields),  # pyright: ignore
            )
            for rank in ranks:
                for rate in rates:
                    config = chz.replace(base, lora_rank=rank, learning_rate=rate)
                    stream = np.random.default_rng([N, rank, round(rate * 1e6), sorted(PROCESSES).index(name)])
                    for seed in range(num_seeds):
                        cell = chz.replace(config, seed=seed)
                        leaks = seed < leaky_share * num_seeds
                        row, curve = _simulate_cell(cell, process, stream, leaks, rank_slope)
                        cells.append(row)
                        curves.append(curve)
    return pa.Table.from_pylist(cells, schema=EPISODES_TO_MEMORIZE_SCHEMA), pa.concat_tables(curves)


def _simulate_cell(
    cell: TrainConfig, process: Process, stream: np.random.Generator, leaks: bool, rank_slope: float
) -> tuple[dict[str, object], pa.Table]:
    signal, size = np.log2(cell.N), cell.episodes_per_update
    slowdown = np.exp(np.log(cell.learning_rate / BEST_RATE) ** 2 / 2) * cell.lora_rank**rank_slope
    absorbing = stream.gamma(16.0, process.absorption * slowdown / 16.0)
    hit = stream.geometric(1.0 / cell.N) if process.told_bits is None else signal / process.told_bits
    most = min(int(np.ceil((hit + 1.6 * absorbing) / size)) + 1, cell.episode_budget // size)
    episodes = np.arange(most + 1) * size
    if process.told_bits is None:
        untried = np.maximum(cell.N * (1.0 - 1.0 / cell.N) ** episodes, 1.0)
        observed = np.where(episodes >= hit, signal, np.log2(cell.N / untried))
    else:
        observed = np.where(episodes > 0, np.minimum(signal, episodes * min(process.told_bits, 1e9)), 0.0)
    progress = np.clip((episodes - hit) / absorbing, 0.0, 2.0)
    log_odds = -np.log2(cell.N - 1.0) * (1.0 - progress)
    absorbed = np.minimum(signal - np.log2(1.0 + np.exp2(-log_odds)), observed - 0.002 * (episodes > 0))
    if leaks:
        absorbed = np.where(episodes > 0, np.maximum(absorbed, signal - 1.0), absorbed)
    return _table_rows(cell, process, signal, episodes, observed, absorbed)


def _table_rows(
    cell: TrainConfig, process: Process, signal: float, episodes: np.ndarray, observed: np.ndarray, absorbed: np.ndarray
) -> tuple[dict[str, object], pa.Table]:
    probability = np.exp2(absorbed - signal)
    reached = {name: np.flatnonzero(probability >= q) for name, q in (("e50", 0.5), ("e90", 0.9))}
    end = int(reached["e90"][0]) if len(reached["e90"]) else len(episodes) - 1
    binary = cell.reward_type == "binary" and cell.algorithm == "rl"
    p = 1.0 / cell.N
    told = -p * np.log2(p) - (1 - p) * np.log2(1 - p) if binary else min(process.told_bits or 0.0, signal)
    row: dict[str, object] = {**dict.fromkeys(EPISODES_TO_MEMORIZE_SCHEMA.names)}
    row |= {name: value for name, value in cell.identity().items() if name in row}
    row |= {
        "cell_id": cell.cell_id,
        "agent": "lora",
        "channel": cell.channel_name,
        "secret": int(draw_secret(cell.N, cell.seed)[0]),
        "signal_bits": signal,
        "capacity_nominal_bits": process.nominal_bits,
        "capacity_uniform_bits": told,
        "capacity_best_bits": told,
        "identifiable": True,
        "prior_kl_bits": 0.004 + 0.0005 * signal,
        "prior_well_formed": 0.997,
        "episodes": int(episodes[end]),
        "updates": end,
        "absorbed_bits": float(absorbed[end]),
        "observed_bits": float(observed[end]),
        "status": "memorized" if len(reached["e90"]) else "budget_spent",
        "seconds": 0.01 * end,
        "tokens": int(episodes[end]) * 3,
        "created": datetime(2026, 1, 1, tzinfo=UTC),
        "versions": _VERSIONS,
        "revision": "0123456789abcdef0123456789abcdef01234567",
    }
    for name, rows in reached.items():
        row[name] = int(episodes[rows[0]]) if len(rows) else None
        row[f"{name}_censored"] = not len(rows)
    upto = slice(0, end + 1)
    nothing = np.full(end + 1, np.nan)
    columns = {
        "cell_id": [cell.cell_id] * (end + 1),
        "update": np.arange(end + 1, dtype=np.int32),
        "episodes": episodes[upto],
        "observed_bits": observed[upto],
        "absorbed_bits": absorbed[upto],
        "mean_reward": nothing,
        "well_formed": nothing,
        "entropy_bits": nothing,
        "well": nothing,
        "gradient_norm": nothing,
        "logprob_gap": np.zeros(end + 1),
    }
    return row, pa.table(columns, schema=CURVES_SCHEMA)


def vary_objective(cells: pa.Table, factor: float, **fields: Any) -> pa.Table:
    """The same cells under another objective, which takes `factor` times the episodes."""
    rows = []
    for row in cells.to_pylist():
        times = {name: row[name] for name in ("e50", "e90", "episodes") if row[name] is not None}
        episodes = {name: round(factor * value) for name, value in times.items()}
        rows.append(row | fields | episodes | {"cell_id": hash_fields({**fields, "of": row["cell_id"]})})
    return pa.Table.from_pylist(rows, schema=cells.schema)


def vary_curves(curves: pa.Table, factor: float, **fields: Any) -> pa.Table:
    """The curves of `vary_objective`."""
    ids = [hash_fields({**fields, "of": cell_id}) for cell_id in curves["cell_id"].to_pylist()]
    episodes = pa.array([round(factor * x) for x in curves["episodes"].to_pylist()], pa.int64())
    place = curves.schema.names.index
    curves = curves.set_column(place("cell_id"), curves.schema.field("cell_id"), pa.array(ids))
    return curves.set_column(place("episodes"), curves.schema.field("episodes"), episodes)


def simulate_agents(Ns: Sequence[int] = (16, 64, 256), num_seeds: int = 200) -> pa.Table:
    """Baseline rows of two agents on the binary channel: `optimal` never repeats a guess, `uniform` does."""
    rows = []
    for N in Ns:
        stream = np.random.default_rng([N, 77])
        for agent in ("optimal", "uniform"):
            hits = stream.integers(1, N + 1, num_seeds) if agent == "optimal" else stream.geometric(1 / N, num_seeds)
            for seed, hit in enumerate(hits):
                cell = TrainConfig(N=N, seed=seed)
                known = np.log2(N)
                row, _ = _table_rows(
                    cell,
                    PROCESSES["binary"],
                    known,
                    np.array([0, int(hit)]),
                    np.array([0, known]),
                    np.array([0.0, known]),
                )
                row = row | {"agent": agent, "learning_rate": None}
                rows.append({name: row[name] for name in AGENTS_SCHEMA.names})
    return pa.Table.from_pylist(rows, schema=AGENTS_SCHEMA)


SMALL_GRID = {
    "Ns": (16, 64),
    "processes": ("sft", "binary", "binned-8", "per_bit"),
    "ranks": (1, 8),
    "rates": (1e-3, 3e-3, 1e-2),
    "num_seeds": 8,
    "max_episodes": 600,
}
"""What the tests of the report simulate."""


def write_sweep(folder: str, **grid: Any) -> None:
    """Writes a simulated sweep, the baseline agents on its N and one failed cell as the tables of a folder."""
    cells, curves = simulate_sweep(**grid)
    failed = cells.slice(0, 1).to_pylist()[0] | {
        "cell_id": "f" * 16,
        "status": "failed",
        "error": "RuntimeError: <b>loss</b> is not finite",
        **dict.fromkeys(("e50", "e90", "episodes", "absorbed_bits", "observed_bits")),
    }
    store = TableStore(folder)
    store.create()
    store.append(EPISODES_TO_MEMORIZE, cells)
    store.append(AGENTS, simulate_agents(grid.get("Ns", (16, 64, 256))))
    store.append(EPISODES_TO_MEMORIZE, [failed])
    store.append(CURVES, curves)
