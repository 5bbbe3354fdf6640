"""How the benchmarks measure and print: arms by turns in one process, medians with their spread, tables and JSON."""

import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

MATMUL_SIZES = (512, 1024, 2048)
"""Square sizes that `matmul_flops_per_s` tries; the best counts, so that the bar is not set low."""

FOREVER = 1_000_000_000
"""Updates of a cell that is not to end."""

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""`cpu` leaves out what other processes took of a busy machine; it is an honest second on one thread alone."""

_BLOCK_FLOPS, _MOST_CALLS = 4e9, 16
"""torch.mm is timed over a block of calls: about so many operations, but no more calls than these."""

Row = dict[str, Any]


def read_counts(name: str, text: str) -> list[int]:
    """Reads integers written `4,32,256`.

    >>> read_counts("group_sizes", "4,32")
    [4, 32]

    Raises:
        ValueError: something else, or a number below 1.
    """
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ValueError(f"{name} must be integers from 1 with commas between, got {text!r}")
    return counts


def settle(num_threads: int) -> None:
    """Sets this process as memrl's own trials are set: so many threads, and no denormal arithmetic."""
    import torch

    torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)


def run_for(
    update: Callable[[], object], seconds: float, *, at_least: int = 2, clock: str = "wall"
) -> tuple[int, float]:
    """Calls `update` until the time is up by the clock; returns the calls made and the seconds they took."""
    now = CLOCKS[clock]
    count, start = 0, now()
    while True:
        update()
        count += 1
        elapsed = now() - start
        if elapsed >= seconds and count >= at_least:
            return count, elapsed


def time_by_turns(
    arms: Mapping[str, Callable[[], object]], rounds: int, block_s: float, *, clock: str = "wall", warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds per call of each arm, one number per round; the arms take turns, so that all see the same machine.

    Args:
        arms: what to call, by name.
        rounds: turns of each arm.
        block_s: an arm's turn lasts about this long, and two calls at least.
        clock: a key of CLOCKS.
        warm_up: calls of each arm before the first turn.
    """
    for update in arms.values():
        for _ in range(warm_up):
            update()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, update in arms.items():
            count, elapsed = run_for(update, block_s, clock=clock)
            seconds[name].append(elapsed / count)
    return seconds


def spread(values: Sequence[float]) -> str:
    """Median, then the smallest and the largest.

    >>> spread([3.0, 1.0, 2.0])
    '2.00 (1.00 .. 3.00)'
    """
    return f"{median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


def matmul_flops_per_s(
    dtype: str = "float32", device: str = "cpu", *, clock: str = "wall", sizes: Sequence[int] = MATMUL_SIZES
) -> float:
    """torch.mm's rate on square matrices: floating-point operations per second, the best size's median of three."""
    import torch

    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(a)

        def multiply(a: Any = a, b: Any = b, out: Any = out) -> None:
            torch.mm(a, b, out=out)

        calls = min(_MOST_CALLS, math.ceil(_BLOCK_FLOPS / (2 * size**3)))
        seconds = [_time_block(multiply, device, clock, calls) for _ in range(4)][1:]
        best = max(best, 2.0 * size**3 / median(seconds))
    return best


def _time_block(work: Callable[[], None], device: str, clock: str, calls: int) -> float:
    now = CLOCKS[clock]
    synchronize(device)
    start = now()
    for _ in range(calls):
        work()
    synchronize(device)
    return (now() - start) / calls


def synchronize(device: str) -> None:
    """Waits for the device to finish what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def peak_memory_gib(who: int = resource.RUSAGE_SELF) -> float:
    """The most memory that this process (or one of its children) has held, in GiB."""
    status = Path("/proc/self/status")
    if who == resource.RUSAGE_SELF and status.exists():
        # Linux counts in ru_maxrss what the process was before exec, which is its parent's memory.
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    peak = resource.getrusage(who).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def describe_machine(num_threads: int) -> Row:
    """What a reader needs to judge the numbers: processor, cores, threads, versions, and how busy the machine was."""
    import torch

    return {
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": num_threads,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


class Report:
    """Collects the tables of one run; prints each as it comes, and keeps all as JSON.

    Args:
        title: what was measured.
        settings: the arguments of the run.
        machine: from `describe_machine`.
        output: file that `save` writes; None: none.
    """

    def __init__(self, title: str, settings: object, machine: Row, output: str | None) -> None:
        self._content: Row = {"title": title, "settings": settings, "machine": machine, "tables": {}}
        self._output = output
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        print(f"{title}: " + ", ".join(f"{key} {value}" for key, value in machine.items()))

    def add(self, name: str, rows: Sequence[Row], note: str = "") -> None:
        """Prints a table, keeps it, and writes the file anew, so that a run that is cut short leaves what it has."""
        from rich.console import Console
        from rich.table import Table

        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        note += f"{'; ' if note else ''}this process had {cpu / wall:.2f} processors on average since it began"
        table = Table(title=name, caption=note, title_justify="left", caption_justify="left")
        columns = list(dict.fromkeys(column for row in rows for column in row))
        for column in columns:
            table.add_column(column, justify="right", overflow="fold")
        for row in rows:
            table.add_row(*(_format(row.get(column, "")) for column in columns))
        Console(width=None if sys.stdout.isatty() else 160).print(table)
        self._content["tables"][name] = {"rows": list(rows), "note": note}
        if self._output:
            Path(self._output).write_text(json.dumps(self._content, indent=2, default=str) + "\n", encoding="utf-8")


def _format(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
