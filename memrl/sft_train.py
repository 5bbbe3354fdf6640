"""Trains one cell by supervised learning: cross-entropy on the secret itself, the baseline of every channel."""

import sys
from collections.abc import Sequence

from memrl.cli import exit_on_bad_input, parse_arguments, split_words
from memrl.config import TrainConfig
from memrl.learning.single_run import INTERRUPTED, RunOptions, SingleRun, refuse_unused

USAGE = """\
Trains one policy on its secret by cross-entropy until it has memorized it, or its budget is spent.

  python -m memrl.sft_train N=64 learning_rate=1e-4 batch_size=32 n_steps=500

Its tables go to results/runs; a run that has finished is not repeated. Ctrl-C keeps the curves so far.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the command line says.

    Args:
        argv: the words after the command's name; unset: this process's.

    Returns:
        The exit code: 0, 1 where the cell failed, 130 on Ctrl-C. Bad input ends the process with 2.
    """
    words = sys.argv[1:] if argv is None else argv
    config, options = parse_arguments(words, TrainConfig, RunOptions, defaults={"algorithm": "sft"}, usage=USAGE)
    with exit_on_bad_input():
        if config.algorithm != "sft":
            raise ValueError(
                f"algorithm must be sft (python -m memrl.rl_train trains the other), got {config.algorithm}"
            )
        refuse_unused(config, split_words(words))
        from rich.console import Console

        try:
            run = SingleRun(config, options, Console())
        except KeyboardInterrupt:
            return INTERRUPTED
    return run.train()


if __name__ == "__main__":
    raise SystemExit(main())
