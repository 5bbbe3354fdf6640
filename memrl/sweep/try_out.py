"""Where packs are tried out before a sweep: in processes here, or in tasks on a Ray cluster."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

from memrl.config import TrainConfig
from memrl.sweep.apart import run_apart
from memrl.sweep.environment import set_environment
from memrl.sweep.execution import Execution
from memrl.sweep.machine import count_local_cpus, count_local_gpus
from memrl.sweep.pack_cost import WORK, PackCost
from memrl.sweep.plan import Plan

Packs = Sequence[Sequence[TrainConfig]]


@dataclass(frozen=True)
class Machine:
    """This machine, or a cluster.

    Attributes:
        num_cpus: its CPUs.
        num_gpus: its GPUs.
        try_packs: trains packs of a plan there, for so many seconds in all where one is trained at a time; returns
            what each took.
    """

    num_cpus: float
    num_gpus: float
    try_packs: Callable[[Packs, Plan, float], list[PackCost]]


@contextmanager
def find_machine(execution: Execution) -> Iterator[Machine]:
    """What a launch would run on, while the block runs; no Ray is started here, but a cluster is joined.

    Raises:
        StartError: the cluster can't be joined.
    """
    if execution.address is None:
        yield Machine(count_local_cpus(), count_local_gpus(), _try_here)
        return
    set_environment(execution)
    # It loads Ray.
    from memrl.sweep.try_on_cluster import join_cluster, try_on_cluster

    with join_cluster(execution) as cluster:
        yield Machine(cluster.num_cpus, cluster.num_gpus, try_on_cluster)


def _try_here(packs: Packs, plan: Plan, seconds: float) -> list[PackCost]:
    # As many at once as trials would be: those share the machine, too.
    at_once = 1 if plan.device == "cuda" else min(plan.num_trials, len(packs))
    each = (plan.device, plan.num_threads, seconds * at_once / len(packs))
    inputs = ([list(pack) for pack in packs], *([value] * len(packs) for value in each))
    # Of the first ones, which wait for nobody, it is told when they were asked for.
    asked = [time.time() if number < at_once else None for number in range(len(packs))]
    try:
        return run_apart(WORK, *inputs, asked, num_processes=at_once)
    except BrokenProcessPool:
        raise ValueError("a pack must be such that it can train, got a process that ended: out of memory?") from None
