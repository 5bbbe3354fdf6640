"""How far a cell's numbers depend on the pack that it is trained in.

A smoke grid's cells are trained in packs of several sizes, and beside neighbors that were not there before. Of each way
it prints how many cells have the same curve to the bit, how many the same but for rounding, and how many have taken
another path; the largest difference in bits; and how many have another E50. The same packs twice must agree to the bit.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import chz
import numpy as np

from memrl.cli import parse_arguments
from memrl.config import TrainConfig
from memrl.fields import field

USAGE = "usage: python benchmarks/neighbors.py [seeds=4] [n_steps=200] [sizes=1,8,64] [output=FILE]"
ROUNDING_BITS = 1e-3
"""Curves that differ by less have not parted."""

CHANNELS: Sequence[Mapping[str, object]] = (
    {"algorithm": "sft"},
    {"reward_type": "binary"},
    {"reward_type": "binned_distance", "reward_bins": 8},
    {"reward_type": "distance"},
    {"env_type": "multi_step", "reward_type": "per_bit"},
    {"env_type": "multi_step", "reward_type": "bit_count"},
    {"env_type": "multi_step", "reward_type": "binary"},
)


class Cell(NamedTuple):
    """How a cell was trained.

    Attributes:
        curve: absorbed bits, update by update.
        e50: episodes to half of the secret; None: it never came so far.
    """

    curve: np.ndarray
    e50: int | None


@chz.chz
class Neighbors:
    """Which cells, and in which packs."""

    seeds: int = field(default=4, doc="seeds of each channel and N")
    n_steps: int = field(default=200, doc="most updates of a cell")
    sizes: str = field(default="1,8,64", doc="sizes of packs")
    output: str | None = field(default=None, doc="also writes the numbers as JSON to this file")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    (request,) = parse_arguments(argv, Neighbors, usage=USAGE)
    from memrl.sweep.pack_run import set_up_torch

    set_up_torch(1)
    cells, others = (list_cells(request, rate) for rate in (3e-3, 1e-2))
    together = train(cells, len(cells))
    ways = {"the same pack again": (cells, len(cells))}
    ways |= {f"packs of {size}": (cells, int(size)) for size in request.sizes.split(",")}
    ways["as many neighbors more"] = ([*cells, *others], 2 * len(cells))
    print(f"{len(cells)} cells, against one pack of them all\n")
    print(f"{'':>24}  to the bit  but for rounding  another path  largest difference, bits  another E50")
    found = {}
    for way, (trained, size) in ways.items():
        found[way] = numbers = compare(together, train(trained, size))
        widths = {"same": 12, "rounded": 18, "forked": 14, "largest": 26, "other E50": 13}
        print(f"{way:>24}" + "".join(f"{numbers[name]:>{width}.3g}" for name, width in widths.items()), flush=True)
        if request.output:
            Path(request.output).write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


def list_cells(request: Neighbors, learning_rate: float) -> list[TrainConfig]:
    """The cells of a smoke grid at a learning rate."""
    return [
        TrainConfig(N=N, seed=seed, learning_rate=learning_rate, n_steps=request.n_steps, **channel)  # pyright: ignore
        for N in (16, 64)
        for channel in CHANNELS
        for seed in range(request.seeds)
    ]


def train(cells: Sequence[TrainConfig], size: int) -> dict[str, Cell]:
    """Trains the cells in packs of at most `size`, as a sweep forms them."""
    from memrl.learning.pack import Pack
    from memrl.sweep.packing import pack_cells

    trained: dict[str, Cell] = {}
    for configs in pack_cells(cells, size):
        pack = Pack(configs)
        while not pack.finished:
            pack.update()
        ended, table = pack.drain()
        e50 = {row["cell_id"]: row["e50"] for row in ended}
        for cell_id, rows in table.to_pandas().groupby("cell_id", observed=True):
            curve = rows.sort_values("update")["absorbed_bits"].to_numpy()
            trained[str(cell_id)] = Cell(curve, e50[str(cell_id)])
    return trained


def compare(expected: Mapping[str, Cell], found: Mapping[str, Cell]) -> dict[str, float]:
    """How many curves are the same, the same but for rounding, and others; the largest difference where both go."""
    numbers = {"same": 0, "rounded": 0, "forked": 0, "largest": 0.0, "other E50": 0}
    for cell_id, (curve, e50) in expected.items():
        other = found[cell_id]
        both = min(len(curve), len(other.curve))
        apart = float(np.abs(curve[:both] - other.curve[:both]).max())
        is_forked = len(curve) != len(other.curve) or apart > ROUNDING_BITS
        numbers["forked" if is_forked else "same" if apart == 0 else "rounded"] += 1
        numbers["largest"] = max(numbers["largest"], apart)
        numbers["other E50"] += e50 != other.e50
    return numbers


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
