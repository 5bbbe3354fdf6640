"""The engines of a sweep whose cells are sampled by vLLM: started once, shared by all trials."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memrl.config import TrainConfig
from memrl.sweep.execution import Execution

if TYPE_CHECKING:
    from memrl.rollout.actor_pool import VLLMRollout

POOL = "memrl"
"""The name under which trials find the engines."""

_MOST_LORAS = 64
"""Adapters that an engine holds at a time; a larger half of a pack is served in waves."""


def uses_engines(cells: Sequence[TrainConfig]) -> bool:
    """Whether some cell that learns from episodes is sampled by vLLM."""
    return any(cell.rollout == "vllm" and cell.algorithm == "rl" for cell in cells)


def start_engines(cells: Sequence[TrainConfig], execution: Execution) -> "VLLMRollout":
    """Starts `num_rollout_actors` engines for the cells, and waits until they can sample.

    Raises:
        ValueError: the cells use several models or dtypes, or vLLM is not installed.
    """
    from memrl.policy.base_model import check_model_folder
    from memrl.rollout.actor_pool import start_rollout_actors
    from memrl.rollout.vllm_actor import EngineOptions

    sampled = [cell for cell in cells if cell.rollout == "vllm" and cell.algorithm == "rl"]
    bases = sorted({(cell.model, cell.dtype) for cell in sampled})
    if len(bases) > 1:
        raise ValueError(f"model and dtype must be one for all cells of a sweep with rollout=vllm, got {bases}")
    options = EngineOptions(
        model=check_model_folder(sampled[0].model),
        dtype=sampled[0].dtype,
        max_loras=min(_MOST_LORAS, len(sampled)),
        max_lora_rank=max(cell.lora_rank for cell in sampled),
        tensor_parallel_size=execution.tensor_parallel_size,
        gpu_memory_utilization=execution.gpu_memory_utilization,
    )
    return start_rollout_actors(options, execution.num_rollout_actors, pool=POOL)
