"""What a base model's own record says of a prompt: the interference of its places, as its calibration measured it."""

from functools import cache
from pathlib import Path

from memrl.policy.base_model import EncodedTask
from memrl.policy.model_folder import check_model_folder
from memrl.policy.questions import QUESTION_FIELDS, read_prompts

_read_prompts = cache(read_prompts)


def read_interference(model: str, task: EncodedTask) -> float | None:
    """The interference of a prompt's places in a base model; None where the model's record does not tell.

    Args:
        model: its address.
        task: the prompt.
    """
    asked = {name: getattr(task, name) for name in QUESTION_FIELDS}
    rows = _read_prompts(Path(check_model_folder(model)))
    told = (row for row in rows if {name: row.get(name) for name in asked} == asked)
    return next((row.get("interference") for row in told), None)
