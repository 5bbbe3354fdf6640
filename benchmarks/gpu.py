"""Packs over base models of real size, bf16: seconds of a LoRA-step, episodes, share of the matmul rate, memory."""

import sys
from collections.abc import Callable
from itertools import count, islice
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
    synchronize,
    time_by_turns,
)
from model_sizes import check_model_size

from memrl import cli
from memrl.config import TrainConfig
from memrl.fields import field
from memrl.sweep.grid import load_grid

USAGE = """\
Packs over a random-weight model of real size (the shape of Qwen3-0.6B) on a GPU; at a small size on the CPU. With
grid=NAME, packs of that grid's cells over its own model, which is calibrated for their prompts first.

  python benchmarks/gpu.py
  python benchmarks/gpu.py grid=llm-smoke pack_sizes=1,8,32,128,512
  python benchmarks/gpu.py device=cpu model=0.2m pack_sizes=1,8 rounds=2
  python benchmarks/gpu.py device=cpu dtype=float32 grid=llm-smoke pack_sizes=1,8 rounds=2
"""

GRIDS = Path(__file__).resolve().parents[1] / "sweeps" / "grids"

_SIZES_ON_GPU = (4096, 8192)
_SIZES_ON_CPU = (256,)
"""A CPU without bf16 instructions takes seconds for larger products."""


@chz.chz
class Gpu:
    """What is measured.

    Raises:
        ValueError: a field makes no sense; the message is one line.
    """

    device: Literal["auto", "cpu", "cuda"] = field(default="auto", doc="auto: a GPU where there is one")
    model: str | None = field(
        default=None,
        doc="a size of model_sizes.py, or with grid an address; unset: qwen3-0.6b on a GPU, 0.2m on the CPU",
    )
    grid: str = field(default="", doc="whose cells, over the model that it names; unset: distance, random weights")
    dtype: Literal["bfloat16", "float32"] = field(default="bfloat16", doc="of the base model; adapters are float32")
    pack_sizes: str = field(default="1,8,32,128", doc="cells of a pack")
    N: int = field(default=64, doc="the secret is uniform on 0 .. N-1")
    group_size: int = field(default=32, doc="episodes of an update and cell")
    lora_rank: int = field(default=8, doc="rank of the adapters")
    prompt_tokens: int = field(default=16, doc="length of the prompt")
    threads: int = field(default=2, doc="CPU threads")
    rounds: int = field(default=5, doc="turns of the pack and of the matrix multiplication")
    block_s: float = field(default=2.0, doc="seconds of a turn of the pack")
    output: str | None = field(default=None, doc="file for the numbers, as JSON")

    @chz.validate
    def _check(self) -> None:
        sizes = read_counts("pack_sizes", self.pack_sizes)
        if self.model is not None and not self.grid:
            check_model_size(self.model)
        for name in ("prompt_tokens", "threads", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.cells(max(sizes))

    def cells(self, size: int) -> list[TrainConfig]:
        """Cells of the distance channel that do not end: each has a gradient, so every update needs the same."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in ("N", "group_size", "lora_rank")}
        fields |= {"reward_type": "distance", "learning_rate": 4e-5, "n_steps": FOREVER}
        return [TrainConfig(seed=i, **fields) for i in range(size)]

    def grid_cells(self, size: int) -> list[TrainConfig]:
        """So many cells of the grid, one of each point before the next seed, that do not end."""
        endless = {"learning_rate": 4e-5, "n_steps": FOREVER, "stop_probability": 1 - 1e-9, "dtype": self.dtype}
        endless |= {"model": self.model} if self.model else {}
        points = load_grid(self.grid, GRIDS).override({"seed": [0]}).cells().values()
        return list(islice((chz.replace(cell, seed=seed, **endless) for seed in count() for cell in points), size))


def main() -> None:
    """Measures every pack and prints the table."""
    (gpu,) = cli.parse_arguments(sys.argv[1:], Gpu, usage=USAGE)
    settle(gpu.threads)
    import torch
    from bare_pack import BarePack, build_random_base

    device = gpu.device if gpu.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    machine = describe_machine(gpu.threads)
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    report = Report("packs over a model of real size", chz.asdict(gpu), machine, gpu.output)
    size = gpu.model or ("qwen3-0.6b" if device == "cuda" else "0.2m")
    if gpu.grid:
        model, build, note = build_from_grid(gpu, device)
    else:
        model = build_random_base(size, dtype=gpu.dtype, device=device)
        build = lambda cells: BarePack(model, gpu.cells(cells), gpu.prompt_tokens)  # noqa: E731 - one of two ways
        note = f"{size}, {gpu.dtype}, N={gpu.N}, groups of {gpu.group_size}, rank {gpu.lora_rank}"
        note += f", prompt of {gpu.prompt_tokens} tokens"
    rows: list[Row] = []
    for cells in read_counts("pack_sizes", gpu.pack_sizes):
        try:
            rows.append(measure_pack(gpu, model, build(cells), device))
        except torch.OutOfMemoryError:
            rows.append({"pack": cells, "ms/update": "out of memory"})
            break
        rows[-1]["episodes/s / first row's"] = rows[-1]["episodes/s"] / rows[0]["episodes/s"]
    report.add("packs", rows, note)


def build_from_grid(gpu: Gpu, device: str) -> tuple[Any, Callable[[int], Any], str]:
    """The grid's calibrated model, what makes a pack of so many of the grid's cells over it, and a line on them."""
    from memrl.learning.pack import Pack, share_base_model
    from memrl.policy.calibrator import ensure_calibrated

    asked = load_grid(gpu.grid, GRIDS).cells()
    cells = gpu.grid_cells(len(asked))
    address = ensure_calibrated(cells[0].model, cells)

    def build(size: int) -> Pack:
        return Pack([chz.replace(cell, model=address) for cell in gpu.grid_cells(size)], device=device)

    return share_base_model(address, gpu.dtype, device)[0], build, f"cells of {gpu.grid}, {address}, {gpu.dtype}"


def measure_pack(gpu: Gpu, model: Any, pack: Any, device: str) -> Row:
    """The rates and memory of a pack over a model, with torch.mm by turns."""
    import torch
    from flops import Shape, count_operations, watch_walks

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    roots = pack.policy.roots
    prompt_tokens, episodes = roots.prompt_tokens, int(roots.num_episodes.sum())

    def update() -> None:
        pack.update()
        synchronize(device)

    with watch_walks() as walks:
        walk = pack.update()
    needed = count_operations(Shape.of(model), walks[-1], pack.state.adapters.ranks).total
    lengths = prompt_tokens[walk.outcome_root] + (walk.outcome_path >= 0).sum(1)
    episode_tokens = float((lengths * walk.outcome_counts.sum(1)).sum())
    seconds, rates = [], []
    for _ in range(gpu.rounds):
        sizes = _SIZES_ON_GPU if device == "cuda" else _SIZES_ON_CPU
        rates.append(matmul_flops_per_s(gpu.dtype, device, sizes=sizes))
        seconds += time_by_turns({"pack": update}, 1, gpu.block_s, warm_up=1)["pack"]
    plain = median(seconds)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else peak_memory_gib()
    return {
        "pack": len(pack.state),
        "ms/update": spread([1e3 * s for s in seconds]),
        "ms/LoRA-step": 1e3 * plain / len(pack.state),
        "episodes/s": episodes / plain,
        "tokens/s, as episodes count them": episode_tokens / plain,
        "tokens/s, distinct": walks[-1].num_real / plain,
        "TFLOP/s": needed / plain / 1e12,
        "mm TFLOP/s": median(rates) / 1e12,
        "% of mm": spread([100 * needed / s / rate for s, rate in zip(seconds, rates, strict=True)]),
        "memory GiB": memory,
    }


if __name__ == "__main__":
    main()
