"""Tries packs out on a Ray cluster, on nodes that are up."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import ray
from ray.exceptions import RayError

from memrl.config import TrainConfig
from memrl.errors import tell_error
from memrl.sweep.apart import do_work
from memrl.sweep.execution import Execution
from memrl.sweep.pack_cost import WORK, PackCost
from memrl.sweep.plan import Plan
from memrl.sweep.ray_session import RaySession, start_ray

_PATIENCE_S = 600.0
"""A cluster that has no place for a pack in this time has none."""


def join_cluster(execution: Execution) -> AbstractContextManager[RaySession]:
    """The cluster at the given address, while the block runs.

    Raises:
        StartError: it can't be joined.
    """
    return start_ray(execution, 0)


def try_on_cluster(packs: Sequence[Sequence[TrainConfig]], plan: Plan, seconds: float) -> list[PackCost]:
    """Trains packs as tasks, as many at once as there are places.

    Args:
        packs: the packs.
        plan: whose they are.
        seconds: how long they are trained in all, where they are one at a time.

    Raises:
        ValueError: a pack can't be trained there.
    """
    gpus = plan.resources.get("GPU", 0.0)
    task: Any = ray.remote(num_cpus=plan.num_threads, num_gpus=gpus, max_retries=0)(do_work)
    pending = [task.remote(WORK, list(pack), plan.device, plan.num_threads, seconds / len(packs)) for pack in packs]
    try:
        return ray.get(pending, timeout=_PATIENCE_S)
    except RayError as error:
        told = tell_error(error)
        raise ValueError(f"a pack must be such that it can train there, got {told[-300:]}") from None
