"""What a base model's own record says of a prompt: the interference of its places, as its calibration measured it."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from memrl.policy.base_model import EncodedTask
from memrl.policy.model_folder import check_model_folder
from memrl.policy.questions import QUESTION_FIELDS, RECORD

_BLANK = {"prompt": "", "secret_length": None, "keyed": False}
"""What an older record leaves out."""


def read_interference(model: str, task: EncodedTask) -> float | None:
    """The interference of a prompt's places in a base model; None where the model's record does not tell.

    Args:
        model: its address.
        task: the prompt.
    """
    asked = {name: getattr(task, name) for name in QUESTION_FIELDS}
    rows = _read_prompts(Path(check_model_folder(model)) / RECORD)
    told = (row for row in rows if {name: (_BLANK | row).get(name) for name in asked} == asked)
    return next((row.get("interference") for row in told), None)


@cache
def _read_prompts(record: Path) -> list[dict[str, Any]]:
    return json.loads(record.read_text("utf-8"))["prompts"] if record.is_file() else []
