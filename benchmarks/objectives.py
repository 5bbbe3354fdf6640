"""Episodes to memorize under every objective, on the embedded model.

uv run python benchmarks/objectives.py
uv run python benchmarks/objectives.py N=4096 group_sizes=4,8 entropy_bonuses=0,0.2 seeds=32
"""

import math
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import chz
import numpy as np
import torch

from memrl import cli
from memrl.config import TrainConfig
from memrl.learning.pack import Pack

USAGE = "Episodes until half of the runs, and until 9 in 10, give the secret P = 1/2; each at its best learning rate."
_LEARNING_RATES = (2e-3, 3e-3, 5e-3, 7e-3)
_CHANNELS: dict[str, dict[str, Any]] = {
    "per_bit": {"env_type": "multi_step", "reward_type": "per_bit"},
    "bit_count": {"env_type": "multi_step", "reward_type": "bit_count"},
    "binary": {"reward_type": "binary"},
    "distance": {"reward_type": "distance"},
}


@chz.chz
class Comparison:
    """What is compared."""

    channel: Literal["per_bit", "bit_count", "binary", "distance"] = chz.field(default="per_bit", doc="what is told")
    N: int = chz.field(default=256, doc="the secret is uniform on 0 .. N-1")
    advantages: str = chz.field(default="group_centered,maxrl,rejection", doc="advantages")
    temperature: float = chz.field(default=1.0, doc="of exponential_weights and delightful")
    group_sizes: str = chz.field(default="4,8", doc="episodes of a group, which is an update")
    entropy_bonuses: str = chz.field(default="0,0.2", doc="entropy bonuses")
    seeds: int = chz.field(default=16, doc="secrets of each setting")
    n_steps: int = chz.field(default=150, doc="the most updates of a run")


def main(argv: Sequence[str]) -> None:
    """Prints one line per objective, group size and bonus."""
    with cli.read_words(argv, Comparison, usage=USAGE) as words:
        task = cli.build(Comparison, words)
    torch.set_num_threads(1)
    print(f"{task.channel}, N = {task.N}, {task.seeds} secrets; each at the learning rate in brackets")
    print(f"{'':50} {'half of the runs':>20} {'9 in 10':>20}")
    sizes, bonuses = map(int, task.group_sizes.split(",")), map(float, task.entropy_bonuses.split(","))
    for advantage, size, bonus in product(task.advantages.split(","), sizes, bonuses):
        runs = measure(task, advantage, size, bonus)
        name = f"{advantage}, group of {size}" + (f", entropy bonus {bonus:g}" if bonus else "")
        best = (min((np.quantile(e, share, method="higher"), rate) for rate, e in runs.items()) for share in (0.5, 0.9))
        print(f"{name:50}" + "".join(f"{f'{episodes:g} ({rate:g})':>21}" for episodes, rate in best), flush=True)


def measure(task: Comparison, advantage: str, group_size: int, entropy_bonus: float) -> dict[float, list[float]]:
    """Episodes of each run until P(secret) = 1/2, inf where it never was, by learning rate; all cells in one pack."""
    cells = [
        TrainConfig(
            **_CHANNELS[task.channel],
            N=task.N,
            advantage=advantage,  # pyright: ignore[reportArgumentType] (checked by TrainConfig)
            temperature=task.temperature,
            group_size=group_size,
            entropy_bonus=entropy_bonus,
            learning_rate=rate,
            seed=seed,
            n_steps=task.n_steps,
        )
        for rate in _LEARNING_RATES
        for seed in range(task.seeds)
    ]
    pack = Pack(cells)
    while not pack.finished:
        pack.update()
    rows, _ = pack.drain()
    reached = {row["cell_id"]: math.inf if row["e50_censored"] else row["e50"] for row in rows}
    return {rate: [reached[cell.cell_id] for cell in cells if cell.learning_rate == rate] for rate in _LEARNING_RATES}


if __name__ == "__main__":
    main(sys.argv[1:])
