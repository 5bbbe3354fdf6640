"""How far a cell's numbers depend on the pack that it is trained in.

A smoke grid's cells are trained in packs of several sizes, and beside neighbors that were not there before. Of each way
it prints how many cells end in the same row and curve to the bit, how many agree but for rounding, and how many have
taken another path, with the largest difference in bits. The same packs twice must agree to the bit.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

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

Curves = dict[str, np.ndarray]
"""Absorbed bits of each cell, update by update."""


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
    ways = {"the same pack again": train(cells, len(cells))}
    ways |= {f"packs of {size}": train(cells, int(size)) for size in request.sizes.split(",")}
    ways["as many neighbors more"] = train([*cells, *others], 2 * len(cells))
    print(f"{len(cells)} cells, against one pack of them all\n")
    print(f"{'':>24}  to the bit  but for rounding  another path  largest difference, bits")
    found = {}
    for way, curves in ways.items():
        found[way] = numbers = compare(together, curves)
        print(
            f"{way:>24}{numbers['same']:>12}{numbers['rounded']:>18}{numbers['forked']:>14}{numbers['largest']:>26.2g}",
            flush=True,
        )
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


def train(cells: Sequence[TrainConfig], size: int) -> Curves:
    """Trains the cells in packs of at most `size`, as a sweep forms them."""
    from memrl.learning.pack import Pack
    from memrl.sweep.packing import pack_cells

    curves: Curves = {}
    for configs in pack_cells(cells, size):
        pack = Pack(configs)
        while not pack.finished:
            pack.update()
        table = pack.drain()[1].to_pandas()
        for cell_id, rows in table.groupby("cell_id", observed=True):
            curves[str(cell_id)] = rows.sort_values("update")["absorbed_bits"].to_numpy()
    return curves


def compare(expected: Curves, found: Curves) -> dict[str, float]:
    """How many curves are the same, the same but for rounding, and others; the largest difference where both go."""
    numbers = {"same": 0, "rounded": 0, "forked": 0, "largest": 0.0}
    for cell_id, curve in expected.items():
        other = found[cell_id]
        both = min(len(curve), len(other))
        apart = float(np.abs(curve[:both] - other[:both]).max())
        is_forked = len(curve) != len(other) or apart > ROUNDING_BITS
        numbers["forked" if is_forked else "same" if apart == 0 else "rounded"] += 1
        numbers["largest"] = max(numbers["largest"], apart)
    return numbers


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
