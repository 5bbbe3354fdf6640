"""What the commands `rl_train` and `sft_train` do with their words."""

from collections.abc import Sequence
from typing import Literal

from memrl.cli import exit_on_bad_input, read_cell
from memrl.task.own_reward import check_own_reward


def train_as_told(argv: Sequence[str], algorithm: Literal["rl", "sft"], usage: str) -> int:
    """Trains the cell that the command line describes.

    Args:
        argv: the words.
        algorithm: of the cell.
        usage: what `--help` prints first.

    Returns:
        the exit code.
    """
    cell, options = read_cell(argv, algorithm, usage)
    with exit_on_bad_input():
        check_own_reward(cell)
    from memrl.train import train_cell

    return train_cell(cell, options)
