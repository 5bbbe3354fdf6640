"""Opens what a sweep or a run is logged to."""

from typing import Literal

from memrl.tables.curve_log import CurveLog

_PROJECT = "memrl"

_FORBIDDEN = r"/\#?%:"
"""Characters that wandb allows in no project's name."""


def check_project(project: str | None) -> None:
    """Refuses a name that wandb would refuse.

    Raises:
        ValueError: the name is empty, too long, or has a forbidden character.
    """
    if project is None:
        return
    if not 0 < len(project) <= 128 or set(project) & set(_FORBIDDEN):
        raise ValueError(f"wandb_project must be 1 to 128 characters without any of {_FORBIDDEN}, got {project!r}")


def open_log(log_to: Literal["wandb", "tensorboard"] | None, project: str | None, results: str) -> CurveLog | None:
    """The log that the words ask for; None where they ask for none.

    Args:
        log_to: where to.
        project: wandb's; alone, it means wandb.
        results: address of the tables, beside which files lie.

    Raises:
        StartError: wandb can't start.
    """
    if log_to == "tensorboard":
        from memrl.tables.tensorboard_log import TensorBoardLog

        return TensorBoardLog(results)
    if log_to is None and project is None:
        return None
    from memrl.tables.wandb_log import WandbLog

    return WandbLog(project or _PROJECT, results)
