"""Which engines a sweep needs whose cells are sampled by vLLM; imports neither Ray nor vLLM."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memrl.config import TrainConfig
from memrl.rollout.vllm_actor import EngineOptions, find_engine_device
from memrl.sweep.execution import Execution

if TYPE_CHECKING:
    from memrl.rollout.actor_pool import EngineRecord

POOL = "memrl"
"""The name under which trials find the engines."""

_MOST_LORAS = 64
"""Adapters that an engine holds at a time; a larger half of a pack is served in waves."""


def uses_engines(cells: Sequence[TrainConfig]) -> bool:
    """Whether some cell that learns from episodes is sampled by vLLM."""
    return any(cell.rollout == "vllm" and cell.algorithm == "rl" for cell in cells)


def check_engines(cells: Sequence[TrainConfig], execution: Execution) -> None:
    """Refuses, before Ray starts, what no engine can be built for.

    Raises:
        ValueError: vLLM is not installed, or the cells use several models or dtypes, one that vLLM lacks, or a rank
        beyond its largest; or colocated is set without engines.
    """
    if uses_engines(cells):
        find_engine_device()
        describe_engines(cells, execution)
    elif execution.colocated:
        raise ValueError("colocated must be False without rollout=vllm, got True")


def describe_engines(cells: Sequence[TrainConfig], execution: Execution) -> EngineOptions:
    """How the engines that these cells need are built.

    Raises:
        ValueError: the cells use several models or dtypes, one that vLLM lacks, or a rank beyond its largest.
    """
    sampled = [cell for cell in cells if cell.rollout == "vllm" and cell.algorithm == "rl"]
    bases = sorted({(cell.model, cell.dtype) for cell in sampled})
    if len(bases) > 1:
        raise ValueError(f"model and dtype must be one for all cells of a sweep with rollout=vllm, got {bases}")
    # Here, and not above: a launcher without engines has no use for torch.
    from memrl.policy.base_model import bring_model

    return EngineOptions(
        model=bring_model(sampled[0].model),
        dtype=sampled[0].dtype,
        max_loras=min(_MOST_LORAS, len(sampled)),
        max_lora_rank=max(cell.lora_rank for cell in sampled),
        tensor_parallel_size=execution.tensor_parallel_size,
        gpu_memory_utilization=execution.gpu_memory_utilization,
        colocated=execution.colocated,
    )


def count_places(
    engines: "Sequence[EngineRecord]", execution: Execution, num_cpus: float, num_gpus: float
) -> tuple[float, float]:
    """The CPUs and GPUs that engines leave to trials; colocated trials have a GPU for each engine.

    Args:
        engines: the engines that run.
        execution: whether they are colocated.
        num_cpus: CPUs of the machine or the cluster.
        num_gpus: its GPUs.
    """
    if execution.colocated:
        return min(num_cpus, float(len(engines) * execution.num_threads)), float(len(engines))
    on_gpus = sum(len(record.gpu_ids) for record in engines)
    return (num_cpus, num_gpus - on_gpus) if on_gpus else (num_cpus - len(engines), num_gpus)
