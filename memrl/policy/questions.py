"""What a cell asks of its base model, and what a model's own record says it is calibrated for; loads no torch."""

import json
from pathlib import Path
from typing import Any

from memrl.config import EnvType, PromptFormat, TrainConfig

Question = tuple[int, EnvType, PromptFormat, str, str, int | None, bool]
"""What `encode_task` takes beside the tokenizer."""

QUESTION_FIELDS = ("N", "env_type", "prompt_format", "bit_separator", "prompt", "secret_length", "keyed")

RECORD = "warmup.json"
"""The file beside the weights that says what they are calibrated for, and how they were made."""

KL_LIMIT_BITS = 0.1
"""Above it log2 N is the wrong count of what is to be learned."""

MASS_LIMIT = 0.98
"""Below it malformed answers are too many."""


def ask(cell: TrainConfig) -> Question:
    """What a cell asks of its base model."""
    separator = cell.bit_separator if cell.env_type == "multi_step" else ""
    keyed = cell.num_keys is not None
    return (cell.N, cell.env_type, cell.prompt_format, separator, cell.prompt, cell.secret_length, keyed)


def read_questions(folder: Path) -> list[Question]:
    """The prompts that a model's own record lists as calibrated; none where it has no record."""
    sound = [
        row for row in read_prompts(folder) if row["kl_bits"] <= KL_LIMIT_BITS and row["well_formed_mass"] >= MASS_LIMIT
    ]
    return [tuple(row[name] for name in QUESTION_FIELDS) for row in sound]


def read_prompts(folder: Path) -> list[dict[str, Any]]:
    """The rows of a model's own record, one a prompt, with `QUESTION_FIELDS` and what was measured."""
    record = folder / RECORD
    rows = json.loads(record.read_text("utf-8"))["prompts"] if record.is_file() else []
    # An older record leaves these out.
    blank = {"prompt": "", "secret_length": None, "keyed": False}
    return [blank | row for row in rows]
