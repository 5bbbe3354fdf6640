"""What vLLM's kernels for adapters would read of an adapter, on a machine that has not got the kernels.

Run it in a process of its own: it leaves vLLM's classes changed.
"""
# ruff: noqa: TID251 - it looks into vLLM, which the rest of the project only talks to

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from memrl.rollout.adapter_files import make_adapter_folder
from memrl.rollout.backend import SampleRequest
from memrl.rollout.vllm_actor import _ENVIRONMENT, EngineOptions, VLLMEngine, describe_engine

Buffers = dict[str, dict[str, np.ndarray]]
"""By vLLM's name of a layer and by buffer: (experts, rank, d_in) and (experts, d_out, rank), ranks padded."""


def read_buffers(folder: str, requests: Sequence[SampleRequest], is_mixed: bool = True) -> list[Buffers]:
    """Loads adapters on a mixture of experts by the engine's code and vLLM's, as on a GPU.

    Args:
        folder: of the model.
        requests: what brings the adapters.
        is_mixed: whether vLLM is told, as our engines tell it, that adapters have a layout of their own.

    Returns:
        the buffers of the experts, adapter by adapter.

    Raises:
        ValueError: vLLM can't load an adapter.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    llm = LLM(folder, dtype="float32", skip_tokenizer_init=True, enforce_eager=True, max_model_len=64, block_size=32)
    (model,) = llm.apply_model(lambda model: model)
    _leave_kernels_out()
    options = EngineOptions(folder, dtype="float32", max_loras=len(requests))
    manager = _start_manager(model, llm.llm_engine.vllm_config, describe_engine(options, "cuda"), is_mixed)
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    engine: Any = object.__new__(VLLMEngine)
    engine._folder, engine._serial = make_adapter_folder(), itertools.count(1)
    engine._has_experts, engine._model_type, engine._lora_class = True, model.config.model_type, LoRARequest
    engine._llm = SimpleNamespace(llm_engine=SimpleNamespace(add_lora=manager.add_adapter))
    loaded = engine.load_adapters(requests)
    engine.close()
    known = manager._adapter_manager
    for adapter in known.list_adapters().values():
        assert set(adapter.loras) <= set(known.modules), "vLLM leaves out, without a word, what it does not know"
    slots = [known.lora_index_to_id.index(request.lora_int_id) for request in loaded.values()]
    return [_read_slot(known.modules, slot) for slot in slots]


def _leave_kernels_out() -> None:
    """Lets vLLM wrap its experts on a CPU: their constructor and mapping ask for the kernels, and nothing else does."""
    from vllm.lora.layers import BaseLayerWithLoRA, FusedMoEWithLoRA  # pyright: ignore[reportMissingImports]

    def start(layer: Any, base_layer: Any) -> None:
        BaseLayerWithLoRA.__init__(layer)
        layer.base_layer, layer.moe_config = base_layer, base_layer.moe_config
        layer.tp_size, layer.tp_rank, layer.device = 1, 0, torch.device("cpu")
        layer._w13_slices, layer.enable_moe_shared_loras = 2, False

    FusedMoEWithLoRA.__init__ = start
    FusedMoEWithLoRA.set_mapping = BaseLayerWithLoRA.set_mapping


def _start_manager(model: Any, vllm_config: Any, described: dict[str, Any], is_mixed: bool) -> Any:
    from vllm.config import set_current_vllm_config  # pyright: ignore[reportMissingImports]
    from vllm.config.lora import LoRAConfig  # pyright: ignore[reportMissingImports]
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager  # pyright: ignore[reportMissingImports]

    lora_config = LoRAConfig(
        max_lora_rank=described["max_lora_rank"],
        max_loras=described["max_loras"],
        max_cpu_loras=described["max_cpu_loras"],
        enable_mixed_moe_lora_format=described["enable_mixed_moe_lora_format"] and is_mixed,
        lora_dtype=torch.float32,
    )
    with_adapters = replace(vllm_config, lora_config=lora_config)
    with set_current_vllm_config(with_adapters):
        manager = LRUCacheWorkerLoRAManager(with_adapters, torch.device("cpu"), model.embedding_modules)
        manager.create_lora_manager(model, with_adapters)
    return manager


def _read_slot(modules: dict[str, Any], slot: int) -> Buffers:
    from vllm.lora.layers import FusedMoEWithLoRA  # pyright: ignore[reportMissingImports]

    return {
        name: {
            "gate_A": module.w13_lora_a_stacked[0][slot].numpy(),
            "up_A": module.w13_lora_a_stacked[1][slot].numpy(),
            "down_A": module.w2_lora_a_stacked[0][slot].numpy(),
            "gate_B": module.w13_lora_b_stacked[0][slot].numpy(),
            "up_B": module.w13_lora_b_stacked[1][slot].numpy(),
            "down_B": module.w2_lora_b_stacked[0][slot].numpy(),
        }
        for name, module in modules.items()
        if isinstance(module, FusedMoEWithLoRA)
    }
