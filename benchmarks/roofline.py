"""How near a pack comes to the machine's matrix-multiply rate, and where the rest of its time goes."""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import fmean, median
from typing import Any, Literal

import chz
from measure import FOREVER, Report, Row, describe_machine, matmul_flops_per_s, read_counts, run_for, settle, spread

from memrl import cli
from memrl.config import TrainConfig
from memrl.fields import field

USAGE = """\
Operations that an update needs, over its time, against the matrix-multiply rate measured in the same run; then the time
by what it serves.

  python benchmarks/roofline.py
  python benchmarks/roofline.py pack_sizes=128 N=1024 threads=1 rounds=3
  python benchmarks/roofline.py pack_sizes=32 N=2 secret_length=256 group_size=8 threads=1
"""


@chz.chz
class Roofline:
    """What is measured.

    Raises:
        ValueError: a field makes no sense; the message is one line.
    """

    pack_sizes: str = field(default="1,8,32,128", doc="cells of a pack")
    N: str = field(default="64,1024", doc="secrets are uniform on 0 .. N-1")
    secret_length: int | None = field(default=None, doc="symbols of a secret; unset: it is one integer")
    group_size: int = field(default=32, doc="episodes of an update and cell")
    lora_rank: int = field(default=8, doc="rank of the adapters")
    learning_rate: float = field(default=4e-5, doc="too low to learn within the run, so that answers stay distinct")
    threads: int = field(default=2, doc="CPU threads")
    clock: Literal["wall", "cpu"] = field(default="wall", doc="cpu: for one thread on a busy machine")
    rounds: int = field(default=7, doc="turns of the pack and of the matrix multiplication")
    block_s: float = field(default=1.0, doc="seconds of a turn of the pack")
    profile_s: float = field(default=2.0, doc="seconds under the profiler; 0: none")
    output: str | None = field(default=None, doc="file for the numbers, as JSON")

    @chz.validate
    def _check(self) -> None:
        for size in read_counts("pack_sizes", self.pack_sizes):
            for N in read_counts("N", self.N):
                self.cells(size, N)
        if self.rounds < 1 or self.threads < 1:
            raise ValueError(f"rounds and threads must be at least 1, got {self.rounds} and {self.threads}")

    def cells(self, size: int, N: int) -> list[TrainConfig]:
        """Cells that do not end, of the binary channel, or of a reward per symbol of a sequence."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in ("group_size", "lora_rank", "learning_rate")}
        if self.secret_length is not None:
            fields |= {"secret_length": self.secret_length, "env_type": "multi_step", "reward_type": "per_element"}
        return [TrainConfig(N=N, seed=i, n_steps=FOREVER, stop_probability=1 - 1e-9, **fields) for i in range(size)]


def main() -> None:
    """Measures every pack and prints the tables."""
    (roofline,) = cli.parse_arguments(sys.argv[1:], Roofline, usage=USAGE)
    settle(roofline.threads)
    report = Report("roofline", chz.asdict(roofline), describe_machine(roofline.threads), roofline.output)
    rows, shares = [], []
    for N in read_counts("N", roofline.N):
        for size in read_counts("pack_sizes", roofline.pack_sizes):
            row, profile = measure_pack(roofline, size, N)
            rows.append(row)
            shares.append(profile)
    note = (
        "needed = benchmarks/flops.py's count; share of mm = needed operations per second over torch.mm's, turn by turn"
    )
    report.add("matrix-multiply rate reached", rows, note)
    if roofline.profile_s > 0:
        note = "% of the profiled time; the profiler itself slows small packs (profiled / plain)"
        report.add("where the time goes", shares, note)


def measure_pack(roofline: Roofline, size: int, N: int) -> tuple[Row, Row]:
    """The rate of one pack beside torch.mm's, by turns, and the time by category."""
    from flops import Shape, count_operations, watch_walks

    from memrl.learning.pack import Pack, share_base_model

    cells = roofline.cells(size, N)
    shape = Shape.of(share_base_model(cells[0].model, cells[0].dtype, "cpu")[0])
    pack = Pack(cells)

    def update() -> None:
        pack.update()
        pack.drain()

    with watch_walks() as walks:
        # Which cells have a gradient is chance: their number settles over some hundred updates of a cell.
        for _ in range(max(3, 256 // size)):
            update()
    counted = [count_operations(shape, fed, pack.state.adapters.ranks) for fed in walks]
    needed = {
        name: fmean(getattr(c, name) for c in counted) for name in ("total", "base", "adapters", "attention", "head")
    }
    seconds, rates = [], []
    for _ in range(roofline.rounds):
        rates.append(matmul_flops_per_s(clock=roofline.clock))
        updates, elapsed = run_for(update, roofline.block_s, clock=roofline.clock)
        seconds.append(elapsed / updates)
    shares = [100 * needed["total"] / s / rate for s, rate in zip(seconds, rates, strict=True)]
    plain = median(seconds)
    row = {"pack": size, "N": N, "ms/update": spread([1e3 * s for s in seconds]), "MFLOP needed": needed["total"] / 1e6}
    row |= {f"% {name}": 100 * needed[name] / needed["total"] for name in ("base", "adapters", "attention", "head")}
    row |= {
        "tokens computed / needed": median(fed.num_computed / fed.num_real for fed in walks),
        "GFLOP/s": needed["total"] / plain / 1e9,
        "mm GFLOP/s": median(rates) / 1e9,
        "% of mm": spread(shares),
    }
    profile = {
        "pack": size,
        "N": N,
        **(profile_updates(update, roofline.profile_s, plain) if roofline.profile_s else {}),
    }
    return row, profile


def profile_updates(update: Any, seconds: float, plain_s: float) -> Row:
    """Shares of the time by category, in percent, from torch's profiler.

    Args:
        update: one update.
        seconds: time under the profiler.
        plain_s: seconds of an update without it.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    with name_regions():
        update()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            start, count = time.perf_counter(), 0
            while not count or time.perf_counter() - start < seconds:
                with record_function(f"{_REGION}walk and learner"):
                    update()
                count += 1
            elapsed = time.perf_counter() - start
    spent: dict[str, float] = defaultdict(float)
    for event in profiler.events() or []:
        spent[classify(event)] += event.self_cpu_time_total
    total = sum(spent.values())
    shares = {f"% {name}": 100 * spent[name] / total for name in CATEGORIES}
    return {"profiled / plain": elapsed / count / plain_s, **shares}


_REGION = "memrl: "

CATEGORIES = (
    "forward",
    "backward",
    "head, loss, copies",
    "sampling",
    "rewards",
    "advantages",
    "observer",
    "recording",
    "Adam",
    "Python, numpy",
)
"""Forward and backward are the decoder's compiled passes; what torch computes outside all regions is the third."""


def classify(event: Any) -> str:
    """The category of a profiler's event, from its own name and those it was called from."""
    chain = [event.name]
    parent = event.cpu_parent
    while parent is not None:
        chain.append(parent.name)
        parent = parent.cpu_parent
    regions = [name.removeprefix(_REGION) for name in chain if name.startswith(_REGION)]
    named = next((name for name in regions if name in CATEGORIES), None)
    if named:
        return named
    return "Python, numpy" if chain[0].startswith(_REGION) else "head, loss, copies"


def list_regions() -> list[tuple[Any, str, str]]:
    """What is timed by name: owner, attribute and category."""
    import torch

    from memrl.learning import pack, update
    from memrl.policy.adapter_pack import AdapterPack
    from memrl.policy.kernels import load_kernels
    from memrl.rollout.in_process import InProcessSampler
    from memrl.theory.observer import PackObserver

    library = load_kernels(torch.float32)
    return [
        (InProcessSampler, "split", "sampling"),
        (InProcessSampler, "pick_illegal", "sampling"),
        (update, "reward_walk", "rewards"),
        (update, "judge_episodes", "advantages"),
        (update, "weigh_edges", "advantages"),
        (PackObserver, "observe", "observer"),
        (pack, "tabulate_update", "recording"),
        (pack.Pack, "drain", "recording"),
        (AdapterPack, "update", "Adam"),
        (AdapterPack, "gradient_norms", "Adam"),
        (library, "forward", "forward"),
        (library, "backward", "backward"),
    ]


@contextmanager
def name_regions() -> Iterator[None]:
    """Makes the profiler see memrl's own parts by name, while the block runs."""
    from torch.profiler import record_function

    def name(function: Any, category: str) -> Any:
        def named(*args: Any, **kwargs: Any) -> Any:
            with record_function(f"{_REGION}{category}"):
                return function(*args, **kwargs)

        return named

    with ExitStack() as stack:
        for owner, attribute, category in list_regions():
            function = getattr(owner, attribute)
            setattr(owner, attribute, name(function, category))
            stack.callback(setattr, owner, attribute, function)
        yield


if __name__ == "__main__":
    main()
