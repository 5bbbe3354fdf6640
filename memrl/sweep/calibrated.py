"""Refuses prompts that a base model does not answer uniformly, before anything is started or paid for."""

from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from memrl.config import TrainConfig
from memrl.policy.model_folder import awaits_calibration, check_model_folder
from memrl.policy.questions import ask, read_questions
from memrl.sweep.apart import run_apart
from memrl.sweep.execution import Execution
from memrl.sweep.machine import count_local_gpus
from memrl.sweep.plan import choose_device


def check_prompts(cells: Iterable[TrainConfig], execution: Execution) -> None:
    """Refuses cells whose base model is not calibrated for their prompts.

    What the model's own record lists as calibrated is taken as told; other prompts are measured on the model, in a
    process of its own. A model that is still to be calibrated is left out; on a cluster its nodes alone can tell.

    Raises:
        ValueError: a prompt is not calibrated; the message has the command that calibrates it.
    """
    unlisted = find_unlisted(cells)
    if not unlisted or execution.address is not None:
        return
    device = choose_device(execution, count_local_gpus())
    try:
        (problems,) = run_apart("memrl.sweep.measure:find_problems", [unlisted], [device])
    except BrokenProcessPool:  # more than this machine holds, perhaps; trials say what is wrong
        return
    if problems:
        raise ValueError(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))


def find_unlisted(cells: Iterable[TrainConfig]) -> list[TrainConfig]:
    """A cell for each prompt that the record of its base model does not list as calibrated."""
    asked = {(c.model, c.dtype, ask(c)): c for c in cells if not awaits_calibration(c.model)}
    listed = {model: set(read_questions(Path(check_model_folder(model)))) for model in {model for model, _, _ in asked}}
    return [cell for (model, _, question), cell in asked.items() if question not in listed[model]]
