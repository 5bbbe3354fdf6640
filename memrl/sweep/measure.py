"""What packs take, and which cells can't start: found by training them, in a process of its own or on a cluster."""

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from memrl.config import TrainConfig
from memrl.errors import tell_error
from memrl.learning.pack import Pack
from memrl.sweep.pack_cost import PackCost
from memrl.sweep.pack_run import PackRun, set_up_torch, start_pack


def measure_pack(
    cells: Sequence[TrainConfig], device: str, num_threads: int, seconds: float, asked: float | None = None
) -> PackCost:
    """Trains a pack for some seconds and forgets it.

    Where engines would sample its episodes, its own weights do here: what is measured is the learner.

    Args:
        cells: the pack.
        device: where it trains.
        num_threads: CPU threads.
        seconds: how long, after its first update.
        asked: when the process was asked for, on time.time's clock; unset: now.
    """
    start = time.time() if asked is None else asked
    set_up_torch(num_threads)
    run = PackRun.start(cells, partial(start_pack, device=device))
    first = run.advance(0.0)
    start_s = time.time() - start
    problems = [str(row["error"]) for row in first.rows if row["status"] == "failed"]
    if problems or first.too_large or run.finished:
        return PackCost(start_s, problem=first.too_large or "".join(problems[:1]))
    size, begun = _measure_checkpoint(run), time.monotonic()
    last = run.advance(seconds)
    took, live = time.monotonic() - begun, (first.live + last.live) // 2
    return PackCost(
        start_s, took, last.updates - first.updates, live, _measure_memory(device), size, problem=last.too_large
    )


def find_problems(cells: Sequence[TrainConfig], device: str) -> list[str]:
    """Why cells can't start, for each one that can't by its own fault."""
    problems = []
    for cell in cells:
        try:
            Pack([cell], device=device)
        except ValueError as error:
            problems.append(tell_error(error))
    return problems


def _measure_checkpoint(run: PackRun) -> int:
    with tempfile.TemporaryDirectory() as folder:
        run.save(Path(folder))
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _measure_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
