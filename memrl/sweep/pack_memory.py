"""How much memory the cells of a pack take on a CPU, told before their base model is loaded."""

import json
import math
from functools import lru_cache
from pathlib import Path

from memrl.config import TrainConfig
from memrl.policy.model_folder import check_model_folder
from memrl.sweep.machine import count_local_cpus, count_local_memory

_SHARE = 0.5
"""The share of a machine's memory that the activations of all trials at once may take."""

_PROMPT_TOKENS = 64
"""Of a prompt; a plain one of the embedded model's has about 10, one in chat about 40."""

_FLOAT_BYTES = 4
_GROWTH = 1.25
"""Buffers are made that much larger than what they hold, so that they need not grow again."""


def estimate_cell_bytes(cell: TrainConfig) -> float:
    """About what the forward passes of an update keep of a cell's tokens for the backward pass; 0 where nobody knows.

    An answer is taken for twice as many tokens as it has bits, and one: the most that digits and separators take.
    """
    answers = min(cell.episodes_per_update + 1, cell.num_secrets)
    tokens = cell.prompts_per_update * _PROMPT_TOKENS + answers * (2 * math.ceil(cell.secret_bits) + 1)
    return tokens * _token_bytes(cell.model)


def bound_pack_bytes(num_trials: int, num_threads: int) -> float:
    """The most memory that the cells of a trial's pack may take; a cluster's machines are taken to be like this one.

    Args:
        num_trials: trials at once, on all machines.
        num_threads: CPU threads of each.
    """
    return _SHARE * count_local_memory() / min(num_trials, max(1, count_local_cpus() // num_threads))


@lru_cache
def _token_bytes(model: str) -> float:
    """About what all layers keep of a token: inputs and outputs of their linear layers, norms and the residuals."""
    try:
        shape = json.loads((Path(check_model_folder(model)) / "config.json").read_text("utf-8"))
        layers, hidden, wide = (shape[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size"))
        return _GROWTH * _FLOAT_BYTES * layers * (9 * hidden + 4 * wide)
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0  # of a model on a hub, or of another family
