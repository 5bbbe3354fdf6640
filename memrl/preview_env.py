"""Shows what the policy reads and writes: the prompt, sampled answers, what they parse to, and their rewards.

python -m memrl.preview_env env_type=single_step N=64 num_preview_examples=5 preview_temperature=1.0
"""

import math
from collections.abc import Sequence

import chz

from memrl.cli import build, exit_on_bad_input, read_words, run_command
from memrl.config import TrainConfig
from memrl.fields import field
from memrl.policy.model_folder import check_model_folder
from memrl.task.reward import build_channel

USAGE = """
Shows the prompt, answers sampled from the base policy, what they parse to, and their rewards.

  python -m memrl.preview_env env_type=single_step N=64 num_preview_examples=5 preview_temperature=1.0
"""

_MOST_EXAMPLES = 100_000


@chz.chz
class PreviewConfig:
    """How many answers to sample, and how.

    Raises:
        ValueError: a field makes no sense; the message is one line.
    """

    num_preview_examples: int = field(default=5, doc="answers to sample")
    preview_temperature: float = field(default=1.0, doc="sampling temperature; training samples at 1")

    @chz.validate
    def _check(self) -> None:
        if not 1 <= self.num_preview_examples <= _MOST_EXAMPLES:
            raise ValueError(f"num_preview_examples must lie in 1 .. {_MOST_EXAMPLES}, got {self.num_preview_examples}")
        if not 0 < self.preview_temperature < math.inf:
            raise ValueError(f"preview_temperature must be positive and finite, got {self.preview_temperature}")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    with read_words(argv, TrainConfig, PreviewConfig, usage=USAGE) as words:
        cell, preview = build(TrainConfig, words), build(PreviewConfig, words)
        check_model_folder(cell.model)
        if cell.algorithm == "sft":
            raise ValueError("algorithm must be rl, whose episodes are previewed, got sft")
        build_channel(cell)
    from memrl.preview import show_preview

    with exit_on_bad_input():
        show_preview(cell, preview.num_preview_examples, preview.preview_temperature)
    return 0


if __name__ == "__main__":
    run_command(main)
