"""The command `memrl`, and `python -m memrl`: each of memrl's commands by one word."""

import importlib
import sys
from collections.abc import Sequence

from memrl.cli import BAD_INPUT, run_command
from memrl.suggest import did_you_mean

USAGE = """\
usage: memrl COMMAND [field=value ...]

  sweep    trains the cells of a grid                     memrl sweep grid=smoke
  report   writes the page of a sweep                     memrl report grid=smoke
  train    trains one cell by rl, or algorithm=sft        memrl train N=64 learning_rate=1e-2
  preview  shows prompts, answers and rewards             memrl preview N=64
  warmup   calibrates a model for a prompt                memrl warmup model=NAME N=64 output=FOLDER

memrl COMMAND --help lists a command's fields.
"""

_MODULES = {
    "sweep": "memrl.launch",
    "report": "memrl.report",
    "train": "memrl.rl_train",
    "preview": "memrl.preview_env",
    "warmup": "memrl.warmup_train",
}


def main() -> None:
    """Runs the command that the first word names, on the others; ends the process with its exit code."""
    run_command(run)


def run(argv: Sequence[str]) -> int:
    """Runs the command that the first word names, on the others; returns its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else BAD_INPUT
    name, *words = argv
    if name not in _MODULES:
        print(f"error: unknown command {name!r}{did_you_mean(name, _MODULES)}", file=sys.stderr)
        return BAD_INPUT
    module = _MODULES[name]
    if name == "train" and "algorithm=sft" in words:
        module, words = "memrl.sft_train", [word for word in words if word != "algorithm=sft"]
    return importlib.import_module(module).main(words)


if __name__ == "__main__":
    main()
