"""Trains one cell by reinforcement learning: how many episodes, and bits of each, it takes to memorize a secret."""

from collections.abc import Sequence

from memrl.cli import exit_on_bad_input, read_cell, run_command
from memrl.task.own_reward import check_own_reward

USAGE = """\
Trains one policy by reinforcement learning until it has memorized its secret, or its budget is spent.

  python -m memrl.rl_train env_type=single_step N=64 reward_type=binary learning_rate=4e-5 lora_rank=8
  python -m memrl.rl_train env_type=single_step N=64 reward_type=binned_distance reward_bins=8 learning_rate=4e-5
  python -m memrl.rl_train env_type=multi_step N=64 reward_type=per_bit learning_rate=4e-5

Its tables go to results/runs; a run that has finished is not repeated. One that was ended before goes on.
"""


def main(argv: Sequence[str]) -> int:
    """Trains as the command line says; returns the exit code."""
    cell, options = read_cell(argv, "rl", USAGE)
    with exit_on_bad_input():
        check_own_reward(cell)
    from memrl.train import train_cell

    return train_cell(cell, options)


if __name__ == "__main__":
    run_command(main)
