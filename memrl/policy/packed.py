"""Builds the network of a pack and its adapters, by the fastest way that the base model allows."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from memrl.config import TrainConfig
from memrl.policy import decoder
from memrl.policy.adapter_pack import AdapterPack, find_linears
from memrl.policy.checkpointed import CheckpointedNetwork, needs_checkpointing
from memrl.policy.compiled_decoder import CompiledDecoderNetwork
from memrl.policy.hugging_face import HuggingFaceNetwork
from memrl.policy.kernels import load_kernels
from memrl.policy.network import PackedNetwork


def build_network(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], configs: Sequence[TrainConfig]
) -> tuple[PackedNetwork, AdapterPack]:
    """The policies of K cells over one frozen base model.

    Args:
        model: the base model; its adapters are float64 where it is, else float32.
        prompts: token ids of each cell's prompt.
        configs: one a cell.

    Raises:
        ValueError: the model has no linear layers for adapters.
    """
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    if decoder.is_supported(model):
        adapters = AdapterPack(decoder.group_linears(model), configs, dtype=dtype, device=str(model.device))
        library = load_kernels(model.dtype) if model.device.type == "cpu" else None
        if library is not None:
            return CompiledDecoderNetwork(model, prompts, adapters, library), adapters
        return decoder.DecoderNetwork(model, prompts, adapters), adapters
    linears = find_linears(model)
    check_linears(model, linears)
    groups = [{name: linear} for name, linear in linears.items()]
    adapters = AdapterPack(groups, configs, dtype=dtype, device=str(model.device))
    kind = CheckpointedNetwork if needs_checkpointing(linears.values(), prompts, configs) else HuggingFaceNetwork
    return kind(model, prompts, adapters), adapters


def check_linears(model: PreTrainedModel, linears: Mapping[str, nn.Linear]) -> None:
    """Says what of a model has no adapters: experts that share one tensor are no linear layers.

    Raises:
        ValueError: the model has no linear layers for adapters.
    """
    kind = type(model).__name__
    if not linears:
        raise ValueError(f"model must have linear layers (torch.nn.Linear) beside its head, got {kind}")
    if any(parameter.dim() == 3 and ".experts." in name for name, parameter in model.named_parameters()):
        message = f"the experts and routers of {kind} have no adapters: its {len(linears)} other linear layers learn"
        warnings.warn(message, stacklevel=2)
