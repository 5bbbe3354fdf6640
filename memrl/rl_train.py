"""Trains one cell by reinforcement learning: how many episodes, and bits of each, it takes to memorize a secret."""

import sys
from collections.abc import Sequence

from memrl.cli import exit_on_bad_input, parse_arguments, split_words
from memrl.config import TrainConfig
from memrl.learning.single_run import INTERRUPTED, RunOptions, SingleRun, refuse_unused

USAGE = """\
Trains one policy by reinforcement learning until it has memorized its secret, or its budget is spent.

  python -m memrl.rl_train env_type=single_step N=64 reward_type=binary learning_rate=4e-5 lora_rank=8
  python -m memrl.rl_train env_type=single_step N=64 reward_type=binned_distance reward_bins=8 learning_rate=4e-5
  python -m memrl.rl_train env_type=multi_step N=64 reward_type=per_bit learning_rate=4e-5

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
    config, options = parse_arguments(words, TrainConfig, RunOptions, usage=USAGE)
    with exit_on_bad_input():
        if config.algorithm != "rl":
            raise ValueError(
                f"algorithm must be rl (python -m memrl.sft_train trains the other), got {config.algorithm}"
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
