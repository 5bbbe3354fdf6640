"""How time and memory grow: with the pack, the group, N, the base model and the number of cells."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import chz
from measure import (
    FOREVER,
    Report,
    Row,
    describe_machine,
    matmul_flops_per_s,
    peak_memory_gib,
    read_counts,
    settle,
    spread,
    time_by_turns,
)
from model_sizes import check_model_size

from memrl import cli
from memrl.config import TrainConfig
from memrl.fields import field

USAGE = """\
Time an update against pack size, group size, N and base-model size; start-up, peak memory, and the launcher's
cost of a cell.

  python benchmarks/scaling.py
  python benchmarks/scaling.py part=N rounds=3
  python benchmarks/scaling.py part=memory model=smollm2-135m pack_size=8
"""

ROOT = Path(__file__).resolve().parents[1]


@chz.chz
class Scaling:
    """What is measured; every axis starts from pack_size, group_size and N.

    Raises:
        ValueError: a field makes no sense; the message is one line.
    """

    part: Literal["all", "pack", "group", "N", "model", "startup", "launcher", "memory"] = field(
        default="all", doc="which axis; memory: the peak memory of one pack, in this process"
    )
    model: str = field(default="embedded", doc="the base model, as cells name it (memory)")
    pack_size: int = field(default=128, doc="cells of a pack, where it is not the axis")
    group_size: int = field(default=32, doc="episodes of an update and cell, where it is not the axis")
    N: int = field(default=64, doc="the secret is uniform on 0 .. N-1, where it is not the axis")
    pack_sizes: str = field(default="1,2,4,8,16,32,64,128,256,512", doc="of part=pack")
    group_sizes: str = field(default="4,32,256,1024", doc="of part=group")
    Ns: str = field(default="16,64,256,1024,4096", doc="of part=N")
    models: str = field(default="0.2m,1m,10m,30m,100m", doc="of part=model: names in benchmarks/model_sizes.py")
    model_pack_sizes: str = field(default="1,8", doc="of part=model")
    launch_cells: int = field(default=10_000, doc="cells of part=launcher")
    curve_rows: int = field(default=20, doc="curve rows per cell that part=launcher writes")
    threads: int = field(default=2, doc="CPU threads")
    clock: Literal["wall", "cpu"] = field(default="wall", doc="cpu: for one thread on a busy machine")
    rounds: int = field(default=5, doc="turns of every arm")
    block_s: float = field(default=1.0, doc="seconds of a turn")
    output: str | None = field(default=None, doc="file for the numbers, as JSON")

    @chz.validate
    def _check(self) -> None:
        for name in ("pack_sizes", "group_sizes", "Ns", "model_pack_sizes"):
            read_counts(name, getattr(self, name))
        for name in self.models.split(","):
            check_model_size(name)
        for name in ("pack_size", "threads", "rounds", "launch_cells", "curve_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for group_size in read_counts("group_sizes", self.group_sizes):
            for N in read_counts("Ns", self.Ns):
                self.cells(1, group_size=group_size, N=N)

    def cells(self, size: int, **fields: Any) -> list[TrainConfig]:
        """Cells of the binary channel that do not end, at a learning rate too low to learn within the run."""
        words = {"N": self.N, "group_size": self.group_size, "learning_rate": 4e-5, **fields}
        return [TrainConfig(seed=i, n_steps=FOREVER, stop_probability=1 - 1e-9, **words) for i in range(size)]


def main() -> None:
    """Runs the parts that were asked for and prints their tables."""
    (scaling,) = cli.parse_arguments(sys.argv[1:], Scaling, usage=USAGE)
    settle(scaling.threads)
    if scaling.part == "memory":
        print(json.dumps(measure_memory(scaling)))
        return
    report = Report("scaling", chz.asdict(scaling), describe_machine(scaling.threads), scaling.output)
    measures: dict[str, Callable[[Scaling], tuple[list[Row], str]]] = {
        "pack": scale_pack,
        "group": scale_group,
        "N": scale_N,
        "model": scale_model,
        "startup": measure_startup,
        "launcher": measure_launcher,
    }
    for part, measure in measures.items():
        if scaling.part in ("all", part):
            report.add(part, *measure(scaling))


def scale_pack(scaling: Scaling) -> tuple[list[Row], str]:
    """Time an update against the number of cells; the peak memory of each in a process of its own."""
    sizes = read_counts("pack_sizes", scaling.pack_sizes)
    rows = _time_packs(scaling, {f"{size} cells": scaling.cells(size) for size in sizes})
    for size, row in zip(sizes, rows, strict=True):
        row |= _run_json(
            [
                f"{Path(__file__).resolve()}",
                "part=memory",
                f"pack_size={size}",
                f"group_size={scaling.group_size}",
                f"N={scaling.N}",
            ]
        )
    return (
        rows,
        f"groups of {scaling.group_size}, N={scaling.N}; peak memory is of a process with this pack alone",
    )


def scale_group(scaling: Scaling) -> tuple[list[Row], str]:
    """Time an update against the size of the group."""
    sizes = read_counts("group_sizes", scaling.group_sizes)
    cells = {f"group of {size}": scaling.cells(scaling.pack_size, group_size=size) for size in sizes}
    return _time_packs(scaling, cells), f"pack of {scaling.pack_size}, N={scaling.N}"


def scale_N(scaling: Scaling) -> tuple[list[Row], str]:
    """Time an update against the number of possible secrets."""
    cells = {f"N={N}": scaling.cells(scaling.pack_size, N=N) for N in read_counts("Ns", scaling.Ns)}
    return _time_packs(scaling, cells), f"pack of {scaling.pack_size}, groups of {scaling.group_size}"


def _time_packs(scaling: Scaling, arms: dict[str, list[TrainConfig]]) -> list[Row]:
    from memrl.learning.pack import Pack

    packs = {name: Pack(cells) for name, cells in arms.items()}

    def updater(pack: Pack) -> Callable[[], None]:
        def update() -> None:
            pack.update()
            pack.drain()

        return update

    updates = {name: updater(pack) for name, pack in packs.items()}
    seconds = time_by_turns(updates, scaling.rounds, scaling.block_s, clock=scaling.clock)
    rows = []
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        cells = arms[name]
        episodes = sum(cell.episodes_per_update for cell in cells)
        relative = [mine / theirs for mine, theirs in zip(times, first, strict=True)]
        row = {
            "what": name,
            "ms/update": spread([1e3 * s for s in times]),
            "ms/update and cell": 1e3 * median(times) / len(cells),
        }
        rows.append({**row, "episodes/s": episodes / median(times), "time / first row's": spread(relative)})
    return rows


def measure_memory(scaling: Scaling) -> Row:
    """The most memory that this process holds while it runs one pack."""
    from memrl.learning.pack import Pack
    from memrl.policy.calibrator import ensure_calibrated

    model = ensure_calibrated(scaling.model, scaling.cells(1, model=scaling.model))
    pack = Pack(scaling.cells(scaling.pack_size, model=model))
    before = peak_memory_gib()
    for _ in range(3):
        pack.update()
    return {"peak GiB": peak_memory_gib(), "of which before the first update": before}


def scale_model(scaling: Scaling) -> tuple[list[Row], str]:
    """Time an update against the size of the base model, random weights; needed operations against torch.mm's rate."""
    from bare_pack import BarePack, build_random_base
    from flops import Shape, count_operations, watch_walks

    rows = []
    for size in scaling.models.split(","):
        model = build_random_base(size)
        shape = Shape.of(model)
        for cells in read_counts("model_pack_sizes", scaling.model_pack_sizes):
            # Rewards by distance: every cell has a gradient, so every update needs the same.
            pack = BarePack(model, scaling.cells(cells, reward_type="distance"))
            with watch_walks() as walks:
                pack.update()
            needed = count_operations(shape, walks[-1], pack.state.adapters.ranks).total
            rate = matmul_flops_per_s(clock=scaling.clock)
            seconds = time_by_turns(
                {size: pack.update}, scaling.rounds, scaling.block_s, clock=scaling.clock, warm_up=1
            )[size]
            row: Row = {"model": size, "weights": float(shape.num_weights), "pack": cells}
            row |= {
                "ms/update": spread([1e3 * s for s in seconds]),
                "episodes/s": pack.episodes_per_update / median(seconds),
            }
            rows.append({**row, "GFLOP": needed / 1e9, "% of mm": 100 * needed / median(seconds) / rate})
    return rows, f"groups of {scaling.group_size}, N={scaling.N}, random weights; without observer and tables"


def measure_startup(scaling: Scaling) -> tuple[list[Row], str]:
    """Seconds from the command to its end, where the command makes one update or none; its children's peak memory."""
    smoke = ["grid=smoke", "N=64", "algorithm=rl", "env_type=single_step", "reward_type=binary", "seeds=1", "n_steps=1"]
    with tempfile.TemporaryDirectory(prefix="memrl-startup-") as folder:
        commands = {
            "rl_train, one update": ["-m", "memrl.rl_train", "N=64", "n_steps=1", f"results={folder}/rl"],
            "launch.py --help": ["sweeps/launch.py", "--help"],
            "launch.py, dry_run": ["sweeps/launch.py", *smoke, "dry_run=True", f"results={folder}/dry"],
            "launch.py, one cell, one update": ["sweeps/launch.py", *smoke, f"results={folder}/sweep"],
        }
        rows = []
        for name, words in commands.items():
            seconds = [
                _time_command([*words[:-1], f"{words[-1]}{i}"] if "results" in words[-1] else words)
                for i in range(scaling.rounds)
            ]
            rows.append({"command": name, "s, first (cold)": seconds[0], "s": spread(seconds)})
    peak = peak_memory_gib(resource.RUSAGE_CHILDREN)
    return rows, f"whole commands, Python's start included; the largest child process held {peak:.2f} GiB"


def _time_command(words: list[str]) -> float:
    start = time.perf_counter()
    _run(words)
    return time.perf_counter() - start


def _run(words: list[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def _run_json(words: list[str]) -> Row:
    return json.loads(_run(words).splitlines()[-1])


def measure_launcher(scaling: Scaling) -> tuple[list[Row], str]:
    """Seconds and microseconds per cell of each thing that a sweep does besides training."""
    from memrl.sweep.grid import parse_grid
    from memrl.sweep.packing import MOST_CELLS, pack_cells
    from memrl.tables.schema import CURVES, EPISODES_TO_MEMORIZE
    from memrl.tables.store import TableStore

    num_cells = scaling.launch_cells
    rows: list[Row] = []

    def clock(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        rows.append({"what": name, "s": seconds, "us/cell": 1e6 * seconds / num_cells})
        return result

    grid = parse_grid("scaling", {"base": {"N": scaling.N}, "seeds": num_cells})
    cells = clock("expand the grid", lambda: list(grid.cells().values()))
    packs = clock("pack the cells", lambda: pack_cells(cells, MOST_CELLS))
    with tempfile.TemporaryDirectory(prefix="memrl-launcher-") as folder:
        store = TableStore(f"{folder}/results")
        store.create()
        finished, curves = _make_rows(scaling, packs)
        clock(
            f"write {len(curves)} appends of curves, {scaling.curve_rows} rows per cell",
            lambda: [store.append(CURVES, t) for t in curves],
        )
        clock(
            f"write {len(finished)} appends of finished cells",
            lambda: [store.append(EPISODES_TO_MEMORIZE, r) for r in finished],
        )
        clock("find what has finished", store.finished_cell_ids)
    total = sum(row["s"] for row in rows)
    rows.append({"what": "sum", "s": total, "us/cell": 1e6 * total / num_cells})
    return (
        rows,
        f"{num_cells} cells in {len(packs)} packs; Ray's own time is in part=startup and in versus_trl.py part=sweep",
    )


def _make_rows(scaling: Scaling, packs: list[list[TrainConfig]]) -> tuple[list[list[Row]], list[Any]]:
    """Rows as the packs of a sweep would report them, one list or table a pack."""
    import pyarrow as pa

    from memrl.tables.rows import failed_row
    from memrl.tables.schema import CURVES_SCHEMA

    finished = [[failed_row(cell, "not run: rows of a benchmark") for cell in pack] for pack in packs]
    curves = []
    for pack in packs:
        ids = [cell.cell_id for cell in pack for _ in range(scaling.curve_rows)]
        updates = list(range(scaling.curve_rows)) * len(pack)
        columns: dict[str, list[Any]] = {name: [0.5] * len(ids) for name in CURVES_SCHEMA.names}
        columns |= {"cell_id": ids, "update": updates, "episodes": [32 * update for update in updates]}
        curves.append(pa.Table.from_pydict(columns, schema=CURVES_SCHEMA))
    return finished, curves


if __name__ == "__main__":
    main()
