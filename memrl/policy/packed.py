"""Builds the network of a pack and its adapters, by the fastest way that the base model allows."""

import ctypes
import logging
import warnings
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from memrl.config import TrainConfig
from memrl.policy import llama
from memrl.policy.activations import Activations, RecomputedActivations, is_memory_short
from memrl.policy.adapter_pack import AdapterPack, ExpertProjection, check_linears, find_linears
from memrl.policy.autograd_network import AutogradNetwork
from memrl.policy.compiled_decoder import CompiledDecoderNetwork
from memrl.policy.experts import describe_projections, find_experts, leave_out_routers, list_unadapted_experts
from memrl.policy.kernels import load_kernels
from memrl.policy.network import PackedNetwork


def build_network(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int] | np.ndarray],
    configs: Sequence[TrainConfig],
    root_cell: np.ndarray | None = None,
) -> tuple[PackedNetwork, AdapterPack]:
    """The policies of K cells over one frozen base model.

    Args:
        model: the base model; its adapters are float64 where it is, else float32.
        prompts: token ids of each root's prompt.
        configs: one per cell.
        root_cell: the cell of each root, ascending, int64 (roots,); unset: one root per cell.

    Raises:
        ValueError: the model has no linear layers for adapters.
    """
    roots = np.arange(len(configs)) if root_cell is None else root_cell
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    device = str(model.device)
    library = find_library(model)
    if library is not None:
        adapters = AdapterPack(llama.list_siblings(model), configs, dtype=dtype, device=device)
        return CompiledDecoderNetwork(model, prompts, roots, adapters, library), adapters
    if model.dtype == torch.bfloat16 and model.device.type == "cpu":
        _warn_of_bfloat16()
    siblings = list_layers(model)
    adapters = AdapterPack(siblings, configs, dtype=dtype, device=device)
    layers = [layer for named in siblings for layer in named.values()]
    is_short = is_memory_short(layers, prompts, configs)
    activations = RecomputedActivations(model) if is_short else Activations()
    return AutogradNetwork(model, prompts, roots, adapters, activations), adapters


def find_library(model: PreTrainedModel) -> ctypes.CDLL | None:
    """The kernels that compute a pack over this model; None where its own forward pass does."""
    return load_kernels(model.dtype) if model.device.type == "cpu" and llama.is_supported(model) else None


@cache
def _warn_of_bfloat16() -> None:
    logging.getLogger(__name__).warning("dtype=bfloat16 is slow on a CPU: float32 trains packs many times as fast")


def list_layers(model: PreTrainedModel) -> list[dict[str, nn.Linear | ExpertProjection]]:
    """The layers of any model that adapters go on, by path, each without siblings.

    Experts come last, so that linear layers draw the start of their adapters as they would without them.

    Raises:
        ValueError: the model has no linear layers for adapters.
    """
    experts = find_experts(model)
    linears = leave_out_routers(model, find_linears(model))
    check_layers(model, linears, experts)
    projections = {name: p for module in describe_projections(experts).values() for name, p in module.items()}
    return [{name: layer} for name, layer in (linears | projections).items()]


def check_layers(model: PreTrainedModel, linears: Mapping[str, nn.Linear], experts: Mapping[str, nn.Module]) -> None:
    """Says what of a model has no adapters: routers, and experts of a kind of their own.

    Args:
        model: the base model.
        linears: the linear layers that adapters go on, by path.
        experts: the modules of experts that adapters go on, by path.

    Raises:
        ValueError: the model has no linear layers for adapters.
    """
    check_linears(model, linears)
    kind = type(model).__name__
    unadapted = list_unadapted_experts(model, experts)
    if unadapted or experts:
        left_out = "experts and routers" if unadapted else "routers"
        learning = f"{len(linears)} other linear layers" + (f" and {len(experts)} blocks of experts" if experts else "")
        warnings.warn(f"the {left_out} of {kind} have no adapters: its {learning} learn", stacklevel=3)
