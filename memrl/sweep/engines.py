"""The engines of a sweep whose cells are sampled by vLLM: started once, shared by all trials."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from memrl.config import TrainConfig
from memrl.errors import RefusedError
from memrl.rollout.actor_pool import EngineRecord, colocated_bundles, rollout_bundles, start_rollout_actors
from memrl.sweep.execution import Execution
from memrl.sweep.plan import Bundles, Plan
from memrl.sweep.rollouts import POOL, describe_engines, uses_engines


@contextmanager
def start_engines(cells: Sequence[TrainConfig], execution: Execution) -> Iterator[Sequence[EngineRecord]]:
    """Starts `num_rollout_actors` engines if the cells need any; yields where they run, once they can sample.

    Raises:
        RefusedError: vLLM can't serve the model.
        StartError: its processes can't start.
    """
    if not uses_engines(cells):
        yield ()
        return
    options = describe_engines(cells, execution)
    try:
        rollout = start_rollout_actors(options, execution.num_rollout_actors, pool=POOL)
    except ValueError as error:
        raise RefusedError(str(error)) from error
    try:
        yield rollout.stats()["engines"]
    finally:
        rollout.shut_down()


def place_trials(plan: Plan, engines: Sequence[EngineRecord], execution: Execution) -> list[Bundles]:
    """The placement groups that trials take in turn."""
    if not engines:
        return [[plan.resources]]
    if execution.colocated:
        return colocated_bundles(engines, plan.resources["CPU"])
    return [[plan.resources, *rollout_bundles(engines)]]
