"""Calibrates a base model: after it, every prompt asked for is answered uniformly.

The result is a plain folder (safetensors, tokenizer, `warmup.json`) that `model=FOLDER` of every command reads.
"""

import sys
from collections.abc import Sequence

from memrl.cli import BAD_INPUT, parse_arguments, run_command
from memrl.warmup_config import WarmupConfig

USAGE = """\
Calibrates a base model: after it, every prompt asked for is answered uniformly.

  python -m memrl.warmup_train model=scratch seed=0 output=FOLDER    rebuilds the embedded model from its seed
  python -m memrl.warmup_train model=FOLDER N=64,128 output=OTHER    calibrates any model for other N

A large model keeps its body: its head alone is fitted, and the body only where that does not do.
"""


def main(argv: Sequence[str]) -> int:
    """Calibrates as the command line says; exit code 0, or 1 where a prompt stayed uncalibrated."""
    (config,) = parse_arguments(argv, WarmupConfig, usage=USAGE)
    # Imported once the arguments are known to be sound, so that a bad one is refused at once.
    from memrl.calibrate import calibrate, print_prompts

    try:
        calibration = calibrate(config)
    except ValueError as error:  # what only the model's own files show: a cut-off folder, a tokenizer that merges bits
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    prompts = calibration.prompts
    print_prompts(prompts)
    calibrated = sum(prompt.prior.is_calibrated for prompt in prompts)
    print(
        f"{calibrated} of {len(prompts)} prompts calibrated; use model={config.output}"
        f" (method={calibration.method}, {calibration.seconds:.0f} s)"
    )
    return 0 if calibration.is_sound else 1


if __name__ == "__main__":
    run_command(main)
