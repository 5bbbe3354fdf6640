"""Whether memory, handles, threads, processes or Ray's objects grow over many short runs, or in one large sweep.

`part=runs` trains one small pack after another in this process, as a trial does that serves many. `part=sweep` launches
a sweep of `cells` cells with `trials` trials queued and looks at its processes twice a second. Of each quantity it
prints the first and the last value, and the growth after the first quarter, which is warm-up: 0 is what it must be.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import chz
import numpy as np
import psutil

from memrl.cli import parse_arguments
from memrl.fields import field

ROOT = Path(__file__).resolve().parents[1]
USAGE = "usage: python benchmarks/soak.py [part=all] [runs=200] [cells=10000] [trials=64] [output=FILE]"
PARTS = ("runs", "sweep")

Samples = dict[str, list[float]]
"""What was seen of each quantity, look by look."""


@chz.chz
class Soak:
    """How long it goes on."""

    part: str = field(default="all", doc="runs, sweep or all")
    runs: int = field(default=200, doc="packs that this process trains one after another")
    cells: int = field(default=10_000, doc="cells of the sweep, about")
    trials: int = field(default=64, doc="packs of the sweep, most of which wait for a trial's place")
    output: str | None = field(default=None, doc="also writes the numbers as JSON to this file")

    @chz.validate
    def _check(self) -> None:
        if self.part not in ("all", *PARTS):
            raise ValueError(f"part must be all, runs or sweep, got {self.part}")
        for name in ("runs", "cells", "trials"):
            if getattr(self, name) < 8:
                raise ValueError(f"{name} must be at least 8, got {getattr(self, name)}")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    (request,) = parse_arguments(argv, Soak, usage=USAGE)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for part, soak in (("runs", soak_runs), ("sweep", soak_sweep)):
        if request.part in ("all", part):
            found[part] = describe(soak(request))
            print_growth(part, found[part])
            if request.output:
                Path(request.output).write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


def soak_runs(request: Soak) -> Samples:
    """Trains small packs of every kind of channel, one after another, in this process."""
    from memrl.config import TrainConfig
    from memrl.sweep.pack_run import PackRun, set_up_torch, start_pack

    set_up_torch(1)
    me, samples = psutil.Process(), Samples()
    for run in range(request.runs):
        cells = [
            TrainConfig(N=16, seed=run, n_steps=5),
            TrainConfig(N=16, seed=run, n_steps=5, reward_type="distance", lora_rank=2),
            TrainConfig(N=16, seed=run, n_steps=5, env_type="multi_step", reward_type="per_bit"),
            TrainConfig(N=16, seed=run, n_steps=5, algorithm="sft"),
        ]
        pack = PackRun.start(cells, lambda cells: start_pack(cells, "cpu"))
        while not pack.finished:
            pack.advance(1.0)
        look(samples, [me])
    return samples


def soak_sweep(request: Soak) -> Samples:
    """Launches a sweep and looks at its processes while it trains, then at what its end leaves."""
    samples = Samples()
    words = ["grid=smoke", "algorithm=sft", "N=4,8", "n_steps=3", f"seeds={request.cells // 2}"]
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        size = -(-request.cells // request.trials)
        command = [
            sys.executable,
            str(ROOT / "sweeps" / "launch.py"),
            *words,
            f"pack_size={size}",
            f"results={folder}/o",
        ]
        launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "TMPDIR": folder})
        started = time.monotonic()
        while launcher.poll() is None:
            look(samples, find_family(launcher.pid), Path(folder))
            time.sleep(0.5)
        print(f"the sweep ended with exit code {launcher.returncode} after {time.monotonic() - started:.0f} s")
        left = [path.name for path in Path(folder).iterdir() if path.name != "o"]
        print(f"left in the temporary folder: {', '.join(left) or 'nothing'}")
    return samples


def find_family(launcher: int) -> list[psutil.Process]:
    """A launch's processes, itself first; none where it has ended."""
    try:
        process = psutil.Process(launcher)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def look(samples: Samples, processes: Sequence[psutil.Process], temporary: Path | None = None) -> None:
    """Adds what these processes hold now: memory, handles and threads of the first one, and of all together."""
    held = [measure(process) for process in processes]
    if not held or held[0] is None:
        return
    alive = [numbers for numbers in held if numbers is not None]
    seen = {"MiB": held[0][0], "handles": held[0][1], "threads": held[0][2]}
    if temporary is not None:
        totals = [sum(numbers[i] for numbers in alive) for i in range(3)]
        seen |= {f"{name}, all": total for name, total in zip(("MiB", "handles", "threads"), totals, strict=True)}
        seen |= {"processes": len(alive), "temporary files": sum(len(files) for _, _, files in os.walk(temporary))}
        seen["shared MiB"] = shared_mib(processes)
    for name, value in seen.items():
        samples.setdefault(name, []).append(float(value))


def measure(process: psutil.Process) -> tuple[float, float, float] | None:
    """MiB of its own, open files and threads of a process; None where it is gone."""
    try:
        return process.memory_full_info().uss / 2**20, process.num_fds(), process.num_threads()
    except psutil.Error:
        return None


def shared_mib(processes: Sequence[psutil.Process]) -> float:
    """Shared memory that the daemon which keeps Ray's objects has touched: what they have come to at most."""
    for process in processes:
        try:
            if process.name() == "raylet":
                return process.memory_info().shared / 2**20
        except psutil.Error:
            continue
    return 0.0


def describe(samples: Samples) -> dict[str, dict[str, float]]:
    """The first and the last value of each quantity, and how much it grew in the last three quarters of the looks."""
    described = {}
    for name, values in samples.items():
        late = np.array(values[len(values) // 4 :])
        slope = float(np.polyfit(np.arange(len(late)), late, 1)[0]) if len(late) > 1 else 0.0
        described[name] = {
            "first": values[0],
            "middle": float(np.median(late)),
            "last": values[-1],
            "growth": slope * len(late),
            "looks": len(values),
        }
    return described


def print_growth(part: str, described: dict[str, dict[str, float]]) -> None:
    """Prints the table of a part."""
    columns: dict[str, Callable[[dict[str, float]], str]] = {
        "first": lambda numbers: f"{numbers['first']:,.0f}",
        "middle": lambda numbers: f"{numbers['middle']:,.0f}",
        "last": lambda numbers: f"{numbers['last']:,.0f}",
        "growth by the line through the last 3/4": lambda numbers: f"{numbers['growth']:+,.1f}",
    }
    looks = next(iter(described.values()))["looks"] if described else 0
    print(f"\n{part}, {looks:.0f} looks")
    print(f"{'':>16}" + "".join(f"{name:>{len(name) + 4}}" for name in columns))
    for name, numbers in described.items():
        cells = "".join(f"{show(numbers):>{len(title) + 4}}" for title, show in columns.items())
        print(f"{name:>16}{cells}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
