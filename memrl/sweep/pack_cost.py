"""What a pack took that was trained for some seconds."""

from dataclasses import dataclass

WORK = "memrl.sweep.measure:measure_pack"
"""What finds it; that module loads torch, which a launcher has no use for."""


@dataclass(frozen=True)
class PackCost:
    """What a pack took.

    Attributes:
        start_s: seconds until its first update was made: the base model, compiling, and in a fresh process imports.
        seconds: of the updates after it.
        updates: how many these were.
        live: cells that trained.
        memory_bytes: the most that its process held, of the GPU where it trained on one.
        checkpoint_bytes: of a checkpoint; the weights of its adapters are a third of it.
        problem: why it can't train, one line; empty: it can.
    """

    start_s: float = 0.0
    seconds: float = 0.0
    updates: int = 0
    live: int = 0
    memory_bytes: int = 0
    checkpoint_bytes: int = 0
    problem: str = ""
