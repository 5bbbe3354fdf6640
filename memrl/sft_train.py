"""Trains one cell by supervised learning: cross-entropy on the secret itself, the baseline of every channel."""

from collections.abc import Sequence

from memrl.cli import run_command
from memrl.train_command import train_as_told

USAGE = """\
Trains one policy on its secret by cross-entropy until it has memorized it, or its budget is spent.

  python -m memrl.sft_train N=64 learning_rate=1e-4 batch_size=32 n_steps=500

Its tables go to results/runs; a run that has finished is not repeated. One that was ended before goes on.
"""


def main(argv: Sequence[str]) -> int:
    """Trains as the command line says; returns the exit code."""
    return train_as_told(argv, "sft", USAGE)


if __name__ == "__main__":
    run_command(main)
