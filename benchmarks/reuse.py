"""Episodes to memorize by SFT, by the usual objective, and by the best one with each batch used again and again.

uv run python benchmarks/reuse.py
uv run python benchmarks/reuse.py N=4096 uses=1,4

One reward per bit on the embedded model. The learning rate is chosen on some secrets, and the figure is that of others.
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
from memrl.learning.pack import Pack

USAGE = "Median episodes until P(secret) = 1/2, one reward per bit, by how often a batch is used."
_USUAL: dict[str, Any] = {"advantage": "group_centered", "group_size": 8}
_BEST: dict[str, Any] = {"advantage": "rejection", "group_size": 4, "entropy_bonus": 0.2}
_RATES_ONCE = (2e-3, 3e-3, 5e-3)
_RATES_AGAIN = (5e-4, 1e-3, 2e-3)
_SHARE = 0.9
"""A rate at which so many runs get there goes before a faster one at which fewer do."""


@chz.chz
class Reuse:
    """What is measured."""

    N: int = chz.field(default=256, doc="the secret is uniform on 0 .. N-1")
    uses: str = chz.field(default="1,2,4,8", doc="updates of each batch")
    seeds: int = chz.field(default=32, doc="secrets to choose the rate on, and as many others to report")
    n_steps: int = chz.field(default=100, doc="the most batches of a run")


def main(argv: Sequence[str]) -> None:
    """Prints a line per learner."""
    with cli.read_words(argv, Reuse, usage=USAGE) as words:
        job = cli.build(Reuse, words)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(f"per_bit, N = {job.N}, {job.seeds} secrets that did not choose the rate")
    report(job, "SFT, examples", (1e-3, 2e-3, 4e-3), {"algorithm": "sft"})
    report(job, "usual: group_centered, groups of 8", _RATES_ONCE, _USUAL)
    for uses in map(int, job.uses.split(",")):
        rates = _RATES_ONCE if uses == 1 else _RATES_AGAIN
        name = f"rejection, groups of 4, entropy bonus 0.2, each batch used {uses} x"
        report(job, name, rates, {**_BEST, "updates_per_batch": uses})


def report(job: Reuse, name: str, rates: Sequence[float], fields: dict[str, Any]) -> None:
    """Chooses the rate on the first half of the secrets, and prints the median of the other half."""
    chosen = min(rates, key=lambda rate: _rank(train(job, rate, fields, range(job.seeds))))
    episodes = train(job, chosen, fields, range(job.seeds, 2 * job.seeds))
    share = np.isfinite(episodes).mean()
    print(f"{name:72} E50 {np.median(episodes):5g}   {share:4.0%} of runs   rate {chosen:g}", flush=True)


def _rank(episodes: Sequence[float]) -> tuple[bool, float]:
    return bool(np.isfinite(episodes).mean() < _SHARE), float(np.median(episodes))


def train(job: Reuse, rate: float, fields: dict[str, Any], seeds: Sequence[int]) -> list[float]:
    """Episodes of each run until P(secret) = 1/2, inf where it never was."""
    shared = {"env_type": "multi_step", "reward_type": "per_bit", "N": job.N, "n_steps": job.n_steps}
    pack = Pack([TrainConfig(**{**shared, **fields}, learning_rate=rate, seed=seed) for seed in seeds])
    while not pack.finished:
        pack.update()
    return [math.inf if row["e50_censored"] else row["e50"] for row in pack.drain()[0]]


if __name__ == "__main__":
    main(sys.argv[1:])
