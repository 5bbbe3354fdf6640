"""memrl measures how many bits a LoRA policy absorbs per episode.

What a Python program needs of it is here, and is loaded when it is asked for; docs/api.md shows it at work.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memrl.config import TrainConfig
    from memrl.learning.pack import Pack
    from memrl.results import Results, estimate, load
    from memrl.task.standalone import Task
    from memrl.testbed import Ledger

_HOMES = {
    "Ledger": "memrl.testbed",
    "TrainConfig": "memrl.config",
    "Pack": "memrl.learning.pack",
    "Results": "memrl.results",
    "Task": "memrl.task.standalone",
    "estimate": "memrl.results",
    "load": "memrl.results",
}

__all__ = ["Ledger", "Pack", "Results", "Task", "TrainConfig", "estimate", "load"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'memrl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
