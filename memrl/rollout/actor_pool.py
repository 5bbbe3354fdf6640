"""The vLLM engines of a sweep: started once, outside every trial's placement group, and shared by all trials.

The launcher calls `start_rollout_actors` and keeps what it returns until the sweep ends (the engines end with it). A
trial calls `VLLMRollout.connect` and samples. `rollout_bundles` is what a trial adds to its placement group, behind
the learner's bundle.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import ray
from ray.exceptions import ActorUnschedulableError, RayActorError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from memrl.errors import StartError
from memrl.rollout.backend import SampledEpisodes, SampleRequest
from memrl.rollout.vllm_actor import EngineOptions, VLLMEngine, find_engine_device

NAMESPACE = "memrl"
"""Ray namespace of the actors, so that trials find them by name."""

COLOCATED_ENGINE_GPUS = 0.51
COLOCATED_LEARNER_GPUS = 0.49
"""Shares of a GPU in colocated mode: two engines never fit one, so each has its own and leaves room for one learner."""

_PATIENCE_S = 30.0
"""Seconds to wait for an engine to shut down before killing it."""

_LEAST_WAIT_S = 600.0
_MOST_TIMES_LONGER = 20.0
_TOKEN_S = 0.01
"""An engine's answer is waited for so long, and so many times as long as its tokens took so far, or before, as this."""

_PARTS = 10_000
"""Ray counts resources in ten-thousandths."""


@dataclass(frozen=True)
class EngineRecord:
    """Where and when an engine started.

    Attributes:
        actor: index of its actor in the pool.
        node_id: Ray's id of its node.
        node_ip: address of its node, as Ray knows it.
        gpu_ids: the node's GPUs that it uses.
        started: seconds since the epoch.
    """

    actor: int
    node_id: str
    node_ip: str
    gpu_ids: tuple[str, ...]
    started: float


class PoolStats(TypedDict):
    """What a pool has done.

    Attributes:
        engines_started: restarts included.
        engines: all of them.
        actors: of each actor an `EngineStats`, as a dict.
    """

    engines_started: int
    engines: list[EngineRecord]
    actors: list[dict[str, float]]


class EngineRoster:
    """Every engine that was ever started in a pool, restarts included, and which of them are to end."""

    def __init__(self) -> None:
        self._records: list[EngineRecord] = []
        self._running_since: dict[int, float] = {}

    def add(self, record: EngineRecord) -> None:
        """Enters a started engine."""
        self._records.append(record)
        self._running_since[record.actor] = time.monotonic()

    def condemn(self, actor: int, waited_s: float) -> bool:
        """Whether who has waited for an answer in vain is to end the engine; of several who ask, one is.

        Args:
            actor: index of the engine's actor.
            waited_s: for how long; an engine that has started meanwhile goes on.
        """
        if time.monotonic() - self._running_since.get(actor, math.inf) < waited_s:
            return False
        del self._running_since[actor]
        return True

    def records(self) -> list[EngineRecord]:
        """All engines, in the order in which they started."""
        return list(self._records)


class VLLMRolloutActor(VLLMEngine):
    """A rollout actor that enters itself in its pool's roster once its engine is built."""

    def __init__(self, options: EngineOptions, index: int, pool: str) -> None:
        super().__init__(options)
        context = ray.get_runtime_context()
        gpu_ids = tuple(context.get_accelerator_ids().get("GPU", []))
        record = EngineRecord(index, context.get_node_id(), ray.util.get_node_ip_address(), gpu_ids, time.time())
        ray.get(_find_actor(f"{pool}-roster").add.remote(record))

    def is_ready(self) -> bool:
        """True, as soon as the engine is built."""
        return True


def _name_actor(pool: str, index: int) -> str:
    return f"{pool}-rollout-{index}"


def _find_actor(name: str) -> Any:
    return ray.get_actor(name, namespace=NAMESPACE)


class VLLMRollout:
    """Samples episodes with the engines of a pool; a `RolloutBackend`.

    Args:
        actors: handles of the pool's rollout actors, or of those of them that this trial is to use, by their indices.
        roster: handle of the pool's roster.
        least_wait_s: an engine that does not answer is ended, and started again, after so many seconds and 20 times as
            many as its answer should take.
    """

    def __init__(self, actors: Mapping[int, Any], roster: Any, least_wait_s: float = _LEAST_WAIT_S) -> None:
        self.actors = list(actors.values())
        self._indices = list(actors)
        self._roster = roster
        self._least_wait_s = least_wait_s
        self._token_s = _TOKEN_S

    @classmethod
    def connect(
        cls, pool: str = "memrl", *, colocated: bool = False, least_wait_s: float = _LEAST_WAIT_S
    ) -> "VLLMRollout":
        """Finds the engines of a running pool by name, from any process of the same Ray cluster.

        Args:
            pool: the pool's name.
            colocated: take only the engine that shares this process's GPU.
            least_wait_s: as of the class.

        Raises:
            ValueError: there is no such pool, or no engine on this process's GPU.
        """
        try:
            roster = _find_actor(f"{pool}-roster")
        except ValueError:
            raise ValueError(f"pool must name running rollout actors, got {pool!r}") from None
        where = {record.actor: record for record in ray.get(roster.records.remote())}
        if colocated:
            where = {index: record for index, record in where.items() if _shares_gpu(record)}
            if not where:
                raise ValueError("colocated must be False where no engine shares the learner's GPU, got True")
        return cls({index: _find_actor(_name_actor(pool, index)) for index in sorted(where)}, roster, least_wait_s)

    def sample(self, requests: Sequence[SampleRequest]) -> list[SampledEpisodes]:
        """Samples every request, in order; blocks until all are done. Requests are split over the engines by cell.

        An engine that does not answer in time is ended; Ray starts it again, and asks it anew.
        """
        shares = split_by_cell(requests, len(self.actors))
        asked = [[requests[position] for position in share] for share in shares]
        answers = [actor.sample.remote(part) if part else None for part, actor in zip(asked, self.actors, strict=True)]
        done: dict[int, SampledEpisodes] = {}
        for place, answer in enumerate(answers):
            if answer is not None:
                done.update(zip(shares[place], self._wait_for(answer, place, _count_tokens(asked[place])), strict=True))
        return [done[position] for position in range(len(requests))]

    def _wait_for(self, answer: Any, place: int, num_tokens: int) -> list[SampledEpisodes]:
        begun = time.monotonic()
        wait_s = self._least_wait_s + _MOST_TIMES_LONGER * self._token_s * num_tokens
        while not ray.wait([answer], timeout=wait_s)[0]:
            if ray.get(self._roster.condemn.remote(self._indices[place], wait_s)):
                ray.kill(self.actors[place], no_restart=False)
        took_s = time.monotonic() - begun
        if took_s < wait_s:
            # Later answers count for half, the earlier ones for the other.
            self._token_s = (self._token_s + took_s / num_tokens) / 2
        return ray.get(answer)

    def stats(self) -> PoolStats:
        """What the pool has done, and this backend's actors."""
        records = ray.get(self._roster.records.remote())
        actors = ray.get([actor.stats.remote() for actor in self.actors])
        return {"engines_started": len(records), "engines": records, "actors": actors}

    def shut_down(self) -> None:
        """Ends the engines; the launcher's business, when no trial samples any more."""
        closing = [actor.close.remote() for actor in self.actors]
        ray.wait(closing, num_returns=len(closing), timeout=_PATIENCE_S)
        for actor in (*self.actors, self._roster):
            ray.kill(actor)
        self.actors = []


def _count_tokens(requests: Sequence[SampleRequest]) -> int:
    """The most tokens that requests can bring."""
    return sum(request.num_episodes * request.max_tokens for request in requests)


def split_by_cell(requests: Sequence[SampleRequest], num_actors: int) -> list[list[int]]:
    """Splits requests over actors: a cell's requests stay together, and actors get about as many tokens to sample each.

    Returns:
        positions in `requests` for each actor, ascending.
    """
    cells: dict[str, list[int]] = {}
    for position, request in enumerate(requests):
        cells.setdefault(request.cell_id, []).append(position)
    cost = {cell: _count_tokens([requests[position] for position in at]) for cell, at in cells.items()}
    shares: list[list[int]] = [[] for _ in range(num_actors)]
    load = [0] * num_actors
    for cell in sorted(cells, key=lambda cell: -cost[cell]):
        lightest = load.index(min(load))
        shares[lightest] += cells[cell]
        load[lightest] += cost[cell]
    return [sorted(share) for share in shares]


def start_rollout_actors(
    options: EngineOptions,
    num_rollout_actors: int = 1,
    *,
    pool: str = "memrl",
    num_cpus: float = 1.0,
    num_gpus: float | None = None,
) -> VLLMRollout:
    """Starts the engines of a sweep and waits until they can sample.

    The engines belong to the calling process: they end when it ends, or at `shut_down`. An engine whose node is lost,
    or that does not answer, is started again, and what it was sampling is sampled again.

    Args:
        options: how each engine is built.
        num_rollout_actors: number of engines.
        pool: a name, one for each sweep that runs on the cluster at a time.
        num_cpus: CPUs that Ray reserves for an engine; on a CPU also the threads that it computes with.
        num_gpus: GPUs that Ray reserves for an engine; unset: a share of one when colocated, none for an engine that
            runs on a CPU, else tensor_parallel_size.

    Raises:
        ValueError: vLLM is not installed or can't serve the model, or num_rollout_actors is not positive.
        StartError: Ray starts no process for an engine, as on a machine that is too busy.
    """
    find_engine_device()
    if num_rollout_actors < 1:
        raise ValueError(f"num_rollout_actors must be at least 1, got {num_rollout_actors}")
    gpus = count_engine_gpus(options) if num_gpus is None else num_gpus
    outside = PlacementGroupSchedulingStrategy(placement_group=None)  # pyright: ignore[reportArgumentType]
    common: dict[str, Any] = {"namespace": NAMESPACE, "scheduling_strategy": outside}
    roster: Any = ray.remote(EngineRoster).options(name=f"{pool}-roster", num_cpus=0, **common).remote()
    remote_class: Any = ray.remote(VLLMRolloutActor)
    common |= {"num_cpus": num_cpus, "num_gpus": gpus, "max_restarts": 3, "max_task_retries": 3}
    actors = [
        remote_class.options(name=_name_actor(pool, index), **common).remote(options, index, pool)
        for index in range(num_rollout_actors)
    ]
    try:
        ray.get([actor.is_ready.remote() for actor in actors])
    except RayActorError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"model must be one that vLLM can serve, got {options.model!r} ({reason})") from error
    except ActorUnschedulableError as error:
        reason = str(error).partition("\n")[0]
        raise StartError(f"vLLM's engines can't start, since Ray starts no processes for them: {reason}") from error
    return VLLMRollout(dict(enumerate(actors)), roster)


def count_engine_gpus(options: EngineOptions) -> float:
    """GPUs that Ray reserves for an engine: a share of one when colocated; none where vLLM runs on CPUs.

    Raises:
        ValueError: vLLM is not installed; or a colocated engine is to span several GPUs.
    """
    if options.colocated and options.tensor_parallel_size > 1:
        raise ValueError(f"tensor_parallel_size must be 1 when colocated, got {options.tensor_parallel_size}")
    device = find_engine_device()
    if options.colocated:
        return COLOCATED_ENGINE_GPUS
    return float(options.tensor_parallel_size) if device == "cuda" else 0.0


def rollout_bundles(engines: Sequence[EngineRecord], max_trials_per_engine: int = 8) -> list[dict[str, float]]:
    """The bundles that a trial adds to its placement group, behind its learner's: a share of every engine's node.

    An engine holds its own CPUs and GPUs for the whole sweep. A trial's bundle reserves a share of the resource
    `node:<address>` that Ray gives every node, so a trial starts only once the nodes of all its engines are there,
    and no more than `max_trials_per_engine` trials wait for an engine.

    >>> record = EngineRecord(actor=0, node_id="a", node_ip="10.0.0.7", gpu_ids=("0",), started=0.0)
    >>> rollout_bundles([record], max_trials_per_engine=4)
    [{'node:10.0.0.7': 0.25}]

    Args:
        engines: `VLLMRollout.stats()["engines"]`.
        max_trials_per_engine: most trials at a time.

    Returns:
        one bundle a node with engines.

    Raises:
        ValueError: max_trials_per_engine is out of range.
    """
    if not 1 <= max_trials_per_engine <= 1000:
        raise ValueError(f"max_trials_per_engine must lie in 1 .. 1000, got {max_trials_per_engine}")
    share = _PARTS // max_trials_per_engine / _PARTS
    return [{f"node:{address}": share} for address in dict.fromkeys(record.node_ip for record in engines)]


def colocated_bundles(engines: Sequence[EngineRecord], num_cpus: float) -> list[list[dict[str, float]]]:
    """The placement groups of trials that share their engines' GPUs: one bundle each, and one group for each node.

    A learner's share of a GPU fits any GPU that is not full. On a node, Ray gives it the GPU with the least left that
    suffices, which is one that an engine has; and a share of `node:<address>` lets no more trials onto the node than it
    has engines.

    >>> record = EngineRecord(actor=0, node_id="a", node_ip="10.0.0.7", gpu_ids=("0",), started=0.0)
    >>> colocated_bundles([record], num_cpus=1.0)
    [[{'CPU': 1.0, 'GPU': 0.49, 'node:10.0.0.7': 1.0}]]

    Args:
        engines: `VLLMRollout.stats()["engines"]`.
        num_cpus: CPUs of a trial.

    Returns:
        the bundles of a trial, node by node.
    """
    per_node: dict[str, int] = {}
    for record in engines:
        per_node[record.node_ip] = per_node.get(record.node_ip, 0) + 1
    return [
        [{"CPU": num_cpus, "GPU": COLOCATED_LEARNER_GPUS, f"node:{address}": _PARTS // count / _PARTS}]
        for address, count in per_node.items()
    ]


def _shares_gpu(record: EngineRecord) -> bool:
    context = ray.get_runtime_context()
    here = set(context.get_accelerator_ids().get("GPU", []))
    return record.node_id == context.get_node_id() and bool(here & set(record.gpu_ids))
