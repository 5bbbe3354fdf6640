"""Time and peak memory of the report on tables of a given size.

`python benchmarks/report_scale.py num_cells=100000 rows_per_cell=100` makes the tables of such a sweep (through the
same store as any) in a temporary folder, runs `python -m memrl.report` on them in a process of its own, and prints how
long that took, the processor time it used and the most memory that it held.
"""

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import chz

from memrl.cli import parse_arguments
from memrl.fields import field

ROOT = Path(__file__).resolve().parents[1]
USAGE = "usage: python benchmarks/report_scale.py [num_cells=100000] [num_rates=16] [rows_per_cell=100] [output=FILE]"
CHANNELS = ("sft", "binary", "binned_distance", "distance", "per_bit", "bit_count")
SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
BEST_RATE = 2e-3


@chz.chz
class ReportScale:
    """How large the tables are."""

    num_cells: int = field(default=100_000, doc="cells, about: a multiple of the settings")
    num_rates: int = field(default=16, doc="learning rates: a setting is one of these, a channel, an N and a rank")
    rows_per_cell: int = field(default=100, doc="curve rows of a cell")
    output: str | None = field(default=None, doc="also writes the numbers as JSON to this file")

    @chz.validate
    def _check_size(self) -> None:
        if self.num_rates < 1:
            raise ValueError(f"num_rates must be at least 1, got {self.num_rates}")
        if self.num_cells < self.num_settings * 2:
            raise ValueError(f"num_cells must be at least {self.num_settings * 2}, got {self.num_cells}")
        if self.rows_per_cell < 2:
            raise ValueError(f"rows_per_cell must be at least 2, got {self.rows_per_cell}")

    @property
    def num_settings(self) -> int:
        """Combinations of channel, N, rank and learning rate."""
        return len(CHANNELS) * len(SIZES) * len(RANKS) * self.num_rates


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    (request,) = parse_arguments(argv, ReportScale, usage=USAGE)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        num_cells, num_rows = write_tables(folder, request)
        print(f"{num_cells:,} cells, {num_rows:,} curve rows: written in {time.perf_counter() - started:.1f} s")
        numbers = {"num_cells": num_cells, "num_rows": num_rows, **measure_report(folder)}
    print(
        f"report: {numbers['wall_s']:.1f} s of wall time, {numbers['cpu_s']:.1f} s of processor time, "
        f"{numbers['peak_gib']:.2f} GiB at most; report.html has {numbers['page_mb']:.1f} MB"
    )
    if request.output is not None:
        Path(request.output).write_text(json.dumps(numbers), encoding="utf-8")
    return 0


def measure_report(folder: str) -> dict[str, float]:
    """Runs the report command on a folder of tables, alone in a process."""
    command = [sys.executable, "-m", "memrl.report", "grid=scale", f"results={folder}"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    wall, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_s": wall,
        "cpu_s": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
        "peak_gib": used.ru_maxrss / 2**20,
        "page_mb": Path(folder, "report.html").stat().st_size / 1e6,
    }


def write_tables(folder: str, request: ReportScale) -> tuple[int, int]:
    """Writes the tables of a sweep of binary-like learners; returns the number of cells and of curve rows."""
    import numpy as np

    from memrl.tables.store import TableStore

    store = TableStore(folder)
    store.create()
    num_seeds = request.num_cells // request.num_settings
    rates = BEST_RATE * 1.5 ** (np.arange(request.num_rates) - request.num_rates // 2)
    settings = itertools.product(CHANNELS, SIZES, RANKS, rates)
    stream, done = np.random.default_rng(0), 0
    for channel, by_channel in itertools.groupby(settings, key=lambda setting: setting[0]):
        for N, of_N in itertools.groupby(by_channel, key=lambda setting: setting[1]):
            rank, rate = (
                np.repeat([s[i] for s in of_settings], num_seeds) for of_settings in [list(of_N)] for i in (2, 3)
            )
            seed = np.tile(np.arange(num_seeds), len(rank) // num_seeds)
            ids = [f"{number:016x}" for number in range(done, done + len(rank))]
            slow = 1.0 + np.log(rate / BEST_RATE) ** 2
            hits = np.minimum(stream.geometric(1 / N, size=len(rank)) * slow, 8 * request.rows_per_cell)
            write_block(store, channel, N, {"id": ids, "rank": rank, "rate": rate, "seed": seed, "hit": hits}, request)
            done += len(rank)
    return done, done * request.rows_per_cell


def write_block(store, channel: str, N: int, cells: dict, request: ReportScale) -> None:
    """Writes the cells of one channel and N, and their curves."""
    import numpy as np
    import pyarrow as pa

    from memrl.tables.schema import CURVES, CURVES_SCHEMA, EPISODES_TO_MEMORIZE, EPISODES_TO_MEMORIZE_SCHEMA

    num, rows, signal = len(cells["id"]), request.rows_per_cell, float(np.log2(N))
    episodes = np.arange(rows) * 8
    hit = np.asarray(cells["hit"])[:, None]
    observed = np.where(episodes >= hit, signal, signal * (1 - np.exp(-episodes / N)))
    absorbed = np.clip((episodes - hit) / (40.0 + hit), 0, 1) * (signal - 0.1)
    budget = int(episodes[-1])
    times = {"e50": hit[:, 0] + 0.6 * (40 + hit[:, 0]), "e90": hit[:, 0] + (40 + hit[:, 0])}
    columns: dict[str, object] = {
        "cell_id": cells["id"],
        "agent": ["lora"] * num,
        "channel": [f"{channel}-8-log" if channel == "binned_distance" else channel] * num,
        "algorithm": ["sft" if channel == "sft" else "rl"] * num,
        "env_type": ["single_step"] * num,
        "N": np.full(num, N),
        "seed": cells["seed"],
        "reward_type": [channel] * num,
        "learning_rate": cells["rate"],
        "lora_rank": cells["rank"],
        "model": ["embedded"] * num,
        "signal_bits": np.full(num, signal),
        "prior_kl_bits": np.full(num, 0.01),
        "prior_well_formed": np.full(num, 0.999),
        "episodes": np.full(num, budget),
        "updates": np.full(num, rows - 1),
        "absorbed_bits": absorbed[:, -1],
        "observed_bits": observed[:, -1],
        "status": ["memorized"] * num,
        "versions": ['{"memrl": "0.1.0"}'] * num,
    }
    columns |= dict.fromkeys(
        ("capacity_nominal_bits", "capacity_uniform_bits", "capacity_best_bits"), np.full(num, 0.5)
    )
    for name, time_to in times.items():
        columns[f"{name}_censored"] = time_to > budget
        columns[name] = pa.array(np.ceil(time_to).astype(np.int64), mask=time_to > budget)
    nulls = {field.name: pa.nulls(num, field.type) for field in EPISODES_TO_MEMORIZE_SCHEMA}
    store.append(EPISODES_TO_MEMORIZE, pa.table(nulls | columns, schema=EPISODES_TO_MEMORIZE_SCHEMA))
    curves = {
        "cell_id": np.repeat(cells["id"], rows),
        "update": np.tile(np.arange(rows, dtype=np.int32), num),
        "episodes": np.tile(episodes, num),
        "observed_bits": observed.ravel(),
        "absorbed_bits": absorbed.ravel(),
    }
    noise = {
        field.name: np.random.default_rng(N).random(num * rows) for field in CURVES_SCHEMA if field.name not in curves
    }
    store.append(CURVES, pa.table(curves | noise, schema=CURVES_SCHEMA))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
