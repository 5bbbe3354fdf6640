"""Episodes to memorize by distilling the posterior of the most telling guesses, beside the greedy agent itself.

uv run python benchmarks/distillation.py
uv run python benchmarks/distillation.py N=256 seeds=8
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import chz
import numpy as np
import torch

from memrl import cli
from memrl.config import TrainConfig
from memrl.fields import field
from memrl.learning.pack import Pack
from memrl.task.reward import build_channel
from memrl.theory.bayes_agent import play_greedy

USAGE = (
    "Mean episodes until P(secret) = 1/2: a policy that is told all that the greedy agent knows, and that agent itself."
)
_CHANNELS: dict[str, dict[str, Any]] = {
    "binary": {"reward_type": "binary"},
    "binned_distance, B = 8": {"reward_type": "binned_distance", "reward_bins": 8},
    "distance": {"reward_type": "distance"},
    "per_bit": {"reward_type": "per_bit", "env_type": "multi_step"},
    "bit_count": {"reward_type": "bit_count", "env_type": "multi_step"},
}


@chz.chz
class Distillation:
    """What is measured."""

    N: int = field(default=64, doc="the secret is uniform on 0 .. N-1")
    seeds: int = field(default=16, doc="secrets of each channel")
    updates_per_batch: int = field(default=32, doc="updates towards the posterior after each episode")
    learning_rate: float = field(default=3e-3, doc="Adam's")


def main(argv: Sequence[str]) -> None:
    """Prints a line per channel."""
    with cli.read_words(argv, Distillation, usage=USAGE) as words:
        job = cli.build(Distillation, words)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(f"N = {job.N}, {job.seeds} secrets, one episode per batch, {job.updates_per_batch} updates of each")
    for name, fields in _CHANNELS.items():
        shared = {"algorithm": "distill", "explore": "greedy", "updates_per_batch": job.updates_per_batch}
        cells = [
            TrainConfig(**{**shared, **fields}, N=job.N, learning_rate=job.learning_rate, n_steps=2 * job.N, seed=seed)
            for seed in range(job.seeds)
        ]
        rows = train(cells)
        to_half = play_greedy(build_channel(cells[0])).to_half
        greedy = np.mean([to_half[row["secret"]] for row in rows])
        policy = np.mean([math.inf if row["e50_censored"] else row["e50"] for row in rows])
        kept = sum(row["absorbed_bits"] for row in rows) / sum(row["observed_bits"] for row in rows)
        print(
            f"{name:24} policy {policy:6.2f}   greedy agent {greedy:6.2f}   absorbed / observed {kept:.3f}", flush=True
        )


def train(cells: Sequence[TrainConfig]) -> list[dict[str, Any]]:
    """The rows of cells that were trained in one pack."""
    pack = Pack(cells)
    while not pack.finished:
        pack.update()
    return pack.drain()[0]


if __name__ == "__main__":
    main(sys.argv[1:])
