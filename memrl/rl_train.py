"""Trains one cell by reinforcement learning: how many episodes, and bits of each, it takes to memorize a secret."""

from collections.abc import Sequence

from memrl.cli import run_command
from memrl.train_command import train_as_told

USAGE = """\
Trains one policy by reinforcement learning until it has memorized its secret, or its budget is spent.

  python -m memrl.rl_train env_type=single_step N=64 reward_type=binary learning_rate=4e-5 lora_rank=8
  python -m memrl.rl_train env_type=single_step N=64 reward_type=binned_distance reward_bins=8 learning_rate=4e-5
  python -m memrl.rl_train env_type=multi_step N=64 reward_type=per_bit learning_rate=4e-5

Its tables go to results/runs; a run that has finished is not repeated. One that was ended before goes on.
"""


def main(argv: Sequence[str]) -> int:
    """Trains as the command line says; returns the exit code."""
    return train_as_told(argv, "rl", USAGE)


if __name__ == "__main__":
    run_command(main)
